"""Swaps by the compute service in the database: on SQLite, MariaDB and PostgreSQL."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from migrator import errors
from migrator.db import attachments, migrations, swaps, volumes
from migrator.db.api import Database
from migrator.db.models import Attachment, Migration, Volume
from migrator.db.swaps import Use
from tests.support import rows

SERVER, OTHER = (str(uuid.uuid4()) for _ in range(2))
INFO = {"driver_volume_type": "fake", "data": {"ü": [1, None]}}


def attach(db: Database, volume_id: str, status: str = "attached", **values: Any) -> str:
    row = {"id": str(uuid.uuid4()), "volume_id": volume_id, "instance_uuid": SERVER, "attach_status": status, **values}
    db.run(lambda session: attachments.insert(session, **row))
    return str(row["id"])


def swapping(db: Database, **columns: Any) -> Migration:
    """A volume in use whose migration is at swap_by_compute, and its twin."""
    if not db.read(lambda session: session.scalar(sa.text("SELECT count(*) FROM services"))):
        rows.add_services(db)
    volume_id = rows.add_volume(db, status="in-use", attach_status="attached")
    attach(db, volume_id, connector={"host": "compute1"})
    made = rows.add_migration(db, volume_id, plan="attached")
    rows.add_volume(db, id=made.destination_volume_id, twin_of=volume_id, migration_id=made.id, host=rows.DESTINATION)
    values = {"step": "swap_by_compute", "destination_host": rows.DESTINATION, **columns}
    db.run(lambda session: session.execute(sa.update(Migration).where(Migration.id == made.id).values(**values)))
    return rows.migration(db, made.id)


def use(db: Database, row: Migration) -> Use:
    return db.read(lambda session: swaps.use(session, row.destination_volume_id))


def test_one_swap_of_a_server_at_a_time(any_db: Database) -> None:
    """field.md bug 36 (LP1896621): the column is unique, but for rows that hold no server."""
    first, second, third = (swapping(any_db) for _ in range(3))
    assert swaps.begin(any_db, first, SERVER)
    assert not swaps.begin(any_db, second, SERVER)
    assert rows.migration(any_db, second.id).swap_called_at is None
    assert swaps.begin(any_db, third, OTHER)
    swaps.forget(any_db, rows.migration(any_db, first.id))
    seen = rows.migration(any_db, first.id)
    assert (seen.swap_server, seen.swap_called_at) == (None, None)
    assert swaps.begin(any_db, second, SERVER)
    seen = rows.migration(any_db, second.id)
    assert seen.swap_called_at == pytest.approx(any_db.now(), abs=60)


def test_of_many_that_begin_at_once_one_wins(any_db: Database) -> None:
    """field.md bug 36 (LP1896621)."""
    waiting = [swapping(any_db) for _ in range(6)]
    with ThreadPoolExecutor(len(waiting)) as pool:
        won = list(pool.map(lambda row: swaps.begin(any_db, row, SERVER), waiting))
    assert sorted(won) == [False] * 5 + [True]


def test_who_lost_the_row_begins_nothing(any_db: Database) -> None:
    row = swapping(any_db)
    any_db.run(lambda session: session.execute(sa.update(Migration).values(generation=Migration.generation + 1)))
    with pytest.raises(errors.LostOwnership):
        swaps.begin(any_db, row, SERVER)
    assert rows.migration(any_db, row.id).swap_server is None


def test_how_far_a_server_is(any_db: Database) -> None:
    row = swapping(any_db)
    twin = row.destination_volume_id
    assert use(any_db, row) is Use.NONE
    assert any_db.read(lambda session: swaps.last_connected(session, twin)) is None
    new = attach(any_db, twin, "reserved")
    assert use(any_db, row) is Use.RESERVED
    connected = {"connection_info": INFO, "attached_host": "compute1"}
    any_db.run(lambda session: attachments.connected(session, new, twin, "attaching", **connected))
    assert use(any_db, row) is Use.CONNECTED
    assert not any_db.run(lambda session: swaps.let_go(session, twin))
    any_db.run(lambda session: swaps.forget_attachments(session, twin))
    assert use(any_db, row) is Use.NONE
    found = any_db.read(lambda session: swaps.last_connected(session, twin))
    assert found is not None
    assert (found.id, found.connection_info) == (new, INFO)
    assert any_db.run(lambda session: swaps.let_go(session, twin))
    assert rows.volume(any_db, twin).status == "deleting"


def test_the_older_way_to_attach_shows_as_connected(any_db: Database) -> None:
    row = swapping(any_db)
    any_db.run(lambda session: volumes.update_where(session, row.destination_volume_id, status="attaching"))
    assert use(any_db, row) is Use.CONNECTED


@pytest.mark.parametrize(("failed", "word"), [(False, "done"), (True, "failed")])
def test_the_first_report_counts(any_db: Database, failed: bool, word: str) -> None:
    row = swapping(any_db)
    attach(any_db, row.destination_volume_id)

    def report(failed: bool) -> bool:
        return any_db.run(lambda session: swaps.report(session, migrations.get(session, row.id), failed))

    assert report(failed)
    assert report(not failed)
    assert rows.migration(any_db, row.id).swap_result == word


def test_success_without_a_server_there_is_no_report(any_db: Database) -> None:
    row = swapping(any_db)
    attach(any_db, row.destination_volume_id, "attaching", connection_info=INFO)
    with pytest.raises(errors.BadRequest, match="no server is attached"):
        any_db.run(lambda session: swaps.report(session, migrations.get(session, row.id), failed=False))
    assert rows.migration(any_db, row.id).swap_result is None


def test_what_a_switch_replaces_is_to_be_disconnected_once(any_db: Database) -> None:
    """field.md bug 31 (LP1697060): the compute service's detach was lost; and it had reserved the twin twice."""
    row = swapping(any_db)
    twin, volume_id = row.destination_volume_id, row.volume_id
    new, doubled = attach(any_db, twin, "attaching", connection_info=INFO), attach(any_db, twin, "reserved")
    any_db.run(lambda session: attachments.move(session, twin, volume_id))
    (moved,) = any_db.read(lambda session: attachments.of_volume(session, volume_id))
    assert (moved.id, moved.attach_status) == (new, "attached")
    assert rows.volume(any_db, volume_id).status == "in-use"
    assert any_db.read(lambda session: session.get_one(Attachment, doubled)).deleted_at is not None
    (left,) = any_db.read(lambda session: attachments.unended(session, volume_id))
    assert left.connector == {"host": "compute1"}
    any_db.run(lambda session: attachments.ended(session, left.id))
    assert any_db.read(lambda session: attachments.unended(session, volume_id)) == []


def test_the_obstacles_are_the_same_in_sql_and_in_words(any_db: Database) -> None:
    """field.md bugs 7 (LP1775418) and 16 (LP1790840)."""
    row = swapping(any_db)

    def movable() -> tuple[bool, bool]:
        return any_db.read(
            lambda session: (
                session.scalar(sa.select(Volume.id).where(Volume.id == row.volume_id, swaps.one_server())) is not None,
                swaps.obstacle(session, volumes.get(session, row.volume_id)) is None,
            )
        )

    assert movable() == (True, True)
    second = attach(any_db, row.volume_id, attach_mode="ro")
    assert movable() == (False, False)
    any_db.run(lambda session: attachments.detach(session, attachments.get(session, second)))
    any_db.run(lambda session: volumes.update_where(session, row.volume_id, multiattach=True))
    assert movable() == (False, False)
    any_db.run(lambda session: volumes.update_where(session, row.volume_id, multiattach=False))
    attach(any_db, row.destination_volume_id, "attaching")
    assert movable() == (False, False), "a host may still copy into the twin of a migration that was given up"
