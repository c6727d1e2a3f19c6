"""Orders to a migration under way: pause, resume, set_rate, retry; and the owner's wishes at every instant."""

from __future__ import annotations

import functools

import pytest

from migrator import errors
from migrator.db import migrations
from migrator.drivers.faults import Died, Fault
from migrator.volume import states
from migrator.volume.states import Direction, End, Stage
from tests.recovery import wishes
from tests.recovery.instants import raising
from tests.recovery.schedules import PLANS, before_line, has_changed_something, label
from tests.recovery.test_failures import faults
from tests.recovery.world import PICK, SIZE, Plant, World
from tests.support import rows

BEFORE_LINE = [(plan.name, step.name) for plan in PLANS for step in before_line(plan)]
ANY_STEP = pytest.mark.parametrize(("plan", "step"), BEFORE_LINE)
WHENS = pytest.mark.parametrize("when", ["before", "inside", "after"])
PARTS = 4


def rests(world: World) -> None:
    """Check that the migration is paused and nobody does anything for it."""
    row = world.row()
    assert (row.paused, row.owner, row.end, row.rate) == (True, None, None, None)
    before, trail = world.checker.rows(), len(world.instants.trail)
    for _ in range(3):
        world.plant.schedule()
        world.runner.sweep()
    assert world.checker.rows() == before
    assert world.instants.trail[trail:] == []
    assert all(attempt.finished_at for attempt in world.attempts(row.step))


# --- pause and resume --------------------------------------------------------------------------------------------


@WHENS
@ANY_STEP
def test_a_pause_at_any_step_lets_the_migration_rest_until_it_is_resumed(
    world: World, plan: str, step: str, when: str
) -> None:
    world.ask(plan)
    accepted: list[bool] = []
    world.on(label(step, Direction.FORWARD, when), lambda: accepted.append(wishes.pause(world)))
    world.go()
    last = states.PLANS[plan].steps[states.PLANS[plan].line - 1].name
    if when == "after" and step == last:  # it came behind the line
        assert accepted == [False]
        world.ended(End.SUCCESS)
        return
    assert accepted == [True]
    rests(world)
    names = [one.name for one in states.PLANS[plan].steps]
    further = names.index(world.row().step) - names.index(step)
    # The step is brought to its end and no other one begun; a copy and a comparison may be met in their middle.
    assert further <= (when != "before" or step != PICK) + (when == "after" and step != PICK), world.row().step
    assert wishes.resume(world)
    world.go()
    world.ended(End.SUCCESS)
    assert {result for _, _, result in world.history()} <= {"done", "interrupted"}


@pytest.mark.parametrize("plan", [plan.name for plan in PLANS])
def test_a_paused_migration_does_not_switch(world: World, plan: str) -> None:
    """A pause that comes within the last step before the line keeps that from being done."""
    world.ask(plan)
    last = states.PLANS[plan].steps[states.PLANS[plan].line - 1].name
    place = rows.volume(world.db, world.volume_id).host
    world.on(label(last, Direction.FORWARD, "inside"), lambda: wishes.pause(world))
    world.go()
    rests(world)
    assert (world.row().step, world.row().attempts) == (last, 0)
    assert rows.volume(world.db, world.volume_id).host == place
    wishes.resume(world)
    world.go()
    world.ended(End.SUCCESS)


@pytest.mark.parametrize("power", [False, True], ids=["resumed", "resumed after a power cut"])
def test_a_paused_copy_goes_on_behind_what_it_had_flushed(world: World, power: bool) -> None:
    world.ask()
    world.on("object pwrite before", lambda: wishes.pause(world), after=2)
    world.on("object pwrite before", world.hold_while_recorded, after=3, times=None)
    world.go()
    rests(world)
    copied = world.copied()
    assert 0 < copied < SIZE
    destination = world.plant.driver(str(world.row().destination_host))
    assert not world.checker.storage.is_writable(f"{destination.backend}#pool1", world.destination_name)
    world.instants.traps.clear()
    if power:
        world.power_cut = True
        world.bury()
    assert wishes.resume(world)
    world.go()
    world.ended(End.SUCCESS)
    first, second = world.attempts("copy_data")
    assert (first.result, first.message, second.result, second.attempt) == (
        *("interrupted", "paused on request"),
        *("done", 1),
    )
    whole = World(world.plant)
    whole.ask()
    whole.go()
    assert 0 < (second.bytes or 0) < (whole.attempts("copy_data")[0].bytes or 0)


def test_a_paused_copy_gives_its_worker_to_others(file_plant: Plant) -> None:
    """With a copier in a process of its own, of which there is one alone."""
    world = World(file_plant)
    world.ask(bytes_per_second=64 * 1024)  # slow enough to be met in its middle
    world.on("commit after", lambda: wishes.pause(world) if world.row().worker else None, times=None)
    world.go()
    rests(world)
    assert (world.row().step, world.row().worker) == ("copy_data", None)
    with file_plant.copiers.take(timeout=10):
        pass
    world.instants.traps.clear()
    assert wishes.set_rate(world, None)
    assert wishes.resume(world)
    world.go()
    world.ended(End.SUCCESS)
    row = world.row()
    assert (row.bytes_moved or 0) > 0
    assert (row.moved_seconds or 0) > 0


def test_a_pause_outlives_its_process(world: World) -> None:
    world.ask()
    world.on("copy_data forward inside", lambda: wishes.pause(world))
    world.on("copy_data forward inside", world.die)
    with pytest.raises(Died):
        world.go()
    world.bury()
    world.runner.sweep()
    assert (world.row().step, world.row().paused) == ("copy_data", True)
    assert wishes.resume(world)
    world.live()
    world.ended(End.SUCCESS)


@ANY_STEP
def test_a_paused_migration_can_be_cancelled(world: World, plan: str, step: str) -> None:
    world.ask(plan)
    world.on(label(step, Direction.FORWARD, "before"), lambda: wishes.pause(world))
    world.go()
    assert world.cancel()
    world.go()
    world.ended(End.CANCELLED)


def test_a_step_that_fails_for_good_ends_the_pause(world: World) -> None:
    """Taking back needs nobody's leave: a migration that failed never waits for somebody to say so."""
    world.ask()
    world.on("verify_copy forward inside", lambda: wishes.pause(world))
    world.fail("verify_copy forward inside", final=True)
    world.go()
    world.ended(End.ERROR)


def test_a_step_to_be_tried_again_waits_for_the_end_of_the_pause(world: World) -> None:
    world.ask()
    world.on("verify_copy forward inside", lambda: wishes.pause(world))
    world.fail("verify_copy forward inside")
    world.go()
    rests(world)
    wishes.resume(world)
    world.go()
    world.ended(End.SUCCESS)
    assert [attempt.result for attempt in world.attempts("verify_copy")] == ["failed", "done"]


def test_what_goes_back_or_lies_behind_the_line_is_not_paused(world: World) -> None:
    world.ask()
    accepted: list[bool] = []
    world.on("disconnect forward inside", raising(errors.NoSpace(where="x", reason="broken on purpose")))
    world.on("create_destination back before", lambda: accepted.append(wishes.pause(world)))
    world.go()
    world.ask()
    world.on("delete_source forward before", lambda: accepted.append(wishes.pause(world)))
    world.go()
    world.ended(End.SUCCESS)
    assert accepted == [False, False]


def test_a_pause_that_ends_before_it_was_noticed_has_not_been(world: World) -> None:
    world.ask()
    world.on("object pwrite before", lambda: wishes.pause(world) and wishes.resume(world), after=1)
    world.go()
    world.ended(End.SUCCESS)
    assert len(world.attempts("copy_data")) == 1


# --- assisted moves --------------------------------------------------------------------------------------------------


def test_an_assisted_move_is_ended_by_a_cancel_within_a_second(world: World) -> None:
    """The driver hears of it when it reports how far it is."""
    faults(world.plant.drivers[0]).order("move", Fault.delay(0.7))
    world.ask("assisted")
    world.on("mem1 move before", lambda: world.cancel())
    world.go()
    world.ended(End.CANCELLED)
    (attempt,) = world.attempts("assisted_move")
    assert (attempt.result, attempt.message) == ("failed", "cancelled on request")


def test_an_assisted_move_reports_how_far_it_is(world: World) -> None:
    faults(world.plant.drivers[0]).order("move", Fault.delay(1.2))
    world.ask("assisted")
    seen: list[tuple[int, float | None]] = []
    world.on("commit after", lambda: seen.append((world.row().bytes_done, world.row().rate)), times=None)
    world.go()
    world.ended(End.SUCCESS)
    assert any(done == SIZE and rate is not None and rate > 0 for done, rate in seen)
    row = world.row()
    assert (row.bytes_moved, row.rate) == (SIZE, None)
    assert 1 < (row.moved_seconds or 0) < 10


# --- retry -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "step", "cancelled"),
    [(plan, step, cancelled) for plan, step in BEFORE_LINE for cancelled in (False, True) if cancelled or step != PICK],
)
def test_what_was_taken_back_can_be_retried(world: World, plan: str, step: str, cancelled: bool) -> None:
    world.ask(plan, force_host_copy=plan == "host_copy")
    if cancelled:
        world.on(label(step, Direction.FORWARD, "before"), lambda: world.cancel())
    else:
        world.fail(label(step, Direction.FORWARD, "before"), final=True)
    world.go()
    world.ended(End.CANCELLED if cancelled else End.ERROR)
    twin = world.row().destination_volume_id
    assert wishes.retry(world)
    assert not wishes.retry(world), "it runs"
    world.go()
    world.ended(End.SUCCESS)
    assert world.row().destination_volume_id != twin
    assert (world.row().plan, world.row().error_code) == (plan, None)


def test_a_retry_copies_from_nothing_on_a_clean_destination(world: World) -> None:
    world.ask(force_host_copy=True)
    world.fail("verify_copy forward inside", final=True)
    world.go()
    wishes.write(world)
    assert wishes.retry(world)
    assert world.copied() == 0
    world.go()
    world.ended(End.SUCCESS)
    first, second = world.attempts("copy_data")
    assert second.bytes == first.bytes


@pytest.mark.parametrize("point", ["create_destination", "copy_data", "verify_copy", "switch_volume", "delete_source"])
def test_a_retry_that_dies_is_recovered_from(world: World, point: str) -> None:
    world.ask(force_host_copy=True)
    world.fail("disconnect forward inside", final=True)
    world.go()
    assert wishes.retry(world)
    world.on(label(point, Direction.FORWARD, "inside"), world.die)
    world.live()
    assert world.lives == 1
    world.ended(End.SUCCESS)


def test_what_the_first_try_left_to_its_destination_is_removed_while_the_retry_runs(world: World) -> None:
    """The old twin has a name of its own, so nothing of it stands in the way of the new one."""
    world.ask(force_host_copy=True)
    world.fail("verify_copy forward inside", final=True)
    busy = Fault.error(errors.DriverError(backend="b", reason="busy"))
    faults(world.plant.drivers[1]).order("delete", busy, times=world.allowed)
    world.go()
    world.checker.ended(world.migration_id, End.ERROR, left=True)
    assert wishes.retry(world)
    twins: list[int] = []

    def sweep() -> None:
        before = len(world.checker.rows().volumes)
        world.sweep(1)
        twins.append(before - len(world.checker.rows().volumes))

    world.on("copy_data forward inside", sweep)
    world.go()
    world.ended(End.SUCCESS)
    assert twins == [1], "the old one alone"


def test_a_stuck_migration_is_taken_back_by_a_retry(world: World) -> None:
    world.ask()
    world.fail("copy_data forward inside", final=True)
    trap = world.fail("copy_data back before", final=True)
    world.go()
    world.checker.ended(world.migration_id, End.STUCK)
    assert trap.sprung == 1
    assert wishes.retry(world)
    world.go()
    world.ended(End.ERROR)
    assert wishes.retry(world), "and then begins anew"
    world.go()
    world.ended(End.SUCCESS)


def test_a_stuck_assisted_move_is_taken_back_though_its_owner_uses_the_volume(world: World) -> None:
    world.ask("assisted")
    world.fail("assisted_move forward inside", final=True)
    world.fail("assisted_move back before", final=True)
    world.go()
    world.checker.ended(world.migration_id, End.STUCK)
    assert wishes.attach(world)
    assert wishes.retry(world)
    world.go()
    world.ended(End.ERROR, status="in-use")


def test_a_volume_that_went_on_meanwhile_is_not_retried(world: World) -> None:
    world.ask()
    world.on("copy_data forward before", lambda: world.cancel())
    world.go()
    first = world.migration_id
    world.ask()
    running, world.migration_id = world.migration_id, first
    assert not wishes.retry(world)
    world.migration_id = running
    world.go()
    world.ended(End.SUCCESS)
    world.migration_id = first
    assert not wishes.retry(world)


# --- verify ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["readback", "inline", "none"])
def test_a_copy_is_verified_as_was_asked_for_and_the_history_says_so(world: World, verify: str) -> None:
    world.ask(verify=verify)
    world.go()
    world.ended(End.SUCCESS)
    (attempt,) = world.attempts("verify_copy")
    row = world.row()
    if verify == "readback":
        assert (attempt.bytes, attempt.message, row.bytes_verified) == (SIZE, None, SIZE)
        assert (row.checksum or "").startswith("xxh3-128:")
    else:
        assert (attempt.bytes, row.bytes_verified) == (None, None)
        assert f"verify is {verify}" in (attempt.message or "")
    assert verify != "none" or row.checksum is None


def test_bytes_that_change_behind_the_copy_are_found_by_reading_back_alone(world: World) -> None:
    """What none gives up, and readback has."""

    def spoil() -> None:
        held = world.plant.drivers[1]._get("pool1", world.destination_name)  # type: ignore[attr-defined]
        held.content.write(7, b"x")
        held.content.flush()

    world.ask(force_host_copy=True)
    world.checker.wanted.clear()
    world.on("verify_copy forward before", spoil)
    world.go()
    assert (world.row().end, world.row().error_code) == (End.ERROR, "VerifyMismatch")
    assert "at offset 7" in str(world.row().error_message)
    world.ask(verify="none")
    world.go()
    assert world.row().end == End.SUCCESS


# --- the owner, at every instant -------------------------------------------------------------------------------------


def is_between_transactions(label: str) -> bool:
    return has_changed_something(label) and label not in ("commit inside", "scheduler inside") and "mem2" not in label


@functools.cache
def instants_of(plant: Plant, plan: str) -> int:
    world = World(plant)
    world.ask(plan)
    world.go()
    return sum(map(is_between_transactions, world.instants.trail))


@pytest.mark.parametrize("locked", [False, True], ids=["free", "locked"])
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("plan", [plan.name for plan in PLANS])
def test_the_owner_may_attach_and_write_at_any_instant(plant: Plant, plan: str, part: int, locked: bool) -> None:
    """Before the line the owner wins, behind it waits; no write is lost and no attachment dropped.

    With lock_volume the owner is refused until the end.  field.md pain 3: what an attach during a migration does could
    not be predicted.
    """
    for number in range(part, instants_of(plant, plan), PARTS):
        world = World(plant)
        world.ask(plan, lock_volume=locked)
        came: list[tuple[Stage, bool]] = []

        def come(world: World = world, came: list[tuple[Stage, bool]] = came) -> None:
            came.append((states.stage(migrations.position(world.row())), wishes.attach(world)))

        world.instants.trap(None, come, after=number, only=is_between_transactions)
        world.go()
        ((stage, attached),) = came
        assert attached == {Stage.BEFORE_LINE: not locked, Stage.BEHIND_LINE: False, Stage.MOVED: True}[stage]
        cancelled = attached and stage is Stage.BEFORE_LINE
        end = End.CANCELLED if cancelled else End.SUCCESS
        world.ended(end, status="in-use" if attached else "available")


@pytest.mark.parametrize("part", range(PARTS))
def test_an_extend_at_any_instant_is_neither_lost_nor_overtaken(plant: Plant, part: int) -> None:
    for number in range(part, instants_of(plant, "host_copy"), PARTS * 3):
        world = World(plant)
        world.ask()
        accepted: list[bool] = []
        world.instants.trap(
            None,
            lambda: accepted.append(wishes.take(world, status="extending", wanted_size=2)),  # noqa: B023
            after=number,
            only=is_between_transactions,
        )
        world.go()
        if not accepted[0]:
            world.ended(End.SUCCESS)
            continue
        world.checker.wanted.clear()
        volume = rows.volume(world.db, world.volume_id)
        assert volume.status == "extending"
        managers = dict(zip(("mem1", "mem2"), plant.managers, strict=True))
        managers[str(volume.host).partition("@")[2].partition("#")[0]].extend_volume(None, volume_id=volume.id)  # type: ignore[arg-type]
        extended = rows.volume(world.db, world.volume_id)
        assert (extended.status, extended.size, extended.host) == ("available", 2, volume.host)
        found = world.checker.storage.durable(str(extended.host), f"volume-{extended.object_id}")
        assert found is not None
        assert found.size == 2 * SIZE
