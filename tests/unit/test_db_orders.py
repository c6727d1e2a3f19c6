"""Orders as each kind of database takes them; what they mean to a migration stands in tests/recovery/test_orders.py."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import migrations, orders, transitions, twins, volumes
from migrator.db.api import Database, now_seconds
from migrator.db.models import Migration, Volume
from migrator.db.orders import Order
from migrator.db.transitions import Outcome
from migrator.volume.states import Event
from tests.support import rows


def asked(db: Database, **values: object) -> Migration:
    rows.add_services(db)
    return rows.add_migration(db, rows.add_volume(db), **values)


def advance(db: Database, migration_id: str, outcome: Outcome) -> Migration:
    """Claim the migration, if nobody has it, and report."""

    def work(session: Session) -> Migration:
        row = migrations.get(session, migration_id)
        if row.owner is None:
            assert migrations.claim(session, row, "me", 30, owner_is_dead=False)
            row = migrations.get(session, migration_id)
        return transitions.advance(session, row, outcome, attempts_allowed=3, retry_seconds=0)

    return db.run(work)


def moved(db: Database) -> Migration:
    """A migration that ended well a moment ago, its source kept for an hour; the volume had been used before."""
    row = asked(db, keep_source_seconds=3600)
    db.run(lambda s: volumes.update_where(s, row.volume_id, writable_at=now_seconds()))
    row = advance(db, row.id, Outcome(Event.DONE, values={"destination_host": rows.DESTINATION}))
    while row.end is None:
        values = {"keep_source_until": db.now() + 3600} if row.step == "delete_source" else {}
        row = advance(db, row.id, Outcome(Event.DONE, values=values))
    return row


def failed(db: Database) -> Migration:
    """A migration for which no pool was found."""
    row = asked(db)
    advance(db, row.id, Outcome(Event.FAILED, error=errors.NoValidBackend(reason="full")))
    return advance(db, row.id, Outcome(Event.UNDONE))


def undo(session: Session, migration_id: str) -> str | None:
    row = migrations.get(session, migration_id)
    volume, twin = volumes.find(session, row.volume_id), volumes.find(session, row.destination_volume_id)
    reason = orders.obstacle_to_undo(session, row, volume, twin)
    if reason is None and volume is not None and twin is not None:
        orders.undo(session, row, volume, twin)
    return reason


def test_a_pause_keeps_everybody_out_until_it_ends(any_db: Database) -> None:
    row = asked(any_db)
    assert not any_db.run(lambda s: orders.resume(s, row.id))
    assert any_db.run(lambda s: orders.pause(s, row.id))
    paused = rows.migration(any_db, row.id)
    assert any_db.read(lambda s: migrations.waiting(s)) == []
    assert not any_db.run(lambda s: migrations.claim(s, paused, "me", 30, owner_is_dead=True))
    assert any_db.read(lambda s: orders.look(s, paused)).stop == "pause"
    assert any_db.run(lambda s: orders.resume(s, row.id))
    assert any_db.run(lambda s: migrations.claim(s, paused, "me", 30, owner_is_dead=False))


def test_each_order_is_written_or_refused_by_the_database_as_the_machine_says(any_db: Database) -> None:
    for row in (asked(any_db), moved(any_db), failed(any_db)):
        for order in Order:
            query = sa.select(Migration.id).where(Migration.id == row.id, orders.is_allowed(order))
            found = any_db.read(lambda s, query=query: s.scalar(query))  # type: ignore[misc]
            assert (found is not None) == orders.may(order, row), (order, row.end)


def test_a_rate_beyond_32_bits_is_kept(any_db: Database) -> None:
    row = asked(any_db)
    assert any_db.run(lambda s: orders.set_rate(s, row.id, 1 << 50))
    assert any_db.read(lambda s: orders.look(s, row)).bytes_per_second == 1 << 50


def test_a_failed_migration_begins_again_once(any_db: Database) -> None:
    row = failed(any_db)

    def again(session: Session) -> bool:
        return orders.begin_again(session, row, volumes.get(session, row.volume_id))

    assert any_db.run(again)
    assert not any_db.run(again)
    new = rows.migration(any_db, row.id)
    assert (new.end, new.step, new.generation) == (None, "pick_destination", row.generation + 1)
    assert rows.volume(any_db, row.volume_id).migration_status == "starting"


def test_a_row_that_has_changed_since_is_not_begun_again_and_the_volume_left_alone(any_db: Database) -> None:
    row = failed(any_db)
    row.generation -= 1
    with pytest.raises(errors.Conflict, match="was changed at the same time"):
        any_db.run(lambda s: orders.begin_again(s, row, volumes.get(s, row.volume_id)))
    assert rows.volume(any_db, row.volume_id).migration_status == "error"


def test_an_undo_swaps_both_places_in_one_transaction(any_db: Database) -> None:
    row = moved(any_db)
    assert row.switched_at is not None
    assert any_db.run(lambda s: undo(s, row.id)) is None
    volume, twin = (rows.volume(any_db, found) for found in (row.volume_id, row.destination_volume_id))
    assert (volume.host, volume.name_id, volume.availability_zone) == (rows.SOURCE, None, "zone1")
    assert (twin.host, twin.name_id, twin.status) == (rows.DESTINATION, None, "deleting")
    assert "it was undone at" in str(any_db.run(lambda s: undo(s, row.id)))


def test_a_volume_that_was_written_to_is_not_swapped_even_by_who_has_seen_it_before(any_db: Database) -> None:
    row = moved(any_db)
    volume, twin = (rows.volume(any_db, found) for found in (row.volume_id, row.destination_volume_id))
    # Whatever the clock says, which may have been put back since the switch.
    any_db.run(lambda s: volumes.update_where(s, volume.id, writable_at=now_seconds() - 3600.0))
    with pytest.raises(errors.Conflict):
        any_db.run(lambda s: orders.undo(s, row, volume, twin))
    assert rows.volume(any_db, row.volume_id).host == rows.DESTINATION
    assert rows.migration(any_db, row.id).undone_at is None
    assert "was made writable" in str(any_db.run(lambda s: undo(s, row.id)))


def test_what_is_kept_expires_by_the_databases_clock_or_with_its_volume(any_db: Database) -> None:
    row, other = moved(any_db), moved(any_db)
    service = rows.SOURCE.partition("#")[0]
    assert any_db.read(lambda s: twins.expired(s, service)) == []
    past = any_db.now() - 1
    any_db.run(lambda s: s.execute(sa.update(Migration).where(Migration.id == row.id).values(keep_source_until=past)))
    any_db.run(lambda s: volumes.bury(s, other.volume_id))
    found = any_db.read(lambda s: twins.expired(s, service))
    assert sorted(found) == sorted([row.destination_volume_id, other.destination_volume_id])
    assert any_db.read(lambda s: twins.expired(s, service + "x")) == []
    for twin_id in found:
        any_db.run(lambda s, twin_id=twin_id: twins.give_up_kept(s, twin_id))  # type: ignore[misc]
    left = sa.select(Volume.status).where(Volume.twin_of.is_not(None))
    assert any_db.read(lambda s: list(s.scalars(left))) == ["deleting", "deleting"]
