"""Files that are copied through the page cache: the bytes, what stays behind, errors, and where it may not be used."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from migrator.volume import page_cache
from migrator.volume.copy import CopyOptions, Result
from migrator.volume.endpoints import CopyError, DestinationFull, WriteFailed
from migrator.volume.files import FileEndpoint
from tests.contract.loops import Loops
from tests.contract.mounts import SHARING, mounted, sharing, tmpfs
from tests.support.copying import MIB, copy_whole
from tests.support.restless import Cached, Restless
from tests.support.waiting import until

#: What the kernel may read ahead, at most: a few MiB on any system, twice that in order, in two pieces.
READ_AHEAD = 48 * MIB
#: Enough that the whole of it would be too much to be cached.
BIG = 192 * MIB


def copied(source: Path, destination: Path, options: CopyOptions, zero: bool = True) -> Result:
    with opened(source) as one, opened(destination, writable=True) as two:
        return copy_whole(one, two, options=options, zero=zero)


@contextlib.contextmanager
def opened(path: Path, *, writable: bool = False) -> Iterator[FileEndpoint]:
    end = FileEndpoint(str(path), writable=writable)
    try:
        yield end
    finally:
        end.close()


def pages(path: Path) -> int:
    with path.open("rb") as file:
        found = page_cache.cached_pages(file.fileno())
    assert found is not None, "the kernel tells"
    return found


def make(path: Path, content: bytes) -> Path:
    """Write a file to the disk and out of the page cache."""
    path.write_bytes(content)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        page_cache.drop(file.fileno())
    return path


@pytest.fixture(params=["here", "tmpfs", *SHARING])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on each of the file systems in use."""
    kind = request.param
    if kind == "here":
        yield tmp_path
    else:
        with tmpfs(tmp_path / kind, "size=250m") if kind == "tmpfs" else sharing(kind, tmp_path / kind) as directory:
            yield directory


@pytest.mark.parametrize("size", [1, 4095, MIB + 1, 37 * MIB + 4096 + 7])
@pytest.mark.parametrize("zero", [True, False])
def test_a_copy_that_changes_its_way_all_the_time_is_true(place: Path, size: int, zero: bool) -> None:
    """field.md bugs 1 and 9 (LP1454835, LP2045431): to the last byte, and nothing old between the two ways."""
    chance = random.Random(size)
    content = bytearray(chance.randbytes(size))
    for _ in range(size // (2 * MIB)):
        start = chance.randrange(size)
        content[start : start + MIB] = bytes(min(MIB, size - start))
    source = make(place / "source", bytes(content))
    destination = make(place / "destination", bytes(size) if zero else b"\xff" * size)
    options = Restless(checkpoint_seconds=0.0)
    result = copied(source, destination, options, zero)
    assert destination.read_bytes() == content
    assert result.checksum is not None


@pytest.mark.parametrize("options", [Cached(checkpoint_seconds=60.0), Restless(checkpoint_seconds=60.0)])
def test_neither_end_stays_in_the_cache(tmp_path: Path, options: CopyOptions) -> None:
    """copy.md, the eighth must: reading and writing are bounded while they last, and leave nothing."""
    source = make(tmp_path / "source", os.urandom(BIG))
    if pages(source):
        pytest.skip("the file system keeps its files in memory")
    destination = make(tmp_path / "destination", b"")
    os.truncate(destination, BIG)
    most = Most(source, destination)
    one, two = most.end(source, writable=False), most.end(destination, writable=True)
    copy_whole(one, two, options=options, zero=True)
    assert pages(destination) == 0, "the flush at the end"
    one.close()
    two.close()
    assert 0 < most.read <= (READ_AHEAD + page_cache.WINDOW + page_cache.SWEEP) // mmap.PAGESIZE
    assert 0 < most.written <= (page_cache.WINDOW + 16 * MIB) // mmap.PAGESIZE, "the window, and what is in flight"
    assert (pages(source), pages(destination)) == (0, 0)


class Most:
    """The most pages that were cached of the two files whenever a request came back."""

    def __init__(self, source: Path, destination: Path) -> None:
        self.source, self.destination = source, destination
        self.read = self.written = 0

    def look(self) -> None:
        self.read = max(self.read, pages(self.source))
        self.written = max(self.written, pages(self.destination))

    def end(self, path: Path, *, writable: bool) -> FileEndpoint:
        class Watched(FileEndpoint):
            def pwrite(this, offset: int, data: memoryview) -> int:  # noqa: N805
                count = super().pwrite(offset, data)
                self.look()
                return count

        return Watched(str(path), writable=writable)


def test_going_back_waits_for_what_is_on_its_way_and_drops_what_was_read_ahead(tmp_path: Path) -> None:
    path = make(tmp_path / "file", os.urandom(64 * MIB))
    if pages(path):
        pytest.skip("the file system keeps its files in memory")
    buffer = memoryview(mmap.mmap(-1, MIB))
    reader, writer = FileEndpoint(str(path), writable=False), FileEndpoint(str(path), writable=True)
    for end, do in ((reader, reader.pread_into), (writer, writer.pwrite)):
        assert do(0, buffer) == MIB
        assert pages(path) == 0, "past the cache until it is wanted"
        end.use_cache(True)
        for offset in range(0, 8 * MIB, MIB):
            assert do(offset, buffer) == MIB
        assert pages(path) > 0
        end.use_cache(False)
        assert end is reader or pages(path) == 0, "what was written is there when it returns"
        until(partial(gone, end, path), "nothing is being read ahead any more")
        end.close()


def gone(end: FileEndpoint, path: Path) -> bool:
    end.use_cache(False)
    return pages(path) == 0


@pytest.fixture
def thin(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB on a device that has space for 24, as an overcommitted pool gives it."""
    with tmpfs(tmp_path / "pool", "size=24m") as pool:
        loops = Loops(tmp_path)
        loop = loops.make("thin", 96 * MIB, at=pool / "thin")
        mkfs = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")
        assert mkfs is not None
        subprocess.run([mkfs, "-q", "-O", "^has_journal", str(loop.node)], check=True)
        with mounted(tmp_path / "mount", "-t", "ext4", str(loop.node)) as directory:
            yield directory
        loops.end()


def test_a_write_that_fails_behind_us_fails_the_copy(tmp_path: Path, thin: Path) -> None:
    """Whoever meets it first: the wait for the window, a checkpoint, or the last flush."""
    source = make(tmp_path / "source", os.urandom(64 * MIB))
    destination = thin / "destination"
    destination.touch()
    os.truncate(destination, 64 * MIB)
    for checkpoints in (0.0, 60.0):
        with pytest.raises(CopyError) as caught:
            copied(source, destination, Cached(checkpoint_seconds=checkpoints))
        assert isinstance(caught.value, WriteFailed | DestinationFull)
        assert caught.value.errno in (errno.EIO, errno.ENOSPC)


def test_a_window_that_cannot_be_written_is_an_error_of_the_write(thin: Path) -> None:
    path = thin / "file"
    path.touch()
    os.truncate(path, 80 * MIB)
    endpoint = FileEndpoint(str(path), writable=True)
    endpoint.use_cache(True)
    data = memoryview(mmap.mmap(-1, MIB))
    data[:] = b"x" * MIB

    def fill() -> None:
        for offset in range(0, 80 * MIB, MIB):
            assert endpoint.pwrite(offset, data) == MIB

    with pytest.raises(OSError, match=r".+") as caught:
        fill()
    assert caught.value.errno in (errno.EIO, errno.ENOSPC)
    until(partial(settled, endpoint), "all is written or failed")
    with pytest.raises(OSError, match=r".+"):
        endpoint.flush()  # or a checkpoint would call it stored
    endpoint.close()


def test_going_back_tells_of_what_failed_on_its_way(thin: Path) -> None:
    path = thin / "file"
    path.touch()
    os.truncate(path, 80 * MIB)
    data = memoryview(mmap.mmap(-1, MIB))
    data[:] = b"x" * MIB
    with opened(path, writable=True) as end:
        end.use_cache(True)
        for offset in range(0, page_cache.WINDOW, MIB):  # more than the device has, and too little to wait for
            assert end.pwrite(offset, data) == MIB
        with pytest.raises(OSError, match=r".+"):
            end.use_cache(False)


def settled(endpoint: FileEndpoint) -> bool:
    try:
        endpoint.use_cache(False)
    except OSError:
        return False
    return True


def test_a_device_is_read_through_an_empty_cache_only_and_never_written_through_it(tmp_path: Path) -> None:
    """What another machine wrote to a LUN is not in this one's cache; what is, may be older."""
    loops = Loops(tmp_path)
    node = loops.make("disk", 8 * MIB, content=os.urandom(8 * MIB)).node
    try:
        with opened(node) as end:
            assert end.capabilities.may_cache
        with node.open("r+b") as file, mmap.mmap(file.fileno(), 8 * MIB, access=mmap.ACCESS_READ) as view:
            assert view[5 * MIB] >= 0, "mapped pages cannot be dropped"
            with opened(node) as end:
                assert not end.capabilities.may_cache
        with opened(node, writable=True) as end:
            assert not end.capabilities.may_cache
    finally:
        loops.end()


def test_a_file_that_other_machines_may_have_goes_past_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "file", b"x")
    with opened(path) as end:
        assert end.capabilities.may_cache
    monkeypatch.setattr(page_cache, "_OF_ONE_MACHINE", {})  # no network file system can be mounted everywhere
    for writable in (False, True):
        with opened(path, writable=writable) as end:
            assert end.capabilities.direct_io
            assert not end.capabilities.may_cache
    with Path("/proc/self/status").open("rb") as file:
        assert not page_cache.is_of_one_machine(file.fileno())
