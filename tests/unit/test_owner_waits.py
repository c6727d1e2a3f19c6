"""What an owner asks for while a migration is being taken back: done behind its end, and not a moment before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from migrator import conf as config
from migrator.conf import GIB
from migrator.context import service_context
from migrator.db import migrations, types, volumes
from migrator.db.api import Database
from migrator.db.models import Migration
from migrator.drivers import memory
from migrator.drivers.memory import MemoryDriver
from migrator.volume.manager import VolumeManager
from tests.contract.worlds import options
from tests.support import rows
from tests.support.waiting import until

#: Message of an order → the status that the request has left, and what it wants.
ORDERS = {"extend_volume": ("extending", {"wanted_size": 2}), "delete_volume": ("deleting", {})}


@pytest.fixture
def driver() -> Iterator[MemoryDriver]:
    made = MemoryDriver("hosta@file1", options(memory_pools=["pool1"]))
    made.start()
    yield made
    memory.reset()


def under_way(db: Database, volume_id: str, gave_way: bool) -> str:
    """A migration of the volume that was cancelled; ``gave_way``: to a retype, which is over already."""
    first = rows.add_migration(db, volume_id).id
    db.run(lambda session: migrations.request_cancel(session, first))
    if gave_way:
        new = db.run(lambda session: types.create(session, {}, name="new", is_public=True)).id
        columns = {"user_id": "u", "project_id": "p", "source_host": rows.SOURCE, "plan": "host_copy"}
        flags = {"force_host_copy": False, "lock_volume": False, "new_type_id": new}
        second = db.run(
            lambda session: migrations.start(
                session, volumes.get(session, volume_id), instead_of=first, **columns, **flags
            )
        )
        assert second is not None
        end(db, second)
    return first


def size_of(driver: MemoryDriver, name: str) -> int:
    return driver.export("pool1", name, writable=False).size


def end(db: Database, migration_id: str) -> None:
    db.run(lambda session: session.execute(sa.update(Migration).filter_by(id=migration_id).values(end="cancelled")))


@pytest.mark.parametrize("gave_way", [False, True], ids=["cancelled", "gave way to a retype"])
@pytest.mark.parametrize("order", ORDERS)
def test_it_waits_for_the_end(db: Database, driver: MemoryDriver, order: str, gave_way: bool) -> None:
    """A copier that is still reading would see a size that changes, or nothing at all."""
    nudged: list[str] = []
    manager = VolumeManager(config.new(), db, driver, nudged.append, lambda: None)
    rows.add_services(db)
    volume_id = rows.add_volume(db)
    name = f"volume-{volume_id}"
    driver.create("pool1", name, GIB)
    moving = under_way(db, volume_id, gave_way)
    status, wanted = ORDERS[order]
    db.run(lambda session: volumes.update_where(session, volume_id, status=status, **wanted))
    getattr(manager, order)(service_context(), volume_id=volume_id)
    assert nudged == [moving]
    until(lambda: len(nudged) > 1, "it looks again")
    assert rows.volume(db, volume_id).status == status
    assert size_of(driver, name) == GIB
    end(db, moving)
    until(lambda: rows.volume(db, volume_id).status != status, "it is done")
    now = rows.volume(db, volume_id)
    if order == "extend_volume":
        assert (now.status, now.size, size_of(driver, name)) == ("available", 2, 2 * GIB)
    else:
        assert now.deleted_at is not None
        assert name not in driver.objects("pool1")
