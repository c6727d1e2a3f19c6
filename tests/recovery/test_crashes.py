"""The process dies: at every step of every plan, at every instant, and in pairs.

Each schedule runs the real code to the end in as many processes as it takes, and every invariant is checked at every
instant in between (checks.py).
"""

from __future__ import annotations

import functools

import pytest

from migrator.db import migrations
from migrator.volume import states
from migrator.volume.states import Direction, End
from tests.recovery.schedules import (
    CHANGES,
    PLANS,
    before_line,
    forward_points,
    has_changed_something,
    label,
    undo_points,
    worked,
)
from tests.recovery.world import SIZE, Plant, World
from tests.support.waiting import until

POWER = pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
POINTS = [pytest.param(plan.name, point, id=f"{plan.name}-{point}") for plan in PLANS for point in forward_points(plan)]
COPY_POINTS = forward_points(states.HOST_COPY)
PAIR_POINTS = forward_points(states.HOST_COPY, CHANGES)
UNDO_POINTS = [
    pytest.param(plan.name, step.name, point, number // len(CHANGES) % 2 == 1, id=f"{plan.name}-{step.name}-{point}")
    for plan in PLANS
    for step in before_line(plan)
    if step in worked(plan)
    for number, point in enumerate(undo_points(plan, step))
]
#: Parts that the instants of one migration are divided into, so that workers share them.
PARTS = 6


def test_every_step_can_be_done_and_taken_back(world: World) -> None:
    """A new step without a function, or without a way back, fails here."""
    assert {plan.name for plan in PLANS} | {"attached"} == set(states.PLANS)
    functions = world.functions
    for plan in PLANS:
        for step in worked(plan):
            assert (step.name, Direction.FORWARD) in functions, step.name
        for step in before_line(plan):
            assert (step.name, Direction.BACK) in functions, step.name


# --- one crash ---------------------------------------------------------------------------------------------------


@POWER
@pytest.mark.parametrize(("plan", "point"), POINTS)
def test_a_crash_at_any_step_is_recovered_from(world: World, plan: str, point: str, power: bool) -> None:
    """field.md pain 1 and bug 38 (LP1278035): a crash left a volume migrating for ever, or with extra copies."""
    world.power_cut = power
    world.ask(plan)
    trap = world.on(point, world.die)
    world.live()
    assert trap.sprung == 1
    assert world.lives == 1
    world.ended(End.SUCCESS)


@pytest.mark.parametrize("point", COPY_POINTS)
def test_a_crash_at_any_step_is_recovered_from_with_files_and_a_copier_process(file_plant: Plant, point: str) -> None:
    world = World(file_plant)
    world.ask()
    trap = world.on(point, world.die)
    world.live()
    assert trap.sprung == 1
    world.ended(End.SUCCESS)


@functools.cache
def instants_of(plant: Plant, plan: str, assists: bool) -> int:
    """Number of instants of a migration that goes well, at which something has happened since the one before.

    A backend that cannot assist leads to a host copy, whose own instants need no second turn.
    """
    trail = migrated(plant, plan, assists, None).instants.trail
    if not assists:
        trail = trail[: trail.index("create_destination forward inside")]
    return sum(map(has_changed_something, trail))


def migrated(plant: Plant, plan: str, assists: bool, crash_at: int | None) -> World:
    world = World(plant)
    plant.drivers[0].assists = assists  # type: ignore[attr-defined]
    world.ask(plan)
    if crash_at is not None:
        world.power_cut = crash_at % 2 == 1
        world.instants.trap(None, world.die, after=crash_at, only=has_changed_something)
    world.live().ended(End.SUCCESS)
    assert world.lives == int(crash_at is not None)
    return world


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(
    ("plan", "assists"),
    [("host_copy", True), ("assisted", True), ("assisted", False)],
    ids=["host copy", "assisted", "assisted, but the backend cannot"],
)
def test_a_crash_at_any_instant_is_recovered_from(plant: Plant, plan: str, assists: bool, part: int) -> None:
    """At every driver call, message, write, flush and commit, the destination's included."""
    last = instants_of(plant, plan, assists)
    for crash_at in range(part, last, PARTS):
        migrated(plant, plan, assists, crash_at)


def die_once_recorded(world: World) -> None:
    """Die at the first attempt's next write behind a recorded range."""
    if world.instants.deaths:
        return
    ranges = functools.partial(migrations.copied, migration_id=world.migration_id)
    until(lambda: world.instants.deaths or world.db.read(ranges), "a range is recorded", 20)
    world.die()


@POWER
def test_a_copy_that_died_goes_on_behind_what_it_had_flushed(world: World, power: bool) -> None:
    """field.md pain 1: nothing could be resumed, a copy of days began anew."""
    world.power_cut = power
    world.ask()
    # Two writes pass, so that there is something to record; the next ones are held until it is, and then all die.
    world.on("object pwrite before", lambda: die_once_recorded(world), after=2, times=None)
    world.live()
    world.ended(End.SUCCESS)
    attempts = world.attempts("copy_data")
    assert [attempt.result for attempt in attempts] == ["lost", "done"]
    whole = World(world.plant)
    whole.ask()
    whole.live()
    written = whole.attempts("copy_data")[-1].bytes
    assert 0 < (attempts[1].bytes or 0) < (written or 0)


# --- crashes on the way back -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plan", "failing", "point", "power"), UNDO_POINTS)
def test_a_crash_on_the_way_back_is_recovered_from(
    world: World, plan: str, failing: str, point: str, power: bool
) -> None:
    """field.md bugs 21 (LP1398177) and 23 (LP1290317): a fault inside the cleanup disabled the cleanup."""
    world.power_cut = power
    world.ask(plan)
    world.fail(label(failing, Direction.FORWARD, "inside"), final=True)
    trap = world.on(point, world.die)
    world.live()
    assert trap.sprung == 1
    world.ended(End.ERROR)
    assert world.row().error_step == failing
    assert world.row().error_code == "NoSpace"


# --- two crashes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", PAIR_POINTS)
def test_two_crashes_are_recovered_from(plant: Plant, first: str) -> None:
    """Every pair of points of a host copy: the second one strikes where the first was recovered from, or later."""
    earliest = PAIR_POINTS.index(first) // len(CHANGES) * len(CHANGES)
    for number, second in enumerate(PAIR_POINTS[earliest:]):
        world = World(plant)
        world.power_cut = (number + PAIR_POINTS.index(first)) % 2 == 1
        world.ask()
        traps = [world.on(first, world.die), world.on(second, world.die, after=int(second == first))]
        world.live()
        done_again = second != first or first.endswith("inside")  # a step whose report was written is not
        assert [trap.sprung for trap in traps] == [1, int(done_again)]
        world.ended(End.SUCCESS)


# --- crashes without end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plan", "step"), [(plan.name, step.name) for plan in PLANS for step in before_line(plan)])
def test_a_step_that_kills_its_process_each_time_is_given_up(world: World, plan: str, step: str) -> None:
    """Attempts are counted before the act, so a step that never reports is bounded too."""
    world.ask(plan)
    world.on(label(step, Direction.FORWARD, "inside"), world.die, times=world.allowed)
    world.live()
    world.ended(End.ERROR)
    assert world.lives == 3
    assert world.row().error_code == "TooManyAttempts"


def test_removing_the_source_is_tried_for_ever_and_the_volume_is_usable_meanwhile(world: World) -> None:
    """field.md bug 22 (LP1403916): behind the switch nothing may be taken back."""
    world.ask()
    world.on("delete_source forward before", world.die, times=9)
    world.live()
    assert world.lives == 9
    world.ended(End.SUCCESS)


def test_a_copy_that_dies_before_each_flush_is_given_up(world: World) -> None:
    """Bytes written but never flushed are no progress: they are written again each time."""
    world.ask()
    world.on("object flush before", world.die, times=None)
    world.live()
    world.ended(End.ERROR)
    assert world.row().error_code == "TooManyAttempts"


def test_a_copy_that_gets_on_each_time_has_not_used_up_its_attempts(world: World) -> None:
    world.power_cut = True
    world.allowed = 2  # on a busy machine a life may record several pieces at once, so that there are few
    world.ask()
    copied = 0

    def die_if_more_is_copied() -> None:
        nonlocal copied
        if copied < (now := world.copied()) < SIZE:
            copied = now
            world.die()

    world.on("object pwrite before", world.wait_for_record, times=None)
    world.on("commit after", die_if_more_is_copied, times=None)
    world.live()
    world.ended(End.SUCCESS)
    assert world.lives > world.allowed
