"""User messages: what a tenant or an operator is told about an asynchronous action that failed."""

from __future__ import annotations

import datetime
import uuid

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db.models import Message, utcnow

#: Messages are kept this long.
KEPT = datetime.timedelta(days=30)


def add(
    session: Session,
    *,
    project_id: str,
    request_id: str | None,
    resource_uuid: str,
    event: str,
    text: str,
    resource_type: str = "VOLUME",
) -> None:
    """Tell the users of ``project_id`` what became of a resource; ``event`` is a short constant such as migrate."""
    now = utcnow()
    session.execute(
        sa.insert(Message).values(
            id=str(uuid.uuid4()),
            project_id=project_id,
            request_id=request_id,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            event_id=f"{resource_type}_{event}_ERROR".upper(),
            user_message=text,
            message_level="ERROR",
            created_at=now,
            guaranteed_until=now + KEPT,
        )
    )


def get(session: Session, message_id: str) -> Message:
    """Return the message; raises NotFound."""
    message = session.get(Message, message_id)
    if message is None:
        raise errors.NotFound(kind="Message", id=message_id)
    return message


def delete(session: Session, message_id: str) -> None:
    """Remove a message; one that is gone already is no error."""
    session.execute(sa.delete(Message).where(Message.id == message_id))
