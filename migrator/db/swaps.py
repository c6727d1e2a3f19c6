"""Swaps by the compute service: who may begin one, what was reported, and who may still write to a twin.

One call to the compute service per migration (``swap_called_at``, written before it) and one swap per server at a time
(``swap_server``, which is unique).  The attachments that the compute service makes on the twin tell how far it is:
``reserved`` without a connection, nobody can write there; connected, its host may be copying; ``attached``, the server
lives there and there is no way back.
"""

from __future__ import annotations

import enum

import sqlalchemy as sa
from oslo_db import exception as db_exc
from sqlalchemy.orm import Session, aliased

from migrator import errors
from migrator.db import attachments, migrations, orders, volumes
from migrator.db.api import Database, changed, now_seconds
from migrator.db.models import Attachment, Migration, Volume, utcnow
from migrator.volume import states
from migrator.volume.states import End

#: What the compute service reports of a swap.
DONE, FAILED = "done", "failed"
#: Steps at which such a report is taken, in either direction.
_LISTENING = (states.SWAP_BY_COMPUTE.name, states.SWITCH_VOLUME.name)


class Use(enum.StrEnum):
    """How far a server has come with a twin."""

    NONE = "none"
    RESERVED = "reserved"
    CONNECTED = "connected"
    ATTACHED = "attached"


def use(session: Session, twin_id: str) -> Use:
    """Return how far a server has come with the twin: the furthest that any of its attachments has."""
    rows = attachments.of_volume(session, twin_id)
    if not rows:
        # In the older way to attach, a host is connected before there is an attachment.
        return Use.CONNECTED if _is_attaching(session, twin_id) else Use.NONE
    if any(row.attach_status == attachments.ATTACHED for row in rows):
        return Use.ATTACHED
    if any(row.connection_info or row.attach_status != attachments.RESERVED for row in rows):
        return Use.CONNECTED
    return Use.RESERVED


def has_arrived(session: Session, volume: Volume) -> bool:
    """Tell whether the server lives on the volume's twin already, and the switch is still to come."""
    row = session.get(Migration, volume.migration_id) if volume.migration_id else None
    return row is not None and row.plan == attachments.PLAN and use(session, row.destination_volume_id) is Use.ATTACHED


def _is_attaching(session: Session, twin_id: str) -> bool:
    twin = volumes.find(session, twin_id)
    return twin is not None and twin.status == "attaching"


def last_connected(session: Session, twin_id: str) -> Attachment | None:
    """The twin's newest attachment by which a host was connected, gone or not."""
    was = sa.or_(Attachment.attach_time.is_not(None), Attachment.attached_host.is_not(None))
    query = sa.select(Attachment).where(Attachment.volume_id == twin_id, was)
    return session.scalar(query.order_by(Attachment.created_at.desc()).limit(1))


def begin(db: Database, migration: Migration, server: str) -> bool:
    """Write that the compute service is about to be asked; False while another volume of the server is swapped.

    Raises LostOwnership.
    """
    values = {"swap_server": server, "swap_called_at": now_seconds(), "swap_result": None, "swap_seen_at": None}
    try:
        db.run(lambda session: migrations.hold(session, migration, **values))
    except db_exc.DBDuplicateEntry:
        return False
    return True


def forget(db: Database, migration: Migration) -> None:
    """Write that the compute service was not asked after all: nothing was sent. Raises LostOwnership."""
    db.run(lambda session: migrations.hold(session, migration, swap_server=None, swap_called_at=None))


def let_go(session: Session, twin_id: str) -> bool:
    """Shut a twin that nobody can write to, so that nobody ever will; False while a host is connected to it.

    The API gives a twin away only by changing its row as it was seen, so that either this or that comes second and
    finds the row changed.
    """
    twin = volumes.find(session, twin_id)
    if twin is None:
        return True
    if use(session, twin_id) in (Use.CONNECTED, Use.ATTACHED):
        return False
    shut = volumes.update_where(session, twin_id, volumes.unchanged(twin), status="deleting")
    if shut:
        forget_attachments(session, twin_id)
    return shut


def forget_attachments(session: Session, twin_id: str) -> None:
    """End the twin's attachments, which nobody uses."""
    now = utcnow()
    session.execute(
        sa.update(Attachment)
        .where(Attachment.volume_id == twin_id, Attachment.deleted_at.is_(None))
        .values(attach_status=attachments.DETACHED, detach_time=now, deleted_at=now)
        .execution_options(synchronize_session=False)
    )
    attachments.settle(session, twin_id)


# --- the report ------------------------------------------------------------------------------------------------------


def report(session: Session, row: Migration, failed: bool) -> bool:
    """Write what the compute service says of a swap, once; False where nobody listens.  The first report counts.

    A migration that was given up is opened again: its host was waited for, and now nothing is left to wait for.

    Raises BadRequest for a success of which the twin's attachments know nothing: a volume must never be switched to
    a place that its server does not write to.
    """
    if row.plan != attachments.PLAN or row.step not in _LISTENING or row.end not in (None, End.STUCK.value):
        return False
    if not failed and use(session, row.destination_volume_id) is not Use.ATTACHED:
        raise errors.BadRequest(
            reason=f"Migration {row.id} cannot be completed: no server is attached to volume "
            f"{row.destination_volume_id} yet."
        )
    session.execute(
        sa.update(Migration)
        .where(Migration.id == row.id, Migration.swap_result.is_(None))
        .values(swap_result=FAILED if failed else DONE, not_before=0.0, updated_at=utcnow())
        .execution_options(synchronize_session=False)
    )
    if row.end is not None:
        opened = orders.take_back_again(session, migrations.get(session, row.id))
        if not opened and not failed:
            raise errors.Conflict(reason=f"Migration {row.id} was given up, and its volume is being moved again.")
    return True


# --- questions of the API --------------------------------------------------------------------------------------------


def one_server() -> sa.ColumnElement[bool]:
    """SQL: exactly one server uses the volume, and nobody else is about to."""
    count = (
        sa.select(sa.func.count())
        .where(Attachment.volume_id == Volume.id, Attachment.deleted_at.is_(None))
        .correlate(Volume)
        .scalar_subquery()
    )
    by_server = (
        sa.select(Attachment.id)
        .where(
            Attachment.volume_id == Volume.id,
            Attachment.instance_uuid.is_not(None),
            Attachment.attach_status == attachments.ATTACHED,
            attachments.is_living(),
        )
        .correlate(Volume)
        .exists()
    )
    return sa.and_(count == 1, by_server, Volume.multiattach.is_(False), sa.not_(has_leftover()))


def has_leftover() -> sa.ColumnElement[bool]:
    """SQL: a host may still be copying into the twin of a migration that was given up."""
    twin = aliased(Volume)
    return (
        sa.select(twin.id)
        .join(Attachment, Attachment.volume_id == twin.id)
        .where(twin.twin_of == Volume.id, twin.deleted_at.is_(None), attachments.is_living())
        .correlate(Volume)
        .exists()
    )


def obstacle(session: Session, volume: Volume) -> str | None:
    """Return the one reason why the compute service cannot move the users of a volume in use, or None."""
    rows = attachments.of_volume(session, volume.id)
    writers = [row for row in rows if row.attach_mode != "ro"]
    leftover = session.scalar(sa.select(has_leftover()).where(Volume.id == volume.id))
    reasons = {
        f"it is attached {len(rows)} times, {len(writers)} of them for writing: what one server writes while another "
        "one is moved would be lost": len(rows) > 1,
        "it is multiattach: detach it, then migrate it": volume.multiattach,
        "its attachment is to no server, so that the compute service cannot move it": not rows
        or rows[0].instance_uuid is None,
        "its attachment is not complete": any(row.attach_status != attachments.ATTACHED for row in rows),
        f"migration {volume.migration_id} was given up and a host may still copy into its destination": bool(leftover),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


# --- a swap of two volumes that no migration asked for ---------------------------------------------------------------


def exchanged(session: Session, old: Volume, new: Volume, failed: bool) -> bool:
    """Settle both volumes of such a swap; False when ``new`` is none that a server has just been given.

    A swap that failed may have left nothing to be seen of it, or be reported twice: then nothing is changed.
    """
    if any(volume.twin_of is not None or not _is_at_rest(volume) for volume in (old, new)):
        return False
    arriving = attachments.of_volume(session, new.id)
    if not arriving and new.status != "attaching" and not failed:
        return False
    if not arriving and not failed:  # attached in the older way, by status alone: its attachments come along
        _hand_over(session, old.id, new.id)
    for volume in (old, new):
        attachments.settle(session, volume.id)
    return True


def _is_at_rest(volume: Volume) -> bool:
    return volume.migration_status is None or volume.migration_status in volumes.AT_REST


def _hand_over(session: Session, old_id: str, new_id: str) -> int:
    result = session.execute(
        sa.update(Attachment)
        .where(Attachment.volume_id == old_id, attachments.is_living())
        .values(volume_id=new_id, attach_status=attachments.ATTACHED)
        .execution_options(synchronize_session=False)
    )
    return changed(result)
