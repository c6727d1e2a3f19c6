"""The contract of drivers, one suite for all of them: what drivers/README.rst promises, call by call."""

from __future__ import annotations

import inspect
import json
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from migrator import drivers
from migrator.drivers.base import Capability, Connection, VolumeDriver
from migrator.drivers.memory import open_object
from migrator.errors import DriverError, InvalidInput, Unsupported, VolumeMissing
from tests.contract.worlds import POOLS, World, location, new_name, read, require, write

#: Sizes that neither sectors, nor pages, nor blocks divide, and those that they do.
SIZES = [0, 1, 511, 4096, 65536, 65537, 1024**2 + 1]

#: Every call that takes an object's name, with a bad one in its place.
CALLS_WITH_A_NAME: dict[str, Callable[[VolumeDriver, str], object]] = {
    "create": lambda d, bad: d.create("pool1", bad, 1),
    "delete": lambda d, bad: d.delete("pool1", bad),
    "extend": lambda d, bad: d.extend("pool1", bad, 1),
    "exists": lambda d, bad: d.exists("pool1", bad),
    "allocated": lambda d, bad: d.allocated("pool1", bad),
    "create_snapshot": lambda d, bad: d.create_snapshot("pool1", new_name(), bad),
    "create_snapshot of": lambda d, bad: d.create_snapshot("pool1", bad, new_name("snapshot")),
    "delete_snapshot": lambda d, bad: d.delete_snapshot("pool1", new_name(), bad),
    "clone": lambda d, bad: d.clone("pool1", new_name(), bad, 1),
    "clone of": lambda d, bad: d.clone("pool1", bad, new_name(), 1),
    "adopt": lambda d, bad: d.adopt("pool1", {"source-name": "stray"}, bad),
    "disown": lambda d, bad: d.disown("pool1", bad),
    "export": lambda d, bad: d.export("pool1", bad, writable=True),
    "revoke": lambda d, bad: d.revoke("pool1", bad),
    "initialize_connection": lambda d, bad: d.initialize_connection("pool1", bad, {"host": "h"}, writable=True),
    "is_open": lambda d, bad: d.is_open("pool1", bad),
    "terminate_connection": lambda d, bad: d.terminate_connection("pool1", bad, {"host": "h"}),
}
BAD_NAMES = ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a\0b", "a\n", "ä", "a b", "x" * 201]


# --- create and delete -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_new_volume_has_its_size_to_the_byte_and_reads_as_zeros(
    world: World, driver: VolumeDriver, size: int
) -> None:
    """field.md bugs 1 and 2 (LP1454835, LP1218054): a size in the wrong unit."""
    name = new_name()
    driver.create("pool1", name, size)
    connection = driver.export("pool1", name, writable=True)
    assert connection.size == size
    assert read(connection) == bytes(size)
    assert connection.is_zero or Capability.NEW_VOLUME_IS_ZERO not in driver.capabilities


def test_a_huge_volume_costs_nothing_where_thin_and_keeps_its_last_byte(world: World, driver: VolumeDriver) -> None:
    thin = driver.report()[0].thin
    size = 8 * 1024**4 + 1 if thin else 8 * 1024**2 + 1
    name = new_name()
    driver.create("pool1", name, size)
    world.put(driver, "pool1", name, size - 1, b"z")
    assert world.content(driver, "pool1", name, size - 3) == b"\0\0z"
    assert (driver.allocated("pool1", name) <= 1024**2) is thin


def test_creating_again_leaves_the_volume_untouched(world: World, driver: VolumeDriver) -> None:
    name = world.volume(driver, content=b"abc" * 1000)
    driver.create("pool1", name, 3000)
    assert world.content(driver, "pool1", name) == b"abc" * 1000


def test_creating_over_a_smaller_leftover_grows_it(world: World, driver: VolumeDriver) -> None:
    name = world.volume(driver, content=b"abc")
    driver.create("pool1", name, 70000)
    assert world.content(driver, "pool1", name) == b"abc" + bytes(69997)


def test_creating_over_a_larger_one_is_refused_and_harmless(world: World, driver: VolumeDriver) -> None:
    name = world.volume(driver, content=b"abc")
    with pytest.raises(DriverError, match="exists with 3 bytes, wanted 2"):
        driver.create("pool1", name, 2)
    assert world.content(driver, "pool1", name) == b"abc"


def test_delete_removes_and_may_be_repeated(world: World, driver: VolumeDriver) -> None:
    name = world.volume(driver)
    driver.delete("pool1", name)
    assert not driver.exists("pool1", name)
    assert name not in driver.objects("pool1")
    driver.delete("pool1", name)


def test_deleting_what_never_was_succeeds(driver: VolumeDriver) -> None:
    driver.delete("pool1", new_name())


def test_a_deleted_volume_leaves_nothing_for_the_next_one_of_its_name(world: World, driver: VolumeDriver) -> None:
    """field.md bug 9 (LP2045431): a new volume must not show what another one held."""
    name = world.volume(driver, content=b"secret")
    driver.delete("pool1", name)
    driver.create("pool1", name, 6)
    assert world.content(driver, "pool1", name) == bytes(6)


def test_exists_is_of_one_pool(driver: VolumeDriver) -> None:
    name = new_name()
    driver.create("pool1", name, 1)
    assert driver.exists("pool1", name)
    assert not driver.exists("pool2", name)


def test_a_restarted_driver_finds_everything_again(world: World, driver: VolumeDriver) -> None:
    name = world.volume(driver, content=b"kept")
    place = location(driver)["place"]
    again = world.driver()
    assert world.content(again, "pool1", name) == b"kept"
    assert list(again.objects("pool1")) == [name]
    assert location(again)["place"] == place


# --- extend and sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(1, 2), (5000, 65536), (65536, 65537), (0, 1)])
def test_extend_keeps_the_content_and_adds_zeros(world: World, driver: VolumeDriver, old: int, new: int) -> None:
    content = random.Random(old).randbytes(old)
    name = world.volume(driver, content=content)
    for _ in range(2):
        driver.extend("pool1", name, new)
        assert world.content(driver, "pool1", name) == content + bytes(new - old)


def test_extend_never_shrinks(world: World, driver: VolumeDriver) -> None:
    name = world.volume(driver, content=b"abcdef")
    driver.extend("pool1", name, 2)
    assert world.content(driver, "pool1", name) == b"abcdef"


@pytest.mark.parametrize("call", ["extend", "allocated", "export", "create_snapshot", "clone", "can_assist"])
def test_what_needs_an_object_names_the_missing_one(driver: VolumeDriver, call: str) -> None:
    gone = new_name()
    calls: dict[str, Callable[[], object]] = {
        "extend": lambda: driver.extend("pool1", gone, 1),
        "allocated": lambda: driver.allocated("pool1", gone),
        "export": lambda: driver.export("pool1", gone, writable=False),
        "create_snapshot": lambda: driver.create_snapshot("pool1", gone, new_name("snapshot")),
        "clone": lambda: driver.clone("pool1", gone, new_name(), 1),
        "can_assist": lambda: driver.can_assist("pool1", gone, location(driver, "pool2")),
    }
    with pytest.raises(VolumeMissing, match=gone):
        calls[call]()


def test_allocated_tells_what_was_written_not_what_was_promised(world: World, driver: VolumeDriver) -> None:
    """field.md bug 41 (LP1472486): a thin volume that silently became thick."""
    thin = driver.report()[0].thin
    name, size = new_name(), 64 * 1024**2 if thin else 8 * 1024**2
    driver.create("pool1", name, size)
    if not thin:
        assert driver.allocated("pool1", name) >= size
        return
    before = driver.allocated("pool1", name)
    world.put(driver, "pool1", name, 32 * 1024**2, b"x" * 1024**2)
    assert before + 1024**2 <= driver.allocated("pool1", name) <= before + 3 * 1024**2


# --- snapshots and clones --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["create_snapshot", "clone"])
def test_what_a_driver_does_not_declare_it_refuses_for_good(world: World, driver: VolumeDriver, call: str) -> None:
    """A pool without snapshots must say so at once, not after all attempts."""
    calls: dict[str, tuple[Capability, Callable[[str], None]]] = {
        "create_snapshot": (Capability.SNAPSHOTS, lambda of: driver.create_snapshot("pool1", of, new_name("snapshot"))),
        "clone": (Capability.CLONE, lambda of: driver.clone("pool1", of, new_name(), 1)),
    }
    capability, make = calls[call]
    if capability in driver.capabilities:
        pytest.skip(f"{type(driver).__name__} declares {capability}")
    name = world.volume(driver, content=b"abc")
    with pytest.raises(Unsupported) as refused:
        make(name)
    assert refused.value.final
    assert list(driver.objects("pool1")) == [name]


def test_a_snapshot_keeps_what_the_volume_held(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.SNAPSHOTS)
    volume, snapshot = world.volume(driver, content=b"before" * 999), new_name("snapshot")
    driver.create_snapshot("pool1", volume, snapshot)
    world.put(driver, "pool1", volume, 0, b"after!" * 999)
    driver.create_snapshot("pool1", volume, snapshot)
    assert world.content(driver, "pool1", snapshot) == b"before" * 999
    assert sorted(driver.objects("pool1")) == sorted([volume, snapshot])


def test_a_snapshot_outlives_its_volume(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.SNAPSHOTS)
    volume, snapshot = world.volume(driver, content=b"abc"), new_name("snapshot")
    driver.create_snapshot("pool1", volume, snapshot)
    driver.delete("pool1", volume)
    assert world.content(driver, "pool1", snapshot) == b"abc"


def test_deleting_a_snapshot_leaves_the_volume_and_may_be_repeated(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.SNAPSHOTS)
    volume, snapshot = world.volume(driver, content=b"abc"), new_name("snapshot")
    driver.create_snapshot("pool1", volume, snapshot)
    for _ in range(2):
        driver.delete_snapshot("pool1", volume, snapshot)
        assert list(driver.objects("pool1")) == [volume]
    assert world.content(driver, "pool1", volume) == b"abc"


def test_a_volume_of_no_bytes_can_be_snapshot_and_cloned(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.CLONE)
    source, snapshot, name = world.volume(driver, content=b""), new_name("snapshot"), new_name()
    driver.create_snapshot("pool1", source, snapshot)
    driver.clone("pool1", snapshot, name, 0)
    assert world.content(driver, "pool1", name) == b""


@pytest.mark.parametrize("size", [0, 3, 65537])
def test_a_clone_has_the_content_grown_and_is_independent(world: World, driver: VolumeDriver, size: int) -> None:
    require(driver, Capability.CLONE)
    source, name = world.volume(driver, content=b"abc"), new_name()
    driver.clone("pool1", source, name, size)
    world.put(driver, "pool1", source, 0, b"xyz")
    driver.clone("pool1", source, name, size)
    assert world.content(driver, "pool1", name) == b"abc" + bytes(max(size - 3, 0))


def test_a_clone_can_be_made_of_a_snapshot(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.CLONE)
    volume, snapshot, name = world.volume(driver, content=b"abc"), new_name("snapshot"), new_name()
    driver.create_snapshot("pool1", volume, snapshot)
    world.put(driver, "pool1", volume, 0, b"xyz")
    driver.clone("pool1", snapshot, name, 3)
    assert world.content(driver, "pool1", name) == b"abc"


def test_copies_keep_holes(world: World, driver: VolumeDriver) -> None:
    """field.md bug 41 (LP1455595): a sparse volume that came out inflated."""
    require(driver, Capability.SNAPSHOTS)
    name, snapshot, size = new_name(), new_name("snapshot"), 64 * 1024**2
    driver.create("pool1", name, size)
    pieces = {0: b"first", 20 * 1024**2 + 7: b"x" * 100_000, size - 3: b"end"}
    for offset, data in pieces.items():
        world.put(driver, "pool1", name, offset, data)
    driver.create_snapshot("pool1", name, snapshot)
    assert world.content(driver, "pool1", snapshot) == world.content(driver, "pool1", name)
    assert driver.allocated("pool1", snapshot) <= 1024**2


# --- adopt -----------------------------------------------------------------------------------------------------------


def test_adopt_takes_the_object_under_our_name(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.ADOPT)
    source, size = world.lay(driver, "pool1", "Grandma's disk.img", b"old data")
    assert list(driver.objects("pool1")) == []
    name = new_name()
    for _ in range(2):
        assert driver.adopt("pool1", {"source-name": source}, name) == size
        assert list(driver.objects("pool1")) == [name]
        assert world.content(driver, "pool1", name) == b"old data".ljust(size, b"\0")


def test_what_lies_in_the_pool_but_is_not_ours_is_no_object(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.ADOPT)
    world.lay(driver, "pool1", new_name(), b"of another cloud")
    assert list(driver.objects("pool1")) == []
    assert location(driver)["place"]


def test_what_is_ours_cannot_be_adopted(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.ADOPT)
    ours, name = world.volume(driver, content=b"in use"), new_name()
    with pytest.raises(InvalidInput):
        driver.adopt("pool1", {"source-name": ours}, name)
    assert world.content(driver, "pool1", ours) == b"in use"
    assert not driver.exists("pool1", name)


def test_adopt_never_replaces_an_object(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.ADOPT)
    ours = world.volume(driver, content=b"in use")
    source, _ = world.lay(driver, "pool1", "stray", b"stray")
    with pytest.raises((InvalidInput, DriverError)):
        driver.adopt("pool1", {"source-name": source}, ours)
    assert world.content(driver, "pool1", ours) == b"in use"


@pytest.mark.parametrize(
    "reference",
    [
        {},
        {"source-id": "x"},
        {"source-name": "x", "more": 1},
        *({"source-name": bad} for bad in ["missing", "", "..", "../x", "/etc/passwd", "a/b", "a\0b", ".x", None, 7]),
    ],
    ids=repr,
)
def test_adopt_refuses_a_reference_to_nothing_of_the_pool(driver: VolumeDriver, reference: dict[str, object]) -> None:
    require(driver, Capability.ADOPT)
    name = new_name()
    with pytest.raises(InvalidInput):
        driver.adopt("pool1", reference, name)
    assert not driver.exists("pool1", name)


# --- exports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writable", [True, False])
def test_exporting_again_gives_an_equal_connection(world: World, driver: VolumeDriver, writable: bool) -> None:
    name = new_name()
    driver.create("pool1", name, 5000)
    first = driver.export("pool1", name, writable=writable)
    if writable:
        write(first, 0, b"x" * 5000)
    again = world.driver().export("pool1", name, writable=writable)
    assert again == first
    assert again.writable is writable
    assert Connection.from_dict(json.loads(json.dumps(first.as_dict()))) == first


def test_a_dirty_volume_does_not_claim_to_be_zero(world: World, driver: VolumeDriver) -> None:
    """field.md bug 9 (LP2045431): holes skipped in a copy onto a volume that held data."""
    name = new_name()
    driver.create("pool1", name, 1024**2)
    world.put(driver, "pool1", name, 1024**2 - 1, b"x")
    assert not driver.export("pool1", name, writable=True).is_zero


def test_revoke_may_be_repeated_and_asked_of_what_never_was(world: World, driver: VolumeDriver) -> None:
    name = world.volume(driver)
    driver.export("pool1", name, writable=True)
    for _ in range(2):
        driver.revoke("pool1", name)
    driver.revoke("pool1", new_name())
    assert driver.exists("pool1", name)


def test_nothing_is_written_through_an_export_that_was_revoked(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.FENCED_EXPORT)
    name = world.volume(driver, content=b"safe")
    opened = open_object(driver.export("pool1", name, writable=True).path)
    driver.revoke("pool1", name)
    with pytest.raises(PermissionError):
        opened.pwrite(0, b"late")
    driver.export("pool1", name, writable=True)
    with pytest.raises(PermissionError):
        opened.pwrite(0, b"late")
    assert world.content(driver, "pool1", name) == b"safe"


# --- names, pools, reports -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS_WITH_A_NAME)
def test_a_name_that_could_lead_elsewhere_is_refused(driver: VolumeDriver, call: str) -> None:
    accepted = []
    for bad in BAD_NAMES:
        try:
            CALLS_WITH_A_NAME[call](driver, bad)
        except InvalidInput:
            continue
        accepted.append(bad)
    assert accepted == []


def test_an_unknown_pool_is_named(driver: VolumeDriver) -> None:
    with pytest.raises(DriverError, match="no pool 'nowhere'"):
        driver.create("nowhere", new_name(), 1)


def test_every_pool_is_reported_with_real_numbers(world: World, driver: VolumeDriver) -> None:
    before = {report.pool: report for report in driver.report()}
    assert tuple(before) == tuple(driver.pools()) == POOLS
    world.volume(driver, content=b"x" * 3 * 1024**2)
    after = {report.pool: report for report in driver.report()}
    grown = after["pool1"].allocated_gib - before["pool1"].allocated_gib
    assert 3 / 1024 <= grown <= 4 / 1024
    assert after["pool2"].allocated_gib == before["pool2"].allocated_gib == 0
    for report in after.values():
        assert 0 < report.free_gib <= report.total_gib
        assert all(report.capabilities[capability] for capability in driver.capabilities)
        assert json.loads(json.dumps(report.location)) == report.location


def test_each_pool_is_another_place_and_the_same_one_for_ever(world: World, driver: VolumeDriver) -> None:
    """field.md bug 4 (LP1404013): one place under two names must be recognised."""
    other = world.driver("hosta@two")
    places = [location(each, pool)["place"] for each in (driver, other) for pool in POOLS]
    assert len(set(places)) == 4
    assert [location(driver, pool)["place"] for pool in POOLS] == places[:2]


def test_many_objects_at_once_do_not_disturb_each_other(world: World, driver: VolumeDriver) -> None:
    def life(number: int) -> bool:
        content = random.Random(number).randbytes(70000)
        name, snapshot = world.volume(driver, content=content), new_name("snapshot")
        copied = Capability.SNAPSHOTS in driver.capabilities
        if copied:
            driver.create_snapshot("pool1", name, snapshot)
        driver.extend("pool1", name, 80000)
        same = world.content(driver, "pool1", snapshot if copied else name, 0, 70000) == content
        driver.report()
        driver.delete_snapshot("pool1", name, snapshot)
        driver.delete("pool1", name)
        return same

    world.make_room(driver, 8)
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(life, range(24)))
    assert list(driver.objects("pool1")) == []
    assert driver.report()[0].allocated_gib == 0


# --- the document ----------------------------------------------------------------------------------------------------


def test_the_readme_describes_every_call_and_capability() -> None:
    text = (Path(drivers.__file__).parent / "README.rst").read_text(encoding="utf-8")
    calls = [name for name, _ in inspect.getmembers(VolumeDriver, inspect.isfunction) if not name.startswith("_")]
    assert [word for word in [*calls, *Capability] if f"``{word}``" not in text] == []


def test_bad_names_are_told_by_every_call_that_takes_one() -> None:
    """A new call with a name must be added to the table above."""
    named = {
        name
        for name, call in inspect.getmembers(VolumeDriver, inspect.isfunction)
        if "name" in inspect.signature(call).parameters and not name.startswith("_")
    }
    assert named - {"can_assist", "move", "unmove"} <= set(CALLS_WITH_A_NAME)
    assert os.sep in "".join(BAD_NAMES)
