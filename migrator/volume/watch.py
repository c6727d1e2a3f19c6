"""What a long step asks its row while it works, and what it records there.

A copier asks ``stop`` several times a second.  Twice a second that looks for orders in the database; and when nothing
else was recorded for a while, it gives a sign of life.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from migrator.db import migrations, orders
from migrator.db.api import Database
from migrator.db.models import Migration

#: Seconds between two looks for orders.
LOOK_SECONDS = 0.5
#: Seconds between two records of how far a step is.
RECORD_SECONDS = 1.0
#: After this a sign of life is given: a row that is worked on is never older than two seconds.
SIGN_SECONDS = 1.5


class Limited(Protocol):
    """Whose rate can be changed while it works."""

    def limit(self, bytes_per_second: float | None) -> None: ...


class Watch:
    """The eyes and the pen of one attempt of a step; raises LostOwnership wherever the row is no longer ours."""

    def __init__(self, db: Database, migration: Migration, stopping: threading.Event, usual_rate: int | None) -> None:
        """``usual_rate``: bytes per second where none was ordered for this migration, None: no limit."""
        self._db = db
        self._migration = migration
        self._stopping = stopping
        self._usual_rate = usual_rate
        #: What is worked at, in bytes per second, None: no limit.
        self.rate = self._wanted(migration.bytes_per_second)
        self._limited: Limited | None = None
        self._set_rate: float | None = None
        self._looked = self._recorded = self._began = time.monotonic()

    def _wanted(self, ordered: int | None) -> int | None:
        return self._usual_rate if ordered is None else ordered

    def limit(self, limited: Limited, rate: int | None) -> None:
        """Keep ``limited``, which begins at ``rate``, at the rate that is wanted."""
        self._limited, self._set_rate = limited, rate
        self._began = time.monotonic()

    def stop(self) -> str | bool:
        """Tell whether to stop: ``cancel``, ``pause`` (also when the service ends), or False."""
        if self._stopping.is_set():
            return "pause"
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            wishes = self._db.read(lambda session: orders.look(session, self._migration))
            if wishes.stop is not None:
                return wishes.stop
            self.rate = self._wanted(wishes.bytes_per_second)
        if self._limited is not None and self._set_rate != self.rate:
            self._set_rate = self.rate
            self._limited.limit(self.rate)
        if time.monotonic() - self._recorded >= SIGN_SECONDS:
            self.record()
        return False

    @property
    def is_due(self) -> bool:
        """True when something should be recorded again."""
        return time.monotonic() - self._recorded >= RECORD_SECONDS

    def record(self, ranges: list[list[int]] | None = None, **values: Any) -> None:
        """Write columns with a sign of life, and behind a flush the ranges that were copied."""
        self._recorded = time.monotonic()
        self._db.run(lambda session: migrations.progress(session, self._migration, ranges, **values))

    def moved(self, count: int) -> dict[str, Any]:
        """Columns that say how much was moved in all attempts, when this one has moved ``count`` bytes."""
        return {
            "bytes_moved": (self._migration.bytes_moved or 0) + max(0, count),
            "moved_seconds": (self._migration.moved_seconds or 0.0) + time.monotonic() - self._began,
        }

    def stalled(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The column that tells since when a request of a copier has not come back, from what it reports."""
        seconds = float(event.get("stalled_seconds") or 0.0)
        return {"stalled_since": self._db.now() - seconds if seconds > 0 else None}
