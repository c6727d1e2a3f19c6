"""How fast copies were: what the time that a migration will take is expected from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator.backend_name import BackendName
from migrator.db.models import Migration, MigrationStep
from migrator.volume.states import HOST_COPY, VERIFY_COPY, End, Event

#: The last so many migrations count.
SAMPLE = 10


@dataclass(frozen=True)
class Measured:
    """Rates in bytes of data, holes left out, per second; ``of`` says between which places."""

    of: str
    migrations: int
    copy_rate: float
    #: None where none of them was read back.
    verify_rate: float | None


def rates(session: Session, source: BackendName, destination: BackendName) -> Measured | None:
    """Return the rate of the last copies between both backends; else of those out of or into one of them, or None.

    What was copied at a rate that somebody had ordered says nothing of the backends and is left out.
    """
    for words, ends in _places(source.service, destination.service):
        query = (
            sa.select(Migration.id, Migration.bytes_allocated, Migration.bytes_moved, Migration.moved_seconds)
            .where(
                Migration.end == End.SUCCESS.value,
                Migration.plan == HOST_COPY.name,
                Migration.bytes_per_second.is_(None),
                Migration.bytes_allocated > 0,
                Migration.bytes_moved > 0,
                Migration.moved_seconds > 0,
                ends,
            )
            .order_by(Migration.finished_at.desc(), Migration.id)
            .limit(SAMPLE)
        )
        rows = session.execute(query).all()
        if rows:
            return _measured(session, words, rows)
    return None


def _places(source: str, destination: str) -> Iterator[tuple[str, sa.ColumnElement[bool]]]:
    """The nearest measurements first."""
    leaves = _on(Migration.source_host, source)
    arrives = _on(Migration.destination_host, destination)
    yield f"from {source} to {destination}", sa.and_(leaves, arrives)
    yield f"out of {source} or into {destination}", sa.or_(leaves, arrives)


def _on(column: Any, service: str) -> sa.ColumnElement[bool]:
    return sa.or_(column == service, column.startswith(f"{service}#", autoescape=True))


def _measured(session: Session, words: str, rows: Sequence[Any]) -> Measured:
    # A copy that was resumed has moved some bytes twice; one that was given less than it holds has had a driver's
    # idea of "allocated" that was larger than the volume.
    data = {row.id: min(row.bytes_allocated, row.bytes_moved) for row in rows}
    seconds = sum(row.moved_seconds for row in rows)
    return Measured(words, len(rows), sum(data.values()) / seconds, _verify_rate(session, data))


def _verify_rate(session: Session, data: dict[str, int]) -> float | None:
    query = sa.select(MigrationStep.migration_id, MigrationStep.started_at, MigrationStep.finished_at).where(
        MigrationStep.migration_id.in_(list(data)),
        MigrationStep.step == VERIFY_COPY.name,
        MigrationStep.result == Event.DONE.value,
        MigrationStep.bytes.is_not(None),  # else the comparison was left out
        MigrationStep.finished_at.is_not(None),
    )
    found = [(row.migration_id, (row.finished_at - row.started_at).total_seconds()) for row in session.execute(query)]
    seconds = sum(spent for _, spent in found)
    return sum(data[migration_id] for migration_id, _ in found) / seconds if seconds > 0 else None
