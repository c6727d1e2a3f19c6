"""A service that works in the place of another one, and the scheduler's pools by volume type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from migrator import conf as config
from migrator import rpc
from migrator.context import RequestContext, service_context
from migrator.db import types
from migrator.db.api import Database
from migrator.drivers import memory
from migrator.drivers.memory import MemoryDriver
from migrator.rpc import VolumeClient
from migrator.scheduler.manager import SchedulerManager
from migrator.volume.manager import VolumeManager
from tests.contract.worlds import options
from tests.support import rows
from tests.support.pools import make_report


@pytest.fixture
def driver() -> Iterator[MemoryDriver]:
    made = MemoryDriver("hostb@file1", options(memory_pools=["pool1"]))
    made.start()
    yield made
    memory.reset()


def test_what_a_dead_service_left_is_done_by_one_that_has_the_same_pools(db: Database, driver: MemoryDriver) -> None:
    submitted: list[str] = []
    manager = VolumeManager(config.new(), db, driver, submitted.append, lambda: None)
    creating = rows.add_volume(db, status="creating")
    deleting = rows.add_volume(db, status="deleting")
    elsewhere = rows.add_volume(db, status="creating", host="hostc@file1#pool1")
    driver.create("pool1", f"volume-{deleting}", 1)
    rows.add_services(db)
    moving = rows.add_migration(db, rows.add_volume(db))
    db.run(lambda session: _put(session, moving.id, "copy_data"))
    manager.clean_up(service_context(), service="hosta@file1")
    assert rows.volume(db, creating).status == "available"
    assert rows.volume(db, deleting).deleted_at is not None
    assert list(driver.objects("pool1")) == [f"volume-{creating}"]
    assert rows.volume(db, elsewhere).status == "creating"
    assert submitted == [moving.id]


class Passed(VolumeClient):
    """Where messages go that are another service's."""

    def __init__(self) -> None:
        self.on: list[tuple[str, str, str]] = []

    def delete_volume(self, context: RequestContext, host: str, volume_id: str) -> None:
        self.on.append(("delete", host, volume_id))

    def extend_volume(self, context: RequestContext, host: str, volume_id: str) -> None:
        self.on.append(("extend", host, volume_id))


def test_a_message_for_a_volume_that_has_moved_away_is_passed_on(db: Database, driver: MemoryDriver) -> None:
    """The pool here may have the same name: the row would go, and the object stay where it is for ever."""
    passed, there = Passed(), "hostc@file2#pool1"
    manager = VolumeManager(config.new(), db, driver, lambda _: None, lambda: None, peers=passed)
    deleting = rows.add_volume(db, status="deleting", host=there)
    growing = rows.add_volume(db, status="extending", wanted_size=2, host=there)
    manager.delete_volume(service_context(), volume_id=deleting)
    manager.extend_volume(service_context(), volume_id=growing)
    assert passed.on == [("delete", there, deleting), ("extend", there, growing)]
    assert rows.volume(db, deleting).deleted_at is None
    assert rows.volume(db, growing).status == "extending"


def _put(session: Any, migration_id: str, step: str) -> None:
    import sqlalchemy as sa

    from migrator.db.models import Migration

    session.execute(sa.update(Migration).where(Migration.id == migration_id).values(step=step))


def test_pools_are_those_that_offer_what_a_type_asks_for(db: Database) -> None:
    conf = config.new()
    bus = rpc.transport(conf)
    manager = SchedulerManager(conf, db, rpc.VolumeClient(bus, conf))
    for host in ("hosta@fast", "hostb@slow"):
        manager.update_pools(service_context(), report=make_report(host))
    fast = db.run(lambda session: types.create(session, {"volume_backend_name": "fast"}, name="f", is_public=True))
    plain = db.run(lambda session: types.create(session, {}, name="p", is_public=True))

    def names(**more: Any) -> list[str]:
        return [pool["name"] for pool in manager.get_pools(service_context(), detail=False, **more)]

    assert names() == names(type_id=plain.id) == ["hosta@fast#pool1", "hostb@slow#pool1"]
    assert names(type_id=fast.id) == ["hosta@fast#pool1"]
    bus.cleanup()
