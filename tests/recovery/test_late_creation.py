"""Creating the destination takes longer than allowed, and ends when nobody waits for it any more.

field.md, hazard b: the row was destroyed on time-out, and what the backend finished later stayed for ever.
field.md pain 8: the time-out of 300 s fired at 385 s, and was noticed up to 100 s late.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from migrator import rpc
from migrator.context import service_context
from migrator.drivers.faults import Fault
from migrator.volume.states import End
from tests.recovery.test_failures import faults
from tests.recovery.world import DESTINATION, World
from tests.support.waiting import until


@pytest.fixture
def late(world: World) -> tuple[World, Fault]:
    """A migration whose destination hangs while it is created; and what hangs there."""
    world.plant.conf.set_override("migration_create_volume_timeout_secs", 1)
    world.runner = world.new_runner()
    hang = faults(world.plant.drivers[1]).order("create", Fault.hang())
    world.ask()
    return world, hang


def object_is_gone(world: World) -> bool:
    return (DESTINATION, world.destination_name) not in world.checker.storage.objects()


def creation_has_ended(world: World) -> Callable[[], bool]:
    """Behind its creation the handler removes the object: its last call."""
    return lambda: "mem2 delete after" in world.instants.trail


def test_a_creation_that_ends_during_the_rollback_leaves_nothing(late: tuple[World, Fault]) -> None:
    world, hang = late
    world.on("create_destination back before", hang.released.set)
    world.go()
    world.checker.ended(world.migration_id, End.ERROR, left=True)
    assert world.row().error_code == "StepTimeout"
    assert len(world.attempts("create_destination")) == 1, "its time is over; another attempt would wait as long again"
    until(creation_has_ended(world), "the creation has ended")
    world.sweep_until_clean()
    world.ended(End.ERROR)


@pytest.mark.parametrize("swept", [False, True], ids=["before the sweep", "after a sweep"])
def test_a_creation_that_ends_after_the_migration_leaves_nothing(late: tuple[World, Fault], swept: bool) -> None:
    world, hang = late
    world.go()
    world.checker.ended(world.migration_id, End.ERROR, left=True)
    assert ("create_destination", "back", "deferred") in world.history()
    if swept:
        world.sweep_destination()  # it is busy, so its row must stay
    hang.released.set()
    until(creation_has_ended(world), "the creation has ended")
    assert object_is_gone(world)
    world.sweep_until_clean()
    world.ended(End.ERROR)


def test_a_creation_that_ends_in_time_after_all_is_used(late: tuple[World, Fault]) -> None:
    world, hang = late
    world.on("mem2 create before", hang.released.set)
    world.go()
    world.ended(End.SUCCESS)


def test_a_creation_that_a_dead_process_asked_for_is_used_by_the_next(world: World) -> None:
    """The destination's service goes on with what it was asked for; the next runner waits for that."""
    world.ask()
    slow = faults(world.plant.drivers[1]).order("create", Fault.delay(0.2))
    client = rpc.VolumeClient(world.plant.bus, world.plant.conf)
    asked = threading.Thread(
        target=client.create_destination, args=(service_context(), DESTINATION, world.migration_id), daemon=True
    )

    def die_while_it_is_created() -> None:
        asked.start()
        until(slow.struck.is_set, "the creation has begun")
        world.die()

    world.on("call create_destination before", die_while_it_is_created)
    world.live()
    asked.join(10)
    assert world.instants.trail.count("mem2 create after") == 2
    world.ended(End.SUCCESS)
