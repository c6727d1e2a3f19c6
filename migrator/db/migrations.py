"""Migrations: create, claim, advance, end.  Each is one transaction guarded by the row's generation.

The position (plan, step, direction, end) is decided by volume/states.py alone; this file writes it down together with
everything that must change in the same instant: the volume's ``migration_status``, the twin's row, the history.
"""

from __future__ import annotations

import functools
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import attachments, history, messages, twins, volumes
from migrator.db.api import changed, execute, now_seconds
from migrator.db.models import CopiedRange, Migration, Volume, utcnow
from migrator.volume import states
from migrator.volume.states import Direction, End, Event, Order, Position

# What every step of every migration does is built once (see db/api.execute).
_ROW: sa.Table = Migration.__table__  # type: ignore[assignment]
_THE_ROW = (_ROW.c.id == sa.bindparam("the_id"), _ROW.c.generation == sa.bindparam("the_generation"))

#: Longest wait between two attempts, seconds.
RETRY_CEILING = 60.0
#: What the history says of a step that was interrupted by a pause.
PAUSED = "paused on request"


@dataclass(frozen=True)
class Outcome:
    """What an attempt of a step reports, to be written by ``advance``.

    ``values`` are further columns of the row; ``error`` is set for a failure; ``deferred`` marks an undo whose object
    will be removed by the destination's own service, because it cannot be now.  ``wait_seconds``: when a step that
    waits looks again, unless an event comes before.
    """

    event: Event
    message: str | None = None
    bytes: int | None = None
    error: errors.MigratorError | None = None
    values: dict[str, Any] = field(default_factory=dict)
    deferred: bool = False
    wait_seconds: float = 0.0


def position(migration: Migration) -> Position:
    """Where the row stands in the machine."""
    end = End(migration.end) if migration.end else None
    return Position(migration.plan, migration.step, Direction(migration.direction), end)


def get(session: Session, migration_id: str) -> Migration:
    """Return the migration, an object of no session; raises NotFound."""
    found = execute(session, _GET, the_id=migration_id).one_or_none()
    if found is None:
        raise errors.NotFound(kind="Migration", id=migration_id)
    return _object(found._mapping)


_GET = sa.select(_ROW).where(_ROW.c.id == sa.bindparam("the_id"))


def _object(values: Mapping[Any, Any]) -> Migration:
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
    execute(session, sa.insert(_ROW), **row, **values)
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
    sa.update(_ROW)
    .where(*_THE_ROW, _ROW.c.end.is_(None), _ROW.c.paused.is_(False), _ROW.c.not_before <= now_seconds())
    .values(
        owner=sa.bindparam("the_owner"),
        lease_until=now_seconds() + sa.bindparam("seconds", type_=sa.Double),
        heartbeat_at=now_seconds(),
        attempts=_ROW.c.attempts + 1,
        generation=_ROW.c.generation + 1,
        updated_at=sa.bindparam("written_at"),
    )
)
_CLAIM = _CLAIM_OF_THE_DEAD.where(sa.or_(_ROW.c.owner.is_(None), _ROW.c.lease_until < now_seconds()))


_GLANCED = ("id", "generation", "owner", "attempts", "plan", "step", "direction", "new_type_id")
_GLANCE = sa.select(*(_ROW.c[name] for name in _GLANCED)).where(_ROW.c.id == sa.bindparam("the_id"))


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
    query = sa.select(_ROW.c.id).where(
        _ROW.c.id.in_(migration_ids), _ROW.c.owner == owner, _ROW.c.heartbeat_at < now_seconds() - seconds
    )
    return list(session.scalars(query))


_BEAT = (
    sa.update(_ROW)
    .where(
        _ROW.c.id == sa.bindparam("the_id"),
        _ROW.c.owner == sa.bindparam("the_owner"),
        _ROW.c.end.is_(None),
        _ROW.c.heartbeat_at < now_seconds() - sa.bindparam("seconds", type_=sa.Double),
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
    if not _write(session, migration, {**values, "updated_at": utcnow()}):
        raise errors.LostOwnership(migration_id=migration.id, generation=migration.generation)


def _write(
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
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}", type_=_ROW.c[name].type) for name in plain}
    values |= dict.fromkeys(by_clock, now_seconds())
    return sa.update(_ROW).where(*_THE_ROW, *expected).values(values)


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


# --- advance ---


def advance(
    session: Session, migration: Migration, outcome: Outcome, *, attempts_allowed: int, retry_seconds: float
) -> Migration:
    """Write what an attempt reported and where that leads; return the row as it is now.

    The next step is claimed in the same UPDATE (lease kept, attempt 1); a step to be tried again, or one that another
    service runs, gives the row free.  Raises LostOwnership if the row is no longer ours; then nothing is written.
    """
    row = _done_undisturbed(session, migration, outcome)
    if row is not None:
        return row
    row, now = _locked(session, migration)
    at = position(row)
    if row.paused and outcome.event is Event.DONE and states.commits(at):
        release(session, row, PAUSED)  # what cannot be taken back waits for the order to go on
        return get(session, row.id)
    if outcome.event is Event.DONE and not (row.cancel_requested and states.may_cancel(at)):
        twins.apply(session, row)
    to = states.advance(at, outcome.event, _verdict(outcome, row.cancel_requested, row.attempts < attempts_allowed))
    again = to == at
    paused = row.paused and states.may(Order.PAUSE, to)
    swapped = outcome.event is Event.SWAPPED
    keep = not again and _goes_on(at, to) and not paused and not swapped
    values = {"generation": row.generation + 1, "paused": paused, **_columns(row, outcome, at, to, keep, now)}
    if again or swapped:
        values |= _later(migration, row, outcome, now, retry_seconds)
    hold(session, row, **values)
    row.__dict__.update(values)
    _follow(session, row, outcome, at, to, keep)
    return row


def _goes_on(at: Position, to: Position) -> bool:
    """Tell whether whoever did the step does the next one too: behind the scheduler's, the source's service does."""
    return to.end is None and not (at.step == states.FIRST_STEP and to.direction is Direction.FORWARD)


def _done_undisturbed(session: Session, migration: Migration, outcome: Outcome) -> Migration | None:
    """Advance a row whose step is done, if nothing was ordered meanwhile: the usual case, in one UPDATE.

    None when something was, or may have been; then nothing was written.  Of what may change within a generation the
    UPDATE compares the orders itself, whoever records a worker keeps it in the object too, and of a step that waits
    more may have changed.  The UPDATE locks the row, so all that belongs to the step follows in this transaction as it
    does behind ``_locked``.  Times of the database's clock are written, but not in the object that is returned.
    """
    at = position(migration)
    ordered = migration.cancel_requested or migration.paused
    if outcome.event is not Event.DONE or ordered or states.PLANS[at.plan].step(at.step).waits:
        return None
    to = states.advance(at, outcome.event)
    keep = _goes_on(at, to)
    values = {"generation": migration.generation + 1, **_columns(migration, outcome, at, to, keep, now_seconds())}
    values["updated_at"] = utcnow()
    if not _write(session, migration, values, _UNDISTURBED):
        return None
    twins.apply(session, migration)
    told = {name: value for name, value in values.items() if not isinstance(value, now_seconds)}
    row = _object({**_values(migration), **told})
    _follow(session, row, outcome, at, to, keep)
    return row


_UNDISTURBED = (_ROW.c.cancel_requested.is_(False), _ROW.c.paused.is_(False))


def _follow(session: Session, row: Migration, outcome: Outcome, at: Position, to: Position, keep: bool) -> None:
    """Write what must change in the same instant as a row that went from ``at`` to ``to``."""
    history.close(
        session,
        row.id,
        result="deferred" if outcome.deferred else outcome.event.value,
        message=outcome.error.message if outcome.error is not None else outcome.message,
        moved=outcome.bytes,
    )
    if outcome.event is Event.WAITING:
        history.merge_waiting(session, row.id, at.step, at.direction.value)
    twins.enter(session, row, at, to, deferred=outcome.deferred)
    if states.shown(to) is not states.shown(at) or to.end is not None:
        _show(session, row, to)
    if to.end is not None:
        execute(session, _FORGET_RANGES, of_migration=row.id)
    if keep:
        history.open_attempt(session, row.id, to.step, to.direction.value, 1)


_FORGET_RANGES = sa.delete(CopiedRange).where(CopiedRange.migration_id == sa.bindparam("of_migration"))
_LOCK = (
    sa.select(
        *(_ROW.c[name] for name in ("cancel_requested", "paused", "attempts", "worker")),
        *(_ROW.c[name] for name in ("swap_server", "swap_called_at", "swap_seen_at", "swap_result")),
        now_seconds().label("now"),
    )
    .where(*_THE_ROW)
    .with_for_update()
)


def _locked(session: Session, migration: Migration) -> tuple[Migration, float]:
    """The row as it is now, locked until the transaction ends, and the database's clock; raises LostOwnership.

    What may have changed within the generation is read: a cancel or a pause came, or a copy got on or was given to
    another worker.  The rest is as the migration was read.
    """
    found = execute(session, _LOCK, the_id=migration.id, the_generation=migration.generation).one_or_none()
    if found is None:
        raise errors.LostOwnership(migration_id=migration.id, generation=migration.generation)
    values = {**_values(migration), **found._mapping}
    now = float(values.pop("now"))
    return _object(values), now


def _values(migration: Migration) -> dict[str, Any]:
    """Every column of a row that was read."""
    return {name: value for name, value in migration.__dict__.items() if not name.startswith("_")}


def _later(read: Migration, row: Migration, outcome: Outcome, now: float, retry_seconds: float) -> dict[str, Any]:
    """Columns of a row that somebody goes on with later."""
    if outcome.event is Event.WAITING:
        return {"attempts": 0, "not_before": now if _has_news(row, read) else now + outcome.wait_seconds}
    if outcome.event is Event.SWAPPED:  # nobody can take it back; a switch that always fails is tried with pauses
        return {"cancel_requested": False, "not_before": now + _backoff(1, retry_seconds)}
    return {"attempts": row.attempts, "not_before": now + _backoff(row.attempts, retry_seconds)}


def _has_news(row: Migration, read: Migration) -> bool:
    """Tell whether an event came while a step that waits was looking, which did not see it."""
    return (row.swap_result, row.cancel_requested) != (read.swap_result, read.cancel_requested)


def _verdict(outcome: Outcome, cancelled: bool, attempts_left: bool) -> states.Verdict:
    final = outcome.error is not None and outcome.error.final
    return states.Verdict(retry=not final and attempts_left, cancelled=cancelled)


def _columns(
    migration: Migration, outcome: Outcome, at: Position, to: Position, keep: bool, now: float | now_seconds
) -> dict[str, Any]:
    """The row's columns after the transition from ``at`` to ``to``; ``now`` may be the database's clock itself."""
    values: dict[str, Any] = {
        "plan": to.plan,
        "step": to.step,
        "direction": to.direction.value,
        "end": to.end.value if to.end else None,
        "attempts": int(keep),
        "heartbeat_at": now,
        **outcome.values,
    }
    if not keep:
        values |= {"owner": None, "lease_until": 0.0}
    if migration.swap_server is not None and (to.end is not None or to.step != at.step):
        values["swap_server"] = None  # the next volume of that server may go
    if outcome.error is not None and (migration.error_code is None or to.end is End.STUCK):
        # The first error is why it turned back; what goes wrong on the way back must not hide it.
        values |= {"error_step": at.step, "error_code": outcome.error.code, "error_message": outcome.error.message}
    if outcome.error is None and to != at and to.direction is Direction.FORWARD:
        values |= {"error_step": None, "error_code": None, "error_message": None}
    if states.commits(at) and to.direction is Direction.FORWARD and to != at:
        values["switched_at"] = now
    if to.end is not None:
        values |= {"finished_at": utcnow(), "ended_at": now, "rate": None}
    return values


def _backoff(attempts: int, retry_seconds: float) -> float:
    """Seconds until the next attempt: exponential, with jitter so that many do not come back at once."""
    wait = min(retry_seconds * 2.0 ** max(0, attempts - 1), RETRY_CEILING)
    return wait * random.uniform(0.75, 1.25)  # noqa: S311 (no secret depends on it)


def _show(session: Session, migration: Migration, to: Position) -> None:
    """Give the volume the ``migration_status`` of the new position, and its status back at the end."""
    values: dict[str, Any] = {"migration_status": states.shown(to).value}
    if to.end is not None:
        values |= {
            "status": sa.case((Volume.status.in_(twins.HELD), Volume.previous_status), else_=Volume.status),
            "previous_status": None,
        }
    volumes.update_where(session, migration.volume_id, Volume.migration_id == migration.id, **values)
    if to.end is not None and migration.plan == states.ATTACHED.name:
        attachments.forget_detached(session, migration.volume_id)
    if to.end in (End.ERROR, End.STUCK):
        messages.add(
            session,
            project_id=migration.project_id,
            request_id=migration.request_id,
            resource_uuid=migration.volume_id,
            event="migrate",
            text=f"Migration to {migration.destination_host or migration.requested_host} failed "
            f"at {migration.error_step}: {migration.error_message}",
        )


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
    query = sa.select(_ROW.c.id).where(_ROW.c.volume_id == volume_id, _ROW.c.end.is_(None))
    return list(session.scalars(query.order_by(_ROW.c.created_at)))


_OTHER = _ROW.alias()
_BEFORE_IT = (
    sa.select(_OTHER.c.id)
    .join(_ROW, sa.and_(_ROW.c.volume_id == _OTHER.c.volume_id, _ROW.c.id != _OTHER.c.id))
    .join(Volume, sa.and_(Volume.id == _ROW.c.volume_id, Volume.migration_id == _ROW.c.id))
    .where(_ROW.c.id == sa.bindparam("the_id"), _OTHER.c.end.is_(None))
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
