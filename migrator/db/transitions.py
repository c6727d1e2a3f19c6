"""How a migration goes on: what a step reported, and where that leads, in one transaction guarded by the generation.

The position (plan, step, direction, end) is decided by volume/states.py alone; this file writes it down together with
everything that must change in the same instant: the volume's ``migration_status``, the twin's row, the history.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import attachments, history, messages, migrations, twins, volumes
from migrator.db.api import execute, now_seconds
from migrator.db.migrations import RETRY_CEILING, ROW, THE_ROW, as_object, write
from migrator.db.models import CopiedRange, Migration, Volume, utcnow
from migrator.volume import states
from migrator.volume.states import Direction, End, Event, Order, Position

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
    at = migrations.position(row)
    if row.paused and outcome.event is Event.DONE and states.commits(at):
        migrations.release(session, row, PAUSED)  # what cannot be taken back waits for the order to go on
        return migrations.get(session, row.id)
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
    migrations.hold(session, row, **values)
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
    at = migrations.position(migration)
    ordered = migration.cancel_requested or migration.paused
    if outcome.event is not Event.DONE or ordered or states.PLANS[at.plan].step(at.step).waits:
        return None
    to = states.advance(at, outcome.event)
    keep = _goes_on(at, to)
    values = {"generation": migration.generation + 1, **_columns(migration, outcome, at, to, keep, now_seconds())}
    values["updated_at"] = utcnow()
    if not write(session, migration, values, _UNDISTURBED):
        return None
    twins.apply(session, migration)
    told = {name: value for name, value in values.items() if not isinstance(value, now_seconds)}
    row = as_object({**_values(migration), **told})
    _follow(session, row, outcome, at, to, keep)
    return row


_UNDISTURBED = (ROW.c.cancel_requested.is_(False), ROW.c.paused.is_(False))


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
        *(ROW.c[name] for name in ("cancel_requested", "paused", "attempts", "worker")),
        *(ROW.c[name] for name in ("swap_server", "swap_called_at", "swap_seen_at", "swap_result")),
        now_seconds().label("now"),
    )
    .where(*THE_ROW)
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
    return as_object(values), now


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
