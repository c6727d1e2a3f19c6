"""Services and their signs of life."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from oslo_db import exception as db_exc
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db.api import Database, changed, clock, now_seconds
from migrator.db.models import Service, utcnow

VOLUME = "migrator-volume"
SCHEDULER = "migrator-scheduler"


@dataclass(frozen=True)
class ServiceState:
    """A service as it is judged now, by the database's clock."""

    service: Service
    seconds_since_heartbeat: float
    up: bool


def beat(db: Database, host: str, binary: str, zone: str, cluster: str | None = None) -> str:
    """Record a sign of life of a service, registering it the first time; return its uuid."""

    def work(session: Session) -> str | None:
        where = (Service.host == host, Service.binary == binary)
        alive = {"heartbeat_at": now_seconds(), "availability_zone": zone, "cluster_name": cluster}
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
    query = sa.select(Service).order_by(Service.id)
    if host is not None:
        query = query.where(Service.host == host)
    if binary is not None:
        query = query.where(Service.binary == binary)
    services: Sequence[Service] = session.scalars(query).all()
    now = clock(session)
    return [_judge(service, now, down_after) for service in services]


def _judge(service: Service, now: float, down_after: float) -> ServiceState:
    age = max(0.0, now - service.heartbeat_at)
    return ServiceState(service, age, age <= down_after)


def volume_state(session: Session, host: str, down_after: float) -> ServiceState | None:
    """The volume service of ``host@backend``, or None if none of that name ever reported."""
    found = states(session, down_after, host=host, binary=VOLUME)
    return found[0] if found else None


def volume_states(session: Session, hosts: Sequence[str], down_after: float) -> dict[str, ServiceState]:
    """The volume services of these ``host@backend``, in one statement; a name that never reported is missing."""
    query = sa.select(Service, now_seconds()).where(Service.host.in_(hosts), Service.binary == VOLUME)
    return {service.host: _judge(service, now, down_after) for service, now in session.execute(query)}


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
