"""Claim and advance as compare-and-swap, the switch as one transaction: on SQLite, MariaDB and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import history, migrations, orders, services, transitions, usage, volumes
from migrator.db.api import Database
from migrator.db.models import CopiedRange, Message, Migration, Volume
from migrator.db.transitions import Outcome
from migrator.volume.states import Event
from tests.support import rows

DONE = Outcome(Event.DONE)
UNDONE = Outcome(Event.UNDONE)


def claim(db: Database, seen: Migration, owner: str = "me", lease: float = 30.0, dead: bool = False) -> bool:
    return db.run(lambda session: migrations.claim(session, seen, owner, lease, owner_is_dead=dead))


def claimed(db: Database, seen: Migration) -> Migration:
    assert claim(db, seen)
    return rows.migration(db, seen.id)


def advance(db: Database, row: Migration, outcome: Outcome, attempts: int = 3) -> Migration:
    return db.run(
        lambda session: transitions.advance(session, row, outcome, attempts_allowed=attempts, retry_seconds=0.0)
    )


def picked(host: str) -> Outcome:
    return Outcome(Event.DONE, values={"destination_host": host, "destination_location": {"driver": "file"}})


def started(db: Database, plan: str = "host_copy", **values: Any) -> Migration:
    """A migration whose destination is picked, free to be claimed by the source's service."""
    rows.add_services(db)
    row = claimed(db, rows.add_migration(db, rows.add_volume(db), plan=plan, **values))
    return advance(db, row, picked(rows.DESTINATION))


def at_step(db: Database, step: str, **values: Any) -> Migration:
    """A migration that was brought forward to ``step`` and is ours."""
    row = claimed(db, started(db, **values))
    while row.step != step:
        row = advance(db, row, DONE)
    return row


def test_of_many_requests_for_one_volume_exactly_one_wins(any_db: Database) -> None:
    """field.md bug 40 (LP1493476, LP1494466): check-then-act let two migrations run at once."""
    volume_id = rows.add_volume(any_db)
    barrier = threading.Barrier(8)

    def ask(_: int) -> bool:
        def work(session: Session) -> str | None:
            return migrations.start(
                session,
                volumes.get(session, volume_id),
                user_id="u",
                project_id="p",
                request_id=None,
                source_host=rows.SOURCE,
                requested_host=rows.DESTINATION,
                plan="host_copy",
            )

        barrier.wait(30)
        return any_db.run(work) is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 1
    assert any_db.read(lambda session: session.scalar(sa.select(sa.func.count()).select_from(Migration))) == 1


def test_of_many_claims_exactly_one_wins(any_db: Database) -> None:
    seen = started(any_db)
    barrier = threading.Barrier(8)

    def take(number: int) -> bool:
        barrier.wait(30)
        return claim(any_db, seen, f"runner-{number}")

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 1
    assert rows.migration(any_db, seen.id).attempts == 1


def test_a_lease_keeps_others_out_until_it_ends_by_the_databases_clock(any_db: Database) -> None:
    row = claimed(any_db, started(any_db))
    assert not claim(any_db, row, "other")
    any_db.run(lambda session: migrations.hold(session, row, lease_until=any_db.now() - 0.001))
    assert claim(any_db, row, "other")
    assert rows.migration(any_db, row.id).attempts == 2


def test_the_row_of_a_dead_owner_is_taken_at_once(any_db: Database) -> None:
    row = claimed(any_db, started(any_db))
    assert claim(any_db, row, "other", dead=True)


def test_whoever_lost_the_row_writes_nothing(any_db: Database) -> None:
    old = claimed(any_db, started(any_db))
    assert claim(any_db, old, "other", dead=True)
    writes: list[Callable[[Session], object]] = [
        lambda session: migrations.hold(session, old, bytes_done=5),
        lambda session: migrations.progress(session, old, [[0, 5]], bytes_done=5),
        lambda session: orders.look(session, old),
    ]
    for write in writes:
        with pytest.raises(errors.LostOwnership):
            any_db.run(write)
    with pytest.raises(errors.LostOwnership):
        advance(any_db, old, DONE)
    now = rows.migration(any_db, old.id)
    assert (now.step, now.bytes_done) == ("create_destination", 0)
    assert any_db.read(lambda session: migrations.copied(session, old.id)) == []


def test_a_host_copy_from_end_to_end(any_db: Database) -> None:
    """field.md bugs 13 (LP1747949: AZ kept), 19 (LP1487952: name_id not updated)."""
    row = claimed(any_db, started(any_db))
    shown = []
    while row.end is None:
        shown.append((row.step, rows.volume(any_db, row.volume_id).migration_status))
        row = advance(any_db, row, DONE)
    assert shown == [
        ("create_destination", "migrating"),
        ("copy_data", "migrating"),
        ("verify_copy", "migrating"),
        ("disconnect", "migrating"),
        ("switch_volume", "completing"),
        ("delete_source", "completing"),
    ]
    volume = rows.volume(any_db, row.volume_id)
    assert (volume.host, volume.availability_zone, volume.status) == (rows.DESTINATION, "zone2", "available")
    assert (volume.name_id, volume.migration_status) == (row.destination_volume_id, "success")
    state = any_db.read(lambda session: services.volume_state(session, "hostb@file2", 60))
    assert state is not None
    assert volume.service_uuid == state.service.uuid
    assert any_db.read(lambda session: volumes.find(session, row.destination_volume_id)) is None


def test_the_twin_is_there_before_the_backend_is_touched_and_holds_the_old_place_after_the_switch(
    any_db: Database,
) -> None:
    row = at_step(any_db, "create_destination")
    twin = rows.volume(any_db, row.destination_volume_id)
    assert (twin.status, twin.migration_status) == ("creating", f"target:{row.volume_id}")
    assert (twin.host, twin.twin_of, twin.availability_zone) == (rows.DESTINATION, row.volume_id, "zone2")
    row = advance(any_db, row, DONE)
    assert rows.volume(any_db, row.destination_volume_id).status == "available"
    while row.step != "delete_source":
        row = advance(any_db, row, DONE)
    twin = rows.volume(any_db, row.destination_volume_id)
    assert (twin.host, twin.object_id, twin.status) == (rows.SOURCE, row.volume_id, "deleting")


def test_chains_of_migrations_keep_the_objects_names(any_db: Database) -> None:
    row = at_step(any_db, "delete_source")
    row = advance(any_db, row, DONE)
    first = row.destination_volume_id
    again = rows.add_migration(any_db, row.volume_id, source_host=rows.DESTINATION, requested_host=rows.SOURCE)
    again = claimed(any_db, again)
    row = claimed(any_db, advance(any_db, again, picked(rows.SOURCE)))
    while row.step != "delete_source":
        row = advance(any_db, row, DONE)
    twin = rows.volume(any_db, row.destination_volume_id)
    assert (twin.host, twin.object_id) == (rows.DESTINATION, first)
    assert rows.volume(any_db, row.volume_id).object_id == row.destination_volume_id


def test_a_final_failure_rolls_back_and_tells_why(any_db: Database) -> None:
    """field.md bug 21 (LP1398177): the temporary row was left when creation failed."""
    row = at_step(any_db, "copy_data")
    row = advance(any_db, row, Outcome(Event.FAILED, error=errors.NoSpace(where="pool2", reason="1 GiB wanted")))
    while row.end is None:
        assert row.direction == "back"
        row = advance(any_db, row, UNDONE)
    assert (row.end, row.error_step, row.error_code) == ("error", "copy_data", "NoSpace")
    volume = rows.volume(any_db, row.volume_id)
    assert (volume.status, volume.migration_status, volume.host) == ("available", "error", rows.SOURCE)
    assert any_db.read(lambda session: volumes.find(session, row.destination_volume_id)) is None
    text = any_db.read(lambda session: session.scalar(sa.select(Message.user_message)))
    assert "1 GiB wanted" in str(text)


def test_a_failure_on_the_way_back_does_not_hide_the_first_one(any_db: Database) -> None:
    row = at_step(any_db, "copy_data")
    row = advance(any_db, row, Outcome(Event.FAILED, error=errors.NoSpace(where="pool2", reason="full")))
    row = advance(any_db, row, Outcome(Event.FAILED, error=errors.DriverError(backend="b", reason="away")), attempts=3)
    assert (row.step, row.direction, row.error_code, row.owner) == ("copy_data", "back", "NoSpace", None)


def test_a_retry_gives_the_row_free_and_waits(any_db: Database) -> None:
    row = at_step(any_db, "copy_data")
    failed = Outcome(Event.FAILED, error=errors.DriverError(backend="b", reason="away"))
    row = any_db.run(
        lambda session: transitions.advance(session, row, failed, attempts_allowed=3, retry_seconds=1000.0)
    )
    assert (row.step, row.direction, row.owner, row.attempts) == ("copy_data", "forward", None, 1)
    assert 40 < row.not_before - any_db.now() < 100, "capped at a minute, spread by a quarter"
    assert not claim(any_db, row)
    assert any_db.read(lambda session: migrations.waiting(session)) == []


def test_the_switch_is_refused_when_the_volume_changed_under_it(any_db: Database) -> None:
    row = at_step(any_db, "switch_volume")
    any_db.run(lambda session: volumes.update_where(session, row.volume_id, status="in-use"))
    with pytest.raises(errors.VolumeChanged):
        advance(any_db, row, DONE)
    assert rows.volume(any_db, row.volume_id).host == rows.SOURCE
    assert rows.migration(any_db, row.id).step == "switch_volume"


def test_a_cancel_that_comes_before_the_switch_commits_stops_it(any_db: Database) -> None:
    row = at_step(any_db, "switch_volume")
    assert any_db.run(lambda session: migrations.request_cancel(session, row.id))
    after = advance(any_db, row, DONE)
    assert (after.step, after.direction) == ("switch_volume", "back")
    volume = rows.volume(any_db, row.volume_id)
    assert (volume.host, volume.name_id) == (rows.SOURCE, None)


def test_a_cancel_behind_the_line_is_refused(any_db: Database) -> None:
    row = at_step(any_db, "delete_source")
    assert not any_db.run(lambda session: migrations.request_cancel(session, row.id))
    over = advance(any_db, row, DONE)
    assert not any_db.run(lambda session: migrations.request_cancel(session, over.id))


def test_an_assisted_move_changes_the_place_and_the_name(any_db: Database) -> None:
    row = at_step(any_db, "delete_source", plan="assisted")
    volume = rows.volume(any_db, row.volume_id)
    place = (volume.host, volume.name_id, volume.availability_zone)
    assert place == (rows.DESTINATION, row.destination_volume_id, "zone2")
    assert advance(any_db, row, DONE).end == "success"


def test_an_assisted_move_that_moved_nothing_gets_its_twin_as_it_becomes_a_host_copy(any_db: Database) -> None:
    row = at_step(any_db, "assisted_move", plan="assisted")
    assert any_db.read(lambda session: volumes.find(session, row.destination_volume_id)) is None
    row = advance(any_db, row, Outcome(Event.NOT_MOVED, "unlike backends"))
    assert (row.plan, row.step) == ("host_copy", "create_destination")
    assert rows.volume(any_db, row.destination_volume_id).status == "creating"


def test_a_locked_volume_is_in_maintenance_until_the_end(any_db: Database) -> None:
    row = at_step(any_db, "copy_data", lock_volume=True)
    assert rows.volume(any_db, row.volume_id).status == "maintenance"
    while row.end is None:
        row = advance(any_db, row, DONE)
    assert rows.volume(any_db, row.volume_id).status == "available"


def test_what_cannot_be_deleted_now_keeps_its_row_for_the_destinations_service(any_db: Database) -> None:
    """field.md, hazard b: a destination that is finished late was never removed."""
    row = at_step(any_db, "create_destination")
    row = advance(any_db, row, Outcome(Event.FAILED, error=errors.StepTimeout(what="creation", seconds=1)))
    row = advance(any_db, row, Outcome(Event.UNDONE, "busy", deferred=True))
    row = advance(any_db, row, UNDONE)
    assert row.end == "error"
    twin = rows.volume(any_db, row.destination_volume_id)
    assert (twin.status, twin.host, twin.deleted_at) == ("deleting", rows.DESTINATION, None)


def test_copied_ranges_are_replaced_by_each_checkpoint_and_go_with_their_migration(any_db: Database) -> None:
    row = at_step(any_db, "copy_data")
    for ranges in ([[0, 10], [50, 5]], [[0, 60], [2**41, 2**31]]):
        any_db.run(lambda session, r=ranges: migrations.progress(session, row, r))  # type: ignore[misc]
    assert any_db.read(lambda session: migrations.copied(session, row.id)) == [[0, 60], [2**41, 2**31]]
    assert any_db.read(lambda session: session.scalar(sa.select(sa.func.count()).select_from(CopiedRange))) == 2


def test_the_history_tells_every_attempt_and_how_it_ended(any_db: Database) -> None:
    """field.md pain 16: of all attempts only the last status was kept."""
    row = at_step(any_db, "copy_data")
    claim(any_db, row, "other", dead=True)
    row = rows.migration(any_db, row.id)
    row = advance(any_db, row, Outcome(Event.DONE, bytes=42))
    attempts = any_db.read(lambda session: history.steps(session, row.id))
    told = [(step.step, step.attempt, step.result, step.bytes) for step in attempts]
    assert told == [
        ("pick_destination", 1, "done", None),
        ("create_destination", 1, "done", None),
        ("copy_data", 1, "lost", None),
        ("copy_data", 2, "done", 42),
        ("verify_copy", 1, None, None),
    ]
    assert all(step.finished_at for step in attempts[:-1])


def test_space_of_migrations_under_way_is_counted_until_a_report_includes_it(any_db: Database) -> None:
    row = at_step(any_db, "assisted_move", plan="assisted")

    def reserved(reported_at: float) -> tuple[float, float]:
        found = any_db.read(lambda session: usage.usage(session, {rows.DESTINATION: reported_at}))
        pool = found.get(rows.DESTINATION, usage.PoolUsage())
        return pool.provisioned_gib, pool.reserved_gib

    assert reserved(any_db.now()) == (1, 1)
    while row.end is None:
        row = advance(any_db, row, DONE)
    assert reserved(row.ended_at - 1 if row.ended_at else 0) == (1, 1)
    assert reserved(any_db.now()) == (1, 0)


def test_two_schedulers_cannot_reserve_on_one_counter(any_db: Database) -> None:
    assert any_db.run(lambda session: usage.reserve(session, "h@b#p", None))
    assert any_db.read(usage.pool_generations) == {"h@b#p": 1}
    assert any_db.run(lambda session: usage.reserve(session, "h@b#p", 1))
    assert not any_db.run(lambda session: usage.reserve(session, "h@b#p", 1))


def test_a_twin_is_no_volume_to_migrate(any_db: Database) -> None:
    row = at_step(any_db, "copy_data")

    def work(session: Session) -> str | None:
        twin = session.get_one(Volume, row.destination_volume_id)
        return migrations.start(session, twin, user_id="u", project_id="p", source_host=twin.host, plan="host_copy")

    assert any_db.run(work) is None
