"""Verification of real files: nothing that differs passes, and the checksum depends on the bytes alone."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.volume.control import Control, Stopped
from migrator.volume.copy import CopyOptions, Progress, Result
from migrator.volume.digests import Digests
from migrator.volume.endpoints import Different, ReadFailed, WrongSize
from migrator.volume.extents import Extent, Ranges
from migrator.volume.files import FileEndpoint
from migrator.volume.verify import verify
from tests.support.copying import copy_whole
from tests.support.disks import naive

MIB = 1 << 20
SIZE = 5 * MIB + 4096 + 77
DATA = {0: b"begin", MIB - 3: b"across", 3 * MIB: random.Random(1).randbytes(MIB), SIZE - 1: b"!"}


def make(path: Path, size: int, pieces: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, piece in pieces.items():
            file.seek(offset)
            file.write(piece)
    return path


def verified(
    source: Path,
    destination: Path,
    control: Control | None = None,
    direct: bool = True,
    known: Digests | None = None,
    kind: type[FileEndpoint] = FileEndpoint,
) -> str:
    ends = [
        opener(str(path), writable=False, direct=direct)
        for opener, path in ((kind, source), (FileEndpoint, destination))
    ]
    try:
        return verify(ends[0], ends[1], control=control or Control(), known=known)
    finally:
        for end in ends:
            end.close()


@pytest.mark.parametrize("direct", [True, False])
def test_equal_files_give_the_checksum_of_their_bytes_however_holes_are_laid_out(tmp_path: Path, direct: bool) -> None:
    sparse = make(tmp_path / "sparse", SIZE, DATA)
    thick = make(tmp_path / "thick", SIZE, {0: sparse.read_bytes()})
    wanted = naive(sparse.read_bytes())
    assert verified(sparse, thick, direct=direct) == wanted
    assert verified(thick, sparse, direct=direct) == wanted
    assert verified(sparse, sparse, direct=direct) == wanted


@pytest.mark.parametrize("offset", [0, 4, MIB - 1, MIB, 2 * MIB + 12345, 4 * MIB - 1, SIZE - 2, SIZE - 1])
def test_one_flipped_byte_is_found_at_its_offset(tmp_path: Path, offset: int) -> None:
    """A corrupted destination is never taken for a good copy: also in a hole of the source, and in the odd tail."""
    source = make(tmp_path / "source", SIZE, DATA)
    destination = make(tmp_path / "destination", SIZE, DATA)
    with destination.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0] ^ 1
        file.seek(offset)
        file.write(bytes([byte]))
    for one, other in ((source, destination), (destination, source)):
        with pytest.raises(Different) as caught:
            verified(one, other)
        assert caught.value.offset == offset


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, SIZE - 1), min_size=1, max_size=5))
def test_of_several_differences_the_first_is_named(tmp_path: Path, offsets: set[int]) -> None:
    source = make(tmp_path / "source", SIZE, {})
    destination = make(tmp_path / "destination", SIZE, dict.fromkeys(offsets, b"x"))
    with pytest.raises(Different) as caught:
        verified(source, destination)
    assert caught.value.offset == min(offsets)


def test_sizes_must_be_equal(tmp_path: Path) -> None:
    source = make(tmp_path / "source", SIZE, {})
    with pytest.raises(WrongSize) as caught:
        verified(source, make(tmp_path / "destination", SIZE + 1, {}))
    assert (caught.value.wanted, caught.value.got) == (SIZE, SIZE + 1)


def test_holes_on_both_sides_are_not_read(tmp_path: Path) -> None:
    size = 1 << 40
    ends = [FileEndpoint(str(make(tmp_path / name, size, {size // 2: b"x"})), writable=False) for name in "ab"]
    seen: list[Progress] = []
    began = time.monotonic()
    verify(*ends, control=Control(), on_progress=seen.append)
    assert time.monotonic() - began < 5
    for end in ends:
        end.close()


def test_an_end_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    source, destination = (make(tmp_path / name, 2 * MIB, {0: b"x" * 2 * MIB}) for name in "ab")

    class Shrinking(FileEndpoint):
        def pread_into(self, offset: int, buffer: memoryview) -> int:
            os.truncate(self.name, MIB + 5)
            return super().pread_into(offset, buffer)

    one, two = FileEndpoint(str(source), writable=False), Shrinking(str(destination), writable=False)
    with pytest.raises(WrongSize) as caught:
        verify(one, two, control=Control())
    assert caught.value.got == MIB + 5
    one.close()
    two.close()


def test_an_unreadable_end_is_named(tmp_path: Path) -> None:
    source, destination = (make(tmp_path / name, MIB, {0: b"x" * MIB}) for name in "ab")

    class Broken(FileEndpoint):
        def pread_into(self, offset: int, buffer: memoryview) -> int:
            raise OSError(5, "Input/output error")

    one, two = FileEndpoint(str(source), writable=False), Broken(str(destination), writable=False)
    with pytest.raises(ReadFailed) as caught:
        verify(one, two, control=Control())
    assert (caught.value.path, caught.value.errno) == (str(destination), 5)
    one.close()
    two.close()


def test_it_stops_within_a_second_and_leaves_no_thread(tmp_path: Path) -> None:
    source, destination = (make(tmp_path / name, 8 * MIB, {0: b"x" * 8 * MIB}) for name in "ab")
    control, before = Control(bytes_per_second=MIB), set(threading.enumerate())
    stop = threading.Timer(0.3, control.stop, ("cancel",))
    stop.start()
    began = time.monotonic()
    with pytest.raises(Stopped, match="cancel"):
        verified(source, destination, control)
    assert time.monotonic() - began < 1.3
    stop.join()
    assert set(threading.enumerate()) <= before  # others may end meanwhile


# --- with the digests of the copy ------------------------------------------------------------------------------------


def copied(source: Path, destination: Path, done: Ranges | None = None, block: int | None = None) -> Result:
    ends = FileEndpoint(str(source), writable=False), FileEndpoint(str(destination), writable=True)
    try:
        return copy_whole(*ends, zero=False, options=CopyOptions(block=block), done=done)
    finally:
        for end in ends:
            end.close()


class Unread(FileEndpoint):
    """A source that nobody may look at."""

    def pread_into(self, offset: int, buffer: memoryview) -> int:
        raise AssertionError(f"{len(buffer)} bytes at {offset} were read")

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        raise AssertionError("it was asked for its extents")


@pytest.mark.parametrize("block", [None, 4096 * 3, 4 * MIB, 65536])
def test_behind_a_whole_copy_only_the_destination_is_read(tmp_path: Path, block: int | None) -> None:
    source = make(tmp_path / "source", SIZE, DATA)
    destination = make(tmp_path / "destination", SIZE, {2 * MIB: b"old"})
    result = copied(source, destination, block=block)
    assert result.checksum == naive(source.read_bytes())
    assert verified(source, destination, known=result.digests, kind=Unread) == result.checksum


@pytest.mark.parametrize("offset", [0, 4, MIB - 1, MIB, 2 * MIB + 12345, 4 * MIB - 1, SIZE - 2, SIZE - 1])
def test_a_byte_that_rots_behind_the_copy_is_found_at_its_offset(tmp_path: Path, offset: int) -> None:
    """Also in what was a hole at the source, and where the destination lost its data altogether."""
    source, destination = make(tmp_path / "source", SIZE, DATA), make(tmp_path / "destination", SIZE, {})
    known = copied(source, destination).digests
    with destination.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, offset)[0] ^ 1
        os.pwrite(file.fileno(), bytes([byte]), offset)
    with pytest.raises(Different) as caught:
        verified(source, destination, known=known)
    assert caught.value.offset == offset


def test_a_destination_that_lost_its_blocks_is_not_taken_for_holes(tmp_path: Path) -> None:
    source, destination = make(tmp_path / "source", SIZE, DATA), make(tmp_path / "destination", SIZE, {})
    known = copied(source, destination).digests
    make(destination, SIZE, {0: b"begin"})
    with pytest.raises(Different) as caught:
        verified(source, destination, known=known)
    assert caught.value.offset == MIB - 3


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 2 * MIB)), max_size=4),
    st.sets(st.integers(0, SIZE - 1), max_size=3),
)
def test_where_an_earlier_run_copied_both_ends_are_compared(
    tmp_path: Path, done: list[tuple[int, int]], rotten: set[int]
) -> None:
    source = make(tmp_path / "source", SIZE, DATA)
    destination = make(tmp_path / "destination", SIZE, DATA)
    ranges = Ranges(done).within(0, SIZE)
    result = copied(source, destination, ranges)
    assert (result.checksum is None) == bool(ranges.total)
    content = bytearray(source.read_bytes())
    with destination.open("r+b") as file:
        for offset in rotten:
            os.pwrite(file.fileno(), bytes([content[offset] ^ 0x40]), offset)
    if rotten:
        with pytest.raises(Different) as caught:
            verified(source, destination, known=result.digests)
        assert caught.value.offset == min(rotten)
    else:
        assert verified(source, destination, known=result.digests) == naive(bytes(content))


def test_a_source_that_reads_differently_than_in_the_copy_is_compared_as_it_is(tmp_path: Path) -> None:
    """Digests that are of no use do no harm: what decides is whether both ends are equal."""
    source, destination = make(tmp_path / "source", SIZE, DATA), make(tmp_path / "destination", SIZE, {})
    known = copied(source, destination).digests
    for path in (source, destination):
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), b"changed", 2 * MIB)
    assert verified(source, destination, known=known) == naive(source.read_bytes())


def test_a_table_that_is_full_only_costs_time(tmp_path: Path) -> None:
    source, destination = make(tmp_path / "source", SIZE, DATA), make(tmp_path / "destination", SIZE, DATA)
    digests = Digests(SIZE, table_bytes=0)
    assert verified(source, destination, known=digests) == naive(source.read_bytes())
