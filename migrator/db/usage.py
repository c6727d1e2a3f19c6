"""What the database knows of a pool's space at the moment of a decision, and the guard that makes decisions serial."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator.db.api import changed
from migrator.db.models import Migration, PoolGeneration, Volume


@dataclass
class PoolUsage:
    """Sums over the rows of one pool, GiB."""

    provisioned_gib: float = 0.0
    reserved_gib: float = 0.0
    volumes: int = 0


def usage(session: Session, reported_at: Mapping[str, float]) -> dict[str, PoolUsage]:
    """Return the usage of every pool that holds or expects anything.

    ``reported_at`` gives the time of each pool's last report (the database's clock): what was placed or ended after
    it is not in the report's free space yet and counts as reserved.  Migrations under way always do.
    """
    pools: dict[str, PoolUsage] = defaultdict(PoolUsage)
    _count_volumes(session, pools)
    _count_creations(session, pools, reported_at)
    _count_migrations(session, pools, reported_at)
    return dict(pools)


def _count_volumes(session: Session, pools: dict[str, PoolUsage]) -> None:
    query = (
        sa.select(Volume.host, sa.func.count(), sa.func.sum(Volume.size))
        .where(Volume.deleted_at.is_(None), Volume.host.is_not(None))
        .group_by(Volume.host)
    )
    for host, count, size in session.execute(query):
        assert host is not None
        pools[host].volumes = count
        pools[host].provisioned_gib = float(size)


def _count_creations(session: Session, pools: dict[str, PoolUsage], reported_at: Mapping[str, float]) -> None:
    oldest = min(reported_at.values(), default=0.0)
    query = sa.select(Volume.host, Volume.size, Volume.status, Volume.placed_at).where(
        Volume.deleted_at.is_(None),
        Volume.twin_of.is_(None),
        Volume.host.is_not(None),
        sa.or_(Volume.status == "creating", Volume.placed_at > oldest),
    )
    for host, size, status, placed_at in session.execute(query):
        assert host is not None
        if status == "creating" or (placed_at or 0.0) > reported_at.get(host, 0.0):
            pools[host].reserved_gib += size


def _count_migrations(session: Session, pools: dict[str, PoolUsage], reported_at: Mapping[str, float]) -> None:
    oldest = min(reported_at.values(), default=0.0)
    twin = sa.orm.aliased(Volume)
    query = (
        sa.select(Migration.destination_host, Migration.size, Migration.end, Migration.ended_at, twin.host)
        .outerjoin(twin, twin.id == Migration.destination_volume_id)
        .where(
            Migration.destination_host.is_not(None),
            sa.or_(Migration.end.is_(None), Migration.ended_at > oldest),
        )
    )
    for host, size, end, ended_at, twin_host in session.execute(query):
        assert host is not None
        if end is None or (ended_at or 0.0) > reported_at.get(host, 0.0):
            pools[host].reserved_gib += size
        if end is None and twin_host is None:  # an assisted move has no twin to be counted
            pools[host].provisioned_gib += size


def pool_generations(session: Session) -> dict[str, int]:
    """Every pool's counter, to be read before the usage."""
    query = sa.select(PoolGeneration.name, PoolGeneration.generation)
    return {name: generation for name, generation in session.execute(query)}  # noqa: C416 (typed)


def reserve(session: Session, pool: str, generation: int | None) -> bool:
    """Raise the pool's counter if it still is ``generation``; False: somebody else reserved, decide again.

    May raise oslo.db's DBDuplicateEntry where two reserve on a pool for the first time.
    """
    if generation is None:
        session.execute(sa.insert(PoolGeneration).values(name=pool, generation=1))
        return True
    result = session.execute(
        sa.update(PoolGeneration)
        .where(PoolGeneration.name == pool, PoolGeneration.generation == generation)
        .values(generation=generation + 1)
    )
    return changed(result) == 1
