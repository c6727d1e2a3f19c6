"""Verification of real files: nothing that differs passes, and the checksum depends on the bytes alone."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.volume.copy import Control, Progress, Stopped
from migrator.volume.endpoints import Different, FileEndpoint, ReadFailed, WrongSize
from migrator.volume.verify import verify

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


def verified(source: Path, destination: Path, control: Control | None = None, direct: bool = True) -> str:
    ends = [FileEndpoint(str(path), writable=False, direct=direct) for path in (source, destination)]
    try:
        return verify(ends[0], ends[1], control=control or Control())
    finally:
        for end in ends:
            end.close()


def naive_checksum(content: bytes) -> str:
    state = xxhash.xxh3_128()
    for start in range(0, len(content), MIB):
        block = content[start : start + MIB]
        if block.strip(b"\0"):
            state.update(start.to_bytes(8, "little") + block)
    return f"xxh3-128:{state.hexdigest()}"


@pytest.mark.parametrize("direct", [True, False])
def test_equal_files_give_the_checksum_of_their_bytes_however_holes_are_laid_out(tmp_path: Path, direct: bool) -> None:
    sparse = make(tmp_path / "sparse", SIZE, DATA)
    thick = make(tmp_path / "thick", SIZE, {0: sparse.read_bytes()})
    wanted = naive_checksum(sparse.read_bytes())
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
    control, threads = Control(bytes_per_second=MIB), threading.active_count()
    stop = threading.Timer(0.3, control.stop, ("cancel",))
    stop.start()
    began = time.monotonic()
    with pytest.raises(Stopped, match="cancel"):
        verified(source, destination, control)
    assert time.monotonic() - began < 1.3
    stop.join()
    assert threading.active_count() == threads
