"""The contract of assisted moves, for every driver that declares them: ask, move, take back."""

from __future__ import annotations

from itertools import pairwise

import pytest

from migrator.drivers.base import Capability, VolumeDriver
from migrator.errors import DriverError, VolumeMissing
from tests.contract.worlds import POOLS, World, location, new_name, no_progress, require


@pytest.fixture
def other(world: World, driver: VolumeDriver) -> VolumeDriver:
    require(driver, Capability.ASSIST)
    return world.driver("hosta@two")


def test_a_moved_volume_is_valid_at_both_places_until_the_old_one_is_deleted(
    world: World, driver: VolumeDriver, other: VolumeDriver
) -> None:
    name, moved = world.volume(driver, content=b"abc" * 999), new_name()
    there = location(other, "pool2")
    assert driver.can_assist("pool1", name, there).yes
    assert list(other.objects("pool2")) == [], "the question must not act"
    seen: list[tuple[int, int]] = []
    driver.move("pool1", name, there, moved, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2997, 2997)
    assert world.content(driver, "pool1", name) == world.content(other, "pool2", moved) == b"abc" * 999
    driver.delete("pool1", name)
    assert world.content(other, "pool2", moved) == b"abc" * 999
    assert list(other.objects("pool2")) == [moved]
    assert list(driver.objects("pool1")) == []


def test_a_move_may_be_repeated_by_a_restarted_driver(world: World, driver: VolumeDriver, other: VolumeDriver) -> None:
    name, there = world.volume(driver, content=b"abc"), location(other)
    for mover in (driver, world.driver()):
        mover.move("pool1", name, there, name, no_progress)
    assert world.content(other, "pool1", name) == b"abc"


def test_a_move_can_be_taken_back_twice(world: World, driver: VolumeDriver, other: VolumeDriver) -> None:
    name, there = world.volume(driver, content=b"abc"), location(other)
    driver.unmove("pool1", name, there, name)
    driver.move("pool1", name, there, name, no_progress)
    for _ in range(2):
        driver.unmove("pool1", name, there, name)
        assert not other.exists("pool1", name)
        assert list(other.objects("pool1")) == []
        assert world.content(driver, "pool1", name) == b"abc"


def test_neither_move_nor_unmove_touch_another_object_of_that_name(
    world: World, driver: VolumeDriver, other: VolumeDriver
) -> None:
    name, there = world.volume(driver, content=b"abc"), location(other)
    other.create("pool1", name, 3)
    world.put(other, "pool1", name, 0, b"xyz")
    with pytest.raises(DriverError, match="another"):
        driver.move("pool1", name, there, name, no_progress)
    driver.unmove("pool1", name, there, name)
    assert world.content(other, "pool1", name) == b"xyz"
    assert world.content(driver, "pool1", name) == b"abc"


@pytest.mark.parametrize("change", [None, {}, {"driver": "other", "machine": "b", "process": "b", "place": "b:1"}])
def test_there_is_nothing_to_take_back_where_no_move_could_go(
    world: World, driver: VolumeDriver, other: VolumeDriver, change: dict[str, str] | None
) -> None:
    """field.md bugs 4 and 6 (LP1404013, LP1798468): a rollback that takes the only copy for a second one."""
    name = world.volume(driver, content=b"only")
    driver.unmove("pool1", name, location(driver) if change is None else change, name)
    assert world.content(driver, "pool1", name) == b"only"


def test_unmove_never_deletes_the_last_copy(world: World, driver: VolumeDriver, other: VolumeDriver) -> None:
    name, there = world.volume(driver, content=b"abc"), location(other)
    driver.move("pool1", name, there, name, no_progress)
    driver.delete("pool1", name)
    with pytest.raises(VolumeMissing):
        driver.unmove("pool1", name, there, name)
    assert world.content(other, "pool1", name) == b"abc"


def test_a_move_onto_itself_is_refused(world: World, driver: VolumeDriver, other: VolumeDriver) -> None:
    """field.md bug 4 (LP1404013): a volume "moved" to the place where it is, then deleted."""
    name = world.volume(driver)
    answer = driver.can_assist("pool1", name, location(world.driver()))
    assert not answer.yes
    assert "same place" in answer.reason
    with pytest.raises(DriverError, match="same"):
        driver.move("pool1", name, location(driver), name, no_progress)


@pytest.mark.parametrize("change", [{"driver": "other"}, {"machine": "b", "process": "b", "place": "b:1"}])
def test_a_place_out_of_reach_is_refused_with_a_reason(
    world: World, driver: VolumeDriver, other: VolumeDriver, change: dict[str, str]
) -> None:
    answer = driver.can_assist("pool1", world.volume(driver), {**location(other), **change})
    assert not answer.yes
    assert answer.reason


def test_a_volume_may_wander_for_ever(world: World, driver: VolumeDriver, other: VolumeDriver) -> None:
    """field.md bug 19 (LP1487952): after A, B, C, A a volume can still be extended, snapshot and deleted."""
    content = b"abc" * 999
    name = world.volume(driver, content=content)
    stops = [(driver, "pool1"), (other, "pool1"), (other, "pool2"), (driver, "pool2"), (driver, "pool1")]
    for (source, pool), (destination, new_pool) in pairwise(stops):
        there, moved = location(destination, new_pool), new_name()
        assert source.can_assist(pool, name, there).yes
        source.move(pool, name, there, moved, no_progress)
        source.delete(pool, name)
        name = moved
    driver.extend("pool1", name, 5000)
    snapshot = new_name("snapshot")
    driver.create_snapshot("pool1", name, snapshot)
    assert world.content(driver, "pool1", snapshot) == content + bytes(5000 - len(content))
    driver.delete_snapshot("pool1", name, snapshot)
    driver.delete("pool1", name)
    assert all(list(each.objects(pool)) == [] for each in (driver, other) for pool in POOLS)
