"""Migrations: create, claim, write while a step runs, ask.  Each is one transaction guarded by the row's generation.

How a row goes from one step to the next is in transitions.py.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import history, volumes
from migrator.db.api import changed, execute, now_seconds
from migrator.db.models import CopiedRange, Migration, Volume, utcnow
from migrator.volume import states
from migrator.volume.states import Direction, End, Position

# What every step of every migration does is built once (see db/api.execute).
ROW: sa.Table = Migration.__table__  # type: ignore[assignment]
THE_ROW = (ROW.c.id == sa.bindparam("the_id"), ROW.c.generation == sa.bindparam("the_generation"))

#: Longest wait between two attempts, seconds.
RETRY_CEILING = 60.0


def position(migration: Migration) -> Position:
    """Where the row stands in the machine."""
    end = End(migration.end) if migration.end else None
    return Position(migration.plan, migration.step, Direction(migration.direction), end)


def get(session: Session, migration_id: str) -> Migration:
    """Return the migration, an object of no session; raises NotFound."""
    found = execute(session, _GET, the_id=migration_id).one_or_none()
    if found is None:
        raise errors.NotFound(kind="Migration", id=migration_id)
    return as_object(found._mapping)


_GET = sa.select(ROW).where(ROW.c.id == sa.bindparam("the_id"))


def as_object(values: Mapping[Any, Any]) -> Migration:
    """A row as an object, from all of its columns.

    Set past the mapper, which asks at each of the many columns what has changed: nothing is written through it.
    """
    row = Migration()
    row.__dict__.update(values)
    return row


# --- create ---


def start(
    session: Session,
    volume: Volume,
    *expected: sa.ColumnElement[bool],
    instead_of: str | None = None,
    **values: Any,
) -> str | None:
    """Mark the volume and write the migration's row; return its id, or None when an expectation does not hold.

    ``instead_of``: the migration under way that gives way to a retype, cancelled in the same transaction.  This one
    waits for its end (``is_behind_another``).

    The mark is one compare-and-swap, so that of many requests exactly one wins (LP1493476).  ``values`` are columns
    of the row: source_host, requested_host, plan, force_host_copy, lock_volume, user_id, project_id, request_id ….
    """
    migration_id = str(uuid.uuid4())
    retype = values.get("new_type_id") is not None
    assert retype or instead_of is None, "only a retype takes a volume from another migration"
    free = volumes.is_at_rest() if instead_of is None else Volume.migration_id == instead_of
    if not mark(session, volume, migration_id, bool(values.get("lock_volume")), free, *expected, retype=retype):
        return None
    row = {
        "id": migration_id,
        "volume_id": volume.id,
        "destination_volume_id": str(uuid.uuid4()),
        "source_object_id": volume.object_id,
        "size": volume.size,
        "previous_status": volume.status,
        "step": states.FIRST_STEP,
        "direction": Direction.FORWARD.value,
        "bytes_total": volume.size * 1024**3,
        "verdicts": [],
        "created_at": utcnow(),
    }
    execute(session, sa.insert(ROW), **row, **values)
    return migration_id


def mark(
    session: Session,
    volume: Volume,
    migration_id: str,
    lock: bool,
    free: sa.ColumnElement[bool],
    *expected: sa.ColumnElement[bool],
    retype: bool = False,
) -> bool:
    """Give the volume, as it was seen, to a migration that begins; tell whether it was to be had.

    ``free``: that no migration is under way on it, or the one that gives way.
    """
    locked = "maintenance" if lock and volume.status == "available" else volume.status
    return volumes.update_where(
        session,
        volume.id,
        Volume.status == volume.status,
        Volume.host == volume.host,
        Volume.twin_of.is_(None),
        free,
        *expected,
        migration_id=migration_id,
        migration_status=states.Shown.STARTING.value,
        previous_status=volume.status,
        status="retyping" if retype and volume.status == "available" else locked,
    )


# --- claim ---

_CLAIM_OF_THE_DEAD = (
    sa.update(ROW)
    .where(*THE_ROW, ROW.c.end.is_(None), ROW.c.paused.is_(False), ROW.c.not_before <= now_seconds())
    .values(
        owner=sa.bindparam("the_owner"),
        lease_until=now_seconds() + sa.bindparam("seconds", type_=sa.Double),
        heartbeat_at=now_seconds(),
        attempts=ROW.c.attempts + 1,
        generation=ROW.c.generation + 1,
        updated_at=sa.bindparam("written_at"),
    )
)
_CLAIM = _CLAIM_OF_THE_DEAD.where(sa.or_(ROW.c.owner.is_(None), ROW.c.lease_until < now_seconds()))


_GLANCED = ("id", "generation", "owner", "attempts", "plan", "step", "direction", "new_type_id")
_GLANCE = sa.select(*(ROW.c[name] for name in _GLANCED)).where(ROW.c.id == sa.bindparam("the_id"))


def glance(session: Session, migration_id: str) -> sa.Row[Any]:
    """What a claim goes by, of a row that may be anybody's; raises NotFound."""
    found = execute(session, _GLANCE, the_id=migration_id).one_or_none()
    if found is None:
        raise errors.NotFound(kind="Migration", id=migration_id)
    return found


def claim(
    session: Session, seen: Migration | sa.Row[Any], owner: str, lease_seconds: float, *, owner_is_dead: bool
) -> bool:
    """Take the row as it was ``seen``; False when it is owned, over, paused, too early or has moved on.

    ``owner_is_dead`` skips the wait for the lease: the caller knows that the recorded owner's process is gone.
    The attempt is counted here, so that a step which kills its process is bounded too.
    """
    took = execute(
        session,
        _CLAIM_OF_THE_DEAD if owner_is_dead else _CLAIM,
        the_id=seen.id,
        the_generation=seen.generation,
        the_owner=owner,
        seconds=lease_seconds,
        written_at=utcnow(),
    )
    if changed(took) != 1:
        return False
    if seen.attempts:
        history.close(session, seen.id, result="lost", message="its process ended, or lost the database")
    history.open_attempt(session, seen.id, seen.step, seen.direction, seen.attempts + 1)
    return True


def renew(session: Session, owner: str, migration_ids: Sequence[str], lease_seconds: float) -> None:
    """Extend the leases of ``owner`` on the migrations that it really works on.

    Also one that has run out, after a stop of the process say, if nobody has taken the row meanwhile.
    """
    session.execute(
        sa.update(Migration)
        .where(Migration.id.in_(migration_ids), Migration.owner == owner, Migration.end.is_(None))
        .values(lease_until=now_seconds() + lease_seconds, heartbeat_at=now_seconds())
        .execution_options(synchronize_session=False)
    )


def beat(session: Session, owner: str, migration_id: str, older_than: float) -> None:
    """Give a sign of life of a migration whose last one, by whomever of this owner, is older than so many seconds."""
    execute(session, _BEAT, the_id=migration_id, the_owner=owner, seconds=older_than)


def silent(session: Session, owner: str, migration_ids: Sequence[str], seconds: float) -> list[str]:
    """Those of the owner's migrations that have given no sign of life for so many seconds."""
    query = sa.select(ROW.c.id).where(
        ROW.c.id.in_(migration_ids), ROW.c.owner == owner, ROW.c.heartbeat_at < now_seconds() - seconds
    )
    return list(session.scalars(query))


_BEAT = (
    sa.update(ROW)
    .where(
        ROW.c.id == sa.bindparam("the_id"),
        ROW.c.owner == sa.bindparam("the_owner"),
        ROW.c.end.is_(None),
        ROW.c.heartbeat_at < now_seconds() - sa.bindparam("seconds", type_=sa.Double),
    )
    .values(heartbeat_at=now_seconds())
)


class Waiting(NamedTuple):
    """What tells whether a row is free: a backend that is emptied has very many of them (LP1681374)."""

    id: str
    owner: str | None
    lease_until: float


def waiting(session: Session, *expected: sa.ColumnElement[bool]) -> list[Waiting]:
    """Rows that somebody should look at: not over, not paused and due; owned ones included, oldest first."""
    query = (
        sa.select(Migration.id, Migration.owner, Migration.lease_until)
        .where(
            Migration.end.is_(None),
            Migration.paused.is_(False),
            Migration.not_before <= now_seconds(),
            *expected,
        )
        .order_by(Migration.created_at)
    )
    return [Waiting(*row) for row in session.execute(query)]


# --- while a step runs ---


def hold(session: Session, migration: Migration, **values: Any) -> None:
    """Write columns of a row that is ours; raises LostOwnership if it no longer is."""
    if not write(session, migration, {**values, "updated_at": utcnow()}):
        raise errors.LostOwnership(migration_id=migration.id, generation=migration.generation)


def write(
    session: Session, migration: Migration, values: dict[str, Any], expected: tuple[sa.ColumnElement[bool], ...] = ()
) -> bool:
    """Write columns if the row still is of the generation that was read and as ``expected``; tell whether it was."""
    by_clock = tuple(name for name, value in values.items() if isinstance(value, now_seconds))
    given = {f"new_{name}": value for name, value in values.items() if name not in by_clock}
    statement = _guarded_update(tuple(name for name in values if name not in by_clock), by_clock, expected)
    result = execute(session, statement, the_id=migration.id, the_generation=migration.generation, **given)
    return changed(result) == 1


@functools.lru_cache(maxsize=200)
def _guarded_update(
    plain: tuple[str, ...], by_clock: tuple[str, ...], expected: tuple[sa.ColumnElement[bool], ...]
) -> sa.Update:
    """An UPDATE of these columns of the row as it was read; those ``by_clock`` get the database's time."""
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}", type_=ROW.c[name].type) for name in plain}
    values |= dict.fromkeys(by_clock, now_seconds())
    return sa.update(ROW).where(*THE_ROW, *expected).values(values)


def release(session: Session, migration: Migration, why: str) -> None:
    """Give back a row whose step was interrupted; the attempt does not count. Raises LostOwnership."""
    hold(session, migration, owner=None, lease_until=0.0, rate=None, attempts=max(0, migration.attempts - 1))
    history.close(session, migration.id, result="interrupted", message=why)


def progress(session: Session, migration: Migration, ranges: list[list[int]] | None, **values: Any) -> None:
    """Record how far a step is and, behind a flush, the ranges of a copy, [start, length] in bytes.

    Raises LostOwnership; then nothing is written.
    """
    hold(session, migration, heartbeat_at=now_seconds(), **values)
    if ranges is None:
        return
    session.execute(sa.delete(CopiedRange).where(CopiedRange.migration_id == migration.id))
    if ranges:
        rows = [{"migration_id": migration.id, "start": start, "length": length} for start, length in ranges]
        session.execute(sa.insert(CopiedRange), rows)


def copied(session: Session, migration_id: str) -> list[list[int]]:
    """The ranges that a copy has flushed, [start, length] in bytes, in order."""
    query = (
        sa.select(CopiedRange.start, CopiedRange.length)
        .where(CopiedRange.migration_id == migration_id)
        .order_by(CopiedRange.start)
    )
    return [[start, length] for start, length in session.execute(query)]


def request_cancel(session: Session, migration_id: str) -> bool:
    """Ask for a cancel, which ends a pause too; False when the migration is over or behind the line."""
    before_line = sa.or_(
        Migration.direction == Direction.BACK.value,
        *(
            sa.and_(Migration.plan == plan.name, Migration.step.in_([s.name for s in plan.steps[: plan.line]]))
            for plan in states.PLANS.values()
        ),
    )
    result = session.execute(
        sa.update(Migration)
        .where(Migration.id == migration_id, Migration.end.is_(None), before_line)
        .values(cancel_requested=True, paused=False, not_before=_now_if_waiting(), updated_at=utcnow())
        .execution_options(synchronize_session=False)
    )
    return changed(result) == 1


def _now_if_waiting() -> sa.ColumnElement[float]:
    """SQL: a step that waits looks at once."""
    return sa.case((Migration.step.in_(_WAITING_STEPS), 0.0), else_=Migration.not_before)


_WAITING_STEPS = sorted({step.name for plan in states.PLANS.values() for step in plan.steps if step.waits})


# --- questions ---


def status(migration: Migration) -> str:
    """The ``status`` of the migration's own resource, in the words of states.status."""
    return states.status(position(migration), migration.owner is not None, migration.paused)


def is_behind_line(migration: Migration) -> bool:
    """Tell whether the volume lives at its new place already, whatever is left to do; True after success."""
    at = position(migration)
    return states.PLANS[at.plan].behind_line(at.step)


def is_behind_another(session: Session, row: Migration | sa.Row[Any]) -> bool:
    """Tell whether another migration of the volume, which gave way to this one, is still being taken back.

    None gives way to a migration without a new type (``start``), and those need not ask.
    """
    return row.new_type_id is not None and session.scalar(_BEFORE_IT, {"the_id": row.id}) is not None


def under_way(session: Session, volume_id: str) -> list[str]:
    """Ids of the volume's migrations that are not over, the one that gave way first."""
    query = sa.select(ROW.c.id).where(ROW.c.volume_id == volume_id, ROW.c.end.is_(None))
    return list(session.scalars(query.order_by(ROW.c.created_at)))


_OTHER = ROW.alias()
_BEFORE_IT = (
    sa.select(_OTHER.c.id)
    .join(ROW, sa.and_(ROW.c.volume_id == _OTHER.c.volume_id, ROW.c.id != _OTHER.c.id))
    .join(Volume, sa.and_(Volume.id == ROW.c.volume_id, Volume.migration_id == ROW.c.id))
    .where(ROW.c.id == sa.bindparam("the_id"), _OTHER.c.end.is_(None))
    .limit(1)
)


def is_at_scheduler(migration: Migration | sa.Row[Any]) -> bool:
    """Tell whether the scheduler works on it, and not the volume service of its source."""
    return states.PLANS[migration.plan].step(migration.step).runs_at is states.Place.SCHEDULER


def find_pair(session: Session, volume_id: str, destination_volume_id: str) -> Migration | None:
    """The migration of a volume for which this id was chosen as its destination, or None."""
    query = sa.select(Migration).where(
        Migration.volume_id == volume_id, Migration.destination_volume_id == destination_volume_id
    )
    return session.scalar(query)
