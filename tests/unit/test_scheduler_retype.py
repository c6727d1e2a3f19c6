"""What the scheduler does for a change of type: does the pool do, and where else could the volume go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from oslo_messaging.rpc import dispatcher

from migrator import errors, rpc
from migrator.context import service_context
from migrator.db import services
from migrator.db.api import Database
from migrator.scheduler.manager import SchedulerManager
from tests.support import rows
from tests.unit.test_scheduler_manager import World

FAST = {"tier": "fast"}


@pytest.fixture
def world(db: Database) -> Iterator[World]:
    world = World(db)
    yield world
    world.end()


def check(manager: SchedulerManager, volume_id: str, type_id: str) -> str | None:
    reason: str | None = manager.check_pool(service_context(), volume_id=volume_id, type_id=type_id)
    return reason


def test_a_pool_that_does_and_one_that_does_not(world: World) -> None:
    scheduler = world.scheduler(capabilities=FAST)
    volume_id, other = (
        rows.add_volume(world.db),
        rows.add_volume(world.db, host=rows.DESTINATION, availability_zone="zone1"),
    )
    fast = world.type_with(tier="fast")
    assert check(scheduler, volume_id, fast) == "hosta@file1#pool1: capabilities: tier: wanted 'fast', not reported"
    assert check(scheduler, other, fast) is None
    assert check(scheduler, volume_id, world.type_with()) is None


def test_what_lies_there_already_needs_no_room_and_no_leave(world: World) -> None:
    """A full pool, a disabled service and a frozen backend take nothing new, and keep what they have (LP1901188)."""
    scheduler = world.scheduler(free_gib=0.0, allocated_gib=100.0)
    volume_id = rows.add_volume(world.db, host=rows.DESTINATION, availability_zone="zone1", size=90)
    world.db.run(lambda s: services.set_disabled(s, "hostb@file2", services.VOLUME, True, "broken fan"))
    assert check(scheduler, volume_id, world.type_with()) is None


def test_a_pool_that_nobody_reports_and_a_volume_that_is_none(world: World) -> None:
    scheduler = world.scheduler()
    volume_id = rows.add_volume(world.db, host="hosta@file1#gone")
    reason = check(scheduler, volume_id, world.type_with())
    assert reason == "no report of hosta@file1#gone has come from its backend"
    with pytest.raises(dispatcher.ExpectedException) as raised:
        check(scheduler, "none", world.type_with())
    assert isinstance(raised.value.exc_info[1], errors.NotFound)


def test_the_question_crosses_the_bus(world: World) -> None:
    world.serve(rpc.SCHEDULER_TOPIC, "s", world.scheduler())
    client = rpc.SchedulerClient(world.bus, world.conf)
    volume_id = rows.add_volume(world.db)
    assert client.check_pool(service_context(), volume_id, world.type_with()) is None
    answer = client.check_pool(service_context(), volume_id, world.type_with(tier="fast"))
    assert answer is not None
    assert "tier: wanted 'fast'" in answer
    with pytest.raises(errors.NotFound):
        client.check_pool(service_context(), "none", world.type_with())


@pytest.mark.parametrize(("zone", "fits"), [("zone1", True), ("zone2", False)])
def test_a_retype_stays_in_the_volumes_zone(world: World, zone: str, fits: bool) -> None:
    """field.md bug 14 (LP1883928); both pools are reported in zone1."""
    scheduler = world.scheduler(capabilities=FAST)
    volume_id = rows.add_volume(world.db, availability_zone=zone)
    values = {"requested_host": None, "new_type_id": world.type_with(tier="fast")}
    migration = rows.add_migration(world.db, volume_id, **values)
    assert rows.volume(world.db, volume_id).status == "retyping"
    scheduler.migrate(service_context(), migration_id=migration.id)
    row, volume = rows.migration(world.db, migration.id), rows.volume(world.db, volume_id)
    if fits:
        assert (row.destination_host, row.end, volume.status) == (rows.DESTINATION, None, "retyping")
    else:
        assert (row.end, volume.status, volume.migration_status) == ("error", "available", "error")
        assert row.error_message is not None
        assert "availability_zone: lies in zone1, wanted zone2" in row.error_message
