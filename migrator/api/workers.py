"""``/workers/cleanup``: have what dead services left worked on by others that can reach the same storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import schemas
from migrator.api.services import binary_name, is_on
from migrator.api.wsgi import Answer, Json, Request
from migrator.backend_name import BackendName
from migrator.db import services, snapshots, volumes
from migrator.db.models import Service
from migrator.db.services import ServiceState


def cleanup(request: Request) -> Answer:
    """Tell which services are cleaned up for, and for which nobody can."""
    wanted = request.body
    down_after = request.conf.service_down_time

    def work(session: Session) -> tuple[list[ServiceState], list[ServiceState]]:
        known = services.states(session, down_after)
        host = _where(session, wanted)
        return [state for state in known if _is_meant(state, wanted, host)], known

    meant, known = request.read(work)
    cleaning, unavailable = [], []
    for state in meant:
        candidates = (state, *known)  # a service that is up does its own work
        cleaner = next((other for other in candidates if other.up and _can_clean(other.service, state.service)), None)
        if cleaner is None:
            unavailable.append(_view(state))
            continue
        if state.service.binary == services.VOLUME:
            request.backing.volume.clean_up(request.context, cleaner.service.host, state.service.host)
        cleaning.append(_view(state))
    return Answer(202, {"cleaning": cleaning, "unavailable": unavailable})


def _can_clean(cleaner: Service, left_by: Service) -> bool:
    """Tell whether a service can do what another one left: its own, or that of whoever has the same storage."""
    if cleaner.binary != left_by.binary:
        return False
    if cleaner.binary != services.VOLUME:  # any scheduler does the work of all
        return True
    return cleaner.id == left_by.id or services.can_stand_in(cleaner, left_by)


def _where(session: Session, wanted: Json) -> str | None:
    """Return the volume service of the resource that the request names, if it names one; raises NotFound."""
    id_, kind = wanted.get("resource_id"), (wanted.get("resource_type") or "").lower()
    if id_ is None:
        return None
    volume = volumes.find(session, id_) if kind in ("", "volume") else None
    if volume is None and kind in ("", "snapshot"):
        snapshot = snapshots.find(session, id_)
        volume = volumes.find(session, snapshot.volume_id) if snapshot is not None else None
    if volume is None or volume.host is None:
        raise errors.NotFound(kind=kind.capitalize() or "Resource", id=id_)
    return BackendName.parse(volume.host).service


_MEANT: Mapping[str, Callable[[ServiceState, Any], bool]] = {
    "service_id": lambda state, wanted: state.service.id == int(wanted),
    "binary": lambda state, wanted: state.service.binary == binary_name(wanted),
    "host": lambda state, wanted: is_on(state.service, wanted),
    "cluster_name": lambda state, wanted: state.service.cluster_name == wanted,
    "disabled": lambda state, wanted: state.service.disabled == schemas.as_bool(wanted),
}


def _is_meant(state: ServiceState, wanted: Json, host: str | None) -> bool:
    """Tell whether the request is about a service: by default about those that are down."""
    if state.up != schemas.as_bool(wanted.get("is_up")) or host not in (None, state.service.host):
        return False
    return all(wanted.get(key) is None or check(state, wanted[key]) for key, check in _MEANT.items())


def _view(state: ServiceState) -> Json:
    row = state.service
    return {"id": row.id, "host": row.host, "binary": row.binary, "cluster_name": row.cluster_name}
