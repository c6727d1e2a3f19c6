"""Bugs of others that are met when something fails on the way: the cleanup, the exports, the old copy."""

from __future__ import annotations

import contextlib
import functools
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from oslo_db import exception as db_exc

from migrator import errors
from migrator.context import service_context
from migrator.db import volumes
from migrator.db.models import Migration, Volume, utcnow
from migrator.drivers.base import VolumeDriver
from migrator.drivers.faults import Died, Fault
from migrator.volume import runner, states
from migrator.volume.states import Direction, End
from tests.recovery import wishes
from tests.recovery.instants import Trap, failure
from tests.recovery.schedules import PLANS, before_line, label
from tests.recovery.test_attached import InUse
from tests.recovery.test_failures import faults
from tests.recovery.world import DESTINATION, SOURCE, Plant, World
from tests.support import rows
from tests.support.waiting import until

PARTS = 3
#: What a call may end with: its own error, or one of whoever wrote it.
KINDS = ("its own error", "a slip of the pen")


def going_back(plant: Plant, plan: str) -> World:
    """A migration that fails for good in the last step that can be taken back."""
    world = World(plant)
    world.ask(plan)
    world.fail(label(before_line(states.PLANS[plan])[-1], Direction.FORWARD, "inside"), final=True)
    return world


def goes_back(world: World) -> bool:
    return any(f" {Direction.BACK} " in passed for passed in world.instants.trail)


@functools.cache
def instants_back(plant: Plant, plan: str) -> int:
    """Number of instants of the whole way back."""
    world = going_back(plant, plan)
    world.go()
    world.ended(End.ERROR)
    first = next(number for number, passed in enumerate(world.instants.trail) if f" {Direction.BACK} " in passed)
    return len(world.instants.trail) - first


def strike(world: World, kind: str, number: int) -> Trap:
    """Let what is done at that instant of the way back fail."""

    def fail() -> None:
        in_database = trap.label.startswith(("commit", "scheduler"))
        raise failure(trap.label) if in_database or kind == KINDS[0] else TypeError("not all arguments converted")

    trap = world.instants.trap(None, fail, after=number, only=lambda _: goes_back(world))
    return trap


def gone_on_with(world: World) -> None:
    """To the end, through what ends the work of one thread of a runner; the next sweep goes on."""
    try:
        world.go()
    except (db_exc.DBError, errors.LostOwnership, TypeError):
        world.go()


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", [plan.name for plan in PLANS])
def test_whatever_fails_in_the_cleanup_it_is_brought_to_its_end(plant: Plant, plan: str, kind: str, part: int) -> None:
    """field.md bug 23 (LP1290317): a wrong log call inside the cleanup disabled the cleanup.

    One failure before or behind every call, message and transaction of the way back.
    """
    for number in range(part, instants_back(plant, plan), PARTS):
        world = going_back(plant, plan)
        trap = strike(world, kind, number)
        gone_on_with(world)
        assert trap.sprung == 1
        world.ended(End.ERROR)
        assert world.row().error_code == "NoSpace", trap.label


def exports(driver: VolumeDriver) -> list[str]:
    return list(driver.exports("pool1"))


@pytest.mark.parametrize("late", [False, True], ids=["it fails", "its answer is lost"])
@pytest.mark.parametrize(("end", "call"), [(0, "export"), (1, "export"), (0, "pread"), (1, "pwrite"), (1, "create")])
def test_no_export_outlives_a_copy_that_could_not_begin(world: World, end: int, call: str, late: bool) -> None:
    """field.md bugs 21, 26 (LP1398177, LP1880971, LP1502138), pain 4: an export stayed when the next thing failed."""
    source, destination = world.plant.drivers
    error = errors.DriverError(backend=f"mem{end + 1}", reason="broken on purpose")
    order = faults(world.plant.drivers[end]).order(call, Fault.error(error), times=None, late=late)
    world.ask()
    world.go()
    assert order.struck.is_set()
    world.ended(End.ERROR)
    faults(source).release()
    faults(destination).release()
    assert (exports(source), exports(destination)) == ([], [])


def test_a_source_may_take_longer_to_delete_than_any_message_may_wait(world: World) -> None:
    """field.md bug 25 (LP1483155, LP1483157): its deletion outlasted a message, and a good migration failed.

    Meanwhile the volume is free: field.md bug 24 (LP1344341, LP1316079).
    """
    world.plant.conf.set_override("rpc_step_timeout_seconds", 1)
    world.runner = world.new_runner()
    slow = faults(world.plant.drivers[0]).order("delete", Fault.delay(1.5))
    world.ask()
    seen: list[tuple[str, str | None]] = []

    def look() -> None:
        volume = rows.volume(world.db, world.volume_id)
        seen.append((volume.status, volume.host))

    world.on("mem1 delete before", look)
    world.go()
    assert slow.struck.is_set()
    assert seen == [("available", DESTINATION)]
    assert len(world.attempts("delete_source")) == 1
    world.ended(End.SUCCESS)


def test_the_twin_of_a_volume_that_its_owner_deletes_goes_with_it(world: World) -> None:
    """field.md bugs 27 and 42 (LP1490445, LP1778774): it was refused to be deleted, or to whom it did not belong."""
    del world.checker.wanted[world.volume_id]
    world.ask()

    def delete() -> None:
        assert world.cancel()
        world.db.run(lambda session: volumes.update_where(session, world.volume_id, status="deleting"))

    world.on("copy_data forward before", delete)
    world.go()

    def all_is_gone() -> bool:
        for number in (0, 1):
            world.sweep(number)
        return world.checker.rows().volumes == []

    until(all_is_gone, "no row is left")
    assert world.row().end == End.CANCELLED
    assert world.checker.storage.objects() == set()


@pytest.mark.parametrize(
    ("done", "end"),
    [((), End.ERROR), (("reserve",), End.ERROR), (("reserve", "connect"), End.STUCK)],
    ids=["never begun", "reserved", "a host may still copy"],
)
def test_a_swap_without_an_end_is_not_waited_for_without_end(plant: Plant, done: tuple[str, ...], end: End) -> None:
    """field.md bug 36 (LP1260123): who waited for the copy of the host waited for ever."""
    world = InUse(plant)
    world.script.at_once = done
    plant.conf.set_override("swap_timeout_seconds", 60)
    world.go()
    world.ended(end, status="in-use")
    assert (world.row().error_step, world.users()) == ("swap_by_compute", [world.own])


# --- very many -------------------------------------------------------------------------------------------------------

#: What looking at all rows may take of memory at most, bytes: loaded whole, those below take several times as much.
LITTLE = 4 * 2**20


def volume_rows(count: int, **values: Any) -> list[dict[str, Any]]:
    usual = {"project_id": "p", "user_id": "u", "host": SOURCE, "size": 1, "attach_status": "detached"}
    flags = dict.fromkeys(("bootable", "multiattach", "readonly"), False)
    made = {"availability_zone": "zone-mem1", "created_at": utcnow(), **usual, **flags, **values}
    return [{**made, "id": str(uuid.uuid4())} for _ in range(count)]


def peak(work: Callable[[], object]) -> int:
    """Bytes that ``work`` allocated at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("status", ["available", "deleting"])
def test_a_start_among_very_many_volumes_takes_no_memory_for_each(world: World, status: str) -> None:
    """field.md bug 48 (LP1681374): every volume was loaded at the start, those with nothing to do as well.

    Of those with something to do the first one ends the process: only what is held until then is meant.
    """
    many = volume_rows(5_000, status=status)
    world.db.run(lambda session: session.execute(sa.insert(Volume.__table__), many))  # type: ignore[arg-type]
    many.clear()
    world.sweep(1)  # fills the caches
    died = faults(world.plant.drivers[0]).order("delete", Fault.die(in_process=True))

    def start() -> None:
        with contextlib.suppress(Died):
            world.sweep(0)

    assert peak(start) < LITTLE
    assert died.struck.is_set() == (status == "deleting")


def test_a_start_among_very_many_migrations_takes_no_memory_for_each(world: World) -> None:
    """field.md bug 48 (LP1681374): a backend that is emptied has as many migrations as it had volumes."""
    world.ask()
    row = {column.name: getattr(world.row(), column.name) for column in Migration.__table__.columns}
    away = {**row, "source_host": "node@elsewhere#pool1", "step": "copy_data", "plan": "host_copy"}
    many = [{**away, "id": str(uuid.uuid4()), "destination_volume_id": str(uuid.uuid4())} for _ in range(5_000)]
    world.db.run(lambda session: session.execute(sa.insert(Migration.__table__), many))  # type: ignore[arg-type]
    many.clear()
    mine = Migration.source_host == "node@elsewhere#pool1"
    assert len(runner.unowned(world.db, mine)) == 5_000
    assert peak(lambda: runner.unowned(world.db, mine)) < LITTLE


def test_a_sweep_that_takes_long_removes_nothing_that_an_undo_has_given_back(world: World) -> None:
    """field.md pain 1: what clears up after a crash may then wipe the last healthy source.

    The sweep has seen the old place as one to be removed; before it gets there the migration ends, keeps that place,
    and is undone.
    """
    busy = rows.add_volume(world.db, host=SOURCE, status="creating", availability_zone="zone-mem1")
    world.plant.managers[0].create_volume(service_context(), volume_id=busy)
    world.ask(keep_source_seconds=3600)
    world.on("delete_source forward before", world.die)
    with pytest.raises(Died):
        world.go()
    world.bury()
    world.db.run(lambda session: volumes.update_where(session, busy, status="extending", wanted_size=2))

    def meanwhile(_: Fault) -> None:
        world.go()
        assert wishes.undo(world) is None

    faults(world.plant.drivers[0]).order("extend", Fault(meanwhile))
    world.sweep(0)
    volume = rows.volume(world.db, world.volume_id)
    assert (volume.host, volume.status) == (SOURCE, "available")
    world.sweep_until_clean()
    world.ended(End.SUCCESS)
