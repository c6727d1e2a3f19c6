"""What the database knows of a pool's space at the moment of a decision, and the guard that makes decisions serial."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator.db.api import changed, execute
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


# Built once: a choice is made for each migration and each new volume, many of them one after the other.
_volumes: sa.Table = Volume.__table__  # type: ignore[assignment]
_migrations: sa.Table = Migration.__table__  # type: ignore[assignment]
_twins = _volumes.alias("twins")
_VOLUMES = (
    sa.select(_volumes.c.host, sa.func.count(), sa.func.sum(_volumes.c.size))
    .where(_volumes.c.deleted_at.is_(None), _volumes.c.host.is_not(None))
    .group_by(_volumes.c.host)
)
_CREATIONS = sa.select(_volumes.c.host, _volumes.c.size, _volumes.c.status, _volumes.c.placed_at).where(
    _volumes.c.deleted_at.is_(None),
    _volumes.c.twin_of.is_(None),
    _volumes.c.host.is_not(None),
    sa.or_(_volumes.c.status == "creating", _volumes.c.placed_at > sa.bindparam("oldest", type_=sa.Double)),
)
#: Migrations under way: what they will take, and how much of it no twin's row is counted for (an assisted move).
_UNDER_WAY = (
    sa.select(
        _migrations.c.destination_host,
        sa.func.sum(_migrations.c.size),
        sa.func.sum(sa.case((_twins.c.id.is_(None), _migrations.c.size), else_=0)),
    )
    .outerjoin(_twins, _twins.c.id == _migrations.c.destination_volume_id)
    .where(_migrations.c.end.is_(None), _migrations.c.destination_host.is_not(None))
    .group_by(_migrations.c.destination_host)
)
_ENDED = sa.select(_migrations.c.destination_host, _migrations.c.size, _migrations.c.ended_at).where(
    _migrations.c.destination_host.is_not(None),
    _migrations.c.ended_at > sa.bindparam("oldest", type_=sa.Double),
)


def _count_volumes(session: Session, pools: dict[str, PoolUsage]) -> None:
    for host, count, size in execute(session, _VOLUMES):
        pools[host].volumes = count
        pools[host].provisioned_gib = float(size)


def _count_creations(session: Session, pools: dict[str, PoolUsage], reported_at: Mapping[str, float]) -> None:
    oldest = min(reported_at.values(), default=0.0)
    for host, size, status, placed_at in execute(session, _CREATIONS, oldest=oldest):
        if status == "creating" or (placed_at or 0.0) > reported_at.get(host, 0.0):
            pools[host].reserved_gib += size


def _count_migrations(session: Session, pools: dict[str, PoolUsage], reported_at: Mapping[str, float]) -> None:
    for host, size, without_twin in execute(session, _UNDER_WAY):
        pools[host].reserved_gib += float(size)
        pools[host].provisioned_gib += float(without_twin)
    oldest = min(reported_at.values(), default=0.0)
    for host, size, ended_at in execute(session, _ENDED, oldest=oldest):
        if ended_at > reported_at.get(host, 0.0):
            pools[host].reserved_gib += size


_pools: sa.Table = PoolGeneration.__table__  # type: ignore[assignment]
_GENERATIONS = sa.select(_pools.c.name, _pools.c.generation)
_RESERVE = (
    sa.update(_pools)
    .where(_pools.c.name == sa.bindparam("pool"), _pools.c.generation == sa.bindparam("seen"))
    .values(generation=_pools.c.generation + 1)
)


def pool_generations(session: Session) -> dict[str, int]:
    """Every pool's counter, to be read before the usage."""
    return {name: generation for name, generation in execute(session, _GENERATIONS)}  # noqa: C416 (typed)


def reserve(session: Session, pool: str, generation: int | None) -> bool:
    """Raise the pool's counter if it still is ``generation``; False: somebody else reserved, decide again.

    May raise oslo.db's DBDuplicateEntry where two reserve on a pool for the first time.
    """
    if generation is None:
        session.execute(sa.insert(PoolGeneration).values(name=pool, generation=1))
        return True
    return changed(execute(session, _RESERVE, pool=pool, seen=generation)) == 1
