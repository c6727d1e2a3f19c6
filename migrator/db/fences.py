"""Migrations that wait because a copier elsewhere may still write, and the administrator's word that it cannot.

See ``volume/migration.py`` for who waits, and the page about several services for what the word is worth.
"""

from __future__ import annotations

import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator.db.api import changed, now_seconds
from migrator.db.migrations import RETRY_CEILING, hold
from migrator.db.models import Migration, MigrationStep, utcnow

#: Shortest time between two looks whether the other machine has come back, seconds.
SHORTEST_WAIT = 1.0
#: What the history shows as the result of the administrator's word.
DECLARED = "fenced"


def wait(session: Session, migration: Migration, now: float, why: str) -> None:
    """Let the migration be claimed again as much later as it has waited already, from a second to a minute.

    ``now``: the database's clock.  However long that goes on, the history keeps one line of it, which tells since when.
    Raises LostOwnership.
    """
    since = _waiting_since(session, migration, why)
    wait_seconds = min(max(SHORTEST_WAIT, (utcnow() - since).total_seconds()), RETRY_CEILING)
    hold(session, migration, not_before=now + wait_seconds)
    same = (MigrationStep.migration_id == migration.id, MigrationStep.step == migration.step)
    earlier = sa.delete(MigrationStep).where(*same, MigrationStep.message == why)
    ours = sa.update(MigrationStep).where(*same, MigrationStep.finished_at.is_(None)).values(started_at=since)
    for statement in (earlier, ours):
        session.execute(statement.execution_options(synchronize_session=False))


def _waiting_since(session: Session, migration: Migration, why: str) -> datetime.datetime:
    query = sa.select(sa.func.min(MigrationStep.started_at)).where(
        MigrationStep.migration_id == migration.id,
        MigrationStep.step == migration.step,
        sa.or_(MigrationStep.message == why, MigrationStep.finished_at.is_(None)),
    )
    return session.scalar(query) or utcnow()


def unfenced(session: Session) -> list[Migration]:
    """Migrations under way that nobody works on, in whose row a copier is recorded; oldest first."""
    query = sa.select(Migration).where(*_is_unfenced()).order_by(Migration.created_at)
    return [row for row in session.scalars(query) if row.worker]


def _is_unfenced() -> tuple[sa.ColumnElement[bool], ...]:
    abandoned = sa.or_(Migration.owner.is_(None), Migration.lease_until < now_seconds())
    return Migration.end.is_(None), abandoned


def declare_dead(session: Session, seen: Migration, why: str) -> bool:
    """Forget the copier of a migration that nobody works on, as it was seen; False if that has changed.

    The generation goes up, so that a runner that wakes up all the same can write nothing into the row.
    """
    result = session.execute(
        sa.update(Migration)
        .where(Migration.id == seen.id, Migration.generation == seen.generation, *_is_unfenced())
        .values(
            worker=sa.null(),
            owner=None,
            lease_until=0.0,
            not_before=0.0,
            generation=seen.generation + 1,
            updated_at=utcnow(),
        )
        .execution_options(synchronize_session=False)
    )
    if changed(result) != 1:
        return False
    now = utcnow()
    session.execute(
        sa.insert(MigrationStep).values(
            migration_id=seen.id,
            step=seen.step,
            direction=seen.direction,
            attempt=max(1, seen.attempts),
            started_at=now,
            finished_at=now,
            result=DECLARED,
            message=why,
        )
    )
    return True
