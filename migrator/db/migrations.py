"""Migrations: create, claim, advance, end.  Each is one transaction guarded by the row's generation.

The position (plan, step, direction, end) is decided by volume/states.py alone; this file writes it down together with
everything that must change in the same instant: the volume's ``migration_status``, the twin's row, the history.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import messages, twins, volumes
from migrator.db.api import changed, now_seconds
from migrator.db.models import CopiedRange, Migration, MigrationStep, Volume, utcnow
from migrator.volume import states
from migrator.volume.states import Direction, End, Event, Position

#: Longest wait between two attempts, seconds.
RETRY_CEILING = 60.0


@dataclass(frozen=True)
class Outcome:
    """What an attempt of a step reports, to be written by ``advance``.

    ``values`` are further columns of the row; ``error`` is set for a failure; ``deferred`` marks an undo whose object
    will be removed by the destination's own service, because it cannot be now.
    """

    event: Event
    message: str | None = None
    bytes: int | None = None
    error: errors.MigratorError | None = None
    values: dict[str, Any] = field(default_factory=dict)
    deferred: bool = False


def position(migration: Migration) -> Position:
    """Where the row stands in the machine."""
    end = End(migration.end) if migration.end else None
    return Position(migration.plan, migration.step, Direction(migration.direction), end)


def get(session: Session, migration_id: str) -> Migration:
    """Return the migration; raises NotFound."""
    query = sa.select(Migration).where(Migration.id == migration_id).execution_options(populate_existing=True)
    migration = session.scalar(query)
    if migration is None:
        raise errors.NotFound(kind="Migration", id=migration_id)
    return migration


def steps(session: Session, migration_id: str) -> list[MigrationStep]:
    """The history of the migration, oldest first."""
    query = sa.select(MigrationStep).where(MigrationStep.migration_id == migration_id).order_by(MigrationStep.id)
    return list(session.scalars(query))


# --- create ---


def start(session: Session, volume: Volume, *expected: sa.ColumnElement[bool], **values: Any) -> str | None:
    """Mark the volume and write the migration's row; return its id, or None when an expectation does not hold.

    The mark is one compare-and-swap, so that of many requests exactly one wins (LP1493476).  ``values`` are columns
    of the row: source_host, requested_host, plan, force_host_copy, lock_volume, user_id, project_id, request_id ….
    """
    migration_id = str(uuid.uuid4())
    locked = bool(values.get("lock_volume")) and volume.status == "available"
    won = volumes.update_where(
        session,
        volume.id,
        Volume.status == volume.status,
        Volume.host == volume.host,
        Volume.twin_of.is_(None),
        volumes.is_at_rest(),
        *expected,
        migration_id=migration_id,
        migration_status=states.Shown.STARTING.value,
        previous_status=volume.status,
        status="maintenance" if locked else volume.status,
    )
    if not won:
        return None
    session.execute(
        sa.insert(Migration).values(
            id=migration_id,
            volume_id=volume.id,
            destination_volume_id=str(uuid.uuid4()),
            source_object_id=volume.object_id,
            size=volume.size,
            previous_status=volume.status,
            step=states.FIRST_STEP,
            direction=Direction.FORWARD.value,
            bytes_total=volume.size * 1024**3,
            verdicts=[],
            created_at=utcnow(),
            **values,
        )
    )
    return migration_id


# --- claim ---


def claim(session: Session, seen: Migration, owner: str, lease_seconds: float, *, owner_is_dead: bool) -> bool:
    """Take the row as it was ``seen``; False when it is owned, over, paused, too early or has moved on.

    ``owner_is_dead`` skips the wait for the lease: the caller knows that the recorded owner's process is gone.
    The attempt is counted here, so that a step which kills its process is bounded too.
    """
    free = sa.or_(Migration.owner.is_(None), Migration.lease_until < now_seconds())
    took = session.execute(
        sa.update(Migration)
        .where(
            Migration.id == seen.id,
            Migration.generation == seen.generation,
            Migration.end.is_(None),
            Migration.paused.is_(False),
            Migration.not_before <= now_seconds(),
            sa.true() if owner_is_dead else free,
        )
        .values(
            owner=owner,
            lease_until=now_seconds() + lease_seconds,
            heartbeat_at=now_seconds(),
            attempts=Migration.attempts + 1,
            generation=Migration.generation + 1,
            updated_at=utcnow(),
        )
        .execution_options(synchronize_session=False)
    )
    if changed(took) != 1:
        return False
    if seen.attempts:
        _close_lost_attempts(session, seen.id)
    _open_attempt(session, seen.id, seen.step, seen.direction, seen.attempts + 1)
    return True


def renew(session: Session, owner: str, migration_ids: Sequence[str], lease_seconds: float) -> None:
    """Extend the leases that ``owner`` still holds on the migrations that it really works on."""
    session.execute(
        sa.update(Migration)
        .where(
            Migration.id.in_(migration_ids),
            Migration.owner == owner,
            Migration.end.is_(None),
            Migration.lease_until >= now_seconds(),
        )
        .values(lease_until=now_seconds() + lease_seconds, heartbeat_at=now_seconds())
        .execution_options(synchronize_session=False)
    )


def waiting(session: Session, *expected: sa.ColumnElement[bool]) -> list[Migration]:
    """Rows that somebody should look at: not over, not paused and due; owned ones included, oldest first."""
    query = (
        sa.select(Migration)
        .where(
            Migration.end.is_(None),
            Migration.paused.is_(False),
            Migration.not_before <= now_seconds(),
            *expected,
        )
        .order_by(Migration.created_at)
    )
    return list(session.scalars(query))


# --- while a step runs ---


def hold(session: Session, migration: Migration, **values: Any) -> None:
    """Write columns of a row that is ours; raises LostOwnership if it no longer is."""
    result = session.execute(
        sa.update(Migration)
        .where(Migration.id == migration.id, Migration.generation == migration.generation)
        .values(updated_at=utcnow(), **values)
        .execution_options(synchronize_session=False)
    )
    if changed(result) != 1:
        raise errors.LostOwnership(migration_id=migration.id, generation=migration.generation)


def release(session: Session, migration: Migration) -> None:
    """Give back a row whose step was interrupted; the attempt does not count. Raises LostOwnership."""
    hold(session, migration, owner=None, lease_until=0.0, attempts=max(0, migration.attempts - 1))
    _close_open(session, migration.id, result="interrupted", message="its service ended")


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


def is_cancelled(session: Session, migration: Migration) -> bool:
    """Tell whether a cancel was asked for; raises LostOwnership if the row is no longer the one read."""
    query = sa.select(Migration.cancel_requested).where(
        Migration.id == migration.id, Migration.generation == migration.generation
    )
    requested = session.scalar(query)
    if requested is None:
        raise errors.LostOwnership(migration_id=migration.id, generation=migration.generation)
    return requested


def request_cancel(session: Session, migration_id: str) -> bool:
    """Ask for a cancel; False when the migration is over or behind the line."""
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
        .values(cancel_requested=True, updated_at=utcnow())
        .execution_options(synchronize_session=False)
    )
    return changed(result) == 1


# --- advance ---


def advance(
    session: Session, migration: Migration, outcome: Outcome, *, attempts_allowed: int, retry_seconds: float
) -> Migration:
    """Write what an attempt reported and where that leads; return the row as it is now.

    The next step is claimed in the same UPDATE (lease kept, attempt 1); a step to be tried again, or one that another
    service runs, gives the row free.  Raises LostOwnership if the row is no longer ours; then nothing is written.
    """
    row, now = _locked(session, migration)
    at = position(row)
    if outcome.event is Event.DONE and not (row.cancel_requested and states.may_cancel(at)):
        twins.apply(session, row)
    to = states.advance(at, outcome.event, _verdict(outcome, row.cancel_requested, row.attempts < attempts_allowed))
    again = to == at
    picked = at.step == states.FIRST_STEP and to.direction is Direction.FORWARD  # the source's service goes on
    keep = not again and to.end is None and not picked
    values = {"generation": row.generation + 1, **_columns(row, outcome, at, to, keep, now)}
    if again:
        values |= {"attempts": row.attempts, "not_before": now + _backoff(row.attempts, retry_seconds)}
    hold(session, row, **values)
    for column, value in values.items():
        setattr(row, column, value)
    _close_attempt(session, row, outcome)
    twins.enter(session, row, at, to, deferred=outcome.deferred)
    if states.shown(to) is not states.shown(at) or to.end is not None:
        _show(session, row, to)
    if keep:
        _open_attempt(session, row.id, to.step, to.direction.value, 1)
    return row


def _locked(session: Session, migration: Migration) -> tuple[Migration, float]:
    """The row as it is now, locked until the transaction ends, and the database's clock; raises LostOwnership.

    It may have changed since it was read: a cancel came, or a copy that got on has set its attempts back.
    """
    query = (
        sa.select(Migration, now_seconds())
        .where(Migration.id == migration.id, Migration.generation == migration.generation)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    found = session.execute(query).one_or_none()
    if found is None:
        raise errors.LostOwnership(migration_id=migration.id, generation=migration.generation)
    row, now = found
    session.expunge(row)  # it is written by UPDATE … WHERE alone
    return row, float(now)


def _verdict(outcome: Outcome, cancelled: bool, attempts_left: bool) -> states.Verdict:
    final = outcome.error is not None and outcome.error.final
    return states.Verdict(retry=not final and attempts_left, cancelled=cancelled)


def _columns(
    migration: Migration, outcome: Outcome, at: Position, to: Position, keep: bool, now: float
) -> dict[str, Any]:
    """The row's columns after the transition from ``at`` to ``to``."""
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
    if outcome.error is not None and (migration.error_code is None or to.end is End.STUCK):
        # The first error is why it turned back; what goes wrong on the way back must not hide it.
        values |= {"error_step": at.step, "error_code": outcome.error.code, "error_message": outcome.error.message}
    if outcome.error is None and to != at and to.direction is Direction.FORWARD:
        values |= {"error_step": None, "error_code": None, "error_message": None}
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
            "status": sa.case((Volume.status == "maintenance", Volume.previous_status), else_=Volume.status),
            "previous_status": None,
        }
    volumes.update_where(session, migration.volume_id, Volume.migration_id == migration.id, **values)
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


# --- history ---


def _open_attempt(session: Session, migration_id: str, step: str, direction: str, attempt: int) -> None:
    session.execute(
        sa.insert(MigrationStep).values(
            migration_id=migration_id, step=step, direction=direction, attempt=attempt, started_at=utcnow()
        )
    )


def _close_attempt(session: Session, migration: Migration, outcome: Outcome) -> None:
    result = "deferred" if outcome.deferred else outcome.event.value
    message = outcome.error.message if outcome.error is not None else outcome.message
    _close_open(session, migration.id, result=result, bytes=outcome.bytes, message=message)


def _close_lost_attempts(session: Session, migration_id: str) -> None:
    _close_open(session, migration_id, result="lost", message="its process ended before it reported")


def _close_open(session: Session, migration_id: str, **values: Any) -> None:
    session.execute(
        sa.update(MigrationStep)
        .where(MigrationStep.migration_id == migration_id, MigrationStep.finished_at.is_(None))
        .values(finished_at=utcnow(), **values)
        .execution_options(synchronize_session=False)
    )


def status(migration: Migration) -> str:
    """The ``status`` of the migration's own resource, in the words of states.status."""
    return states.status(position(migration), migration.owner is not None, migration.paused)


def is_behind_line(migration: Migration) -> bool:
    """Tell whether the volume lives at its new place already, whatever is left to do; True after success."""
    at = position(migration)
    return states.PLANS[at.plan].behind_line(at.step)


def is_at_scheduler(migration: Migration) -> bool:
    """Tell whether the scheduler works on it, and not the volume service of its source."""
    return states.PLANS[migration.plan].step(migration.step).runs_at is states.Place.SCHEDULER


def find_pair(session: Session, volume_id: str, destination_volume_id: str) -> Migration | None:
    """The migration of a volume for which this id was chosen as its destination, or None."""
    query = sa.select(Migration).where(
        Migration.volume_id == volume_id, Migration.destination_volume_id == destination_volume_id
    )
    return session.scalar(query)
