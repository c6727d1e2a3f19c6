"""Two processes of one service at once: the old one is not gone yet, or stood still, when it is replaced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import oslo_messaging as messaging
import pytest

from migrator.context import service_context
from migrator.drivers.faults import Fault
from migrator.volume.manager import VolumeManager
from migrator.volume.states import End
from tests.recovery.test_failures import faults
from tests.recovery.world import DESTINATION, Plant, World
from tests.support.waiting import until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    plant = Plant(tmp_path)
    yield World(plant)
    plant.end()


def test_an_old_process_that_wakes_up_leaves_alone_what_its_successor_created(world: World) -> None:
    """Its creation is no longer wanted, because it is done: what lies there may be the volume itself by now."""
    plant = world.plant
    old = VolumeManager(plant.conf, plant.db, plant.drivers[1], lambda migration_id: None, lambda: None)
    hang = faults(plant.drivers[1]).order("create", Fault.hang())
    refused: list[messaging.ExpectedException] = []

    def create() -> None:
        try:
            old.create_destination(service_context(), migration_id=world.migration_id)
        except messaging.ExpectedException as error:
            refused.append(error)

    asleep = threading.Thread(target=create, daemon=True)

    def fall_asleep() -> None:
        asleep.start()
        until(hang.struck.is_set, "the old process has begun")

    world.ask()
    world.on("call create_destination before", fall_asleep)
    world.go()
    world.ended(End.SUCCESS)
    hang.released.set()
    asleep.join(10)
    assert (DESTINATION, world.destination_name) in world.checker.storage.objects()
    world.ended(End.SUCCESS)
    assert refused, "nobody waits for it any more"
