"""``/volumes``: list, show, create, update, delete."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors, policy
from migrator.api import guard, lists, schemas, types_access, versions, views
from migrator.api.lists import Filter
from migrator.api.wsgi import Answer, Json, Request
from migrator.db import attachments, listing, services, snapshots, types, volumes
from migrator.db.api import now_seconds
from migrator.db.models import Attachment, Service, Snapshot, Volume, VolumeType, utcnow

FILTERS: dict[str, Filter] = {
    "name": lists.equals(Volume.display_name),
    "display_name": lists.equals(Volume.display_name),
    "name~": Filter(lambda text: listing.contains(Volume.display_name, text), versions.LIKE_FILTERS),
    "description~": Filter(lambda text: listing.contains(Volume.display_description, text), versions.LIKE_FILTERS),
    "status": lists.equals(Volume.status),
    "status~": Filter(lambda text: listing.contains(Volume.status, text), versions.LIKE_FILTERS),
    "bootable": lists.is_true(Volume.bootable, "bootable"),
    "migration_status": Filter(
        lambda text: Volume.migration_status.is_(None) if text == "None" else Volume.migration_status == text
    ),
    "availability_zone": lists.equals(Volume.availability_zone),
    "size": lists.integer(Volume.size, "size"),
    "metadata": Filter(
        lambda text: sa.and_(
            sa.true(), *(listing.volume_metadata(*pair) for pair in lists.pairs(text, "metadata").items())
        )
    ),
    "glance_metadata": lists.json_pairs(Volume.image_metadata, "glance_metadata", versions.GLANCE_METADATA),
    "group_id": Filter(lambda text: Volume.group_id == text, versions.GROUP_FILTER),
    "created_at": lists.times(Volume.created_at, "created_at"),
    "updated_at": lists.times(sa.func.coalesce(Volume.updated_at, Volume.created_at), "updated_at"),
    "consumes_quota": Filter(
        lambda text: Volume.twin_of.is_(None) if lists.truth("consumes_quota")(text) else Volume.twin_of.is_not(None),
        versions.CONSUMES_QUOTA,
    ),
    "host": Filter(lambda text: listing.place(Volume.host, text), admin=True),
    "volume_type": Filter(listing.type_is, admin=True),
    "id": lists.admin_equals(Volume.id),
    "project_id": lists.admin_equals(Volume.project_id),
    "user_id": lists.admin_equals(Volume.user_id),
    "volume_type_id": lists.admin_equals(Volume.volume_type_id),
    "snapshot_id": lists.admin_equals(Volume.snapshot_id),
    "source_volid": lists.admin_equals(Volume.source_volid),
    "cluster_name": lists.admin_equals(Volume.cluster_name),
    "attach_status": lists.admin_equals(Volume.attach_status),
}

#: Parameters of creation that name what this service does not have, with the words for it.
_UNSUPPORTED = {
    "imageRef": "creating from an image",
    "image_id": "creating from an image",
    "backup_id": "creating from a backup",
    "consistencygroup_id": "consistency groups",
    "group_id": "groups",
}


# --- read ------------------------------------------------------------------------------------------------------------


def index(request: Request) -> Answer:
    return _list(request, detail=False)


def detail(request: Request) -> Answer:
    return _list(request, detail=True)


def _list(request: Request, detail: bool) -> Answer:
    page, rest = lists.split(request)
    everybody = lists.all_tenants(request, rest)
    with_count = request.version >= versions.COUNT and lists.flag(rest, "with_count")
    filters = lists.conditions(request, FILTERS, rest)
    scope: listing.Condition = Volume.deleted_at.is_(None)
    if everybody and ("name" in request.query or "display_name" in request.query):
        # A twin has the name of its volume, and whoever looks for a name means the volume.
        scope = sa.and_(scope, Volume.twin_of.is_(None))
    if not everybody:
        scope = sa.and_(scope, Volume.project_id == request.context.project_id, Volume.twin_of.is_(None))
    columns = volumes.SHOWN if detail else (Volume.id, Volume.display_name)

    def work(session: Session) -> tuple[list[Any], int | None]:
        found = listing.VOLUMES.fetch(session, scope, filters, page, *columns)
        count = listing.VOLUMES.count(session, scope, filters) if with_count else None
        return volumes.whole(session, found) if detail else found, count

    rows, count = request.read(work)
    shown = [
        views.volume_detail(request, row, attributes=True) if detail else views.volume_summary(request, row)
        for row in rows
    ]
    body = views.page(request, "volumes", shown, "volumes/detail" if detail else "volumes", page.limit)
    return Answer(200, body if count is None else {**body, "count": count})


def show(request: Request, volume_id: str) -> Answer:
    def work(session: Session) -> volumes.Whole:
        volume = volumes.get_whole(session, volume_id)
        guard.check_visible(request, volume.row)
        return volume

    volume = request.read(work)
    return Answer(200, {"volume": views.volume_detail(request, volume, attributes=True)})


# --- change ----------------------------------------------------------------------------------------------------------


def update(request: Request, volume_id: str) -> Answer:
    changes = request.body["volume"]
    values = names(changes)

    def work(session: Session) -> volumes.Whole:
        guard.usable(request, session, volume_id)
        if values or "metadata" in changes:
            volumes.update_where(session, volume_id, **values)
        if changes.get("metadata") is not None:
            volumes.set_metadata(session, volume_id, changes["metadata"])
        return volumes.get_whole(session, volume_id)

    volume = request.run(work)
    return Answer(200, {"volume": views.volume_detail(request, volume, attributes=False)})


def names(changes: Json) -> Json:
    """Return the columns for a name and a description in a body, under their newer or older keys."""
    values: Json = {}
    for key in ("name", "description"):
        for spelling in (f"display_{key}", key):
            if spelling in changes:
                text = changes[spelling]
                values[f"display_{key}"] = text.strip() if text is not None else None
    return values


# --- create ----------------------------------------------------------------------------------------------------------


def create(request: Request) -> Answer:
    wanted = request.body["volume"]
    _refuse_unsupported(request.body)
    if request.context.project_id is None:
        raise errors.BadRequest(reason="A volume belongs to a project, and the token names none.")
    volume_id = str(uuid.uuid4())

    def work(session: Session) -> volumes.Whole:
        origin, least = _origin(request, session, wanted)
        kind = _type(request, session, wanted, origin)
        values = {
            "availability_zone": _zone(request, session, wanted, origin),
            "size": _size(wanted, least),
            "volume_type_id": kind.id if kind else None,
            "multiattach": _multiattach(request, session, kind),
            **names(wanted),
            **_at_origin(origin),
        }
        volumes.insert(
            session,
            wanted.get("metadata"),
            id=volume_id,
            project_id=request.context.project_id,
            user_id=request.context.user_id,
            status="creating",
            attach_status="detached",
            snapshot_id=wanted.get("snapshot_id"),
            source_volid=wanted.get("source_volid"),
            **values,
        )
        return volumes.get_whole(session, volume_id)

    volume = request.run(work)
    if volume.row.host is None:
        request.backing.scheduler.create_volume(request.context, volume_id)
    else:
        request.backing.volume.create_volume(request.context, volume.row.host, volume_id)
    return Answer(202, {"volume": views.volume_detail(request, volume, attributes=False)})


def _refuse_unsupported(body: Json) -> None:
    wanted = body["volume"]
    for key, what in _UNSUPPORTED.items():
        if wanted.get(key):
            raise errors.InvalidInput(field=key, reason=f"{what} is not supported here")
    if schemas.as_bool(wanted.get("multiattach")):
        raise errors.InvalidInput(field="multiattach", reason="it is a property of the volume type; choose such a type")
    if body.get("OS-SCH-HNT:scheduler_hints"):
        raise errors.InvalidInput(field="OS-SCH-HNT:scheduler_hints", reason="hints are not supported here")
    if wanted.get("snapshot_id") and wanted.get("source_volid"):
        raise errors.InvalidInput(field="source_volid", reason="it cannot be used together with snapshot_id")


def _origin(request: Request, session: Session, wanted: Json) -> tuple[Volume | None, int | None]:
    """Return the volume whose data the new one begins with (source, or what its snapshot is of), and how many GiB."""
    if wanted.get("snapshot_id"):
        snapshot = snapshots.get(session, wanted["snapshot_id"])
        request.authorize_owner("Snapshot", snapshot.id, snapshot.project_id, snapshot.user_id)
        if snapshot.status != "available":
            raise errors.InvalidSnapshot(
                snapshot_id=snapshot.id, reason=f"status must be available; it is {snapshot.status}"
            )
        origin, size = volumes.get(session, snapshot.volume_id), snapshot.volume_size
    elif wanted.get("source_volid"):
        origin = guard.usable(request, session, wanted["source_volid"])
        size = origin.size
        if origin.status not in ("available", "in-use"):
            raise errors.InvalidVolume(
                volume_id=origin.id, reason=f"status must be available or in-use; it is {origin.status}"
            )
        if guard.is_moving(origin):  # it may be gone from its pool before the copy is made
            raise errors.InvalidVolume(volume_id=origin.id, reason=f"migration {origin.migration_id} is moving it")
    else:
        return None, None
    if origin.host is None:
        raise errors.InvalidVolume(volume_id=origin.id, reason="it is on no backend")
    if services.is_frozen(session, origin.host):
        raise errors.InvalidVolume(volume_id=origin.id, reason="its backend is frozen and takes no new volumes")
    return origin, size


def _at_origin(origin: Volume | None) -> dict[str, Any]:
    """Return the columns of the place of a copy: beside what it is copied from, since backends copy within a pool."""
    if origin is None:
        return {}
    return {
        "host": origin.host,
        "service_uuid": origin.service_uuid,
        "cluster_name": origin.cluster_name,
        "placed_at": now_seconds(),
    }


def _size(wanted: Json, least: int | None) -> int:
    """Return the size in GiB; ``least`` is that of what is copied."""
    if wanted.get("size") is None:
        if least is None:
            raise errors.InvalidInput(field="size", reason="it is required without snapshot_id or source_volid")
        return least
    size = int(wanted["size"])
    if least is not None and size < least:
        raise errors.InvalidInput(field="size", reason=f"{size} GiB is less than the {least} GiB to be copied")
    return size


def _type(request: Request, session: Session, wanted: Json, origin: Volume | None) -> VolumeType | None:
    """Return the type asked for, else that of the origin, else the default one."""
    if wanted.get("volume_type"):
        return find_type(request, session, wanted["volume_type"])
    if origin is not None:
        return types.get(session, origin.volume_type_id) if origin.volume_type_id else None
    default = request.conf.default_volume_type
    if default is None:
        return None
    found = types.find_by_name(session, default)
    if found is None:
        raise errors.InvalidInput(field="volume_type", reason=f"the default type {default!r} does not exist")
    return found


def find_type(request: Request, session: Session, text: str) -> VolumeType:
    """Return the type with that id or name which the caller may use; raises NotFound."""
    kind = types.get_by_name_or_id(session, text)
    types_access.check_visible(request, session, kind, text)
    return kind


def _multiattach(request: Request, session: Session, kind: VolumeType | None) -> bool:
    """Tell whether the type makes volumes that several servers may have; raises Forbidden by its own rule."""
    wanted = kind is not None and types.is_multiattach(session, kind.id)
    if wanted:
        request.authorize(policy.MULTIATTACH, request.context.project_id, request.context.user_id)
    return wanted


def _zone(request: Request, session: Session, wanted: Json, origin: Volume | None) -> str:
    default = str(request.conf.storage_availability_zone)
    zone: str | None = wanted.get("availability_zone")
    if origin is not None:
        if zone is not None and zone != origin.availability_zone:
            raise errors.InvalidInput(
                field="availability_zone", reason=f"what is copied is in zone {origin.availability_zone}, not {zone}"
            )
        return origin.availability_zone
    if zone is None or zone == default:
        return default
    known = sa.select(Service.id).where(Service.binary == services.VOLUME, Service.availability_zone == zone).limit(1)
    if session.scalar(known) is None:
        raise errors.InvalidInput(field="availability_zone", reason=f"there is no zone {zone!r}")
    return zone


# --- delete ----------------------------------------------------------------------------------------------------------

#: Statuses of snapshots that go with their volume (cascade), beside those that begin with "error".
_DELETABLE_SNAPSHOTS = ("available", "deleting")


def delete(request: Request, volume_id: str) -> Answer:
    rest = request.query
    cascade = lists.flag(rest, "cascade")
    force = request.version >= versions.FORCE_DELETE and lists.flag(rest, "force")
    return _delete(request, volume_id, cascade=cascade, force=policy.FORCE_DELETE if force else None)


def force_delete(request: Request, volume_id: str) -> Answer:
    """Delete a volume whatever its status (os-force_delete); never with its snapshots."""
    return _delete(request, volume_id, cascade=False, force=request.rule)


def _delete(request: Request, volume_id: str, *, cascade: bool, force: str | None) -> Answer:
    """Delete a volume; ``force`` is the rule by which the caller may do so whatever the volume's status."""

    def work(session: Session) -> tuple[str | None, Any]:
        volume = guard.usable(request, session, volume_id)
        if force is not None:
            request.authorize(force, volume.project_id, volume.user_id)
        _refuse_delete(session, volume, cascade, force is not None)
        expected = [sa.not_(has_servers() if force else volumes.has_attachments()), Volume.group_id.is_(None)]
        on_backend = volume.host is not None
        dead = {"status": "deleting"} if on_backend else {"status": "deleted", "deleted_at": utcnow()}
        if cascade:
            snapshots.update_of_volume(session, volume_id, **dead)
        else:
            expected.append(sa.not_(volumes.has_snapshots()))
        migration = guard.take(session, volume, *expected, **dead)
        if force is not None:
            volumes.detach_all(session, volume_id)
        return volume.host, migration

    host, migration = guard.run(request, volume_id, work)
    guard.nudge(request, migration)
    if host is not None:
        request.backing.volume.delete_volume(request.context, host, volume_id)
    return Answer(202)


def has_servers() -> sa.ColumnElement[bool]:
    """SQL: a server has the volume connected, or is about to; a mere reservation does not count."""
    return (
        sa.select(Attachment.id)
        .where(
            Attachment.volume_id == Volume.id,
            Attachment.deleted_at.is_(None),
            Attachment.attach_status != attachments.RESERVED,
        )
        .correlate(Volume)
        .exists()
    )


def _has_busy_snapshots() -> sa.ColumnElement[bool]:
    """SQL: a snapshot of the volume is being made or used, and cannot go with it."""
    return (
        sa.select(Snapshot.id)
        .where(
            Snapshot.volume_id == Volume.id,
            Snapshot.deleted_at.is_(None),
            Snapshot.status.not_in(_DELETABLE_SNAPSHOTS),
            sa.not_(Snapshot.status.startswith("error")),
        )
        .correlate(Volume)
        .exists()
    )


def _refuse_delete(session: Session, volume: Volume, cascade: bool, force: bool) -> None:
    """Raise InvalidVolume with the one reason against deleting the volume."""
    guard.refuse_locked(volume, unless_idle=force)
    attached = has_servers() if force else volumes.has_attachments()
    query = sa.select(attached, volumes.has_snapshots(), _has_busy_snapshots()).where(Volume.id == volume.id)
    attached_now, has_snapshots, busy = session.execute(query).one()
    reasons = {
        "it is attached": attached_now,
        "it has snapshots; delete them first, or together with it (cascade)": has_snapshots and not cascade,
        "one of its snapshots is neither available nor in error": busy and cascade and not force,
        f"it belongs to group {volume.group_id}": volume.group_id is not None,
        f"status must be available or error; it is {volume.status}": not force
        and volume.status != "available"
        and not volume.status.startswith("error"),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise errors.InvalidVolume(volume_id=volume.id, reason=reason)
