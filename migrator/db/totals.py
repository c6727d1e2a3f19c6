"""Sums over volumes and snapshots: of a list, of a project, of a host.  A twin is never counted (LP1917450)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator.db.models import Snapshot, Volume, VolumeMetadata

Condition = sa.ColumnElement[bool]

#: What counts as a volume.
COUNTED = sa.and_(Volume.deleted_at.is_(None), Volume.twin_of.is_(None))


@dataclass
class Totals:
    """Numbers of volumes and snapshots, and their sizes in GiB."""

    volumes: int = 0
    volume_gib: int = 0
    snapshots: int = 0
    snapshot_gib: int = 0


def of_volumes(session: Session, *where: Condition) -> Totals:
    """Sum up the volumes for which every condition holds."""
    query = sa.select(sa.func.count(), sa.func.sum(Volume.size)).where(COUNTED, *where)
    count, size = session.execute(query).one()
    return Totals(volumes=count, volume_gib=int(size or 0))


def metadata_of_volumes(session: Session, *where: Condition) -> dict[str, list[str]]:
    """The metadata of the volumes for which every condition holds: each key with its different values."""
    query = (
        sa.select(VolumeMetadata.key, VolumeMetadata.value)
        .join(Volume, Volume.id == VolumeMetadata.volume_id)
        .where(COUNTED, *where)
        .distinct()
        .order_by(VolumeMetadata.key, VolumeMetadata.value)
    )
    found: dict[str, list[str]] = {}
    for key, value in session.execute(query):
        found.setdefault(key, []).append(value)
    return found


def of_project(session: Session, project_id: str | None) -> Totals:
    """Sum up what a project has."""
    totals = of_volumes(session, Volume.project_id == project_id)
    query = sa.select(sa.func.count(), sa.func.sum(Snapshot.volume_size)).where(
        Snapshot.deleted_at.is_(None), Snapshot.project_id == project_id
    )
    count, size = session.execute(query).one()
    totals.snapshots, totals.snapshot_gib = count, int(size or 0)
    return totals


def by_project(session: Session, where: Condition) -> dict[str, Totals]:
    """Sum up, for each project, the volumes for which a condition holds, with their snapshots."""
    found: dict[str, Totals] = {}
    volumes: Any = session.execute(
        sa.select(Volume.project_id, sa.func.count(), sa.func.sum(Volume.size))
        .where(COUNTED, where)
        .group_by(Volume.project_id)
        .order_by(Volume.project_id)
    )
    for project_id, count, size in volumes:
        found[project_id] = Totals(volumes=count, volume_gib=int(size or 0))
    snapshots: Any = session.execute(
        sa.select(Snapshot.project_id, sa.func.count(), sa.func.sum(Snapshot.volume_size))
        .join(Volume, Volume.id == Snapshot.volume_id)
        .where(Snapshot.deleted_at.is_(None), COUNTED, where)
        .group_by(Snapshot.project_id)
    )
    for project_id, count, size in snapshots:
        of_it = found.setdefault(project_id, Totals())
        of_it.snapshots, of_it.snapshot_gib = count, int(size or 0)
    return found
