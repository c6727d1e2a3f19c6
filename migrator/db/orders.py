"""Orders to a migration, each one compare-and-swap: it is written where the machine allows it, or not at all.

What is allowed where stands in volume/states.py.  A cancel, which also an owner's request on the volume may ask for,
is migrations.request_cancel.
"""

from __future__ import annotations

import datetime
import functools
import uuid
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import migrations, twins, volumes
from migrator.db.api import changed, now_seconds
from migrator.db.models import CopiedRange, Migration, Volume, utcnow
from migrator.volume import states
from migrator.volume.states import Direction, End, Position, Stage
from migrator.volume.states import Order as Order


@dataclass(frozen=True)
class Wishes:
    """What somebody has ordered of a migration that is under way; ``bytes_per_second`` None: nothing of its own."""

    cancel: bool
    pause: bool
    bytes_per_second: int | None

    @property
    def stop(self) -> str | None:
        """Why a copy is to stop, in the words of the copier; None: it is not."""
        return "cancel" if self.cancel else "pause" if self.pause else None


def look(session: Session, migration: Migration) -> Wishes:
    """Read all orders in one query; raises LostOwnership if the row is no longer the one read."""
    query = sa.select(Migration.cancel_requested, Migration.paused, Migration.bytes_per_second).where(
        Migration.id == migration.id, Migration.generation == migration.generation
    )
    found = session.execute(query).one_or_none()
    if found is None:
        raise errors.LostOwnership(migration_id=migration.id, generation=migration.generation)
    return Wishes(*found)


def may(order: Order, row: Migration) -> bool:
    """Tell whether the machine allows the order where the migration stands."""
    return states.may(order, migrations.position(row))


_PARTICIPLES: dict[Order, str] = {
    Order.CANCEL: "cancelled",
    Order.PAUSE: "paused",
    Order.RESUME: "resumed",
    Order.RETRY: "retried",
    Order.SET_RATE: "given a rate",
    Order.UNDO: "undone",
}


def refusal(row: Migration, order: Order) -> str:
    """Return the sentence that says why an order is refused where the migration stands."""
    return f"Migration {row.id} cannot be {_PARTICIPLES[order]}: {_why_not(row, order)}."


def _why_not(row: Migration, order: Order) -> str:
    if row.end is not None:
        return f"it is over and ended {row.end}"
    if order in (Order.RETRY, Order.UNDO):
        return f"it is not over; it is {migrations.status(row)} at {row.step}"
    if row.cancel_requested:
        return "it is being cancelled"
    if order is Order.RESUME:
        return f"it is not paused; it is {migrations.status(row)} at {row.step}"
    if migrations.is_behind_line(row):
        return (
            f"it is at {row.step}, past its point of no return; volume {row.volume_id} already lives on "
            f"{row.destination_host}"
        )
    return "it is being taken back" if row.direction == Direction.BACK.value else f"it is at {row.step}"


@functools.cache
def is_allowed(order: Order) -> sa.ColumnElement[bool]:
    """SQL: the machine allows the order where the migration stands."""
    places = [
        sa.and_(Migration.end.is_(None), Migration.plan == plan.name, Migration.direction == direction.value, at)
        for plan in states.PLANS.values()
        for direction in Direction
        if (at := _steps(plan, direction, order)) is not None
    ]
    ends = [
        end.value
        for end in End
        if states.may(order, Position(states.HOST_COPY.name, states.FIRST_STEP, Direction.BACK, end))
    ]
    return sa.or_(Migration.end.in_(ends), *places)


def _steps(plan: states.Plan, direction: Direction, order: Order) -> sa.ColumnElement[bool] | None:
    names = [step.name for step in plan.steps if states.may(order, Position(plan.name, step.name, direction))]
    return Migration.step.in_(names) if names else None


def pause(session: Session, migration_id: str) -> bool:
    """Let nobody go on with the migration; False where that is not allowed, or a cancel was asked for."""
    return _write(session, migration_id, Order.PAUSE, Migration.cancel_requested.is_(False), paused=True)


def resume(session: Session, migration_id: str) -> bool:
    """End a pause; False where there is none.  A wait between two attempts ends too."""
    return _write(session, migration_id, Order.RESUME, Migration.paused.is_(True), paused=False, not_before=0.0)


def set_rate(session: Session, migration_id: str, bytes_per_second: int | None) -> bool:
    """Limit the copy, None: as its backend is limited; False when the migration is over."""
    return _write(session, migration_id, Order.SET_RATE, bytes_per_second=bytes_per_second)


def _write(session: Session, migration_id: str, order: Order, *expected: sa.ColumnElement[bool], **values: Any) -> bool:
    result = session.execute(
        sa.update(Migration)
        .where(Migration.id == migration_id, is_allowed(order), *expected)
        .values(updated_at=utcnow(), **values)
        .execution_options(synchronize_session=False)
    )
    return changed(result) == 1


# --- retry -----------------------------------------------------------------------------------------------------------


def begin_again(session: Session, seen: Migration, volume: Volume, *expected: sa.ColumnElement[bool]) -> bool:
    """Let a migration that was taken back begin anew, with nothing of its copy; False: the volume is not to be had.

    The volume is marked by the same compare-and-swap as for a new migration.  Raises Conflict when the row has
    changed since it was ``seen``.
    """
    own = (Volume.migration_id == seen.id, Volume.host == seen.source_host)
    retype = seen.new_type_id is not None
    free = volumes.is_at_rest()
    if not migrations.mark(session, volume, seen.id, seen.lock_volume, free, *own, *expected, retype=retype):
        return False
    session.execute(sa.delete(CopiedRange).where(CopiedRange.migration_id == seen.id))
    _replace(session, seen, Stage.TAKEN_BACK, **_anew(seen, volume))
    return True


def _anew(seen: Migration, volume: Volume) -> dict[str, Any]:
    """The row's columns as they were when it was asked for, and a new name for what it will make."""
    attached = seen.plan == states.ATTACHED.name
    nothing = (
        *("destination_host", "destination_location", "worker", "heartbeat_at", "finished_at", "ended_at"),
        *("bytes_allocated", "bytes_verified", "rate", "checksum", "moved_seconds", "bytes_moved", "stalled_since"),
        *("error_step", "error_code", "error_message"),
        *("swap_server", "swap_called_at", "swap_result", "swap_seen_at"),
    )
    return {
        **dict.fromkeys(nothing),
        "destination_volume_id": str(uuid.uuid4()),
        "source_object_id": volume.object_id,
        "size": volume.size,
        "previous_status": volume.status,
        "plan": seen.plan if attached else states.first_plan(seen.force_host_copy).name,
        "step": states.FIRST_STEP,
        "direction": Direction.FORWARD.value,
        "bytes_total": volume.size * 1024**3,
        "bytes_done": 0,
        "verdicts": [],
        "cancel_requested": False,
    }


def take_back_again(session: Session, seen: Migration) -> bool:
    """Let a stuck migration try once more to take back what it did; False: another one moves the volume now.

    The volume itself is not touched by that, so its owner may use it meanwhile, and it may be gone.
    """
    volume = volumes.find(session, seen.volume_id)
    if volume is not None:
        shown = states.shown(Position(seen.plan, seen.step, Direction(seen.direction)))
        still = (Volume.migration_id == seen.id, volumes.is_at_rest(), Volume.status == volume.status)
        values = {"migration_status": shown.value, "previous_status": volume.status}
        if not volumes.update_where(session, seen.volume_id, *still, **values):
            return False
    _replace(session, seen, Stage.STUCK, finished_at=None, ended_at=None)
    return True


def _replace(session: Session, seen: Migration, stage: Stage, **values: Any) -> None:
    """Open a migration that is over, as it was ``seen``; raises Conflict if it no longer is."""
    assert states.stage(migrations.position(seen)) is stage
    result = session.execute(
        sa.update(Migration)
        .where(Migration.id == seen.id, Migration.generation == seen.generation, Migration.end == seen.end)
        .values(
            end=None,
            owner=None,
            lease_until=0.0,
            not_before=0.0,
            attempts=0,
            paused=False,
            generation=seen.generation + 1,
            updated_at=utcnow(),
            **values,
        )
        .execution_options(synchronize_session=False)
    )
    if changed(result) != 1:
        raise _overtaken(seen)


def _overtaken(seen: Migration) -> errors.Conflict:
    return errors.Conflict(reason=f"Migration {seen.id} or its volume was changed at the same time; look again.")


# --- undo ------------------------------------------------------------------------------------------------------------


def undo(session: Session, seen: Migration, volume: Volume, twin: Volume) -> None:
    """Put the volume back on the source that was kept; raises Conflict if anything is no longer as it was seen.

    To be called in the transaction in which ``obstacle_to_undo`` found nothing.
    """
    moved_back = twins.put_back(session, seen, volume, twin)
    result = session.execute(
        sa.update(Migration)
        .where(
            Migration.id == seen.id,
            is_allowed(Order.UNDO),
            Migration.undone_at.is_(None),
            Migration.keep_source_until > now_seconds(),
        )
        .values(undone_at=now_seconds(), generation=Migration.generation + 1, updated_at=utcnow())
        .execution_options(synchronize_session=False)
    )
    if not moved_back or changed(result) != 1:
        raise _overtaken(seen)


def obstacle_to_undo(session: Session, row: Migration, volume: Volume | None, twin: Volume | None) -> str | None:
    """Return the one reason why a migration that ended cannot be undone, or None."""
    now = float(session.scalar(sa.select(now_seconds())) or 0.0)
    return _obstacle_of_source(row, twin, now) or _obstacle_of_volume(session, row, volume)


def _obstacle_of_source(row: Migration, twin: Volume | None, now: float) -> str | None:
    until = row.keep_source_until
    if row.undone_at is not None:
        return f"it was undone at {_time(row.undone_at)}"
    if until is None:
        return "its source was not kept"
    if until <= now or twin is None or twin.status != twins.KEPT:
        return f"its source was kept until {_time(until)} and is no longer there"
    if row.new_type_id is not None:
        return f"it has also given the volume the type {row.new_type_id}, which is not taken back"
    return None


def _obstacle_of_volume(session: Session, row: Migration, volume: Volume | None) -> str | None:
    if volume is None:
        return f"volume {row.volume_id} is gone"
    query = sa.select(volumes.has_attachments(), volumes.has_snapshots()).where(Volume.id == volume.id)
    attached, has_snapshots = session.execute(query).one()
    written = volume.writable_at is not None  # since the switch, which forgets what was before
    reasons = {
        f"migration {volume.migration_id} has moved the volume since": volume.migration_id != row.id,
        f"the volume is no longer on {row.destination_host}": volume.host != row.destination_host,
        f"the volume's status must be available; it is {volume.status}": volume.status != "available",
        "the volume is attached or reserved for a server": attached,
        "the volume has snapshots, which lie at its new place": has_snapshots,
        f"the volume was made writable at {_time(volume.writable_at)}, so its old place may lack data": written,
        f"the volume has {volume.size} GiB now and had {row.size}": volume.size != row.size,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _time(seconds: float | None) -> str:
    """Return a moment of the database's clock as people read it."""
    moment = datetime.datetime.fromtimestamp(seconds or 0.0, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
