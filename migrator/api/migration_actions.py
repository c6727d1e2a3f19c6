"""``POST /migrations/{id}/action``: cancel, pause, resume, retry, set_rate, undo.

What is allowed where is decided by the machine (db/orders.py); an order that comes too late or too early is answered
409 with the reason, and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import guard, schemas, volume_actions
from migrator.api.faults import RETRY_AFTER
from migrator.api.wsgi import Answer, Request
from migrator.backend_name import BackendName
from migrator.db import migrations, orders, volumes
from migrator.db.models import Migration, Volume
from migrator.db.orders import Order

LOG = logging.getLogger(__name__)


def cancel(request: Request, migration_id: str) -> Answer:
    """Ask for a cancel; whoever works on the migration takes back what it did, and it ends ``cancelled``."""
    force = schemas.as_bool((request.body["cancel"] or {}).get("force"))

    def write(session: Session, row: Migration) -> bool:
        if orders.may(Order.CANCEL, row) and row.lock_volume and not (force and request.is_admin):
            raise errors.Conflict(
                reason=f"Migration {row.id} cannot be cancelled: it was begun with lock_volume, so that only an "
                'administrator can, who forces it: {"cancel": {"force": true}}.'
            )
        return migrations.request_cancel(session, row.id)

    return _order(request, migration_id, Order.CANCEL, write)


def pause(request: Request, migration_id: str) -> Answer:
    """Let the migration rest: a copy stops at once and keeps what it has flushed, another step comes to its end."""
    return _order(request, migration_id, Order.PAUSE, lambda session, row: orders.pause(session, row.id))


def resume(request: Request, migration_id: str) -> Answer:
    """Let a paused migration go on where it was."""
    return _order(request, migration_id, Order.RESUME, lambda session, row: orders.resume(session, row.id))


def set_rate(request: Request, migration_id: str) -> Answer:
    """Limit the copy to so many bytes per second, from now on; null: to the rate of its backend."""
    wanted = request.body["set_rate"]["bytes_per_second"]
    rate = None if wanted is None else int(wanted)
    return _order(request, migration_id, Order.SET_RATE, lambda session, row: orders.set_rate(session, row.id, rate))


def _order(request: Request, migration_id: str, order: Order, write: Callable[[Session, Migration], bool]) -> Answer:
    """Write an order and tell whoever works on the migration; raises Conflict where the machine does not allow it."""

    def work(session: Session) -> Migration:
        if not write(session, _own(request, session, migration_id)):
            raise _refusal(migrations.get(session, migration_id), order)
        return migrations.get(session, migration_id)

    row = request.run(work)
    _log(request, row.id, order)
    guard.nudge(request, row)
    return Answer(202)


def _log(request: Request, migration_id: str, order: Order) -> None:
    """Say who gave an order: the row names only who asked for the migration."""
    LOG.info("Migration %s: %s, ordered by %s", migration_id, order, request.context.user_id)


def _own(request: Request, session: Session, migration_id: str) -> Migration:
    """Return a migration that the caller may see; raises NotFound or Forbidden."""
    row = migrations.get(session, migration_id)
    request.authorize_owner("Migration", migration_id, row.project_id, row.user_id)
    return row


def _refusal(row: Migration, order: Order) -> errors.Conflict:
    reason = orders.refusal(row, order)
    if row.end is None and migrations.is_behind_line(row):
        return errors.Conflict(reason=reason, retry_after=RETRY_AFTER)
    return errors.Conflict(reason=reason)


# --- retry -----------------------------------------------------------------------------------------------------------


def retry(request: Request, migration_id: str) -> Answer:
    """Begin anew what failed or was cancelled, or try once more to take back what is stuck."""
    seen = request.read(lambda session: _own(request, session, migration_id))

    def work(session: Session) -> Migration:
        row = _own(request, session, migration_id)
        if not orders.may(Order.RETRY, row):
            raise _refusal(row, Order.RETRY)
        if row.end == "stuck":
            if not orders.take_back_again(session, row):
                raise _unfit(row, f"another migration moves volume {row.volume_id}")
        else:
            _begin_again(request, session, row)
        return migrations.get(session, migration_id)

    row = guard.run(request, seen.volume_id, work)
    _log(request, migration_id, Order.RETRY)
    guard.nudge(request, row)
    return Answer(202)


def _begin_again(request: Request, session: Session, row: Migration) -> None:
    """Mark the volume as a new request would; raises Conflict with what stands against it, or Overtaken."""
    volume = volumes.find(session, row.volume_id)
    reason = _obstacle(request, session, row, volume)
    if volume is None or reason is not None:
        raise _unfit(row, reason)
    if not orders.begin_again(session, row, volume, *volume_actions.movable(volume)):
        raise guard.Overtaken


def _obstacle(request: Request, session: Session, row: Migration, volume: Volume | None) -> str | None:
    if volume is None:
        return f"volume {row.volume_id} is gone"
    if volume.migration_id != row.id:
        return f"volume {volume.id} was migrated again since, by migration {volume.migration_id}"
    if volume.host != row.source_host:
        return f"volume {volume.id} is no longer on {row.source_host}"
    place = BackendName.parse(row.requested_host) if row.requested_host else None
    try:
        volume_actions.refuse_place(request, session, volume, place)
    except errors.BadRequest as error:
        return error.message
    found = volume_actions.obstacle(request, session, volume)
    return found and f"volume {volume.id}: {found}"


def _unfit(row: Migration, reason: str | None) -> errors.Conflict:
    return errors.Conflict(reason=f"Migration {row.id} cannot be retried: {reason}.")


# --- undo ------------------------------------------------------------------------------------------------------------


def undo(request: Request, migration_id: str) -> Answer:
    """Put the volume back on the source that was kept, in one transaction; its new place is then cleared."""

    def work(session: Session) -> tuple[str, str]:
        row = _own(request, session, migration_id)
        if not orders.may(Order.UNDO, row):
            raise _refusal(row, Order.UNDO)
        volume, twin = (volumes.find(session, found) for found in (row.volume_id, row.destination_volume_id))
        reason = orders.obstacle_to_undo(session, row, volume, twin)
        if reason is not None or volume is None or twin is None:
            raise errors.Conflict(reason=f"Migration {row.id} cannot be undone: {reason}.")
        orders.undo(session, row, volume, twin)
        return str(volume.host), twin.id

    left, twin_id = request.run(work)
    _log(request, migration_id, Order.UNDO)
    request.backing.volume.delete_volume(request.context, left, twin_id)
    return Answer(202)
