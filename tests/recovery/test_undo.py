"""A source that is kept behind the switch, and the way back to it."""

from __future__ import annotations

import pytest

from migrator.context import service_context
from migrator.db import twins, volumes
from migrator.db.models import Volume
from migrator.volume.states import Direction, End
from tests.recovery import wishes
from tests.recovery.schedules import label
from tests.recovery.world import DESTINATION, SOURCE, World
from tests.support import rows

HOUR = 3600


@pytest.fixture
def moved(world: World) -> World:
    """A volume that was moved a moment ago, its source kept for an hour."""
    world.ask(keep_source_seconds=HOUR)
    world.go()
    world.ended(End.SUCCESS, left=True)
    return world


def place(world: World) -> str | None:
    return rows.volume(world.db, world.volume_id).host


def objects(world: World) -> list[str]:
    return sorted(host for host, _ in world.checker.storage.objects())


def test_the_source_is_kept_for_its_time_and_nobody_may_use_it(moved: World) -> None:
    row = moved.row()
    assert row.keep_source_until is not None
    assert row.switched_at is not None
    assert row.switched_at + HOUR <= row.keep_source_until <= moved.db.now() + HOUR
    twin = rows.volume(moved.db, row.destination_volume_id)
    assert (twin.host, twin.status, twin.object_id) == (SOURCE, "maintenance", moved.volume_id)
    for number in (0, 1):
        moved.sweep(number)
    assert objects(moved) == [SOURCE, DESTINATION]
    moved.expire_kept_source()
    moved.sweep(1)
    assert objects(moved) == [SOURCE, DESTINATION], "the service of the old place alone removes it"
    moved.sweep(0)
    assert objects(moved) == [DESTINATION]
    moved.ended(End.SUCCESS)
    assert "no longer there" in str(wishes.undo(moved))


def test_without_the_wish_nothing_is_kept_and_nothing_can_be_undone(world: World) -> None:
    world.ask()
    world.go()
    world.ended(End.SUCCESS)
    assert wishes.undo(world) == "its source was not kept"


def test_an_assisted_move_keeps_nothing(world: World) -> None:
    """Both of its places are one and the same data."""
    world.ask("assisted", keep_source_seconds=HOUR)
    world.go()
    world.ended(End.SUCCESS)
    assert wishes.undo(world) == "its source was not kept"


def test_an_undo_puts_the_volume_back_and_clears_its_new_place(moved: World) -> None:
    assert wishes.undo(moved) is None
    assert place(moved) == SOURCE
    assert rows.volume(moved.db, moved.volume_id).name_id is None
    moved.sweep(0)
    assert objects(moved) == [SOURCE, DESTINATION]
    moved.sweep(1)
    assert objects(moved) == [SOURCE]
    moved.ended(End.SUCCESS)
    assert "it was undone at" in str(wishes.undo(moved))


def test_the_new_place_is_cleared_by_a_message_as_well(moved: World) -> None:
    assert wishes.undo(moved) is None
    twin = moved.row().destination_volume_id
    for _ in range(2):
        moved.plant.managers[1].delete_volume(service_context(), volume_id=twin)
    moved.ended(End.SUCCESS)


def test_what_was_undone_can_be_moved_again_and_undone_again(moved: World) -> None:
    for _ in range(2):
        assert wishes.undo(moved) is None
        moved.sweep_until_clean()
        moved.ask(keep_source_seconds=HOUR)
        moved.go()
        moved.ended(End.SUCCESS, left=True)
        assert place(moved) == DESTINATION


@pytest.mark.parametrize("detached", [False, True], ids=["attached", "detached again"])
def test_a_volume_that_somebody_could_write_to_is_not_put_back(moved: World, detached: bool) -> None:
    assert wishes.attach(moved)
    if detached:
        wishes.detach(moved)
    assert wishes.undo(moved) is not None
    assert place(moved) == DESTINATION
    moved.expire_kept_source()
    moved.sweep(0)
    wishes.detach(moved)
    moved.ended(End.SUCCESS)


def test_a_kept_source_goes_with_its_volume(moved: World) -> None:
    del moved.checker.wanted[moved.volume_id]
    assert wishes.take(moved, status="deleting")
    moved.plant.managers[1].delete_volume(service_context(), volume_id=moved.volume_id)
    assert objects(moved) == [SOURCE]
    moved.sweep(0)
    assert objects(moved) == []
    assert moved.checker.rows().volumes == []


def test_a_volume_that_moves_on_cannot_go_back_and_its_source_goes_when_it_is_time(moved: World) -> None:
    """Back to the very pool on which it is kept, even."""
    first = moved.migration_id
    moved.set_row(source_host=DESTINATION.replace("mem2", "mem1"))
    volume = rows.volume(moved.db, moved.volume_id)
    moved.ask()
    moved.migration_id, second = first, moved.migration_id
    assert f"migration {second} has moved the volume since" in str(wishes.undo(moved))
    moved.expire_kept_source()
    moved.sweep(0)
    moved.migration_id = second
    moved.cancel()
    moved.plant.schedule()
    moved.ended(End.CANCELLED)
    assert place(moved) == volume.host


@pytest.mark.parametrize("step", ["switch_volume", "delete_source"])
@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_a_crash_does_not_lose_what_is_kept(world: World, step: str, when: str) -> None:
    world.power_cut = True
    world.ask(keep_source_seconds=HOUR)
    world.on(label(step, Direction.FORWARD, when), world.die)
    world.live()
    world.ended(End.SUCCESS, left=True)
    assert wishes.undo(world) is None
    world.sweep_until_clean()
    world.ended(End.SUCCESS)
    assert place(world) == SOURCE


def test_an_undo_and_the_end_of_the_time_exclude_each_other(moved: World) -> None:
    """The sweep has found it expired, and the clock of the transaction that undoes it has not: one of both wins."""
    twin = moved.row().destination_volume_id
    assert wishes.undo(moved) is None
    moved.db.run(lambda session: twins.give_up_kept(session, twin))
    volume = moved.db.read(lambda session: volumes.find(session, twin))
    assert volume is not None
    assert (volume.host, volume.status) == (DESTINATION, "deleting"), "the old place is the volume's own again"
    moved.sweep_until_clean()
    moved.ended(End.SUCCESS)


def test_a_migration_that_was_cancelled_keeps_nothing(world: World) -> None:
    world.ask(keep_source_seconds=HOUR)
    world.on("switch_volume forward inside", lambda: world.cancel())
    world.go()
    world.ended(End.CANCELLED)
    assert wishes.undo(world) == f"Migration {world.migration_id} cannot be undone: it is over and ended cancelled."


@pytest.mark.parametrize("undone", [False, True], ids=["kept", "undone"])
def test_a_sweep_that_read_the_twin_before_the_source_was_kept_removes_nothing(world: World, undone: bool) -> None:
    """Between the switch and its end the twin is to be removed by its migration, and then it is kept after all."""
    world.ask(keep_source_seconds=HOUR)
    seen: list[Volume] = []
    twin_id = world.row().destination_volume_id
    world.on("delete_source forward before", lambda: seen.append(rows.volume(world.db, twin_id)))
    world.go()
    world.ended(End.SUCCESS, left=True)
    assert (seen[0].status, seen[0].host) == ("deleting", SOURCE)
    if undone:
        assert wishes.undo(world) is None
    world.plant.managers[0]._reap(seen[0])
    world.checker.look("the sweep goes on with what it had read")
    assert SOURCE in objects(world)
    if undone:
        world.sweep_until_clean()
    world.ended(End.SUCCESS, left=not undone)
