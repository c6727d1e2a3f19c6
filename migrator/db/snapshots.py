"""Snapshots: reading them, and each change of state as one guarded UPDATE."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db.api import changed
from migrator.db.models import Snapshot, Volume, utcnow


def get(session: Session, snapshot_id: str) -> Snapshot:
    """Return the living snapshot; raises NotFound."""
    snapshot = find(session, snapshot_id)
    if snapshot is None:
        raise errors.NotFound(kind="Snapshot", id=snapshot_id)
    return snapshot


def find(session: Session, snapshot_id: str) -> Snapshot | None:
    """Return the living snapshot or None."""
    query = sa.select(Snapshot).where(Snapshot.id == snapshot_id, Snapshot.deleted_at.is_(None))
    return session.scalar(query.execution_options(populate_existing=True))


def of_volume(session: Session, volume_id: str, *expected: sa.ColumnElement[bool]) -> list[Snapshot]:
    """The volume's living snapshots for which every expectation holds, oldest first."""
    query = sa.select(Snapshot).where(Snapshot.volume_id == volume_id, Snapshot.deleted_at.is_(None), *expected)
    return list(session.scalars(query.order_by(Snapshot.created_at)))


def on(session: Session, host: str) -> list[Snapshot]:
    """The living snapshots of the volumes of one pool."""
    query = sa.select(Snapshot).join(Volume, Volume.id == Snapshot.volume_id)
    return list(session.scalars(query.where(Volume.host == host, Snapshot.deleted_at.is_(None))))


def insert(session: Session, **values: Any) -> None:
    """Add a snapshot's row."""
    session.execute(sa.insert(Snapshot).values(created_at=utcnow(), **values))


def update_where(session: Session, snapshot_id: str, *expected: sa.ColumnElement[bool], **values: Any) -> bool:
    """Change the living snapshot if every expectation holds; tell whether it did."""
    return _update(session, Snapshot.id == snapshot_id, *expected, **values) == 1


def is_being_made(session: Session, volume_id: str) -> bool:
    """Tell whether a snapshot of the volume was accepted and is not there yet."""
    made = Snapshot.status.in_(["creating", "managing"])
    query = sa.select(Snapshot.id).where(Snapshot.volume_id == volume_id, made)
    return session.scalar(query.where(Snapshot.deleted_at.is_(None)).limit(1)) is not None


def update_of_volume(session: Session, volume_id: str, *expected: sa.ColumnElement[bool], **values: Any) -> int:
    """Change the volume's living snapshots for which every expectation holds; return how many that were."""
    return _update(session, Snapshot.volume_id == volume_id, *expected, **values)


def bury(session: Session, snapshot_id: str) -> None:
    """Mark a snapshot's row dead, once its object is gone."""
    update_where(session, snapshot_id, status="deleted", deleted_at=utcnow())


def _update(session: Session, *where: sa.ColumnElement[bool], **values: Any) -> int:
    result = session.execute(
        sa.update(Snapshot)
        .where(Snapshot.deleted_at.is_(None), *where)
        .values(updated_at=utcnow(), **values)
        .execution_options(synchronize_session=False)
    )
    return changed(result)
