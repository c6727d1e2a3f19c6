"""Cancels: at every step and in the middle of a copy; refused behind the line."""

from __future__ import annotations

import pytest

from migrator.drivers.faults import Fault
from migrator.volume.states import Direction, End
from tests.recovery.schedules import PLANS, before_line, label
from tests.recovery.test_failures import faults
from tests.recovery.world import SIZE, World

BEFORE_LINE = [(plan.name, step.name) for plan in PLANS for step in before_line(plan)]


@pytest.mark.parametrize(("when", "locked"), [("before", False), ("inside", True)], ids=["before", "inside, locked"])
@pytest.mark.parametrize(("plan", "step"), BEFORE_LINE)
def test_a_cancel_before_the_line_ends_with_nothing_left(
    world: World, plan: str, step: str, when: str, locked: bool
) -> None:
    """field.md pain 3: no abort at all, and what an attach during a migration does could not be predicted."""
    world.ask(plan, lock_volume=locked)
    accepted: list[bool] = []
    world.on(label(step, Direction.FORWARD, when), lambda: accepted.append(world.cancel()))
    world.go()
    assert accepted == [True]
    world.ended(End.CANCELLED)


@pytest.mark.parametrize(("plan", "point"), [(p.name, w) for p in PLANS for w in ("before", "inside", "after")])
def test_a_cancel_behind_the_line_is_refused(world: World, plan: str, point: str) -> None:
    world.ask(plan)
    accepted: list[bool] = []
    world.on(label("delete_source", Direction.FORWARD, point), lambda: accepted.append(world.cancel()))
    world.go()
    assert accepted == [False]
    world.ended(End.SUCCESS)


def test_a_cancel_stops_a_copy_in_its_middle(world: World) -> None:
    world.ask()
    accepted: list[bool] = []
    world.on("object pwrite before", lambda: accepted.append(world.cancel()), after=1)
    world.on("object pwrite before", world.hold_while_recorded, after=2, times=None)
    world.go()
    assert accepted == [True]
    world.ended(End.CANCELLED)
    assert [attempt.result for attempt in world.attempts("copy_data")] == ["failed"]
    assert world.copied() < SIZE


def test_a_cancel_of_a_copy_that_hangs_in_a_device_ends_when_the_device_lets_go(world: World) -> None:
    world.ask()
    hang = faults(world.plant.drivers[1]).order("pwrite", Fault.hang(), after=1)
    world.on("object pwrite before", lambda: world.cancel(), after=1)
    world.on("object pwrite before", hang.released.set, after=2)
    world.go()
    assert hang.struck.is_set()
    world.ended(End.CANCELLED)


@pytest.mark.parametrize(("plan", "step"), BEFORE_LINE)
def test_a_cancel_outlives_the_process_that_it_was_told_to(world: World, plan: str, step: str) -> None:
    world.ask(plan)
    world.on(label(step, Direction.FORWARD, "inside"), lambda: world.cancel())
    world.on(label(step, Direction.FORWARD, "inside"), world.die)
    world.live()
    assert world.lives == 1
    world.ended(End.CANCELLED)


def test_a_migration_can_be_asked_for_again_after_each_end(world: World) -> None:
    for end in (End.CANCELLED, End.ERROR, End.SUCCESS):
        world.ask()
        if end is End.CANCELLED:
            world.on("copy_data forward before", lambda: world.cancel())
        if end is End.ERROR:
            world.fail("verify_copy forward inside", final=True)
        world.go()
        world.ended(end)


def test_a_service_that_ends_gives_its_migration_back_in_the_middle_of_a_copy(world: World) -> None:
    """The attempt does not count, and the history says that it ended."""
    world.ask()
    world.on("object pwrite before", world.runner.stopping.set, after=2)
    world.on("object pwrite before", world.hold_while_recorded, after=2, times=None)
    world.plant.schedule()
    world.runner.sweep()
    row = world.row()
    assert (row.step, row.owner, row.attempts) == ("copy_data", None, 0)
    world.instants.traps.clear()
    world.runner = world.new_runner()
    world.go()
    world.ended(End.SUCCESS)
    assert [attempt.result for attempt in world.attempts("copy_data")] == ["interrupted", "done"]
