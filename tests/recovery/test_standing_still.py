"""A runner that stands still right before it removes something, past every check, and wakes up when all has changed.

No check can help it: between the check and the act any time may pass.  What it removes must be nobody's by its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from oslo_db import exception as db_exc

from migrator import errors
from migrator.db import migrations, transitions
from migrator.db.models import Migration
from migrator.db.transitions import Outcome
from migrator.drivers.faults import Died
from migrator.volume import runner
from migrator.volume.states import End, Event
from tests.recovery.instants import raising
from tests.recovery.world import World
from tests.support import rows


def overtaken(world: World, when: str, meanwhile: Callable[[], None]) -> None:
    """Let the runner stand still at ``when``, its lease end, another one begin and do ``meanwhile``; then wake it."""
    happened: list[str] = []

    def stand_still() -> None:
        if happened:
            return
        happened.append(when)
        world.expire_lease()
        sleeper, world.runner = world.runner, world.new_runner()
        meanwhile()
        world.runner = sleeper

    world.on(when, stand_still)
    with contextlib.suppress(errors.LostOwnership):
        world.go()
    assert happened
    world.checker.look("it woke up")


def home_again(world: World) -> None:
    """Move the volume back by its backend, as the service at the other place does."""
    world.ask("assisted")
    world.plant.schedule()
    row, driver = world.row(), world.plant.drivers[1]
    source, new = (f"volume-{name}" for name in (row.source_object_id, row.destination_volume_id))
    assert driver.can_assist("pool1", source, row.destination_location or {}).yes
    driver.move("pool1", source, row.destination_location or {}, new, lambda done, total: None)

    def forward(row: Migration) -> Migration:
        assert world.db.run(lambda s: migrations.claim(s, row, "the other service", 30.0, owner_is_dead=True))
        return world.db.run(
            lambda s: transitions.advance(
                s, migrations.get(s, row.id), Outcome(Event.DONE), attempts_allowed=1, retry_seconds=0.0
            )
        )

    while row.end is None:
        row = forward(row)
    driver.delete("pool1", source)
    world.checker.look("home again")


def test_a_late_deletion_of_the_source_does_not_meet_a_volume_that_came_back(world: World) -> None:
    """field.md bug 4 (LP1404013): the only copy is deleted for an old one."""

    def meanwhile() -> None:
        world.go()
        world.ended(End.SUCCESS)
        home_again(world)

    world.ask("assisted")
    overtaken(world, "mem1 delete before", meanwhile)
    volume = rows.volume(world.db, world.volume_id)
    assert str(volume.host).startswith(world.plant.drivers[0].backend)


@pytest.mark.parametrize("act", ["unmove", "move"])
def test_a_late_end_of_a_failed_move_does_not_touch_the_move_of_another(world: World, act: str) -> None:
    """One takes back what he could not move, or still moves it, when another has moved it and gone on."""
    if act == "unmove":
        world.fail("mem1 move before")

    def meanwhile() -> None:
        world.go()
        world.ended(End.SUCCESS)

    world.ask("assisted")
    overtaken(world, f"mem1 {act} before", meanwhile)
    world.ended(End.SUCCESS)
    assert str(rows.volume(world.db, world.volume_id).host).startswith(world.plant.drivers[1].backend)


def test_a_late_return_of_a_failed_move_leaves_the_move_whose_source_is_not_deleted_yet(world: World) -> None:
    """The source is still there, so that a driver could not tell that nobody wants this taken back."""
    world.fail("mem1 move before")

    def until_delete() -> None:
        world.on("mem1 delete before", world.die)
        with contextlib.suppress(Died):
            world.go()

    world.ask("assisted")
    overtaken(world, "mem1 unmove before", until_delete)
    world.runner = world.new_runner()
    world.live()
    world.ended(End.SUCCESS)


@pytest.mark.parametrize("step", ["create_destination", "copy_data", "disconnect"])
def test_what_a_lost_connection_to_the_database_interrupted_goes_on_at_the_next_sweep(world: World, step: str) -> None:
    """Its runner lives and knows that it let go of it: nobody need wait for the end of the lease."""
    world.ask()
    world.runner.owner = runner.new_owner()
    broken = raising(db_exc.DBError(OSError("broken on purpose")))  # one that is not tried again at once
    world.on(f"{step} forward inside", lambda: world.on("commit inside", broken))
    with pytest.raises(db_exc.DBError):
        world.go()
    row = world.row()
    assert (row.owner, row.step) == (world.runner.owner, step)
    assert row.lease_until > world.db.now()
    world.go()
    world.ended(End.SUCCESS)
    assert (step, "forward", "lost") in world.history()
