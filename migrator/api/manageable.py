"""``/manageable_volumes``, ``/os-volume-manage`` and os-unmanage: what lies on a backend already, and giving it up."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import guard, lists, schemas, versions, views
from migrator.api.volumes import find_type, names
from migrator.api.wsgi import Answer, Json, Request
from migrator.backend_name import BackendName, MalformedBackendName
from migrator.db import services, types, volumes
from migrator.db.listing import Page
from migrator.db.models import Service, Volume, VolumeType
from migrator.db.services import ServiceState

_SORT = {"size": lambda entry: entry["size"], "reference": lambda entry: str(entry["reference"])}

# --- list ------------------------------------------------------------------------------------------------------------


def index(request: Request) -> Answer:
    return Answer(200, {"manageable-volumes": [view(entry, detail=False) for entry in listed(request)]})


def detail(request: Request) -> Answer:
    return Answer(200, {"manageable-volumes": [view(entry, detail=True) for entry in listed(request)]})


def listed(request: Request, keep: Callable[[Json], bool] = lambda entry: True) -> list[Json]:
    """Return the page of what lies in the place that the query names, of that which ``keep`` lets pass."""
    query = request.query
    if not {"sort", "sort_key"} & set(query):
        query["sort"] = "reference:asc"
    page, rest = lists.split_query(request, query)
    place = find_place(request, rest.pop("host", None), rest.pop("cluster", None))
    if rest:
        raise errors.InvalidInput(field="query", reason=f"{next(iter(rest))[:40]!r} is not known here")
    found = request.backing.volume.manageable(request.context, str(place))
    return _page([entry for entry in found if keep(entry)], page)


def _page(entries: list[Json], page: Page) -> list[Json]:
    """Sort and cut: there is no table that could do it."""
    for key, descending in reversed(page.sort):
        if key not in _SORT:
            raise errors.InvalidInput(field="sort", reason=f"{key[:40]!r} is not one of: {', '.join(_SORT)}")
        entries = sorted(entries, key=_SORT[key], reverse=descending)
    if page.marker is not None:
        marker = lists.pairs(page.marker, "marker")
        at = next((index for index, entry in enumerate(entries) if entry["reference"] == marker), None)
        if at is None:
            raise errors.InvalidInput(field="marker", reason=f"there is no {page.marker[:80]}")
        entries = entries[at + 1 :]
    return entries[page.offset :][: page.limit]


def view(entry: Json, *, detail: bool, whose: str = "volume_id") -> Json:
    """Something that lies in a pool as lists show it; ``whose``: the key of what it is already, if it is ours."""
    shown: Json = {
        "reference": entry["reference"],
        "size": entry["size"],
        "safe_to_manage": entry["reason"] is None,
    }
    if detail:
        shown |= {
            "reason_not_safe": entry["reason"],
            "cinder_id": entry[whose],
            "extra_info": f"in pool {entry['pool']}, source-id {entry['id']}, {entry['extra_info']}",
        }
    return shown


def find_place(request: Request, host: str | None, cluster: str | None) -> BackendName:
    """Return the backend or pool that a request means by host or, from 3.17, cluster; raises InvalidInput."""
    if request.version < versions.MANAGEABLE_CLUSTER:
        cluster = None
    if (host is None) == (cluster is None):
        raise errors.InvalidInput(field="host", reason="it is required, or a cluster in its place (3.17)")
    named = _in_cluster(request, cluster) if cluster is not None else _parse(host or "")
    state = _serving(request, named)
    if not state.up:
        raise errors.InvalidHost(host=str(named), reason="its volume service is down")
    return named


def _parse(host: str) -> BackendName:
    try:
        return BackendName.parse(host)
    except MalformedBackendName as error:
        raise errors.InvalidInput(field="host", reason=str(error)) from error


def _in_cluster(request: Request, cluster: str) -> BackendName:
    """Return the place that a cluster's name, with or without a pool, means: in a backend of it that is up."""
    name, _, pool = cluster.partition("#")
    found = request.read(
        lambda session: [
            state
            for state in services.states(session, request.conf.service_down_time, binary=services.VOLUME)
            if state.up and state.service.cluster_name == name
        ]
    )
    if not found:
        raise errors.NotFound(kind="Cluster", id=f"{name}, or a service of it that is up,")
    place = BackendName.parse(found[0].service.host)
    return place.with_pool(pool) if pool else place


def _serving(request: Request, place: BackendName) -> ServiceState:
    down_after = request.conf.service_down_time
    state = request.read(lambda session: services.volume_state(session, place.service, down_after))
    if state is None:
        raise errors.NotFound(kind="Host", id=str(place))
    return state


# --- manage ----------------------------------------------------------------------------------------------------------


def create(request: Request) -> Answer:
    """Look at what is referred to before anything is promised; then it is taken over by its backend's service."""
    wanted = request.body["volume"]
    if request.context.project_id is None:
        raise errors.BadRequest(reason="A volume belongs to a project, and the token names none.")
    place = find_place(request, wanted.get("host"), wanted.get("cluster"))
    service = taking(request, place, wanted.get("availability_zone"))
    kind = _type(request, place, wanted.get("volume_type"))
    found = look_at(request, str(place), wanted["ref"])
    volume_id = str(uuid.uuid4())

    def work(session: Session) -> volumes.Whole:
        volumes.insert(
            session,
            wanted.get("metadata"),
            id=volume_id,
            project_id=request.context.project_id,
            user_id=request.context.user_id,
            status="managing",
            attach_status="detached",
            size=found["size"],
            bootable=schemas.as_bool(wanted.get("bootable")),
            multiattach=kind is not None and types.is_multiattach(session, kind.id),
            volume_type_id=kind.id if kind else None,
            host=str(place),
            availability_zone=service.availability_zone,
            service_uuid=service.uuid,
            cluster_name=service.cluster_name,
            adoption=found["reference"],
            **names(wanted),
        )
        return volumes.get_whole(session, volume_id)

    volume = request.run(work)
    request.backing.volume.manage_volume(request.context, str(place), volume_id)
    return Answer(202, {"volume": views.volume_detail(request, volume, attributes=False)})


def look_at(request: Request, host: str, reference: Json) -> Json:
    """Ask the backend what a reference refers to; raises InvalidInput for what cannot be managed."""
    found = request.backing.volume.find_manageable(request.context, host, reference)
    if found["reason"] is not None:
        raise errors.InvalidInput(field="ref", reason=f"it cannot be managed: {found['reason']}")
    return found


def taking(request: Request, place: BackendName, zone: str | None = None) -> Service:
    """Return the service of a pool that takes what is new; raises InvalidHost and InvalidInput."""
    service = _serving(request, place).service
    reason = None
    if place.pool is None:
        reason = "name the pool too: host@backend#pool"
    elif service.disabled:
        reason = f"its service is disabled ({service.disabled_reason or 'no reason was given'})"
    elif service.frozen:
        reason = "its backend is frozen and takes no new volumes"
    elif zone not in (None, service.availability_zone):
        raise errors.InvalidInput(field="availability_zone", reason=f"{place} is in zone {service.availability_zone}")
    if reason is not None:
        raise errors.InvalidHost(host=str(place), reason=reason)
    return service


def _type(request: Request, place: BackendName, named: str | None) -> VolumeType | None:
    """Return the type asked for; raises NotFound, and InvalidHost for a pool without what the type asks for."""
    if not named:
        return None

    kind = request.read(lambda session: find_type(request, session, named))
    if kind.extra_specs:
        fitting = request.backing.scheduler.get_pools(request.context, False, kind.id)
        if str(place) not in {pool["name"] for pool in fitting}:
            raise errors.InvalidHost(host=str(place), reason=f"it does not offer what type {kind.name} asks for")
    return kind


# --- unmanage --------------------------------------------------------------------------------------------------------


def unmanage(request: Request, volume_id: str) -> Answer:
    def work(session: Session) -> str:
        volume = guard.usable(request, session, volume_id)
        _refuse_unmanage(session, volume)
        expected = (sa.not_(volumes.has_attachments()), sa.not_(volumes.has_snapshots()), volumes.is_at_rest())
        guard.take(session, volume, *expected, status="unmanaging")
        return str(volume.host)

    host = guard.run(request, volume_id, work)
    request.backing.volume.unmanage_volume(request.context, host, volume_id)
    return Answer(202)


def _refuse_unmanage(session: Session, volume: Volume) -> None:
    """Raise InvalidVolume with the one reason against giving the volume up."""
    guard.refuse_locked(volume)
    query = sa.select(volumes.has_attachments(), volumes.has_snapshots()).where(Volume.id == volume.id)
    attached, has_snapshots = session.execute(query).one()
    reasons: list[tuple[Any, str]] = [
        (attached, "it is attached"),
        (has_snapshots, "it has snapshots; delete them first"),
        (volume.group_id is not None, f"it belongs to group {volume.group_id}"),
        (volume.encryption_key_id is not None, "it is encrypted, and nobody else has its key"),
        (guard.is_moving(volume), f"migration {volume.migration_id} is moving it"),
        (volume.host is None, "it is on no backend"),
        (
            volume.status != "available" and not volume.status.startswith("error"),
            f"status must be available or error; it is {volume.status}",
        ),
    ]
    for against, reason in reasons:
        if against:
            raise errors.InvalidVolume(volume_id=volume.id, reason=reason)
