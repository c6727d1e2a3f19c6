"""The engine against a disk in memory that can be dirty, short of breath, broken, full, and cut from power."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from migrator.volume import copy as engine
from migrator.volume.control import Control, Stopped
from migrator.volume.copy import Checkpoint, CopyOptions, Progress, copy
from migrator.volume.crew import Crew, Hand
from migrator.volume.endpoints import (
    ReadFailed,
    WriteFailed,
    WrongSize,
    _address,
)
from migrator.volume.extents import Extent, Ranges
from migrator.volume.tuning import Tuner
from tests.support.disks import UNIT, Disk, Run, naive, random_disk, runs, zero_disk

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(runs())
def test_any_copy_equals_its_source(run: Run) -> None:
    """field.md bugs 1 and 2 (LP1454835, LP1218054): every byte of the volume is compared; bug 9 (LP2045431): old ones
    of a dirty destination never show."""
    result = run.go()
    assert run.destination.content == run.source.content
    assert run.destination.durable == run.source.content
    assert result.checksum == naive(bytes(run.source.content))
    assert run.done == ([[0, run.source.size]] if run.source.size else [])
    assert result.progress.bytes_done == result.progress.bytes_total == run.source.size


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
    with pytest.raises(ReadFailed, match="gap"):
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

    source, destination, before = random_disk(1_000_000), zero_disk(1_000_000), set(threading.enumerate())
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
    assert set(threading.enumerate()) <= before
    assert destination.content != source.content


def test_progress_never_goes_back_and_ends_at_the_size() -> None:
    run = Run(random_disk(300_000), zero_disk(300_000), options=CopyOptions(2, 1000, 0.0))
    run.destination.most = 200
    result = run.go()
    done = [progress.bytes_done for progress in run.progress]
    assert done == sorted(done)
    assert result.progress == Progress(300_000, 300_000, 300_000, 300_000)


def test_a_limited_rate_is_kept_and_can_be_lifted_live() -> None:
    run = Run(random_disk(3_000_000), zero_disk(3_000_000), control=Control(bytes_per_second=200_000))
    began = time.monotonic()
    lift = threading.Timer(0.6, setattr, (run.control, "bytes_per_second", None))
    lift.start()
    run.go()
    seconds = time.monotonic() - began
    lift.join()
    assert 0.6 <= seconds < 12  # all of it would have taken 14.9 s at least, whatever the machine
    run.control = Control(bytes_per_second=6_000_000)
    run.done, began = [], time.monotonic()
    run.go()
    assert time.monotonic() - began > 0.35  # 3 MB, of which a tenth of a second's worth goes at once


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
    together = threading.Barrier(3, timeout=10)

    def work(hand: Hand) -> None:
        together.wait()
        addresses.append(_address(hand.take(1 << 20)))

    with Crew(Control(), Tuner(depth=3)) as crew:
        crew.start(work)
    assert [address % 4096 for address in addresses] == [0, 0, 0]


@pytest.mark.parametrize("rate", [300_000, 5_000_000])
def test_the_average_rate_is_within_five_per_cent(rate: int) -> None:
    """By what is done, over a second and a half here; the longer, the nearer."""
    run = Run(random_disk(rate * 3), zero_disk(rate * 3), is_zero=True, control=Control(rate))
    run.options = CopyOptions(checkpoint_seconds=60)
    began = time.monotonic()
    stop = threading.Timer(1.5, run.control.stop, ("pause",))
    stop.start()
    with pytest.raises(Stopped):
        run.go()
    seconds = time.monotonic() - began
    stop.join()
    # What the bucket lets through at once is a tenth of a second's worth; over 5 s that is two per cent.
    most = rate * (seconds + 0.1) + 2 * max(4096, rate * 0.05)
    assert rate * 1.4 < Ranges(run.done).total <= most


def test_a_rate_that_is_changed_counts_from_now_on() -> None:
    run = Run(random_disk(3_000_000), zero_disk(3_000_000), is_zero=True, control=Control(100_000))
    run.options = CopyOptions(checkpoint_seconds=60)
    rise = threading.Timer(0.5, setattr, (run.control, "bytes_per_second", 2_000_000))
    began = time.monotonic()
    rise.start()
    run.go()
    rise.join()
    # Half a second at the first rate, then 1.47 s at the other; at the first alone it would have been 29 s.
    assert 1.6 < time.monotonic() - began < 15


def test_no_checksum_is_made_where_none_is_wanted() -> None:
    run = Run(random_disk(100_000), zero_disk(100_000), options=CopyOptions(hash=False))
    result = run.go()
    assert (result.digests, result.checksum) == (None, None)
