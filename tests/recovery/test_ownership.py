"""Two runners: one loses its lease and does not know it; it can neither record, nor advance, nor spoil anything."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from migrator import errors, machine
from migrator.db.models import Migration
from migrator.db.transitions import Outcome
from migrator.drivers.faults import Died
from migrator.volume import runner
from migrator.volume.migration import Steps
from migrator.volume.runner import Function
from migrator.volume.states import Direction, End
from tests.recovery.checks import Rows
from tests.recovery.schedules import PLANS, has_changed_something, label, worked
from tests.recovery.world import CallingRunner, Plant, World

POINTS = [
    pytest.param(plan.name, label(step, Direction.FORWARD, when), id=f"{plan.name}-{step.name}-{when}")
    for plan in PLANS
    for step in worked(plan)
    for when in ("before", "inside")
]
PARTS = 4


#: Columns that only the database's clock fills, or that are written again while a step works.
CLOCK = {"heartbeat_at", "lease_until", "updated_at", "switched_at", "ended_at"}


class Compared(Steps):
    """Steps that look whether the row that they are given is the one that the database has."""

    wrong: ClassVar[list[dict[str, tuple[Any, Any]]]] = []

    def functions(self) -> dict[tuple[str, Direction], Function]:
        return {key: self._compared(function) for key, function in super().functions().items()}

    def _compared(self, function: Function) -> Function:
        def run(given: Migration) -> Outcome:
            row = self._db.read(lambda session: session.get_one(Migration, given.id))
            names = {column.name for column in Migration.__table__.columns} - CLOCK
            pairs = {name: (getattr(given, name), getattr(row, name)) for name in names}
            self.wrong.append({name: pair for name, pair in pairs.items() if pair[0] != pair[1]})
            return function(given)

        return run


def take_over(world: World) -> CallingRunner:
    """Another runner, whose process lives; it does all that is left, at once."""
    world.expire_lease()
    other = world.new_runner(owner=runner.new_owner())
    world.plant.schedule()
    other.sweep()
    return other


def lose_lease(world: World) -> None:
    """Run with a living owner, so that nothing but the lease keeps others out."""
    world.runner = world.new_runner(owner=runner.new_owner())


@pytest.mark.parametrize("kind", ["plant", "file_plant"])
@pytest.mark.parametrize("plan", [plan.name for plan in PLANS])
@pytest.mark.parametrize("crash", ["nowhere", "copy_data forward inside", "disconnect forward inside"])
def test_each_step_is_given_the_row_as_it_is(request: pytest.FixtureRequest, kind: str, plan: str, crash: str) -> None:
    """A step goes by what the one before returned, and that is never read again: a copier forgotten is not fenced."""
    world = World(request.getfixturevalue(kind), Compared)
    world.ask(plan)
    world.on(crash, world.die)
    Compared.wrong.clear()
    world.live()
    world.ended(End.SUCCESS)
    assert Compared.wrong
    assert not any(Compared.wrong)


@pytest.mark.parametrize(("plan", "point"), POINTS)
def test_whoever_lost_its_lease_in_a_step_cannot_report_it(world: World, plan: str, point: str) -> None:
    """Invariant 5: every write carries the generation that was read."""
    lose_lease(world)
    world.ask(plan)
    trap = world.on(point, lambda: take_over(world))
    with pytest.raises(errors.LostOwnership):
        world.go()
    assert trap.sprung == 1
    world.ended(End.SUCCESS)
    step = point.split()[0]
    assert [attempt.result for attempt in world.attempts(step)] == ["lost", "done"]


def test_a_lease_that_runs_keeps_others_out(world: World) -> None:
    lose_lease(world)
    world.ask()
    other = world.new_runner(owner=runner.new_owner())
    world.on("copy_data forward before", other.sweep)
    world.go()
    world.ended(End.SUCCESS)
    assert all(result == "done" for _, _, result in world.history())


def test_the_row_of_a_dead_process_is_taken_over_at_once(world: World) -> None:
    world.ask()
    world.on("copy_data forward before", world.die)
    world.live()
    world.ended(End.SUCCESS)
    assert world.row().lease_until == 0.0


def take_over_and_die(world: World, point: str) -> None:
    """Another runner does the copy anew and dies behind it, so that the copy's destination is not revoked again."""
    world.on(point, world.die)
    with pytest.raises(Died):
        take_over(world)


def test_a_copier_that_lost_its_lease_cannot_write(world: World) -> None:
    """Invariant 4: the export is ended before another writes, so a paused thread that wakes up later is cut off."""
    lose_lease(world)
    world.ask()
    behind: list[int] = []

    def pause() -> None:
        take_over_and_die(world, "copy_data forward inside")
        behind.append(len(world.instants.trail))

    world.on("object pwrite before", pause, after=2)
    with pytest.raises(errors.LostOwnership):
        world.go()
    assert "object pwrite after" not in world.instants.trail[behind[0] :]
    world.bury()
    world.expire_lease()
    world.go()
    world.ended(End.SUCCESS)


def test_a_copier_that_lost_its_lease_cannot_record(world: World) -> None:
    """Invariant 5: what was flushed for an owner of yesterday is not written into the row of today's."""
    lose_lease(world)
    world.ask()
    rows: list[Rows] = []

    def pause() -> None:
        take_over_and_die(world, "copy_data forward inside")
        rows.append(world.checker.rows())

    world.on("object pwrite before", world.wait_for_record, times=3)
    world.on("object flush after", pause, after=1)
    with pytest.raises(errors.LostOwnership):
        world.go()
    assert [world.checker.rows()] == rows
    world.bury()
    world.expire_lease()
    world.go()
    world.ended(End.SUCCESS)


@pytest.mark.parametrize("cancelled", [False, True], ids=["going on", "going back"])
def test_whoever_takes_over_ends_the_copier_that_is_recorded(file_plant: Plant, cancelled: bool) -> None:
    """A copier process may outlive its parent, stopped for instance; it must be gone before anything else happens."""
    world = World(file_plant)
    world.ask()
    copiers: list[Mapping[str, Any]] = []

    def die() -> None:
        if cancelled:
            world.cancel()
        copiers.append(world.row().worker or {})
        world.die()

    world.on("copy_data forward inside", die)
    world.live()
    world.ended(End.CANCELLED if cancelled else End.SUCCESS)
    assert not machine.is_alive(copiers[0]["pid"], copiers[0]["started"])


def is_the_runners(label: str) -> bool:
    """Instants at which the runner itself could pause; the destination's service answers whoever asks."""
    peers = ("mem2", "pick_destination", "scheduler", "commit inside")
    return has_changed_something(label) and not label.startswith(peers)


@functools.cache
def instants_of(plant: Plant) -> int:
    world = World(plant)
    lose_lease(world)
    world.ask()
    world.go()
    return sum(map(is_the_runners, world.instants.trail))


@pytest.mark.parametrize("part", range(PARTS))
def test_a_runner_may_be_paused_at_any_instant_while_another_does_all_the_rest(plant: Plant, part: int) -> None:
    for number in range(part, instants_of(plant), PARTS):
        world = World(plant)
        lose_lease(world)
        world.ask()
        pause(world, number)


def pause(world: World, number: int) -> None:
    rows: list[Rows] = []

    def act() -> None:
        take_over(world)
        rows.append(world.checker.rows())

    world.instants.trap(None, act, after=number, only=is_the_runners)
    with contextlib.suppress(errors.LostOwnership):
        world.go()
    world.ended(End.SUCCESS)
    assert [world.checker.rows()] == rows, "the one that was paused has written something"
