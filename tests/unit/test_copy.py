"""The engine against a disk in memory that can be dirty, short of breath, broken, full, and cut from power."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.volume import copy as engine
from migrator.volume.copy import Checkpoint, Control, CopyOptions, Crew, Progress, Result, Stopped, copy
from migrator.volume.endpoints import (
    Capabilities,
    CopyError,
    DestinationFull,
    ReadFailed,
    WriteFailed,
    WrongSize,
)
from migrator.volume.extents import Extent, Ranges

UNIT = 512
Action = Callable[[], None]

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Disk:
    """Bytes in memory with a map of what is allocated, a volatile cache in front, and actions ordered for calls."""

    def __init__(self, content: bytes, allocated: set[int] | None = None, cheap: bool = True) -> None:
        self.name = f"disk-{id(self)}"
        self.place: object = self.name
        self.capabilities = Capabilities(zeroes_cheaply=cheap)
        self.content = bytearray(content)
        units = range(-(-len(content) // UNIT))
        self.allocated = set(units) if allocated is None else allocated
        self.durable = bytes(content)
        self.unflushed: list[tuple[int, bytes]] = []
        self.most = 1 << 30  # bytes that one call moves
        self.actions: dict[tuple[str, int], Action] = {}
        self.calls: dict[str, int] = {}
        self.busy = 0
        self.lock = threading.RLock()
        self.wrote = threading.Condition(self.lock)
        self.lingering = 0.0

    @property
    def size(self) -> int:
        return len(self.content)

    def order(self, call: str, number: int, action: Action) -> None:
        """Let the call of that number (from 0) do ``action`` first."""
        self.actions[(call, number)] = action

    def _called(self, call: str) -> None:
        number = self.calls.get(call, 0)
        self.calls[call] = number + 1
        self.actions.get((call, number), lambda: None)()

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        with self.lock:
            self._called("extents")
        end = start + length
        while start < end:
            is_data = start // UNIT in self.allocated
            stop = start
            while stop < end and (stop // UNIT in self.allocated) == is_data:
                stop = min(end, (stop // UNIT + 1) * UNIT)
            yield Extent(start, stop - start, is_data)
            start = stop

    def pread_into(self, offset: int, buffer: memoryview) -> int:
        with self.lock:
            self._called("pread")
            piece = self.content[offset : offset + min(self.most, len(buffer))]
            buffer[: len(piece)] = piece
            return len(piece)

    def pwrite(self, offset: int, data: memoryview) -> int:
        with self.lock:
            self._called("pwrite")
            return self._put(offset, bytes(data[: self.most]), True)

    def zero(self, start: int, length: int) -> None:
        with self.lock:
            self._called("zero")
            self._put(start, bytes(length), False)

    def _put(self, offset: int, piece: bytes, is_data: bool) -> int:
        assert offset + len(piece) <= self.size
        self.content[offset : offset + len(piece)] = piece
        self.unflushed.append((offset, piece))
        if is_data:
            self.allocated.update(range(offset // UNIT, -(-(offset + len(piece)) // UNIT)))
        else:
            self.allocated.difference_update(range(-(-offset // UNIT), (offset + len(piece)) // UNIT))
        self.wrote.notify_all()
        return len(piece)

    def flush(self) -> None:
        with self.lock:
            self._called("flush")
            content, count = bytes(self.content), len(self.unflushed)
            if self.lingering:  # what is written during a flush is not covered by it
                self.wrote.wait(self.lingering)
            self.durable, self.unflushed = content, self.unflushed[count:]

    def close(self) -> None:
        with self.lock:
            self._called("close")

    def power_cut(self, chance: random.Random) -> None:
        """Keep what was flushed and, in any order the device liked, some of the writes since."""
        content = bytearray(self.durable)
        for offset, piece in self.unflushed:
            if chance.random() < 0.5:
                torn = chance.randrange(len(piece) + 1) if chance.random() < 0.3 else len(piece)
                content[offset : offset + torn] = piece[:torn]
        self.content, self.durable, self.unflushed = content, bytes(content), []


def raising(code: int) -> Action:
    def action() -> None:
        raise OSError(code, os.strerror(code))

    return action


@dataclass
class Run:
    """A copy under way: what it reported, each report checked against what would survive a power cut."""

    source: Disk
    destination: Disk
    is_zero: bool = False
    options: CopyOptions = field(default_factory=lambda: CopyOptions(block=4096, checkpoint_seconds=0.0))
    control: Control = field(default_factory=Control)
    checkpoints: list[list[list[int]]] = field(default_factory=list)
    done: list[list[int]] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        with self.destination.lock:
            for start, length in checkpoint.ranges:
                kept = self.destination.durable[start : start + length]
                if kept != self.source.content[start : start + length]:
                    raise AssertionError(f"{start}+{length} is reported and not durable")
        self.done = checkpoint.ranges
        self.checkpoints.append(checkpoint.ranges)

    def go(self) -> Result:
        return copy(
            self.source,
            self.destination,
            done=Ranges(self.done),
            destination_is_zero=self.is_zero,
            options=self.options,
            control=self.control,
            on_checkpoint=self.on_checkpoint,
            on_progress=self.progress.append,
        )


@st.composite
def sources(draw: st.DrawFn) -> Disk:
    """Any size to the byte, and any mixture of data, zeros that are allocated, and holes."""
    size = draw(st.one_of(st.integers(0, 3), st.integers(0, 60_000), st.sampled_from([4096, 65536, 200_001])))
    chance = random.Random(draw(st.integers(0, 1 << 16)))
    run = draw(st.sampled_from([1, 8, 130]))
    content = bytearray(size)
    allocated: set[int] = set()
    for first in range(0, -(-size // UNIT), run):
        kind = chance.choice(["data", "zeros", "hole"])
        units = range(first, min(first + run, -(-size // UNIT)))
        if kind != "hole":
            allocated.update(units)
        if kind == "data":
            end = min(units[-1] * UNIT + UNIT, size)
            content[first * UNIT : end] = chance.randbytes(end - first * UNIT)
    return Disk(bytes(content), allocated, draw(st.booleans()))


@st.composite
def runs(draw: st.DrawFn) -> Run:
    source = draw(sources())
    is_zero = draw(st.booleans())
    old = bytes(source.size) if is_zero else random.Random(1).randbytes(source.size)
    destination = Disk(old, set() if is_zero else None, draw(st.booleans()))
    # Moved by ones only where that is soon done.
    source.most, destination.most = draw(st.sampled_from([(1 << 30, 1 << 30), (1000, 1 << 30), (5000, 777)]))
    block = draw(st.sampled_from([1000, 4096, 1 << 20]))
    return Run(source, destination, is_zero, CopyOptions(draw(st.integers(1, 4)), block, 0.0))


@few
@given(runs())
def test_any_copy_equals_its_source(run: Run) -> None:
    """field.md bugs 1 and 2 (LP1454835, LP1218054): every byte of the volume is compared; bug 9 (LP2045431): old ones
    of a dirty destination never show."""
    result = run.go()
    assert run.destination.content == run.source.content
    assert run.destination.durable == run.source.content
    assert run.done == ([[0, run.source.size]] if run.source.size else [])
    assert result.progress.bytes_done == result.progress.bytes_total == run.source.size


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


def random_disk(size: int) -> Disk:
    return Disk(random.Random(size).randbytes(size))


def zero_disk(size: int) -> Disk:
    return Disk(bytes(size), set())


def test_ranges_are_those_that_were_complete_before_the_flush_began() -> None:
    """Each flush waits until more was written than it covers; reporting that too fails the check in Run."""
    run = Run(random_disk(400_000), zero_disk(400_000), is_zero=True, control=Control(bytes_per_second=1_000_000))
    run.destination.lingering = 0.2
    run.go()
    assert len(run.checkpoints) > 3
    assert run.destination.content == run.source.content


def test_holes_of_a_zero_destination_are_not_touched_and_count_as_done() -> None:
    run = Run(zero_disk(5_000_000), zero_disk(5_000_000), is_zero=True)
    result = run.go()
    assert run.destination.calls.keys() == {"flush"}
    assert run.source.calls.keys() == {"extents"}
    assert result.progress == Progress(5_000_000, 5_000_000, 0, 0)


def test_zeros_that_the_source_calls_data_stay_unallocated() -> None:
    """field.md bug 41 (LP1472486, LP1455595): a sparse volume stays sparse, also from a source without extents."""
    content = bytearray(3 << 20)
    content[1 << 20 : (1 << 20) + 5] = b"hello"
    content[-1] = 1
    run = Run(Disk(bytes(content)), zero_disk(3 << 20), is_zero=True, options=CopyOptions())
    result = run.go()
    assert run.destination.content == content
    assert result.progress.bytes_written == 2 * engine.GRANULE
    assert len(run.destination.allocated) * UNIT == 2 * engine.GRANULE


def test_a_dirty_destination_is_zeroed_where_the_source_has_zeros() -> None:
    """field.md bug 9 (LP2045431): holes, and zeros that are allocated."""
    source = Disk(bytes(300_000), set(range(200)))
    run = Run(source, random_disk(300_000), options=CopyOptions())
    run.go()
    assert run.destination.content == bytes(300_000)
    assert "pwrite" not in run.destination.calls


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
    threads = threading.active_count()
    with pytest.raises(CopyError) as caught:
        run.go()
    assert caught.value.errno == errno.EIO
    assert threading.active_count() == threads
    assert run.destination.calls["pwrite"] < 20


def test_the_crew_keeps_the_first_error() -> None:
    first, second = OSError("first"), OSError("second")
    with Crew(Control()) as crew:
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


@pytest.mark.parametrize("size", [99_999, 100_001, 0])
def test_ends_of_different_sizes_are_refused_before_anything_is_written(size: int) -> None:
    run = Run(random_disk(100_000), random_disk(size))
    with pytest.raises(WrongSize) as caught:
        run.go()
    assert (caught.value.wanted, caught.value.got) == (100_000, size)
    assert run.destination.calls == {}


def test_a_volume_is_not_copied_onto_itself() -> None:
    """field.md bugs 4 and 6 (LP1404013, LP1798468): that would look like success, then the source is deleted."""
    disk = random_disk(1000)
    with pytest.raises(WriteFailed, match="itself"):
        Run(disk, disk).go()


def test_extents_with_a_gap_do_not_make_a_success() -> None:
    class Forgetful(Disk):
        def extents(self, start: int, length: int) -> Iterator[Extent]:
            yield from list(super().extents(start, length))[:-1]

    run = Run(Forgetful(b"x" * 5000 + bytes(5000), set(range(10))), zero_disk(10_000), is_zero=True)
    with pytest.raises(AssertionError, match="left out"):
        run.go()
    assert [[0, 10_000]] not in run.checkpoints


def test_only_what_is_not_done_is_copied() -> None:
    run = Run(random_disk(100_000), zero_disk(100_000), done=[[0, 40_000], [60_000, 1_000_000]])
    with pytest.raises(AssertionError):  # the checkpoint claims what this destination never got
        run.go()
    assert run.destination.content[40_000:60_000] == run.source.content[40_000:60_000]
    assert run.destination.content[:40_000] == bytes(40_000)
    assert run.destination.content[60_000:] == bytes(40_000)


@pytest.mark.parametrize("reason", ["cancel", "pause"])
def test_a_stopped_copy_says_why_and_a_pause_keeps_what_is_done(reason: str) -> None:
    run = Run(random_disk(1_000_000), zero_disk(1_000_000), options=CopyOptions(2, 4096, 60))
    run.destination.order("pwrite", 20, lambda: run.control.stop(reason))
    with pytest.raises(Stopped) as caught:
        run.go()
    assert caught.value.reason == reason
    assert run.destination.calls["pwrite"] <= 22
    assert len(run.checkpoints) == (reason == "pause")
    if reason == "pause":
        assert Ranges(run.done).total == run.destination.calls["pwrite"] * 4096


def test_what_a_callback_raises_ends_the_copy() -> None:
    class Lost(Exception):
        pass

    def lose(checkpoint: Checkpoint) -> None:
        raise Lost

    source, destination, threads = random_disk(1_000_000), zero_disk(1_000_000), threading.active_count()
    with pytest.raises(Lost):
        copy(
            source,
            destination,
            done=Ranges(),
            destination_is_zero=True,
            options=CopyOptions(2, 512, 0.0),
            control=Control(bytes_per_second=500_000),
            on_checkpoint=lose,
        )
    assert threading.active_count() == threads
    assert destination.content != source.content


def test_progress_never_goes_back_and_ends_at_the_size() -> None:
    run = Run(random_disk(300_000), zero_disk(300_000), options=CopyOptions(2, 1000, 0.0))
    run.destination.most = 200
    result = run.go()
    done = [progress.bytes_done for progress in run.progress]
    assert done == sorted(done)
    assert result.progress == Progress(300_000, 300_000, 300_000, 300_000)


def test_a_limited_rate_is_kept_and_can_be_lifted_live() -> None:
    run = Run(random_disk(300_000), zero_disk(300_000), control=Control(bytes_per_second=200_000))
    began = time.monotonic()
    lift = threading.Timer(0.6, setattr, (run.control, "bytes_per_second", None))
    lift.start()
    run.go()
    seconds = time.monotonic() - began
    lift.join()
    assert 0.6 <= seconds < 1.3  # all of it would have taken 1.25 s at least
    run.control = Control(bytes_per_second=600_000)
    run.done, began = [], time.monotonic()
    run.go()
    assert time.monotonic() - began > 0.2  # 300 kB, of which a quarter of a second's worth goes at once


def test_a_stop_is_noticed_by_threads_that_wait_for_the_rate() -> None:
    run = Run(random_disk(300_000), zero_disk(300_000), control=Control(bytes_per_second=1000))
    stop = threading.Timer(0.3, run.control.stop, ("cancel",))
    stop.start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        run.go()
    stop.join()
    assert time.monotonic() - began < 1.3


def test_buffers_are_bounded_and_page_aligned() -> None:
    with pytest.raises(ValueError, match="threads"):
        CopyOptions(threads=64)
    addresses: list[int] = []

    def work(buffer: memoryview) -> None:
        from migrator.volume.endpoints import _address

        addresses.append(_address(buffer))

    with Crew(Control()) as crew:
        crew.start(3, 1 << 20, work)
    assert [address % 4096 for address in addresses] == [0, 0, 0]
