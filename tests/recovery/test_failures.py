"""Steps that fail: tried again, rolled back with nothing left, or stuck with the data safe."""

from __future__ import annotations

import errno

import pytest
import sqlalchemy as sa

from migrator import errors
from migrator.db.models import CopiedRange
from migrator.drivers.base import VolumeDriver
from migrator.drivers.faults import Fault, Faults
from migrator.drivers.memory import MemoryDriver, open_object
from migrator.volume import states
from migrator.volume.states import Direction, End
from tests.recovery.schedules import PLANS, before_line, label, worked
from tests.recovery.world import DATA, DESTINATION, World

FORWARD = [(plan.name, step.name) for plan in PLANS for step in worked(plan)]
BEFORE_LINE = [(plan.name, step.name) for plan in PLANS for step in worked(plan) if step in before_line(plan)]
UNDONE = [(plan.name, step.name) for plan in PLANS for step in before_line(plan)]
EFFECT = pytest.mark.parametrize("when", ["before", "inside"], ids=["before its effect", "behind its effect"])


def faults(driver: VolumeDriver) -> Faults:
    assert isinstance(driver, MemoryDriver)
    return driver.faults


# --- any step ----------------------------------------------------------------------------------------------------


@EFFECT
@pytest.mark.parametrize(("plan", "step"), FORWARD)
def test_a_step_that_fails_once_is_tried_again(world: World, plan: str, step: str, when: str) -> None:
    world.ask(plan)
    trap = world.fail(label(step, Direction.FORWARD, when))
    world.go()
    assert trap.sprung == 1
    world.ended(End.SUCCESS)
    assert [attempt.result for attempt in world.attempts(step)] == ["failed", "done"]
    assert world.row().error_code is None


@EFFECT
@pytest.mark.parametrize(("plan", "step"), BEFORE_LINE)
def test_a_step_that_fails_three_times_is_rolled_back(world: World, plan: str, step: str, when: str) -> None:
    """field.md bugs 21 (LP1398177), 26 (LP1880971, LP1502138), 27 (LP1490445): leftovers were never removed."""
    world.ask(plan)
    trap = world.fail(label(step, Direction.FORWARD, when), times=None)
    world.go()
    assert trap.sprung == world.allowed
    world.ended(End.ERROR)
    row = world.row()
    assert (row.error_step, row.error_code) == (step, "DriverError")
    assert "broken on purpose" in (row.error_message or "")


@EFFECT
@pytest.mark.parametrize(("plan", "step"), BEFORE_LINE)
def test_a_final_failure_is_rolled_back_at_once(world: World, plan: str, step: str, when: str) -> None:
    world.ask(plan, lock_volume=True)
    trap = world.fail(label(step, Direction.FORWARD, when), final=True, times=None)
    world.go()
    assert trap.sprung == 1
    world.ended(End.ERROR)
    assert world.row().error_code == "NoSpace"


@pytest.mark.parametrize("plan", [plan.name for plan in PLANS])
def test_a_source_that_cannot_be_removed_is_tried_until_it_can(world: World, plan: str) -> None:
    """field.md bugs 22 (LP1403916), 24 (LP1344341, LP1316079), 25 (LP1483155): the source was orphaned for ever."""
    world.ask(plan)
    world.fail("delete_source forward before", times=5)
    world.fail("delete_source forward before", final=True, after=5, times=5)
    world.on("delete_source forward before", lambda: world.checker.look("the volume is usable"), times=None)
    world.go()
    world.ended(End.SUCCESS)
    assert len(world.attempts("delete_source")) == 11
    assert [world.cancel() for _ in range(2)] == [False, False]


def test_a_pool_that_does_not_fit_ends_the_migration_with_every_reason(world: World) -> None:
    """field.md pain 6: "cannot place volume" without a reason."""
    world.ask(requested_host="node@mem3#pool1")
    world.go()
    world.ended(End.ERROR)
    assert world.row().error_code == "NoValidBackend"


# --- on the way back ---------------------------------------------------------------------------------------------


@EFFECT
@pytest.mark.parametrize(("plan", "step"), UNDONE)
def test_an_undo_that_fails_once_is_tried_again(world: World, plan: str, step: str, when: str) -> None:
    """field.md bug 23 (LP1290317): an error inside the cleanup ended the cleanup."""
    world.ask(plan)
    world.fail(label(before_line(states.PLANS[plan])[-1], Direction.FORWARD, "inside"), final=True)
    trap = world.fail(label(step, Direction.BACK, when))
    world.go()
    assert trap.sprung == 1
    world.ended(End.ERROR)
    assert world.row().error_code == "NoSpace", "the first error is why it turned back"


@EFFECT
@pytest.mark.parametrize(("plan", "step"), [(plan, step) for plan, step in UNDONE if step != states.FIRST_STEP])
def test_an_undo_that_always_fails_leaves_the_data_safe_and_the_rest_named(
    world: World, plan: str, step: str, when: str
) -> None:
    """field.md, hazard b: an object that nothing names any more.  The checker looks for strays at every instant."""
    world.ask(plan)
    world.fail(label(before_line(states.PLANS[plan])[-1], Direction.FORWARD, "inside"), final=True)
    trap = world.fail(label(step, Direction.BACK, when), times=None)
    world.go()
    assert trap.sprung == world.allowed
    world.ended(End.STUCK)
    assert world.row().error_step == step


def test_what_could_not_be_deleted_at_the_destination_is_removed_by_its_service_later(world: World) -> None:
    world.ask()
    world.fail("copy_data forward inside", final=True)
    fault = faults(world.plant.drivers[1]).order(
        "delete", Fault.error(errors.DriverError(backend="mem2", reason="the array is busy")), times=None
    )
    world.go()
    world.checker.ended(world.migration_id, End.ERROR, End.STUCK, left=True)
    world.sweep_destination()
    assert fault.struck.is_set()
    assert (DESTINATION, world.destination_name) in world.checker.storage.objects()
    faults(world.plant.drivers[1]).release()
    world.sweep_destination()
    world.checker.nothing_left()


def test_a_destination_whose_service_is_away_is_cleaned_when_it_is_back(world: World) -> None:
    """field.md, hazard b: what the rollback cannot reach must not be forgotten, and nobody waits for ever."""
    world.plant.conf.set_override("rpc_step_timeout_seconds", 1)
    world.runner = world.new_runner()
    world.ask()
    world.fail("copy_data forward inside", final=True)
    world.on("copy_data back before", world.plant.servers["node@mem2"].stop)
    try:
        world.go()
    finally:
        world.plant.serve(1)
    world.checker.ended(world.migration_id, End.ERROR, left=True)
    assert ("create_destination", "back", "deferred") in world.history()
    world.sweep_until_clean()
    world.ended(End.ERROR)


def test_an_assisted_move_that_was_never_begun_is_not_taken_back(world: World) -> None:
    """A backend is asked to take back only what it said it could move."""
    world.ask("assisted")
    world.plant.schedule()
    elsewhere = {"driver": "other", "place": "other:9"}
    world.set_row(destination_location=elsewhere, cancel_requested=True)
    world.go()
    world.ended(End.CANCELLED)


@pytest.mark.parametrize("when", ["mem1 move after", "assisted_move forward inside"])
def test_what_a_dead_process_had_moved_is_taken_back_when_the_backend_cannot_go_on(world: World, when: str) -> None:
    world.ask("assisted")
    source = world.plant.drivers[0]
    assert isinstance(source, MemoryDriver)
    world.on(when, lambda: setattr(source, "assists", False))
    world.on(when, world.die)
    world.live()
    world.ended(End.SUCCESS)
    assert world.row().plan == "host_copy"


# --- storage -----------------------------------------------------------------------------------------------------


def test_short_reads_and_writes_are_gone_on_with(world: World) -> None:
    """field.md, style part 2: an early end was taken for success, short writes were ignored."""
    source, destination = map(faults, world.plant.drivers)
    source.order("pread", Fault.short(30_011), times=None)
    destination.order("pwrite", Fault.short(17_003), times=None)
    before = source.count("pread"), destination.count("pwrite")
    world.ask()
    world.go()
    world.ended(End.SUCCESS)
    # The data lies in seven blocks of 64 KiB.
    assert source.count("pread") - before[0] > 2 * 7
    assert destination.count("pwrite") - before[1] > 3 * 7


@pytest.mark.parametrize(
    ("end", "call", "code", "number"),
    [
        (0, "pread", "SourceUnreadable", errno.EIO),
        (1, "pwrite", "DestinationUnwritable", errno.EIO),
        (1, "flush", "DestinationUnwritable", errno.EIO),
        (1, "pwrite", "NoSpace", errno.ENOSPC),
        (1, "flush", "NoSpace", errno.EDQUOT),
    ],
)
@pytest.mark.parametrize("after", [0, 2])
def test_a_broken_end_rolls_back_and_the_source_stays(
    world: World, end: int, call: str, code: str, number: int, after: int
) -> None:
    """field.md bug 41 (LP1472486): a full destination; pain 1: the last healthy source must not be lost."""
    broken = faults(world.plant.drivers[end])
    broken.order(call, Fault.error(OSError(number, "broken")), times=None, after=0 if call == "flush" else after)
    world.ask()
    world.go()
    world.ended(End.ERROR)
    row = world.row()
    assert (row.error_step, row.error_code) == ("copy_data", code)
    assert len(world.attempts("copy_data")) == (1 if code == "NoSpace" else world.allowed)


@pytest.mark.parametrize("end", [0, 1], ids=["source", "destination"])
def test_an_end_that_breaks_once_is_read_or_written_again(world: World, end: int) -> None:
    call = ("pread", "pwrite")[end]
    faults(world.plant.drivers[end]).order(call, Fault.error(OSError(errno.EIO, "broken")), after=1)
    world.ask()
    world.go()
    world.ended(End.SUCCESS)


def test_a_copy_that_fails_but_got_on_has_not_used_up_its_attempts(world: World) -> None:
    """Four failures, each behind a checkpoint with more than the last: more than the attempts allowed."""
    world.ask()
    copied = 0

    def fail_if_more_is_copied() -> None:
        nonlocal copied
        if copied < (now := world.copied()):
            copied = now
            raise OSError(errno.EIO, "broken on purpose")

    world.on("object pwrite before", world.wait_for_record, times=None)
    world.on("object pwrite before", fail_if_more_is_copied, times=None)
    world.go()
    world.ended(End.SUCCESS)
    assert len(world.attempts("copy_data")) > world.allowed


@pytest.mark.parametrize("offset", [0, 2**20 - 1, DATA[2][0] + 70_000, DATA[-1][0] + 512, 5 * 2**20 + 3])
def test_a_byte_that_differs_is_found_before_the_switch(world: World, offset: int) -> None:
    """field.md bugs 1 and 2 (LP1454835, LP1218054): part of the data was copied, and the source deleted."""
    world.ask()

    def spoil() -> None:
        # What is recorded as copied may be spoilt here, and the check of it would rightly object.
        world.db.run(lambda session: session.execute(sa.delete(CopiedRange)))
        destination = world.plant.drivers[1]
        opened = open_object(destination.export("pool1", world.destination_name, writable=True).path)
        byte = bytearray(1)
        opened.pread_into(offset, byte)
        opened.pwrite(offset, bytes([byte[0] ^ 0x10]))
        opened.flush()

    world.on("verify_copy forward before", spoil)
    world.go()
    world.ended(End.ERROR)
    row = world.row()
    assert (row.error_step, row.error_code) == ("verify_copy", "VerifyMismatch")
    assert f"offset {offset}." in (row.error_message or "")


# --- whoever writes to the source without a row that says so ------------------------------------------------------


@pytest.mark.parametrize("plan", [plan.name for plan in PLANS])
@pytest.mark.parametrize("late", [False, True], ids=["all the time", "from the middle on"])
def test_a_source_that_a_hypervisor_has_open_is_not_left(world: World, plan: str, late: bool) -> None:
    """A guest goes on writing although its attachment was reset by hand: the switch would lose what it writes."""
    world.ask(plan)
    driver = world.plant.drivers[0]
    assert isinstance(driver, MemoryDriver)
    name = f"volume-{world.row().source_object_id}"

    def open_it() -> None:
        driver.opened = {name}

    open_it() if not late else world.on(label(_MIDDLE[plan], Direction.FORWARD, "before"), open_it)
    try:
        world.go()
    finally:
        driver.opened = None
    world.ended(End.ERROR)
    row = world.row()
    assert row.error_code == "SourceInUse", (row.error_code, row.error_message)


_MIDDLE = {"host_copy": "verify_copy", "assisted": "assisted_move"}
