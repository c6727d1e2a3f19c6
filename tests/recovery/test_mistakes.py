"""The checker itself: each of four mistakes, made on purpose, must be caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from migrator.db import migrations, volumes
from migrator.db.models import Migration
from migrator.db.transitions import Outcome
from migrator.volume.migration import DONE, Steps
from migrator.volume.runner import Function
from migrator.volume.states import Direction, End
from tests.recovery.checks import Broken
from tests.recovery.instants import WatchedObject
from tests.recovery.world import Plant, World

Table = dict[tuple[str, Direction], Function]


class NoRevoke(Steps):
    """Leaves the destination exported when the volume is switched there."""

    def disconnect(self, migration: Migration) -> Outcome:
        return DONE


class EarlyDelete(Steps):
    """Removes the source while the row still says that the volume lives there."""

    def disconnect(self, migration: Migration) -> Outcome:
        outcome = super().disconnect(migration)
        self._driver.delete(*self._source(migration))
        return outcome


class LateCount(Steps):
    """Counts an attempt when it reports, as if it had not been counted before."""

    def functions(self) -> Table:
        return {key: self._uncounted(function) for key, function in super().functions().items()}

    def _uncounted(self, function: Function) -> Function:
        def run(migration: Migration) -> Outcome:
            self._db.run(lambda session: migrations.hold(session, migration, attempts=migration.attempts - 1))
            return function(migration)

        return run


class LostFlush(WatchedObject):
    """Says that all was flushed before it was."""

    def flush(self) -> None:
        self._at("object flush after")


def test_no_mistake_is_no_alarm(world: World) -> None:
    world.ask()
    world.live()
    world.ended(End.SUCCESS)


@pytest.mark.parametrize(
    ("steps", "said"), [(NoRevoke, "^4: a copier could still write"), (EarlyDelete, "^1: the volume is not at")]
)
def test_a_mistake_in_the_steps_is_caught(plant: Plant, steps: type[Steps], said: str) -> None:
    world = World(plant, steps)
    world.ask()
    with pytest.raises(Broken, match=said):
        world.live()


def test_a_checkpoint_before_its_flush_is_caught(world: World) -> None:
    world.plant.watched_object = LostFlush
    world.power_cut = True
    world.ask()
    world.on("object pwrite before", world.wait_for_record, times=4)
    with pytest.raises(Broken, match=r"^3: byte .* would not survive"):
        world.live()


def test_an_attempt_that_is_counted_after_the_act_is_caught(plant: Plant) -> None:
    world = World(plant, LateCount)
    world.ask()
    world.on("copy_data forward inside", world.die, times=None)
    with pytest.raises(Broken, match=r"^8: no end"):
        world.live()


def forget_twin(world: World) -> None:
    world.db.run(lambda session: volumes.remove(session, world.row().destination_volume_id))


def spoil_volume(world: World) -> None:
    driver = world.plant.drivers[0]
    connection = driver.export("pool1", f"volume-{world.volume_id}", writable=True)
    world.write(connection.kind, connection.path, 5, b"x")


@pytest.mark.parametrize(
    ("harm", "said"), [(forget_twin, "^2: no row names"), (spoil_volume, "^1: .* has lost its byte 5")]
)
def test_harm_is_noticed_at_the_next_instant(world: World, harm: Callable[[World], None], said: str) -> None:
    world.ask()
    world.on("copy_data forward inside", lambda: harm(world))
    with pytest.raises(Broken, match=said):
        world.live()
