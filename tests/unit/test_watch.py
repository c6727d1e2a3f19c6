"""What a long step asks of its row and records there: orders are seen, rates changed, and it is never silent."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from migrator import errors
from migrator.db import migrations, orders
from migrator.db.api import Database
from migrator.db.models import Migration
from migrator.volume.watch import Watch
from tests.support import rows
from tests.support.waiting import until

MIB = 1 << 20


class Limited:
    """Remembers the rates that it was given."""

    def __init__(self) -> None:
        self.rates: list[float | None] = []

    def limit(self, bytes_per_second: float | None) -> None:
        self.rates.append(bytes_per_second)


@pytest.fixture
def row(db: Database) -> Migration:
    """A migration whose copy was claimed."""
    rows.add_services(db)
    asked = rows.add_migration(db, rows.add_volume(db))
    seen = rows.migration(db, asked.id)
    took = db.run(lambda s: migrations.claim(s, seen, "me", 30, owner_is_dead=False))
    assert took
    return rows.migration(db, asked.id)


def new(db: Database, row: Migration, usual_rate: int | None = None) -> Watch:
    return Watch(db, row, threading.Event(), usual_rate)


def answer(watching: Watch) -> Callable[[], bool]:
    return lambda: watching.stop() is not False


def test_a_cancel_is_seen_within_a_second(db: Database, row: Migration) -> None:
    watching = new(db, row)
    assert watching.stop() is False
    db.run(lambda s: migrations.request_cancel(s, row.id))
    until(answer(watching), "the cancel", seconds=1, pause=0.01)


def test_a_pause_is_seen_within_a_second_and_a_cancel_goes_before_it(db: Database, row: Migration) -> None:
    watching = new(db, row)
    assert db.run(lambda s: orders.pause(s, row.id))
    until(lambda: watching.stop() == "pause", "the pause", seconds=1, pause=0.01)
    assert orders.Wishes(cancel=True, pause=True, bytes_per_second=None).stop == "cancel"


def test_a_service_that_ends_lets_the_copy_keep_what_it_has(db: Database, row: Migration) -> None:
    stopping = threading.Event()
    watching = Watch(db, row, stopping, None)
    stopping.set()
    assert watching.stop() == "pause"


def test_a_rate_that_is_ordered_is_given_to_the_copier_within_a_second_and_once(db: Database, row: Migration) -> None:
    """field.md pain 15: a copy was slowed down for some kinds of volumes alone, and never while it ran."""
    watching, copier = new(db, row, usual_rate=9 * MIB), Limited()
    assert watching.rate == 9 * MIB, "the backend's"
    watching.limit(copier, watching.rate)
    for ordered, expected in ((MIB, MIB), (2 * MIB, 2 * MIB), (None, 9 * MIB)):
        copier.rates.clear()
        assert db.run(lambda s, rate=ordered: orders.set_rate(s, row.id, rate))  # type: ignore[misc]
        until(lambda: not watching.stop() and bool(copier.rates), "the rate", seconds=1, pause=0.01)
        watching.stop()
        assert copier.rates == [expected]


def test_the_rate_of_the_migration_goes_before_that_of_its_backend(db: Database, row: Migration) -> None:
    db.run(lambda s: orders.set_rate(s, row.id, MIB))
    assert new(db, rows.migration(db, row.id), usual_rate=9 * MIB).rate == MIB


def test_who_begins_without_a_limit_gets_it_at_the_first_question(db: Database, row: Migration) -> None:
    watching, copier = new(db, row, usual_rate=MIB), Limited()
    watching.limit(copier, None)
    watching.stop()
    assert copier.rates == [MIB]


def test_a_step_that_reports_nothing_still_gives_signs_of_life(db: Database, row: Migration) -> None:
    """Progress is never older than two seconds, whatever a device does."""
    watching = new(db, row)
    before = rows.migration(db, row.id).heartbeat_at or 0.0

    def heard() -> bool:
        watching.stop()
        return (rows.migration(db, row.id).heartbeat_at or 0.0) > before

    until(heard, "a sign of life", seconds=2, pause=0.05)


def test_what_was_moved_adds_up_over_attempts(db: Database, row: Migration) -> None:
    first = new(db, row)
    first.record(bytes_done=MIB, **first.moved(MIB))
    again = rows.migration(db, row.id)
    second = new(db, again)
    columns = second.moved(2 * MIB)
    assert columns["bytes_moved"] == 3 * MIB
    assert columns["moved_seconds"] > (again.moved_seconds or 0.0) > 0.0


def test_a_stall_is_counted_from_its_beginning(db: Database, row: Migration) -> None:
    watching = new(db, row)
    for quiet in ({}, {"stalled_seconds": 0.0}, {"stalled_seconds": None}):
        assert watching.stalled(quiet) == {"stalled_since": None}
    since = watching.stalled({"stalled_seconds": 40.0})["stalled_since"]
    assert since == pytest.approx(db.now() - 40, abs=5)
    watching.record(stalled_since=since)
    assert rows.migration(db, row.id).stalled_since == since


def test_who_lost_the_row_is_told(db: Database, row: Migration) -> None:
    watching = new(db, row)
    assert db.run(lambda s: migrations.claim(s, row, "other", 30, owner_is_dead=True))
    with pytest.raises(errors.LostOwnership):
        until(answer(watching), "the look", seconds=1, pause=0.01)
    with pytest.raises(errors.LostOwnership):
        watching.record(bytes_done=1)
