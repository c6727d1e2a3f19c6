"""The block driver on its own: where volumes are put, what is never touched, and that no old data ever shows."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.drivers.base import Capability, find_adoptable
from migrator.drivers.block import BlockDriver
from migrator.drivers.block_cleaner import Wipe, wipe_piece
from migrator.drivers.block_records import State
from migrator.drivers.devices import Opened, discover
from migrator.errors import ConfigError, DriverError, InvalidInput, NoSpace, VolumeMissing
from migrator.volume.control import Control
from migrator.volume.job import Performer, open_endpoint
from tests.contract.blocks import MIB, Bench, free_bytes, head, is_all_zero, poke, volume
from tests.contract.mounts import mounted
from tests.contract.worlds import new_name, options, read, settled, write
from tests.support.data import check_ext4

SECRET = b"SECRET" * 1000
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.loops.end()


# --- where a volume is put -------------------------------------------------------------------------------------------


def test_a_volume_takes_the_smallest_device_that_holds_it(bench: Bench) -> None:
    for name, size in [("large", 4 * MIB), ("small", 2 * MIB), ("tiny", MIB // 2)]:
        bench.loop(name, size)
    driver = bench.driver()
    first, second = volume(driver, MIB), volume(driver, MIB)
    paths = [Path(driver.export("p", name, writable=False).path).name for name in (first, second)]
    assert paths == ["small", "large"]
    with pytest.raises(NoSpace, match=f"{MIB} bytes are needed, the largest free device has {MIB // 2}"):
        driver.create("p", new_name(), MIB)


def test_capacities_are_sums_of_whole_devices(bench: Bench) -> None:
    for name, size in [("a", 3 * MIB + 512), ("b", 2 * MIB), ("c", MIB)]:
        bench.loop(name, size)
    bench.loop("strange", MIB, content=b"strange")
    driver = bench.driver()
    name = volume(driver, 1)
    report = driver.report()[0]
    sizes = [round(gib * 1024**3) for gib in (report.total_gib, report.free_gib, report.allocated_gib)]
    assert sizes == [6 * MIB + 512, 5 * MIB + 512, MIB]
    assert report.capabilities["largest_free_gib"] == (3 * MIB + 512) / 1024**3
    assert report.capabilities["foreign_devices"] == 1
    assert not report.thin
    assert driver.allocated("p", name) == MIB


def test_a_device_larger_than_the_volume_is_exported_with_the_volumes_size(bench: Bench) -> None:
    bench.loop(size=3 * MIB)
    driver = bench.driver()
    connection = driver.export("p", volume(driver, MIB + 7), writable=True)
    assert connection.size == MIB + 7
    assert connection.is_zero


@pytest.mark.parametrize("dirty", [False, True])
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_copy_fills_the_volume_and_never_writes_behind_it(
    bench: Bench, tmp_path: Path, sector: int, dirty: bool
) -> None:
    """LP2045431: and where the source has a hole, a device that was not wiped shows none of its old data."""
    size = 5 * MIB + 4096 + 7
    loop = bench.loop(size=8 * MIB, sector=sector)
    driver = bench.driver(block_wipe="none" if dirty else "zero")
    name = volume(driver, size)
    for offset in (2 * MIB, size) if dirty else (size,):
        poke(loop, offset, b"old data")
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), random.Random(size).randbytes(MIB + 13), 0)
        os.pwrite(file.fileno(), b"the end", size - 7)
    destination = driver.export("p", name, writable=True).as_dict()
    ends = {"source": {**destination, "path": str(source), "writable": False}, "destination": destination}
    for do in ("copy", "verify"):
        Performer(open_endpoint).perform({"do": do, "job": 1, **ends, "options": {}}, Control(), lambda event: None)
    assert hashlib.sha256(head(loop, size)).digest() == hashlib.sha256(source.read_bytes()).digest()
    assert head(loop, size + 8)[size:] == b"old data"


def test_a_volume_may_grow_to_its_device_and_no_further(bench: Bench) -> None:
    """The new part reads as zeros even if a server that saw the whole device had written there."""
    loop = bench.loop(size=3 * MIB + 512)
    driver = bench.driver()
    name = volume(driver, MIB + 3, b"x" * (MIB + 3))
    poke(loop, MIB + 3, SECRET)
    poke(loop, 3 * MIB + 100, SECRET[:412])
    driver.extend("p", name, 3 * MIB + 512)
    content = read(driver.export("p", name, writable=False))
    assert content.rstrip(b"\0") == b"x" * (MIB + 3)
    assert len(content) == 3 * MIB + 512
    with pytest.raises(NoSpace, match="cannot leave its device, which has 3146240"):
        driver.extend("p", name, 3 * MIB + 513)


def test_a_part_of_a_sector_at_the_end_is_not_used(bench: Bench) -> None:
    """Reading it is an error, so a volume must not have it."""
    loop = bench.loop(size=2 * MIB + 512, sector=4096)
    driver = bench.driver()
    assert free_bytes(driver) == 2 * MIB
    name = volume(driver, 2 * MIB, b"x" * 2 * MIB)
    with pytest.raises(NoSpace):
        driver.extend("p", name, 2 * MIB + 1)
    driver.delete("p", name)
    settled(driver)
    assert not head(loop, 2 * MIB).strip(b"\0")


def test_a_server_is_given_a_device_only_if_it_is_the_volume_exactly(bench: Bench) -> None:
    bench.loop(size=2 * MIB)
    driver = bench.driver()
    name = volume(driver, MIB)
    with pytest.raises(InvalidInput, match="a server would see all 2097152"):
        driver.initialize_connection("p", name, {}, writable=True)
    assert driver.export("p", name, writable=False).is_zero
    driver.extend("p", name, 2 * MIB)
    answer = driver.initialize_connection("p", name, {}, writable=True)
    assert answer["data"]["device_path"] == driver.export("p", name, writable=False).path
    assert not driver.export("p", name, writable=False).is_zero, "the server may have written"


# --- nothing of the last volume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wipe", [Wipe.ZERO, Wipe.DISCARD])
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_device_shows_nothing_of_its_last_volume(bench: Bench, wipe: Wipe, sector: int) -> None:
    """LP2045431: nor of what was written behind the volume's end."""
    loop = bench.loop(size=2 * MIB + sector, sector=sector)
    driver = bench.driver(block_wipe=wipe)
    name = volume(driver, MIB, SECRET)
    poke(loop, 2 * MIB - 10, b"behind the end")
    driver.delete("p", name)
    again = new_name()
    driver.create("p", again, 2 * MIB)
    assert is_all_zero(loop)
    assert driver.export("p", again, writable=True).is_zero


def test_a_device_whose_discard_does_nothing_is_zeroed(bench: Bench) -> None:
    class Deaf(Opened):
        def discard(self, start: int, end: int) -> bool:
            return True

    loop = bench.loop(size=2 * MIB, content=SECRET)
    poke(loop, 2 * MIB - 6, b"SECRET")
    (device,), _ = discover([str(loop.node)])
    with device.open(write=True, alone=True) as opened:
        wipe_piece(Deaf(device, opened.fd, opened.direct), 0, 2 * MIB, Wipe.DISCARD)
        opened.flush()
    assert is_all_zero(loop)


def test_without_a_wipe_nothing_is_claimed_to_be_zero(bench: Bench) -> None:
    """LP2045431: a copy then writes every zero."""
    bench.loop(size=2 * MIB)
    driver = bench.driver(block_wipe="none")
    assert Capability.NEW_VOLUME_IS_ZERO not in driver.capabilities
    assert Capability.NEW_VOLUME_IS_ZERO not in driver.report()[0].capabilities
    driver.delete("p", volume(driver, MIB, SECRET))
    name = volume(driver, MIB)
    assert not driver.export("p", name, writable=True).is_zero
    driver.extend("p", name, 2 * MIB)
    assert not read(driver.export("p", name, writable=False), MIB).strip(b"\0")


def test_what_was_not_wiped_is_wiped_when_the_option_says_so_later(bench: Bench) -> None:
    loop = bench.loop(size=2 * MIB)
    driver = bench.driver(block_wipe="none")
    driver.delete("p", volume(driver, MIB, SECRET))
    assert head(loop, 6) == b"SECRET"
    bench.driver(block_wipe="zero")
    assert is_all_zero(loop)


def test_a_volume_that_was_never_written_costs_no_wipe(bench: Bench) -> None:
    bench.loop()
    driver = bench.driver()
    driver.delete("p", volume(driver, MIB))
    assert bench.records()["disk"].state == State.FREE


def test_a_creation_waits_for_the_device_that_is_being_wiped(bench: Bench) -> None:
    loop = bench.loop(size=40 * MIB)
    driver = bench.driver()
    for _ in range(2):
        driver.delete("p", volume(driver, 30 * MIB, SECRET))
    volume(driver, 30 * MIB)
    assert is_all_zero(loop)


# --- data that is not ours -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 511, MIB, 10 * MIB + 1, 20 * MIB - 1], ids=["first", "", "", "middle", "last"])
def test_a_device_that_holds_anything_is_left_alone(bench: Bench, offset: int) -> None:
    """A typing error in the configuration must cost nobody's data."""
    loop = bench.loop(size=20 * MIB)
    poke(loop, offset, b"!")
    driver = bench.driver()
    assert free_bytes(driver) == 0
    assert (bench.records()["disk"].state, bench.records()["disk"].found) == (State.FOREIGN, offset)
    with pytest.raises(NoSpace, match="1 devices hold foreign data"):
        driver.create("p", new_name(), 1)
    with loop.node.open("rb") as device:
        assert os.pread(device.fileno(), 1, offset) == b"!"


def test_a_device_is_used_once_its_owner_has_zeroed_it(bench: Bench) -> None:
    loop = bench.loop(content=SECRET)
    driver = bench.driver()
    assert free_bytes(driver) == 0
    poke(loop, 0, bytes(len(SECRET)))
    settled(driver)
    volume(driver, MIB)


def test_a_device_may_be_claimed_by_name(bench: Bench) -> None:
    loop, other = bench.loop("claimed", content=SECRET), bench.loop("other", content=SECRET)
    driver = bench.driver(block_claim_devices=[str(loop.node)])
    assert is_all_zero(loop)
    assert head(other, 6) == b"SECRET"
    name = volume(driver, MIB, b"in use")
    again = bench.driver(block_claim_devices=[str(loop.node), str(other.node)])
    assert read(again.export("p", name, writable=False), 0, 6) == b"in use", "a volume is no foreign data"


def test_a_free_device_that_was_put_to_another_use_is_left_alone(bench: Bench) -> None:
    loop = bench.loop()
    driver = bench.driver()
    poke(loop, 0, b"a file system")
    with pytest.raises(NoSpace):
        driver.create("p", new_name(), 1)
    assert head(loop, 13) == b"a file system"


def test_a_free_device_that_was_away_is_read_again(bench: Bench) -> None:
    loop = bench.loop(size=8 * MIB)
    bench.driver()
    loop.unplug()
    driver = bench.driver()
    assert bench.records() == {}
    loop.attach()
    poke(loop, 4 * MIB, b"a database without a header")
    settled(driver)
    assert bench.records()["disk"].state == State.FOREIGN


def test_a_read_only_device_is_not_used(bench: Bench) -> None:
    bench.loop(read_only=True)
    assert free_bytes(bench.driver()) == 0
    assert bench.records() == {}


def test_a_disk_with_partitions_is_not_used_but_each_of_them_is(bench: Bench) -> None:
    loop = bench.loop(size=8 * MIB)
    parts = [loop.partition(number, number * MIB, 2 * MIB) for number in (1, 3)]
    driver = bench.driver()
    assert sorted(bench.records()) == ["disk-1", "disk-3"]
    name = volume(driver, 2 * MIB, b"first")
    other = volume(driver, 2 * MIB, b"second")
    assert driver.export("p", name, writable=False).path == str(parts[0])
    with loop.backing.open("rb") as disk:
        assert [os.pread(disk.fileno(), 5, offset) for offset in (0, MIB, 3 * MIB)] == [bytes(5), b"first", b"secon"]
    driver.delete("p", name)
    settled(driver)
    assert read(driver.export("p", other, writable=False), 0, 6) == b"second"


def test_a_mounted_file_system_is_neither_taken_nor_deleted(bench: Bench, tmp_path: Path) -> None:
    loop = bench.loop(size=8 * MIB)
    subprocess.run([shutil.which("mkfs.ext4", path=SBIN) or "mkfs.ext4", "-q", str(loop.node)], check=True)
    driver, reference = bench.driver(), {"source-name": str(loop.node)}
    refused = pytest.raises(DriverError, match="in use: mounted")
    with mounted(tmp_path / "mount", "-t", "ext4", str(loop.node)), refused:
        driver.adopt("p", reference, new_name())
    name = new_name()
    driver.adopt("p", reference, name)
    with mounted(tmp_path / "mount", "-t", "ext4", str(loop.node)) as directory:
        (directory / "file").write_bytes(SECRET)
        with pytest.raises(DriverError, match="in use: mounted"):
            driver.delete("p", name)
        assert (directory / "file").read_bytes() == SECRET
    check_ext4(loop.node)


# --- adopt -----------------------------------------------------------------------------------------------------------


def test_adopt_takes_a_device_by_any_of_its_names_and_leaves_its_content(bench: Bench, tmp_path: Path) -> None:
    loop = bench.loop(content=SECRET, size=3 * MIB + 512)
    by_id = tmp_path / "by-id"
    by_id.symlink_to(loop.node)
    driver, name = bench.driver(), new_name()
    for path in (by_id, loop.node):
        assert driver.adopt("p", {"source-name": str(path)}, name) == 3 * MIB + 512
    assert read(driver.export("p", name, writable=False), 0, len(SECRET)) == SECRET
    assert not driver.export("p", name, writable=True).is_zero
    with pytest.raises(InvalidInput, match="is an object of a pool already"):
        driver.adopt("p", {"source-name": str(loop.node)}, new_name())


def test_adopt_takes_no_device_that_was_not_configured(bench: Bench) -> None:
    bench.loop()
    outside = bench.loops.make("outside/disk", MIB, content=SECRET)
    with pytest.raises(InvalidInput, match="is not the path of a device of the pool"):
        bench.driver().adopt("p", {"source-name": str(outside.node)}, new_name())


def test_what_could_be_adopted_is_listed_with_reasons(bench: Bench) -> None:
    bench.loop("empty")
    bench.loop("full", content=SECRET)
    bench.loop("locked", read_only=True)
    driver = bench.driver()
    name = volume(driver, MIB)
    found = {Path(each.reference["source-name"]).name: each for each in driver.adoptable("p")}
    assert {key: each.reason for key, each in found.items()} == {
        "empty": "is an object of a pool already",
        "full": None,
        "locked": "is read-only",
    }
    assert (found["empty"].name, found["empty"].size, found["full"].size) == (name, MIB, 2 * MIB)
    assert find_adoptable(driver, "p", {"source-id": found["full"].id}) == found["full"]


def test_a_volume_that_was_given_up_is_left_alone_and_can_be_adopted_again(bench: Bench) -> None:
    """Even if it is empty: its owner may have use for it."""
    loop = bench.loop()
    driver = bench.driver()
    name = volume(driver, 2 * MIB)
    for _ in range(2):
        driver.disown("p", name)
    assert driver.objects("p") == []
    settled(driver)
    loop.unplug()
    driver.report()
    loop.attach()
    again = bench.driver()
    assert free_bytes(again) == 0
    assert again.adopt("p", {"source-name": str(loop.node)}, name) == 2 * MIB


def test_two_backends_never_have_one_device(bench: Bench) -> None:
    """LP1404013: and the scheduler sees that they are one place."""
    bench.loop("a")
    bench.loop("b")
    one, two = bench.driver(), bench.driver("hosta@two", pools={"q": f"{bench.directory}/dev/p/*"})
    assert (free_bytes(one), free_bytes(two)) == (4 * MIB, 0)
    assert one.report()[0].location == two.report()[0].location
    name = volume(one, MIB)
    with pytest.raises(VolumeMissing):
        two.export("q", name, writable=False)
    with pytest.raises(InvalidInput):
        two.adopt("q", {"source-name": str(bench.directory / "dev/p/b")}, new_name())


# --- configuration and records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"block_pools": {}}, "at least one pool"),
        ({"block_pools": {"p": ""}}, "pool p: it names no device"),
        ({"block_pools": {"p": "/dev/a dev/b"}}, "'dev/b' is no absolute path"),
        ({"block_pools": {"a#b": "/dev/a"}}, "cannot be the name of a pool"),
    ],
    ids=["none", "empty", "relative", "name"],
)
def test_a_configuration_that_cannot_work_is_named(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        BlockDriver("hosta@one", options(**values))


def test_one_device_in_two_pools_is_refused(bench: Bench) -> None:
    loop = bench.loop()
    with pytest.raises(ConfigError, match="is in p and in q"):
        bench.driver(pools={"p": f"{bench.directory}/dev/p/*", "q": str(loop.node)})


def test_a_damaged_record_stops_the_service_instead_of_freeing_a_volume(bench: Bench) -> None:
    loop = bench.loop()
    name = volume(bench.driver(), MIB, SECRET)
    (path,) = bench.state.glob("*.device")
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:50], encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\.device: this record is damaged"):
        bench.driver()
    path.write_text(whole, encoding="utf-8")
    assert read(bench.driver().export("p", name, writable=False), 0, 6) == head(loop, 6) == b"SECRET"


def test_lost_records_make_every_device_foreign(bench: Bench) -> None:
    """The worst that a lost directory may do is to stop: the volumes can be adopted again."""
    loop = bench.loop()
    name = volume(bench.driver(), 2 * MIB, SECRET)
    for path in bench.state.glob("*.device"):
        path.unlink()
    driver = bench.driver()
    assert free_bytes(driver) == 0
    assert driver.adopt("p", {"source-name": str(loop.node)}, name) == 2 * MIB


# --- devices that change ---------------------------------------------------------------------------------------------


def test_volumes_are_found_again_when_devices_have_other_names(bench: Bench) -> None:
    loops = [bench.loop(name) for name in "abc"]
    names = [volume(bench.driver(), 2 * MIB, letter.encode() * 9) for letter in "abc"]
    for loop in loops:
        loop.unplug()
    for loop, node in zip(loops, ["c", "x", "a"], strict=True):
        loop.node = bench.directory / "dev/p" / node
        loop.attach()
    driver = bench.driver()
    assert [read(driver.export("p", name, writable=False), 0, 9) for name in names] == [b"a" * 9, b"b" * 9, b"c" * 9]


def test_a_missing_device_is_told_and_its_volume_can_be_deleted(bench: Bench) -> None:
    loop = bench.loop()
    driver = bench.driver()
    name = volume(driver, MIB, SECRET)
    loop.unplug()
    for call in (
        lambda: driver.export("p", name, writable=False),
        lambda: driver.allocated("p", name),
        lambda: driver.extend("p", name, 2 * MIB),
        lambda: driver.create("p", name, MIB),
    ):
        with pytest.raises(DriverError, match=f"the device of {name} is missing: loop:"):
            call()
    assert driver.exists("p", name)
    driver.delete("p", name)
    assert driver.objects("p") == []
    loop.attach()
    settled(driver)
    assert is_all_zero(loop)


def test_another_device_in_the_place_of_a_volumes_is_not_taken_for_it(bench: Bench) -> None:
    loop = bench.loop()
    driver = bench.driver()
    name = volume(driver, MIB, SECRET)
    loop.unplug()
    other = bench.loops.make("elsewhere/disk", 2 * MIB, content=b"another's data")
    other.node.rename(loop.node)
    other.node = loop.node
    for found in (driver, bench.driver()):
        with pytest.raises(DriverError, match="is missing"):
            found.export("p", name, writable=True)
        found.report()
    assert head(other, 14) == b"another's data"


def test_a_device_that_shrank_is_refused(bench: Bench) -> None:
    loop = bench.loop(size=2 * MIB)
    driver = bench.driver()
    name = volume(driver, MIB)
    loop.resize(2 * MIB - 512)
    with pytest.raises(DriverError, match="shrank from 2097152 to 2096640 bytes"):
        driver.export("p", name, writable=True)


def test_a_free_device_that_grew_is_read_again_before_it_is_used(bench: Bench) -> None:
    loop = bench.loop(size=2 * MIB)
    bench.driver()
    loop.resize(8 * MIB)
    poke(loop, 5 * MIB, b"old")
    driver = bench.driver()
    assert bench.records()["disk"].state == State.FOREIGN
    assert free_bytes(driver) == 0


def test_a_device_that_grew_lets_its_volume_grow(bench: Bench) -> None:
    loop = bench.loop(size=2 * MIB)
    driver = bench.driver()
    name = volume(driver, 2 * MIB, SECRET)
    loop.resize(4 * MIB)
    poke(loop, 3 * MIB, SECRET)
    driver.extend("p", name, 4 * MIB)
    content = read(driver.export("p", name, writable=False))
    assert content.rstrip(b"\0") == SECRET


# --- devices in use --------------------------------------------------------------------------------------------------


def test_a_device_that_is_held_by_another_is_not_touched(bench: Bench) -> None:
    loop = bench.loop()
    holder = os.open(loop.node, os.O_RDONLY | os.O_EXCL)
    try:
        driver = bench.driver()
        assert bench.records() == {}
        with pytest.raises(NoSpace):
            driver.create("p", new_name(), 1)
        with pytest.raises(DriverError, match="in use"):
            driver.adopt("p", {"source-name": str(loop.node)}, new_name())
    finally:
        os.close(holder)
    settled(driver)
    name = volume(driver, MIB)
    write(driver.export("p", name, writable=True), 0, SECRET)
    holder = os.open(loop.node, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(DriverError, match="in use: mounted, or held open by somebody"):
            driver.delete("p", name)
        with pytest.raises(DriverError, match="in use"):
            driver.extend("p", name, 2 * MIB)
    finally:
        os.close(holder)
    assert head(loop, 6) == b"SECRET"
