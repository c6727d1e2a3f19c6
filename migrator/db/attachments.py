"""Attachments: which servers use a volume, and what that makes of the volume's status.

A swap by the compute service makes an attachment on the twin and removes the volume's own a moment before it reports.
Until the switch the removed one stays (``detach_time`` is set, ``deleted_at`` is not), so that no reader sees a volume
in use by nobody; ``move`` and ``forget_detached`` bury it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import volumes
from migrator.db.api import changed, execute, now_seconds
from migrator.db.models import Attachment, Migration, Volume, utcnow
from migrator.volume import states
from migrator.volume.states import Direction

#: The plan of a migration whose data the compute service copies.
PLAN = states.ATTACHED.name

ATTACHED, ATTACHING, DETACHING, RESERVED, DETACHED = "attached", "attaching", "detaching", "reserved", "detached"

#: Of a buried attachment whose host has not been cut off from the old place yet.
UNENDED = "unended"

#: A volume's status by the first of these words that is one of its attachments' (their order is the public API's).
STATUS = {ATTACHED: "in-use", ATTACHING: "attaching", DETACHING: "detaching", RESERVED: "reserved"}
#: Statuses that attachments decide; any other (extending, retyping, deleting …) is somebody's work on the volume.
DECIDED = ("available", *STATUS.values())

_LIVING = sa.and_(Attachment.deleted_at.is_(None), Attachment.detach_time.is_(None))


def is_living() -> sa.ColumnElement[bool]:
    """SQL: the attachment is there for who uses it."""
    return _LIVING


def get(session: Session, attachment_id: str) -> Attachment:
    """Return the living attachment; raises NotFound."""
    found = find(session, attachment_id)
    if found is None:
        raise errors.NotFound(kind="Volume attachment", id=attachment_id)
    return found


def find(session: Session, attachment_id: str) -> Attachment | None:
    """Return the living attachment, or None."""
    query = sa.select(Attachment).where(Attachment.id == attachment_id, _LIVING)
    return session.scalar(query.execution_options(populate_existing=True))


def of_volume(session: Session, volume_id: str, *expected: sa.ColumnElement[bool]) -> list[Attachment]:
    """The volume's living attachments for which every expectation holds, oldest first."""
    query = sa.select(Attachment).where(Attachment.volume_id == volume_id, _LIVING, *expected)
    return list(session.scalars(query.order_by(Attachment.created_at, Attachment.id)))


def insert(session: Session, **values: Any) -> None:
    """Add an attachment's row."""
    session.execute(sa.insert(Attachment).values(created_at=utcnow(), **values))


def update(session: Session, attachment_id: str, *expected: sa.ColumnElement[bool], **values: Any) -> bool:
    """Change the living attachment if every expectation holds; tell whether it did."""
    return _update(session, Attachment.id == attachment_id, _LIVING, *expected, **values) == 1


def connected(session: Session, attachment_id: str, volume_id: str, mark: str, **values: Any) -> bool:
    """Give an attachment the status ``mark`` and its volume what follows; False when the attachment is gone."""
    if not update(session, attachment_id, attach_status=mark, **values):
        return False
    volumes.update_where(session, volume_id, status=_decided(STATUS[mark]), attach_status=mark)
    return True


def detach(session: Session, attachment: Attachment) -> None:
    """End an attachment; what is left of others decides the volume's status."""
    now = utcnow()
    if is_swapped(session, attachment):
        update(session, attachment.id, detach_time=now)
        return
    values = {"attach_status": DETACHED, "detach_time": now, "deleted_at": now}
    _update(session, Attachment.id == attachment.id, **values)
    settle(session, attachment.volume_id)


def settle(session: Session, volume_id: str) -> None:
    """Derive the volume's status and attach_status from its attachments, as after a detach."""
    found = sa.select(Attachment.attach_status).where(
        Attachment.volume_id == volume_id, Attachment.deleted_at.is_(None)
    )
    words = set(session.scalars(found))
    word = next((word for word in STATUS if word in words), DETACHED)
    status = _decided(STATUS.get(word, "available"))
    volumes.update_where(session, volume_id, status=status, attach_status=word)


def _decided(status: str) -> sa.ColumnElement[str]:
    return sa.case((Volume.status.in_(DECIDED), status), else_=Volume.status)


# --- swaps by the compute service ------------------------------------------------------------------------------------


def awaits_compute(session: Session, twin: Volume) -> bool:
    """Tell whether the twin's migration waits for the compute service to attach the twin and copy into it."""
    row = session.get(Migration, twin.migration_id) if twin.migration_id else None
    return (
        row is not None
        and row.end is None
        and not row.cancel_requested
        and (row.plan, row.step) == (PLAN, states.SWAP_BY_COMPUTE.name)
        and row.direction == Direction.FORWARD.value
    )


def of_swapped(session: Session, twin: Volume, instance_uuid: str | None) -> Attachment | None:
    """The attachment of the twin's volume to the same server: what the swap replaces."""
    if instance_uuid is None:
        return None
    return next(iter(of_volume(session, str(twin.twin_of), Attachment.instance_uuid == instance_uuid)), None)


def is_swapped(session: Session, attachment: Attachment) -> bool:
    """Tell whether the server uses the twin already, in a migration that is not over."""
    on_twin = (
        sa.select(Attachment.id)
        .join(Volume, Volume.id == Attachment.volume_id)
        .join(Migration, Migration.id == Volume.migration_id)
        .where(
            Volume.twin_of == attachment.volume_id,
            Volume.deleted_at.is_(None),
            sa.or_(Migration.end.is_(None), Migration.end == states.End.STUCK.value),  # a late swap opens it again
            Migration.plan == PLAN,
            Attachment.instance_uuid == attachment.instance_uuid,
            Attachment.attach_status == ATTACHED,
            _LIVING,
        )
    )
    return session.scalar(on_twin.limit(1)) is not None


def move(session: Session, twin_id: str, volume_id: str) -> None:
    """Make the twin's attachments the volume's own, in the transaction of the switch.

    They replace those of the same servers, whether or not the compute service removed these.  Their connection_info
    names the volume from now on: with the twin's id in it a later detach would fail (LP1943431).  A reservation that
    was never used is left out: the compute service made it twice, since it had lost the first answer.
    """
    rows = of_volume(session, twin_id)
    arriving = [row for row in rows if row.connection_info or row.attach_status != RESERVED] or rows
    _bury(session, Attachment.volume_id == twin_id, Attachment.id.not_in([row.id for row in arriving]))
    servers = [row.instance_uuid for row in arriving if row.instance_uuid is not None]
    _bury(session, Attachment.volume_id == volume_id, Attachment.detach_time.is_not(None))
    replaced = (Attachment.volume_id == volume_id, Attachment.instance_uuid.in_(servers))
    _update(session, *replaced, attach_status=UNENDED, detach_time=utcnow(), deleted_at=utcnow())
    for row in arriving:
        info = _renamed(row.connection_info, twin_id, volume_id)
        # The server lives there, even where the compute service died before it could say so.
        status = ATTACHED if info else row.attach_status
        update(session, row.id, volume_id=volume_id, connection_info=info, attach_status=status)
    settle(session, volume_id)
    if arriving:  # the servers go on writing, to the new place alone
        volumes.update_where(session, volume_id, writable_at=now_seconds())


def forget_detached(session: Session, volume_id: str) -> None:
    """Bury what the compute service removed in a swap, at the end of its migration, however that was."""
    if _bury(session, Attachment.volume_id == volume_id, Attachment.detach_time.is_not(None)):
        settle(session, volume_id)


def unended(session: Session, volume_id: str) -> list[Attachment]:
    """Attachments that a switch replaced before the compute service removed them: their connections are still there."""
    if not execute(session, _HAS_UNENDED, of_volume=volume_id).first():
        return []
    query = sa.select(Attachment).where(Attachment.volume_id == volume_id, Attachment.attach_status == UNENDED)
    return list(session.scalars(query))


#: Asked at the end of each migration, where there are hardly ever any.
_HAS_UNENDED = sa.select(Attachment.id).where(
    Attachment.volume_id == sa.bindparam("of_volume"), Attachment.attach_status == UNENDED
)


def ended(session: Session, attachment_id: str) -> None:
    """Record that the connection of such an attachment is gone."""
    which = (Attachment.id == attachment_id, Attachment.attach_status == UNENDED)
    session.execute(sa.update(Attachment).where(*which).values(attach_status=DETACHED))


def _renamed(info: dict[str, Any] | None, old: str, new: str) -> dict[str, Any] | None:
    return {key: new if value == old else value for key, value in info.items()} if info else info


def _bury(session: Session, *where: sa.ColumnElement[bool]) -> int:
    now = utcnow()
    return _update(session, *where, attach_status=DETACHED, detach_time=now, deleted_at=now)


def _update(session: Session, *where: sa.ColumnElement[bool], **values: Any) -> int:
    result = session.execute(
        sa.update(Attachment)
        .where(Attachment.deleted_at.is_(None), *where)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    return changed(result)
