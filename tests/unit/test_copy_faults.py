"""Copies that fail, are stopped and are cut from power, at any call: the error is told, and the ranges never lie."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.volume.control import Control, Stopped
from migrator.volume.copy import CopyOptions
from migrator.volume.crew import Crew
from migrator.volume.endpoints import (
    Capabilities,
    CopyError,
    DestinationFull,
    ReadFailed,
    WriteFailed,
    WrongSize,
)
from migrator.volume.extents import Extent
from migrator.volume.tuning import Tuner
from tests.support.copying import copy_whole
from tests.support.disks import UNIT, Action, Disk, Run, naive, raising, random_disk, runs, zero_disk

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(runs(), st.integers(0, 1 << 16), st.sampled_from(["pread", "pwrite", "zero", "flush", "extents"]), st.data())
def test_a_copy_cut_anywhere_and_resumed_equals_its_source(run: Run, seed: int, call: str, data: st.DataObject) -> None:
    """Stopped, failed, and each time cut from power with any of the unflushed writes lost, hazard f of field.md."""
    chance = random.Random(seed)
    for _ in range(3):
        control = run.control = Control()
        what: Action = data.draw(
            st.sampled_from([raising(errno.EIO), lambda control=control: control.stop("pause")])  # type: ignore[misc]
        )
        end = run.source if call in ("pread", "extents") else run.destination
        end.actions = {(call, end.calls.get(call, 0) + chance.randrange(8)): what}
        with contextlib.suppress(CopyError, Stopped):
            run.go()
        end.actions = {}
        run.destination.power_cut(chance)
    run.control = Control()
    run.go()
    assert run.destination.durable == run.source.content


CALLS = ["pread", "extents", "pwrite", "zero", "flush"]


@few
@given(runs(), st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 12), st.booleans()), max_size=6), st.data())
def test_whatever_fails_and_however_often_the_ranges_never_lie(
    run: Run, faults: list[tuple[str, int, bool]], data: st.DataObject
) -> None:
    """Errors and cancels at any calls of several runs, each cut from power; then one run that nothing disturbs."""
    chance = random.Random(data.draw(st.integers(0, 1 << 16)))
    while faults:
        control = run.control = Control()
        for call, number, fails in [faults.pop() for _ in range(min(2, len(faults)))]:
            end = run.source if call in ("pread", "extents") else run.destination
            code = data.draw(st.sampled_from([errno.EIO, errno.ENOSPC, errno.ETIMEDOUT]))
            stop: Action = lambda control=control: control.stop("cancel")  # type: ignore[misc] # noqa: E731
            end.order(call, end.calls.get(call, 0) + number, raising(code) if fails else stop)
        with contextlib.suppress(CopyError, Stopped):
            run.go()
        run.source.actions, run.destination.actions = {}, {}
        run.destination.power_cut(chance)
        for start, length in run.done:
            assert run.destination.content[start : start + length] == run.source.content[start : start + length]
    run.control = Control()
    result = run.go()
    assert run.destination.durable == run.source.content
    assert result.checksum in (None, naive(bytes(run.source.content)))


class Huge:
    """8 TiB in memory: what was written, by blocks; all else reads as zeros."""

    def __init__(self, size: int, pieces: dict[int, bytes]) -> None:
        self.name = self.place = f"huge-{id(self)}"
        self.size = size
        self.capabilities = Capabilities(zeroes_cheaply=True, new_volume_is_zero=True)
        self.pieces = pieces
        self.lock = threading.Lock()

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        end = start + length
        for offset in sorted(self.pieces):
            first, last = max(offset, start), min(offset + len(self.pieces[offset]), end)
            if first < last:
                if first > start:
                    yield Extent(start, first - start, False)
                yield Extent(first, last - first, True)
                start = last
        if start < end:
            yield Extent(start, end - start, False)

    def pread_into(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = bytes(len(buffer))
        for start, piece in self.pieces.items():
            first, last = max(start, offset), min(start + len(piece), offset + len(buffer))
            if first < last:
                buffer[first - offset : last - offset] = piece[first - start : last - start]
        return len(buffer)

    def pwrite(self, offset: int, data: memoryview) -> int:
        with self.lock:
            self.pieces[offset] = bytes(data)
        return len(data)

    def zero(self, start: int, length: int) -> None:
        raise AssertionError("a new volume needs no zeros")

    def flush(self) -> None: ...

    def close(self) -> None: ...


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, (8 << 40) - 5000), st.integers(1, 5000)), max_size=20), st.integers(0, 4097))
def test_eight_tebibytes_with_little_in_them(places: list[tuple[int, int]], less: int) -> None:
    """Beyond 2 ** 32 sectors, to the byte, and in the time of what is in them."""
    size = (8 << 40) - less
    pieces: dict[int, bytes] = {}
    reached = -1
    for start, length in sorted(places):
        if start > reached:
            reached = min(start + length, size)
            pieces[start] = random.Random(start).randbytes(max(0, reached - start))
    source, destination = Huge(size, pieces), Huge(size, {})
    began = time.monotonic()
    result = copy_whole(source, destination, zero=True)
    assert result.progress.bytes_done == size
    assert result.checksum is not None
    assert time.monotonic() - began < 10
    for start, piece in pieces.items():
        view = memoryview(bytearray(len(piece)))
        destination.pread_into(start, view)
        assert view == piece
    assert sum(map(len, destination.pieces.values())) == sum(map(len, pieces.values()))


@pytest.mark.parametrize(
    ("end", "call", "code", "wanted"),
    [
        ("source", "pread", errno.EIO, ReadFailed),
        ("source", "extents", errno.EIO, ReadFailed),
        ("destination", "pwrite", errno.EIO, WriteFailed),
        ("destination", "pwrite", errno.ENOSPC, DestinationFull),
        ("destination", "pwrite", errno.EDQUOT, DestinationFull),
        ("destination", "zero", errno.EIO, WriteFailed),
        ("destination", "flush", errno.EIO, WriteFailed),
        ("destination", "flush", errno.ENOSPC, DestinationFull),
    ],
)
def test_the_error_of_any_call_names_its_end_and_the_number(
    end: str, call: str, code: int, wanted: type[CopyError]
) -> None:
    source = Disk(b"x" * 50_000 + bytes(50_000), set(range(98)))
    run = Run(source, random_disk(100_000), options=CopyOptions(block=4096, checkpoint_seconds=60))
    failing = run.source if end == "source" else run.destination
    failing.order(call, 0, raising(code))
    with pytest.raises(wanted) as caught:
        run.go()
    assert type(caught.value) is wanted
    assert (caught.value.path, caught.value.errno) == (failing.name, code)
    assert run.checkpoints == []


def test_a_write_error_tells_the_offset_behind_what_a_short_write_moved() -> None:
    run = Run(random_disk(4096), zero_disk(4096), options=CopyOptions(threads=1, block=4096))
    run.destination.most = 1000
    run.destination.order("pwrite", 2, raising(errno.EIO))
    with pytest.raises(WriteFailed) as caught:
        run.go()
    assert caught.value.offset == 2000


def test_the_first_error_wins_and_the_others_end() -> None:
    run = Run(random_disk(1_000_000), zero_disk(1_000_000), options=CopyOptions(4, 4096, 60))
    for number in range(10, 250):
        run.destination.order("pwrite", number, raising(errno.EIO if number == 10 else errno.ENOSPC))
    before = set(threading.enumerate())
    with pytest.raises(CopyError) as caught:
        run.go()
    assert caught.value.errno == errno.EIO
    assert set(threading.enumerate()) <= before
    assert run.destination.calls["pwrite"] < 20


def test_the_crew_keeps_the_first_error() -> None:
    first, second = OSError("first"), OSError("second")
    with Crew(Control(), Tuner()) as crew:
        crew.fail(first)
        crew.fail(second)
    assert crew.error is first


def test_a_write_that_moves_nothing_is_an_error_and_not_an_endless_loop() -> None:
    run = Run(random_disk(4096), zero_disk(4096))
    run.destination.most = 0
    with pytest.raises(WriteFailed, match="wrote nothing"):
        run.go()


def test_an_early_end_of_the_source_is_an_error_with_the_numbers() -> None:
    run = Run(random_disk(100_000), zero_disk(100_000), options=CopyOptions(1, 4096, 60))
    run.source.order("pread", 5, lambda: run.source.content.__delitem__(slice(22_000, None)))
    with pytest.raises(WrongSize) as caught:
        run.go()
    assert (caught.value.wanted, caught.value.got) == (100_000, 22_000)


@pytest.mark.parametrize("change", [-UNIT, UNIT])
def test_a_source_whose_size_changes_behind_its_data_is_an_error(change: int) -> None:
    source = Disk(b"x" * 5000 + bytes(5000), set(range(10)))
    run = Run(source, zero_disk(10_000), is_zero=True, options=CopyOptions(checkpoint_seconds=60))
    changed = source.content[: 10_000 + change] + bytes(max(0, change))
    run.source.order("pread", 0, lambda: setattr(source, "content", changed))
    with pytest.raises(WrongSize) as caught:
        run.go()
    assert (caught.value.wanted, caught.value.got) == (10_000, 10_000 + change)
    assert run.checkpoints == []
