"""Clusters: volume services that serve the same backends, told by the name that each of them gives.

There is no row of a cluster.  It is disabled when each of its services is, and up when one of them is.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import services
from migrator.db.models import Service, utcnow
from migrator.db.services import ServiceState


@dataclass(frozen=True)
class Cluster:
    """The services of one name and binary."""

    name: str
    binary: str
    members: tuple[ServiceState, ...]

    @property
    def up(self) -> bool:
        return any(member.up for member in self.members)

    @property
    def down_members(self) -> int:
        return sum(not member.up for member in self.members)

    @property
    def disabled(self) -> bool:
        return all(member.service.disabled for member in self.members)

    @property
    def disabled_reason(self) -> str | None:
        return next((reason for m in self.members if (reason := m.service.disabled_reason)), None)

    @property
    def frozen(self) -> bool:
        return all(member.service.frozen for member in self.members)

    @property
    def heartbeat_at(self) -> float:
        """The last sign of life of any service, epoch seconds."""
        return max(member.service.heartbeat_at for member in self.members)

    @property
    def created_at(self) -> datetime.datetime:
        return min(member.service.created_at for member in self.members)

    @property
    def updated_at(self) -> datetime.datetime | None:
        return max((at for m in self.members if (at := m.service.updated_at)), default=None)


def every(session: Session, down_after: float) -> list[Cluster]:
    """Every cluster, by name; ``down_after`` in seconds."""
    found: dict[tuple[str, str], list[ServiceState]] = {}
    for state in services.states(session, down_after):
        if state.service.cluster_name is not None:
            found.setdefault((state.service.cluster_name, state.service.binary), []).append(state)
    return [Cluster(name, binary, tuple(members)) for (name, binary), members in sorted(found.items())]


def get(session: Session, down_after: float, name: str, binary: str) -> Cluster:
    """The cluster of that name and binary; raises NotFound."""
    for cluster in every(session, down_after):
        if (cluster.name, cluster.binary) == (name, binary):
            return cluster
    raise errors.NotFound(kind="Cluster", id=name)


def set_disabled(session: Session, name: str, binary: str, disabled: bool, reason: str | None) -> None:
    """Disable or enable each service of a cluster."""
    session.execute(
        sa.update(Service)
        .where(Service.cluster_name == name, Service.binary == binary)
        .values(disabled=disabled, disabled_reason=reason if disabled else None, updated_at=utcnow())
        .execution_options(synchronize_session=False)
    )
