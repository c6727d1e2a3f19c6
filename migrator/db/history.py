"""The history of a migration: one row for each attempt of each step, kept after the end."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator.db.api import execute
from migrator.db.models import MigrationStep, utcnow

_STEP: sa.Table = MigrationStep.__table__  # type: ignore[assignment]
_OPEN = sa.insert(_STEP)
_CLOSE = (
    sa.update(_STEP)
    .where(_STEP.c.migration_id == sa.bindparam("of_migration"), _STEP.c.finished_at.is_(None))
    .values({name: sa.bindparam(f"new_{name}") for name in ("finished_at", "result", "bytes", "message")})
)


def steps(session: Session, migration_id: str) -> list[MigrationStep]:
    """The history of the migration, oldest first."""
    query = sa.select(MigrationStep).where(MigrationStep.migration_id == migration_id).order_by(MigrationStep.id)
    return list(session.scalars(query))


def open_attempt(session: Session, migration_id: str, step: str, direction: str, attempt: int) -> None:
    """Write that an attempt begins now."""
    row = {"migration_id": migration_id, "step": step, "direction": direction, "attempt": attempt}
    execute(session, _OPEN, **row, started_at=utcnow())


def merge_waiting(session: Session, migration_id: str, step: str, direction: str) -> None:
    """Make one row of a step's looks that found nothing new: it began with the first and ended with the last."""
    query = (
        sa.select(_STEP.c.id, _STEP.c.step, _STEP.c.direction, _STEP.c.result, _STEP.c.started_at)
        .where(_STEP.c.migration_id == migration_id)
        .order_by(_STEP.c.id.desc())
        .limit(2)
    )
    rows = session.connection().execute(query).all()
    alike = (step, direction, "waiting")
    if len(rows) == 2 and all((row.step, row.direction, row.result) == alike for row in rows):
        last, first = rows
        session.connection().execute(sa.delete(_STEP).where(_STEP.c.id == first.id))
        session.connection().execute(sa.update(_STEP).where(_STEP.c.id == last.id).values(started_at=first.started_at))


def close(session: Session, migration_id: str, *, result: str, message: str | None, moved: int | None = None) -> None:
    """Write what became of the attempts that are open; ``moved`` in bytes."""
    new = {"new_result": result, "new_message": message, "new_bytes": moved, "new_finished_at": utcnow()}
    execute(session, _CLOSE, of_migration=migration_id, **new)
