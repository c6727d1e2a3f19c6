"""What the runner promises whoever asks it for work, with threads of its own."""

from __future__ import annotations

import threading

import sqlalchemy as sa

from migrator.context import current_request_id, service_context
from migrator.db import migrations
from migrator.db.api import Database
from migrator.db.models import Migration
from migrator.db.transitions import Outcome
from migrator.volume.runner import Interrupted, Runner, Settings
from migrator.volume.states import Direction
from tests.support import rows
from tests.support.waiting import until

SETTINGS = Settings(lease_seconds=30, sweep_seconds=3600, attempts=3, retry_seconds=0.0, parallel=2)
STEP = "create_destination"


def waiting_for(db: Database, step: str, **values: str) -> Migration:
    row = rows.add_migration(db, rows.add_volume(db), **values)
    db.run(lambda session: session.execute(sa.update(Migration).where(Migration.id == row.id).values(step=step)))
    return row


def test_who_is_asked_for_what_it_works_on_looks_at_it_again_behind_that(db: Database) -> None:
    """A resume that comes while a pause is written down is not left to the next sweep, an hour away here."""
    row = waiting_for(db, STEP)
    began, go_on = threading.Event(), threading.Event()
    calls: list[str] = []

    def step(migration: Migration) -> Outcome:
        calls.append(migration.id)
        began.set()
        assert go_on.wait(20)
        raise Interrupted("paused on request")

    runner = Runner(db, {(STEP, Direction.FORWARD): step}, sa.true, SETTINGS)
    try:
        runner.submit(row.id)
        assert began.wait(20)
        for _ in range(3):
            runner.submit(row.id)
        go_on.set()
        until(lambda: len(calls) == 2 and not runner.active(), "once more, and once only")
    finally:
        runner.stop()
    assert calls == [row.id] * 2
    assert rows.migration(db, row.id).owner is None


def test_each_migration_is_worked_on_under_the_id_of_the_request_that_began_it(db: Database) -> None:
    """In one thread, which has had another's before; the calls of a step carry it on."""
    asked = [waiting_for(db, STEP, request_id=f"req-{number}") for number in range(3)]
    seen: dict[str, tuple[str | None, str | None]] = {}

    def step(migration: Migration) -> Outcome:
        seen[migration.id] = current_request_id(), service_context().request_id
        raise Interrupted("that is all")

    runner = Runner(db, {(STEP, Direction.FORWARD): step}, sa.true, SETTINGS)
    try:
        for row in asked:
            runner.submit(row.id)
        until(lambda: len(seen) == 3 and not runner.active(), "all were worked on")
    finally:
        runner.stop()
    assert seen == {row.id: (row.request_id, row.request_id) for row in asked}


def test_a_lease_that_ran_out_is_renewed_unless_another_has_the_row(any_db: Database) -> None:
    """A process that was stopped for longer than its lease, and wakes up before anybody has noticed."""
    ours, theirs = waiting_for(any_db, STEP), waiting_for(any_db, STEP)
    for row, owner in ((ours, "me"), (theirs, "another")):
        values = {"owner": owner, "lease_until": 1.0}
        change = sa.update(Migration).where(Migration.id == row.id).values(**values)
        any_db.run(lambda session, change=change: session.execute(change))  # type: ignore[misc]
    any_db.run(lambda session: migrations.renew(session, "me", [ours.id, theirs.id], 30.0))
    assert rows.migration(any_db, ours.id).lease_until > any_db.now() + 20
    assert rows.migration(any_db, theirs.id).lease_until == 1.0


def test_a_step_that_waits_for_a_backend_gives_signs_of_life(any_db: Database) -> None:
    """It may take minutes to create a destination, and who looks must not believe that nobody is at it."""
    row = waiting_for(any_db, STEP)
    began, go_on = threading.Event(), threading.Event()

    def step(migration: Migration) -> Outcome:
        began.set()
        assert go_on.wait(60)
        raise Interrupted("over")

    runner = Runner(any_db, {(STEP, Direction.FORWARD): step}, sa.true, SETTINGS)
    runner.start()
    try:
        runner.submit(row.id)
        assert began.wait(20)
        first = rows.migration(any_db, row.id).heartbeat_at or 0.0
        until(
            lambda: (rows.migration(any_db, row.id).heartbeat_at or 0.0) > first + 3, "signs, far below the lease", 25
        )
    finally:
        go_on.set()
        runner.stop()


def test_nobody_gives_a_sign_of_life_for_another(any_db: Database) -> None:
    row = waiting_for(any_db, STEP)
    change = sa.update(Migration).where(Migration.id == row.id).values(owner="another", heartbeat_at=1.0)
    any_db.run(lambda session: session.execute(change))
    any_db.run(lambda session: migrations.beat(session, "me", row.id, 1.0))
    assert any_db.read(lambda session: migrations.silent(session, "me", [row.id], 1.0)) == []
    assert any_db.read(lambda session: migrations.silent(session, "another", [row.id], 1.0)) == [row.id]
    assert rows.migration(any_db, row.id).heartbeat_at == 1.0
