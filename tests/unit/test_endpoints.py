"""Endpoints of real files and devices: any size, direct and buffered, sparse, dirty, full."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.volume.copy import Result
from migrator.volume.endpoints import (
    DestinationFull,
    MemoryEndpoint,
    first_difference,
    is_zero,
)
from migrator.volume.extents import Extent
from migrator.volume.files import FileEndpoint
from tests.contract.loops import Loops
from tests.support.copying import MIB, copy_whole

ODD_SIZES = [0, 1, 511, 512, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 3 * MIB + 4096 + 7]


def make(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def make_sparse(path: Path, size: int, pieces: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, piece in pieces.items():
            file.seek(offset)
            file.write(piece)
        os.fsync(file.fileno())
    return path


def copied(source: Path, destination: Path, *, zero: bool, direct: bool = True, limit: int | None = None) -> Result:
    one = FileEndpoint(str(source), writable=False, direct=direct)
    two = FileEndpoint(str(destination), writable=True, direct=direct, limit=limit)
    try:
        return copy_whole(one, two, zero=zero)
    finally:
        one.close()
        two.close()


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("size", ODD_SIZES)
def test_a_file_of_any_size_is_copied_to_the_byte(tmp_path: Path, size: int, direct: bool) -> None:
    """field.md bugs 1 and 2 (LP1454835, LP1218054): the whole of it, several sizes, tails that no alignment divides."""
    content = random.Random(size).randbytes(size)
    source = make(tmp_path / "source", content)
    for name, old, zero in (("new", bytes(size), True), ("dirty", b"\xff" * size, False)):
        destination = make_sparse(tmp_path / name, size, {} if zero else {0: old})
        copied(source, destination, zero=zero, direct=direct)
        assert destination.read_bytes() == content


@pytest.mark.parametrize("direct", [True, False])
def test_a_sparse_file_stays_sparse_and_old_data_does_not_show(tmp_path: Path, direct: bool) -> None:
    """field.md bug 41 (LP1472486, LP1455595) by allocated blocks, and bug 9 (LP2045431) by a dirty destination."""
    size = 64 * MIB + 77
    pieces = {5 * MIB + 3: b"one", 40 * MIB: os.urandom(MIB), size - 1: b"!"}
    source = make_sparse(tmp_path / "source", size, pieces)
    new = make_sparse(tmp_path / "new", size, {})
    dirty = make(tmp_path / "dirty", b"secret!!" * (size // 8 + 1))
    os.truncate(dirty, size)
    assert dirty.stat().st_blocks * 512 >= size
    for destination, zero in ((new, True), (dirty, False)):
        result = copied(source, destination, zero=zero, direct=direct)
        assert destination.read_bytes() == source.read_bytes()
        assert result.progress.bytes_read < 2 * MIB
        assert destination.stat().st_blocks * 512 < 2 * MIB


def test_zeros_in_allocated_blocks_are_not_copied(tmp_path: Path) -> None:
    """field.md bug 41: a volume that was filled with zeros does not fill a thin pool."""
    source = make(tmp_path / "source", bytes(8 * MIB))
    new = make_sparse(tmp_path / "new", 8 * MIB, {})
    assert copied(source, new, zero=True).progress.bytes_written == 0
    assert new.stat().st_blocks == 0


def test_sizes_beyond_two_to_the_32_sectors(tmp_path: Path) -> None:
    size = (1 << 41) + 4096 + 13
    try:
        source = make_sparse(tmp_path / "source", size, {0: b"first", 1 << 41: b"behind", size - 4: b"last"})
    except OSError:
        pytest.skip("the file system has no files of 2 TiB")
    destination = make_sparse(tmp_path / "destination", size, {(1 << 40) + 5: b"old"})
    copied(source, destination, zero=False)
    with destination.open("rb") as file:
        for offset, wanted in {0: b"first", 1 << 41: b"behind", size - 4: b"last", (1 << 40) + 5: b"\0\0\0"}.items():
            file.seek(offset)
            assert file.read(len(wanted)) == wanted


def test_extents_tile_any_range_and_cover_all_data(tmp_path: Path) -> None:
    size = 300_001
    path = make_sparse(tmp_path / "file", size, {5000: b"x" * 10, 100_000: b"y" * 70_000, size - 1: b"z"})
    content, endpoint = path.read_bytes(), FileEndpoint(str(path), writable=False)
    for start, length in ((0, size), (0, 0), (4999, 2), (123, 200_000), (290_000, 10_001)):
        extents = list(endpoint.extents(start, length))
        assert [extent.start for extent in extents] == [start, *(extent.end for extent in extents)][: len(extents)]
        assert sum(extent.length for extent in extents) == length
        for extent in extents:
            assert extent.is_data or not content[extent.start : extent.end].strip(b"\0")
    assert any(not extent.is_data for extent in endpoint.extents(0, size))
    endpoint.close()


def test_zero_frees_and_reads_as_zeros_at_odd_offsets(tmp_path: Path) -> None:
    path = make(tmp_path / "file", b"\xaa" * (2 * MIB + 5))
    endpoint = FileEndpoint(str(path), writable=True)
    endpoint.zero(1001, 2 * MIB - 1000)
    endpoint.flush()
    endpoint.close()
    assert path.read_bytes() == b"\xaa" * 1001 + bytes(2 * MIB - 1000) + b"\xaa" * 4
    assert path.stat().st_blocks * 512 < MIB


def test_a_limit_counts_what_the_file_occupies_and_acts_like_a_full_disk(tmp_path: Path) -> None:
    source = make(tmp_path / "source", os.urandom(8 * MIB))
    new = make_sparse(tmp_path / "new", 8 * MIB, {})
    with pytest.raises(DestinationFull) as caught:
        copied(source, new, zero=True, limit=3 * MIB)
    assert caught.value.errno == errno.ENOSPC
    assert new.stat().st_blocks * 512 <= (3 + 2) * MIB  # two threads, a block each
    # What is occupied already may be written over: the same copy again, with room for the rest.
    copied(source, new, zero=True, limit=8 * MIB + 64 * 1024)
    assert new.read_bytes() == source.read_bytes()


def test_links_directories_and_pipes_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "file", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    before = set(os.listdir("/proc/self/fd"))
    for name in ("link", "pipe", "", "none"):
        for writable in (False, True):
            with pytest.raises(OSError, match=r".+"):
                FileEndpoint(str(tmp_path / name), writable=writable)
    assert set(os.listdir("/proc/self/fd")) == before


def test_descriptors_are_not_inherited_and_close_may_come_twice(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    endpoint = FileEndpoint(str(make(tmp_path / "file", b"x")), writable=True)
    for descriptor in set(os.listdir("/proc/self/fd")) - before:
        assert not Path(f"/proc/self/fd/{descriptor}").exists() or not os.get_inheritable(int(descriptor))
    endpoint.close()
    endpoint.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_one_file_under_two_names_is_one_place(tmp_path: Path) -> None:
    """field.md bugs 4 to 6: two names of one object are recognised, whatever the paths say."""
    path = make(tmp_path / "file", b"x")
    os.link(path, tmp_path / "other")
    one, two = (FileEndpoint(str(tmp_path / name), writable=False) for name in ("file", "other"))
    assert one.place == two.place
    one.close()
    two.close()


def test_size_is_the_size_now(tmp_path: Path) -> None:
    path = make(tmp_path / "file", b"x")
    endpoint = FileEndpoint(str(path), writable=False)
    os.truncate(path, 12345)
    assert endpoint.size == 12345
    endpoint.close()


def cached_pages(path: Path) -> int:
    """Count the pages of a file in the page cache, as mincore(2) sees them."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        flags = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
        anchor = ctypes.c_char.from_buffer(view)
        address = ctypes.c_void_p(ctypes.addressof(anchor))
        assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(view)), flags) == 0
        del anchor
        return sum(flag & 1 for flag in flags)


def forgotten(path: Path) -> Path:
    """Write a file to the disk and out of the page cache."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A directory whose files can leave the page cache."""
    if cached_pages(forgotten(make(tmp_path / "probe", b"x" * MIB))):
        pytest.skip("the file system keeps its files in memory")
    return tmp_path


@pytest.mark.parametrize("direct", [True, False])
def test_a_flushed_copy_is_on_the_disk_and_neither_end_fills_the_cache(disk: Path, direct: bool) -> None:
    """Hazard f of field.md, no fsync without direct I/O: only pages that were written can leave the cache."""
    source = forgotten(make(disk / "source", os.urandom(4 * MIB + 5)))
    destination = make_sparse(disk / "destination", 4 * MIB + 5, {})
    copied(source, destination, zero=True, direct=direct)
    assert cached_pages(source) <= 1  # the page that no whole request covers
    assert cached_pages(destination) <= 1


@pytest.mark.parametrize("direct", [True, False])
def test_reading_sees_the_disk_and_leaves_nothing_in_the_cache(disk: Path, direct: bool) -> None:
    """Hazard f of field.md, no verification: what is compared is what the disk holds."""
    path = make(disk / "file", os.urandom(MIB))
    assert cached_pages(path) == 256
    endpoint = FileEndpoint(str(path), writable=False, direct=direct)
    assert direct or cached_pages(path) == 0
    view = memoryview(mmap.mmap(-1, MIB))
    assert endpoint.pread_into(0, view) == MIB
    assert bytes(view) == path.read_bytes()
    # What no alignment divides is left to the next request, so that the rest goes past the cache.
    assert endpoint.pread_into(0, view[:4097]) == (4096 if endpoint.capabilities.direct_io else 4097)
    endpoint.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device that was used before."""
    loops = Loops(tmp_path)
    yield loops.make("disk", 8 * MIB, content=b"\xee" * (8 * MIB)).node
    loops.end()


def test_a_device_is_copied_both_ways_and_held_alone(tmp_path: Path, device: Path) -> None:
    """A device has no extents: zeros are found by looking, and dirty ones are zeroed (field.md bugs 9 and 41)."""
    source = make_sparse(tmp_path / "source", 8 * MIB, {MIB: os.urandom(MIB), 8 * MIB - 1: b"!"})
    copied(source, device, zero=False)
    back = make_sparse(tmp_path / "back", 8 * MIB, {})
    copied(device, back, zero=True)
    assert back.read_bytes() == source.read_bytes()
    assert back.stat().st_blocks * 512 < 2 * MIB
    writer = FileEndpoint(str(device), writable=True)
    with pytest.raises(OSError, match="busy"):
        FileEndpoint(str(device), writable=True)
    writer.close()


def test_objects_in_memory_have_the_same_shape(tmp_path: Path) -> None:
    class Memory:
        """A file that speaks in tuples, as a backend in memory does."""

        def __init__(self, path: Path) -> None:
            self.file = FileEndpoint(str(path), writable=True)
            self.size = self.file.size
            self.pread_into, self.pwrite, self.zero = self.file.pread_into, self.file.pwrite, self.file.zero
            self.flush, self.close = self.file.flush, self.file.close

        def extents(self, start: int, length: int) -> Iterator[tuple[int, int, bool]]:
            return ((extent.start, extent.length, extent.is_data) for extent in self.file.extents(start, length))

    source = make_sparse(tmp_path / "source", 3 * MIB, {MIB: b"data"})
    destination = make(tmp_path / "destination", b"\xff" * (3 * MIB))
    one, two = (MemoryEndpoint(path.name, Memory(path)) for path in (source, destination))
    assert all(isinstance(extent, Extent) for extent in one.extents(0, 3 * MIB))
    copy_whole(one, two, zero=False)
    one.close()
    two.close()
    assert destination.read_bytes() == source.read_bytes()


def buffer(content: bytes) -> memoryview:
    view = memoryview(mmap.mmap(-1, max(1, len(content))))[: len(content)]
    view[:] = content
    return view


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 33, 4096])
def test_zeros_and_the_first_difference_are_found_wherever_they_are(length: int) -> None:
    zeros = buffer(bytes(length))
    assert is_zero(zeros)
    assert first_difference(zeros, zeros) is None
    for index in range(min(length, 40)):
        other = buffer(bytes(index) + b"\x01" * (length - index))
        assert not is_zero(other)
        assert first_difference(zeros, other) == index
