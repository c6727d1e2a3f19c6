"""Services and their signs of life."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from oslo_db import exception as db_exc
from sqlalchemy.orm import Session

from migrator import errors
from migrator.backend_name import BackendName
from migrator.db.api import Database, changed, execute, now_seconds
from migrator.db.models import Service, utcnow

VOLUME = "migrator-volume"
SCHEDULER = "migrator-scheduler"


@dataclass(frozen=True)
class ServiceState:
    """A service as it is judged now, by the database's clock."""

    service: Service
    seconds_since_heartbeat: float
    up: bool


def beat(
    db: Database, host: str, binary: str, zone: str, cluster: str | None = None, reaches: Sequence[str] = ()
) -> str:
    """Record a sign of life of a service, registering it the first time; return its uuid.

    ``reaches``: volume services (host@backend) beyond its cluster whose storage it has under the same pool names.
    """

    def work(session: Session) -> str | None:
        where = (Service.host == host, Service.binary == binary)
        alive = {
            "heartbeat_at": now_seconds(),
            "availability_zone": zone,
            "cluster_name": cluster,
            "reaches": list(reaches),
        }
        if not changed(session.execute(sa.update(Service).where(*where).values(**alive))):
            session.execute(
                sa.insert(Service).values(
                    uuid=str(uuid.uuid4()),
                    host=host,
                    binary=binary,
                    topic=binary,
                    disabled=False,
                    frozen=False,
                    created_at=utcnow(),
                    **alive,
                )
            )
        return session.scalar(sa.select(Service.uuid).where(*where))

    try:
        return str(db.run(work))
    except db_exc.DBDuplicateEntry:  # two processes of one service registered it at once
        return str(db.run(work))


def states(
    session: Session, down_after: float, *, host: str | None = None, binary: str | None = None
) -> list[ServiceState]:
    """Every service that matches, oldest first, with its verdict; ``down_after`` in seconds."""
    query = sa.select(Service, now_seconds()).order_by(Service.id)
    if host is not None:
        query = query.where(Service.host == host)
    if binary is not None:
        query = query.where(Service.binary == binary)
    return [_judge(service, now, down_after) for service, now in session.execute(query)]


def _judge(service: Service, now: float, down_after: float) -> ServiceState:
    age = max(0.0, now - service.heartbeat_at)
    return ServiceState(service, age, age <= down_after)


# Asked for each choice of a pool and each switch, so built once (see db/api.execute).
_SERVICES: sa.Table = Service.__table__  # type: ignore[assignment]
_GLANCES = sa.select(
    *(_SERVICES.c[name] for name in ("host", "disabled", "disabled_reason", "frozen", "heartbeat_at")),
    now_seconds().label("now"),
).where(_SERVICES.c.binary == VOLUME)
_PLACE = sa.select(_SERVICES.c.availability_zone, _SERVICES.c.uuid, _SERVICES.c.cluster_name).where(
    _SERVICES.c.host == sa.bindparam("the_host"), _SERVICES.c.binary == VOLUME
)


def glances(session: Session) -> Sequence[sa.Row[Any]]:
    """Every volume service as a choice sees it: host, disabled, disabled_reason, frozen, heartbeat_at, and now."""
    return execute(session, _GLANCES).all()


def place(session: Session, pool: str) -> dict[str, Any]:
    """Columns of a volume that lies in ``host@backend#pool``: whose it is (LP1747949); raises NotFound."""
    found = execute(session, _PLACE, the_host=pool.rpartition("#")[0]).one_or_none()
    if found is None:
        raise errors.NotFound(kind="Service", id=pool)
    zone, service_uuid, cluster = found
    return {"host": pool, "availability_zone": zone, "service_uuid": service_uuid, "cluster_name": cluster}


def volume_state(session: Session, host: str, down_after: float) -> ServiceState | None:
    """The volume service of ``host@backend``, or None if none of that name ever reported."""
    found = states(session, down_after, host=host, binary=VOLUME)
    return found[0] if found else None


def volume_states(session: Session, hosts: Sequence[str], down_after: float) -> dict[str, ServiceState]:
    """The volume services of these ``host@backend``, in one statement; a name that never reported is missing."""
    found = session.execute(_NAMED, {"hosts": list(hosts)})
    return {service.host: _judge(service, now, down_after) for service, now in found}


_NAMED = sa.select(Service, now_seconds()).where(
    Service.host.in_(sa.bindparam("hosts", expanding=True)), Service.binary == VOLUME
)


def can_stand_in(one: Service, other: Service) -> bool:
    """Tell whether a volume service has the storage of another one: by its cluster, or because it was told so."""
    if one.id == other.id or {one.binary, other.binary} != {VOLUME}:
        return False
    together = one.cluster_name is not None and one.cluster_name == other.cluster_name
    return other.host in (one.reaches or ()) or (together and _backend(one.host) == _backend(other.host))


def _backend(host: str) -> str | None:
    return BackendName.parse(host).backend


def stand_ins(session: Session, host: str, down_after: float) -> list[str]:
    """Volume services that are up and can work on the migrations of the volume service ``host``."""
    every = states(session, down_after, binary=VOLUME)
    away = next((state.service for state in every if state.service.host == host), None)
    if away is None:
        return []
    return [state.service.host for state in every if state.up and can_stand_in(state.service, away)]


def stands_in_for(session: Session, host: str, down_after: float) -> list[str]:
    """Volume services that are down and whose migrations the volume service ``host`` can work on."""
    every = states(session, down_after, binary=VOLUME)
    ours = next((state.service for state in every if state.service.host == host), None)
    if ours is None:
        return []
    return [state.service.host for state in every if not state.up and can_stand_in(ours, state.service)]


def set_disabled(session: Session, host: str, binary: str, disabled: bool, reason: str | None) -> Service:
    """Disable or enable a service; raises NotFound."""
    session.execute(
        sa.update(Service)
        .where(Service.host == host, Service.binary == binary)
        .values(disabled=disabled, disabled_reason=reason if disabled else None, updated_at=utcnow())
    )
    service = session.scalar(sa.select(Service).where(Service.host == host, Service.binary == binary))
    if service is None:
        raise errors.NotFound(kind="Service", id=f"{binary} on {host}")
    return service


def set_frozen(session: Session, host: str, frozen: bool) -> None:
    """Freeze or thaw the backend of a volume service; raises NotFound."""
    result = session.execute(
        sa.update(Service)
        .where(Service.host == host, Service.binary == VOLUME)
        .values(frozen=frozen, updated_at=utcnow())
        .execution_options(synchronize_session=False)
    )
    if changed(result) != 1:
        raise errors.NotFound(kind="Service", id=f"{VOLUME} on {host}")


def is_frozen(session: Session, host: str) -> bool:
    """Tell whether the backend of a pool ``host@backend#pool`` is frozen."""
    query = sa.select(Service.frozen).where(Service.host == host.partition("#")[0], Service.binary == VOLUME)
    return bool(session.scalar(query))
