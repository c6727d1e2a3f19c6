"""What lies in a pool is listed, taken over and given up by every driver that declares it; what files are refused."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from migrator.drivers import adoption
from migrator.drivers.base import Capability, VolumeDriver, find_adoptable
from migrator.drivers.directory import Directory
from migrator.drivers.file import FileDriver
from migrator.errors import DriverError, InvalidInput
from tests.contract.worlds import FileWorld, World, new_name, require
from tests.support.needs import missing


def test_what_lies_in_the_pool_is_listed_ours_too(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.ADOPT)
    ours = world.volume(driver, content=b"in use")
    source, size = world.lay(driver, "pool1", "stray.img", b"old data")
    entries = driver.adoptable("pool1")
    (found,) = (entry for entry in entries if entry.reference == {"source-name": source})
    assert (found.size, found.reason, found.name) == (size, None, None)
    (managed,) = (entry for entry in entries if entry.name is not None)
    assert managed.name == ours
    assert managed.reason
    assert len({entry.id for entry in entries}) == len(entries)
    assert not any(entry.name for entry in driver.adoptable("pool2"))


def test_what_is_given_up_stays_and_can_be_taken_again(world: World, driver: VolumeDriver) -> None:
    require(driver, Capability.ADOPT)
    name, again = world.volume(driver, content=b"precious"), new_name()
    (id_,) = (entry.id for entry in driver.adoptable("pool1") if entry.name == name)
    for _ in range(2):
        driver.disown("pool1", name)
        assert list(driver.objects("pool1")) == []
    found = find_adoptable(driver, "pool1", {"source-id": id_})
    assert (found.reason, found.name) == (None, None)
    assert driver.adopt("pool1", found.reference, again) >= 8
    assert world.content(driver, "pool1", again)[:8] == b"precious"
    assert list(driver.objects("pool1")) == [again]


def test_giving_up_what_is_not_there_succeeds(driver: VolumeDriver) -> None:
    require(driver, Capability.ADOPT)
    driver.disown("pool1", new_name())


@pytest.mark.parametrize(
    "reference",
    [{}, {"source-name": "x"}, {"source-id": "x"}, {"source-id": ""}, {"source-name": 7}, {"path": "x"}],
    ids=repr,
)
def test_a_reference_to_nothing_finds_nothing(driver: VolumeDriver, reference: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        find_adoptable(driver, "pool1", reference)


def require_leases(path: Path) -> None:
    """Skip where the file system cannot tell who has a file open."""
    with Directory.open(str(path)) as here:
        if not adoption.leases_tell(here):
            missing(f"the file system of {path} knows no leases")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> FileDriver:
    return FileWorld(tmp_path).driver()


@pytest.fixture
def directory(files: FileDriver, tmp_path: Path) -> Path:
    return tmp_path / files.backend / "pool1"


def test_a_file_is_found_by_its_inode_whatever_its_name(files: FileDriver, directory: Path) -> None:
    (directory / "x.img").write_bytes(b"data")
    found = find_adoptable(files, "pool1", {"source-id": str((directory / "x.img").stat().st_ino)})
    assert found.reference == {"source-name": "x.img"}


def test_a_name_that_is_no_text_is_shown_and_refused(files: FileDriver, directory: Path) -> None:
    with open(os.fsencode(directory) + b"/bad\xff.img", "wb") as file:
        file.write(b"data")
    (entry,) = files.adoptable("pool1")
    assert entry.reference == {"source-name": r"bad\xff.img"}
    assert entry.reason == "its name cannot be asked for; rename it"


def test_neither_directories_nor_hidden_files_are_listed(files: FileDriver, directory: Path) -> None:
    (directory / "sub").mkdir()
    (directory / ".hidden").write_bytes(b"x")
    files.create("pool1", new_name(), 1)
    assert [entry.name is None for entry in files.adoptable("pool1")] == [False]


def test_an_open_file_is_not_taken_and_looking_leaves_nothing(files: FileDriver, directory: Path) -> None:
    require_leases(directory)
    (directory / "x.img").write_bytes(b"data")
    for mode in ("rb", "r+b"):
        with (directory / "x.img").open(mode):
            assert files.adoptable("pool1")[0].reason == "it is open, somebody uses it"
            with pytest.raises(InvalidInput, match="somebody uses it"):
                files.adopt("pool1", {"source-name": "x.img"}, new_name())
    assert files.adoptable("pool1")[0].reason is None
    assert {path.name for path in directory.iterdir()} == {"x.img"}


def test_two_calls_for_one_file_never_both_succeed(files: FileDriver, directory: Path) -> None:
    for _ in range(20):
        (directory / "x.img").write_bytes(b"data")
        taken: list[str] = []
        refused: list[Exception] = []
        barrier = threading.Barrier(2)

        def take(
            barrier: threading.Barrier = barrier, taken: list[str] = taken, refused: list[Exception] = refused
        ) -> None:
            name = new_name()
            barrier.wait()
            try:
                files.adopt("pool1", {"source-name": "x.img"}, name)
                taken.append(name)
            except (InvalidInput, DriverError) as error:
                refused.append(error)

        threads = [threading.Thread(target=take) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) <= 1, refused
        assert [(directory / name).stat().st_nlink for name in taken] == [1] * len(taken)
        if taken:
            files.delete("pool1", taken[0])
        else:
            assert (directory / "x.img").read_bytes() == b"data"
