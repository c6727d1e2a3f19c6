"""The file driver's own: configuration, full disks, quotas, strange files in the way, pools that vanish."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.drivers import directory as directories
from migrator.drivers.directory import OBJECTS, TEMPORARY, Directory
from migrator.drivers.file import FileDriver
from migrator.errors import ConfigError, DriverError, InvalidInput, NoSpace
from tests.contract.files import files, make, refused, volume
from tests.contract.mounts import SHARING, mounted, sharing, tmpfs
from tests.contract.worlds import new_name, read, write
from tests.support.needs import missing

MIB = 1024**2


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "pool"


@pytest.fixture
def driver(directory: Path) -> FileDriver:
    return make(pools={"pool1": directory})


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pools", "said"),
    [
        ({}, "at least one pool"),
        ({"a": "srv/a"}, "absolute"),
        ({"a": "/srv/a", "b": "/srv/a"}, "same directory"),
        ({"a": "/srv/a", "b": "/srv/x/../a/"}, "same directory"),
        ({"a@b": "/srv/a"}, "cannot be the name of a pool"),
    ],
)
def test_a_wrong_configuration_is_named_before_anything_is_touched(pools: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"file_pools: .*{said}"):
        make(start=False, pools=pools)


def test_two_names_of_one_directory_are_found_out_at_start(tmp_path: Path) -> None:
    """field.md bug 4 (LP1404013): two pools on one place."""
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    with pytest.raises(ConfigError, match="another pool's too"):
        make(pools={"a": tmp_path / "real", "b": tmp_path / "alias"})


def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file_pools: .*cannot be made: Not a directory"):
        make(pools={"a": tmp_path / "file" / "pool"})


def test_a_directory_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "ro", "size=1m,ro") as path, pytest.raises(ConfigError, match="cannot be written"):
        make(pools={"a": path})


def test_start_makes_closed_directories_and_creates_closed_files(driver: FileDriver, directory: Path) -> None:
    name = volume(driver, b"x")
    assert stat.S_IMODE(directory.stat().st_mode) & 0o027 == 0
    assert stat.S_IMODE((directory / name).stat().st_mode) & 0o137 == 0


def test_a_volume_is_the_raw_file_of_its_name(driver: FileDriver, directory: Path) -> None:
    name = volume(driver, b"raw")
    assert (directory / name).read_bytes() == b"raw"
    assert driver.export("pool1", name, writable=True).path == str(directory / name)


# --- leftovers -------------------------------------------------------------------------------------------------------


def test_start_removes_what_a_crash_left_and_nothing_else(driver: FileDriver, directory: Path) -> None:
    name = volume(driver, b"kept")
    (directory / f"{TEMPORARY}snapshot-1").write_bytes(b"half")
    (directory / f"{TEMPORARY}link").symlink_to(name)
    (directory / "stray.img").write_bytes(b"stray")
    again = make(pools={"pool1": directory})
    assert files(directory) == {name, "stray.img"}
    assert again.objects("pool1") == [name]
    assert (directory / name).read_bytes() == b"kept"


def test_what_another_process_is_making_is_neither_removed_nor_taken(driver: FileDriver, directory: Path) -> None:
    source, snapshot = volume(driver, b"x"), new_name("snapshot")
    with (directory / f"{TEMPORARY}{snapshot}").open("wb") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        again = make(pools={"pool1": directory})
        assert f"{TEMPORARY}{snapshot}" in files(directory)
        with pytest.raises(DriverError, match="another call is at work on it"):
            again.create_snapshot("pool1", source, snapshot)
    again.create_snapshot("pool1", source, snapshot)
    assert files(directory) == {source, snapshot}


def test_a_repeated_copy_begins_anew_over_its_leftover(driver: FileDriver, directory: Path) -> None:
    source, snapshot = volume(driver, b"new"), new_name("snapshot")
    (directory / f"{TEMPORARY}{snapshot}").write_bytes(b"longer leftover of a crash")
    driver.create_snapshot("pool1", source, snapshot)
    assert (directory / snapshot).read_bytes() == b"new"


def test_deleting_a_half_made_object_removes_its_leftover(driver: FileDriver, directory: Path) -> None:
    snapshot = new_name("snapshot")
    (directory / f"{TEMPORARY}{snapshot}").write_bytes(b"half")
    driver.delete_snapshot("pool1", new_name(), snapshot)
    assert files(directory) == set()


# --- thin, thick, quota, full ----------------------------------------------------------------------------------------


def test_thin_allocates_nothing_and_thick_everything(tmp_path: Path) -> None:
    for thin, allocated in [(True, 0), (False, 4 * MIB)]:
        driver = make(pools={"p": tmp_path / str(thin)}, file_thin_provisioning=thin)
        name = new_name()
        driver.create("p", name, 4 * MIB)
        assert driver.allocated("p", name) in range(allocated, allocated + 64 * 1024)
        driver.extend("p", name, 8 * MIB)
        assert driver.allocated("p", name) in range(2 * allocated, 2 * allocated + 64 * 1024)
        clone = new_name()
        driver.clone("p", name, clone, 8 * MIB)
        assert driver.allocated("p", clone) in range(2 * allocated, 2 * allocated + 64 * 1024)
        assert driver.report()[0].thin is thin


def test_a_sparse_leftover_in_a_thick_pool_is_allocated_when_repeated(directory: Path) -> None:
    thick = make(pools={"pool1": directory}, file_thin_provisioning=False)
    name = new_name()
    with (directory / name).open("wb") as left:
        left.truncate(MIB)
    thick.create("pool1", name, MIB)
    assert thick.allocated("pool1", name) >= MIB


def test_the_quota_caps_what_is_reported(directory: Path) -> None:
    driver = make(pools={"pool1": directory}, file_pool_quota_gib=0.5)
    volume(driver, b"x" * MIB)
    (directory / "stray.img").write_bytes(b"x" * MIB)
    report = driver.report()[0]
    assert report.total_gib == 0.5
    assert report.allocated_gib == pytest.approx(1 / 1024, rel=0.1)
    assert report.free_gib == pytest.approx(0.5 - report.allocated_gib)


def test_a_used_up_quota_refuses_thin_objects_with_the_number(directory: Path) -> None:
    driver = make(pools={"pool1": directory}, file_pool_quota_gib=2 / 1024)
    name = volume(driver, b"x" * 2 * MIB)
    refused(
        NoSpace,
        r"hosta@files#pool1: its quota of 2097152 bytes is used up",
        lambda: driver.create("pool1", new_name(), 1),
        lambda: driver.extend("pool1", name, 3 * MIB),
        lambda: driver.create_snapshot("pool1", name, new_name("snapshot")),
        lambda: driver.clone("pool1", name, new_name(), 1),
    )
    assert driver.objects("pool1") == [name]
    assert driver.report()[0].free_gib == 0
    driver.create("pool1", name, 2 * MIB)


def test_a_quota_too_small_refuses_what_would_be_allocated(directory: Path) -> None:
    driver = make(pools={"pool1": directory}, file_pool_quota_gib=3 / 1024, file_thin_provisioning=False)
    name = volume(driver, b"x" * 2 * MIB)
    refused(
        NoSpace,
        r"2097152 bytes are needed, \d+ are free",
        lambda: driver.create("pool1", new_name(), 2 * MIB),
        lambda: driver.extend("pool1", name, 4 * MIB),
        lambda: driver.create_snapshot("pool1", name, new_name("snapshot")),
        lambda: driver.clone("pool1", name, new_name(), 1),
    )
    assert files(directory) == {name}


def test_the_limit_of_an_export_is_what_the_volume_may_come_to_occupy(directory: Path) -> None:
    driver = make(pools={"pool1": directory}, file_pool_quota_gib=4 / 1024)
    volume(driver, b"x" * MIB)
    name = new_name()
    driver.create("pool1", name, 16 * MIB)
    for written in range(3):
        connection = driver.export("pool1", name, writable=True)
        assert connection.limit == pytest.approx(3 * MIB, abs=64 * 1024), f"after {written} MiB"
        write(connection, written * MIB, b"x" * MIB)
    assert driver.export("pool1", name, writable=False).limit is None
    assert make(pools={"pool1": directory}).export("pool1", name, writable=True).limit is None


def test_a_full_disk_refuses_a_thick_volume_and_leaves_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=4m") as path:
        driver = make(pools={"pool1": path}, file_thin_provisioning=False)
        name = volume(driver, b"x" * MIB)
        refused(
            NoSpace,
            r"\d+ bytes are needed, \d+ are free",
            lambda: driver.create("pool1", new_name(), 5 * MIB),
            lambda: driver.extend("pool1", name, 9 * MIB),
        )
        assert files(path) == {name}
        assert driver.export("pool1", name, writable=False).size == MIB


def test_a_disk_that_fills_up_during_a_call_is_told_with_numbers_and_cleaned_up(tmp_path: Path) -> None:
    """The check beforehand cannot know of other writers: here of none, but the disk has no room for another name."""
    with tmpfs(tmp_path / "small", "size=4m,nr_inodes=8") as path:
        driver = make(pools={"pool1": path})
        name = volume(driver, b"x")
        while len(os.listdir(path)) < 5:
            (path / f"stray{len(os.listdir(path))}").touch()
        with pytest.raises(NoSpace, match=r"creating volume-\S+ of 1 bytes: No space left on device, \d+ bytes free"):
            driver.create("pool1", new_name(), 1)
        assert driver.objects("pool1") == [name]
        driver.delete("pool1", name)
        assert driver.objects("pool1") == []


def test_a_create_that_fails_in_the_middle_leaves_nothing(driver: FileDriver, directory: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        with pytest.raises(DriverError, match="File too large"):
            driver.create("pool1", new_name(), 2 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(directory) == set()
    assert driver.objects("pool1") == []


def test_a_copy_that_fills_the_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 8 * MIB)
    with (
        tmpfs(tmp_path / "small", "size=4m") as path,
        (tmp_path / "source").open("rb") as source,
        Directory.open(str(path)) as here,
    ):
        with pytest.raises(OSError, match="No space left"), here.temporary("copy") as writer:
            directories.copy(source.fileno(), writer.fd)
        assert os.listdir(path) == []


def test_a_full_pool_can_be_started_and_emptied(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m,nr_inodes=8") as path:
        name = volume(make(pools={"pool1": path}), b"x" * (MIB // 2))
        while len(os.listdir(path)) < 6:
            (path / f"stray{len(os.listdir(path))}").touch()
        driver = make(pools={"pool1": path})
        driver.delete("pool1", name)
        assert driver.objects("pool1") == []


# --- strange things in the way ---------------------------------------------------------------------------------------


def lay_directory(path: Path) -> None:
    path.mkdir()


def lay_link(path: Path) -> None:
    (path.parent.parent / "victim").write_bytes(b"secret")
    path.symlink_to("../victim")


def lay_dangling_link(path: Path) -> None:
    path.symlink_to("../made-by-you")


def lay_linked_file(path: Path) -> None:
    (path.parent.parent / "other").write_bytes(b"in use elsewhere")
    os.link(path.parent.parent / "other", path)


STRANGE: dict[str, Callable[[Path], None]] = {
    "symbolic link": lay_link,
    "dangling link": lay_dangling_link,
    "directory": lay_directory,
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
}


def lay(kind: str, path: Path) -> None:
    try:
        STRANGE[kind](path)
    except PermissionError:
        missing(f"a {kind} cannot be made here")


@pytest.mark.parametrize("kind", STRANGE)
def test_adopt_takes_plain_files_only(driver: FileDriver, directory: Path, kind: str) -> None:
    lay(kind, directory / "x.img")
    with pytest.raises(InvalidInput, match="not a regular file"):
        driver.adopt("pool1", {"source-name": "x.img"}, new_name())
    assert files(directory) == {"x.img"}


def test_adopt_refuses_a_file_that_others_have_under_another_name(driver: FileDriver, directory: Path) -> None:
    lay_linked_file(directory / "x.img")
    with pytest.raises(InvalidInput, match="hard links"):
        driver.adopt("pool1", {"source-name": "x.img"}, new_name())


def test_adopt_keeps_the_very_file(driver: FileDriver, directory: Path) -> None:
    (directory / "x.img").write_bytes(b"data")
    inode, name = (directory / "x.img").stat().st_ino, new_name()
    driver.adopt("pool1", {"source-name": "x.img"}, name)
    assert (directory / name).stat().st_ino == inode
    assert (directory / name).stat().st_nlink == 1


def test_adopting_an_image_of_another_format_reads_it_as_raw(driver: FileDriver, directory: Path) -> None:
    """A format that names another file must not let its owner read that file."""
    image = b"QFI\xfb" + bytes(508)
    (directory / "x.qcow2").write_bytes(image)
    name = new_name()
    assert driver.adopt("pool1", {"source-name": "x.qcow2"}, name) == 512
    assert read(driver.export("pool1", name, writable=False)) == image


@pytest.mark.parametrize("kind", STRANGE)
def test_what_took_the_place_of_a_volume_is_never_followed(driver: FileDriver, directory: Path, kind: str) -> None:
    source, name = volume(driver, b"source"), volume(driver, b"x" * 9)
    (directory / name).unlink()
    lay(kind, directory / name)
    refused(
        DriverError,
        name,
        lambda: driver.create("pool1", name, 100),
        lambda: driver.extend("pool1", name, 100),
        lambda: driver.export("pool1", name, writable=True),
        lambda: driver.allocated("pool1", name),
        lambda: driver.exists("pool1", name),
        lambda: driver.create_snapshot("pool1", name, new_name("snapshot")),
        lambda: driver.create_snapshot("pool1", source, name),
        lambda: driver.clone("pool1", source, name, 100),
    )
    assert driver.objects("pool1") == [source]
    if kind != "directory":
        driver.delete("pool1", name)
        assert name not in files(directory)
    victim = directory.parent / "victim"
    assert not victim.exists() or victim.read_bytes() == b"secret"
    assert not (directory.parent / "made-by-you").exists()


def test_a_link_laid_where_a_copy_is_made_is_not_written_through(driver: FileDriver, directory: Path) -> None:
    victim = directory.parent / "victim"
    victim.write_bytes(b"precious")
    source, snapshot = volume(driver, b"evil"), new_name("snapshot")
    (directory / f"{TEMPORARY}{snapshot}").symlink_to(victim)
    with pytest.raises(DriverError):
        driver.create_snapshot("pool1", source, snapshot)
    assert victim.read_bytes() == b"precious"
    driver.delete_snapshot("pool1", source, snapshot)
    driver.create_snapshot("pool1", source, snapshot)


def test_a_link_laid_in_place_of_the_marks_is_not_written_through(driver: FileDriver, directory: Path) -> None:
    victim = directory.parent / "victims"
    victim.mkdir()
    if (directory / OBJECTS).exists():
        (directory / OBJECTS).rmdir()
    (directory / OBJECTS).symlink_to(victim)
    with pytest.raises(DriverError):
        driver.create("pool1", new_name(), 1)
    assert list(victim.iterdir()) == []


# --- a pool that vanishes --------------------------------------------------------------------------------------------


def test_a_vanished_pool_says_so_and_the_other_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver = make(pools={"pool1": tmp_path / "a", "pool2": tmp_path / "b"})
    name = volume(driver, b"kept", "pool2")
    (tmp_path / "b").rename(tmp_path / "away")
    with pytest.raises(DriverError, match=f"the directory {tmp_path}/b of pool pool2 is gone"):
        driver.exists("pool2", name)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [report.pool for report in driver.report()] == ["pool1"]
    assert len([record for record in caplog.records if "pool2" in record.getMessage()]) == 1
    driver.create("pool1", new_name(), 1)
    (tmp_path / "away").rename(tmp_path / "b")
    assert [report.pool for report in driver.report()] == ["pool1", "pool2"]
    assert driver.exists("pool2", name)


def test_a_pool_whose_disk_is_not_mounted_any_more_is_not_written(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "pool", "size=1m") as path:
        driver = make(pools={"pool1": path})
        name = volume(driver, b"x")
        with mounted(path, "--bind", str(tmp_path)):
            with pytest.raises(DriverError, match="not the one found at start"):
                driver.create("pool1", new_name(), 1)
            with pytest.raises(DriverError, match="not the one found at start"):
                driver.exists("pool1", name)
            assert driver.report() == []
        assert driver.objects("pool1") == [name]


# --- shared blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHARING)
def test_snapshots_share_blocks_where_the_file_system_can(tmp_path: Path, kind: str) -> None:
    with sharing(kind, tmp_path / kind) as disk:
        driver = make(pools={"pool1": disk / "a"})
        assert driver.report()[0].capabilities["reflink"] is True
        name, snapshot = volume(driver, b"x" * 32 * MIB), new_name("snapshot")
        os.sync()
        before = os.statvfs(disk).f_bfree
        driver.create_snapshot("pool1", name, snapshot)
        assert (before - os.statvfs(disk).f_bfree) * os.statvfs(disk).f_frsize < 4 * MIB
        write(driver.export("pool1", name, writable=True), 0, b"changed")
        assert read(driver.export("pool1", snapshot, writable=False)) == b"x" * 32 * MIB


@pytest.mark.parametrize("kind", SHARING)
def test_a_clone_in_a_thick_pool_has_blocks_of_its_own(tmp_path: Path, kind: str) -> None:
    with sharing(kind, tmp_path / kind) as disk:
        driver = make(pools={"pool1": disk / "a"}, file_thin_provisioning=False)
        name, clone = volume(driver, b"x" * 32 * MIB), new_name()
        os.sync()
        before = os.statvfs(disk).f_bfree
        driver.clone("pool1", name, clone, 40 * MIB)
        assert (before - os.statvfs(disk).f_bfree) * os.statvfs(disk).f_frsize >= 40 * MIB
        assert read(driver.export("pool1", clone, writable=False)) == b"x" * 32 * MIB + bytes(8 * MIB)
