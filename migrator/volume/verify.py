"""Comparison of a copy with its source, read back from where it lies, and the checksum of what was read.

Where the digests of the source's blocks are known from the copy, only the destination is read; everywhere else both
ends are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from threading import Lock

from migrator.volume.control import TICK_SECONDS, Control, Stopped
from migrator.volume.copy import CopyOptions, Progress, read_fully
from migrator.volume.crew import Crew, Hand
from migrator.volume.digests import ZERO, Digests, checksum, contribution, digest_of
from migrator.volume.endpoints import Different, Endpoint, WrongSize, first_difference, is_zero, read_failed
from migrator.volume.extents import BLOCK, Extent

_BUFFERS = 2  # one for each end
_AUTOMATIC = CopyOptions()


def verify(
    source: Endpoint,
    destination: Endpoint,
    *,
    control: Control,
    options: CopyOptions = _AUTOMATIC,
    known: Digests | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> str:
    """Compare all that either end calls data, and return the checksum of the volume, as digests.py describes it.

    ``known`` are digests of the source as it is, from the copy that is verified.  Both endpoints should have been
    opened for reading only, after the last flush: then they read what is stored, not what is cached.  Raises Different
    with the offset of the first byte that differs, other CopyErrors, or Stopped.
    """
    _check_sizes(source, destination, source.size)
    size = source.size
    job = _Verify(source, destination, Crew(control, options.tuner(_BUFFERS), _BUFFERS), known or Digests(size))
    with job.crew as crew:
        crew.start(job.work)
        while crew.work_on(TICK_SECONDS):
            on_progress(job.progress())
    if job.different is not None:
        raise Different(destination.name, offset=job.different)
    if crew.error is not None:
        raise crew.error
    if control.reason is not None:
        raise Stopped(control.reason)
    _check_sizes(source, destination, size)
    return checksum(job.contributions)


def _check_sizes(source: Endpoint, destination: Endpoint, size: int) -> None:
    for end in (source, destination):
        if end.size != size:
            raise WrongSize(end.name, wanted=size, got=end.size)


class _Verify:
    """One comparison; threads take its parts in the order of the volume, so the first difference is the least."""

    def __init__(self, source: Endpoint, destination: Endpoint, crew: Crew, known: Digests) -> None:
        self.crew = crew
        self.contributions = 0
        self.different: int | None = None
        self._source, self._destination = source, destination
        self._size = source.size
        self._known = known
        self._planning = Lock()
        self._counting = Lock()
        self._parts = self._plan()
        self._handed_out = self._bytes_read = 0
        self._under_way: set[int] = set()

    # --- what is compared

    def _plan(self) -> Iterator[tuple[Extent, bool]]:
        """Yield, in whole blocks, what any end calls data, and whether its digests are known."""
        unknown = self._known.known.remaining(0, self._size)
        areas = [
            self._data_of(self._destination, [[0, self._size]]),
            self._data_of(self._source, unknown),
            self._known.data(),
        ]
        reached = 0
        for start, end in heapq.merge(*areas):
            start = max(start // BLOCK * BLOCK, reached)
            end = min(-(-end // BLOCK) * BLOCK, self._size)
            while start < end:
                part, is_known = self._part(start, end)
                yield part, is_known
                start = reached = part.end

    def _part(self, start: int, end: int) -> tuple[Extent, bool]:
        """Return what a thread does at once of the blocks from ``start``: all of them known, or none."""
        unit = max(BLOCK, self.crew.tuner.setting.block // BLOCK * BLOCK)
        end = min(end, (start // unit + 1) * unit)
        gaps = self._known.known.remaining(start, end - start)
        if not gaps:
            return Extent(start, end - start, True), True
        if gaps[0][0] > start:  # what is known is whole blocks
            return Extent(start, gaps[0][0] - start, True), True
        return Extent(start, gaps[0][1], True), False

    def _data_of(self, end: Endpoint, areas: list[list[int]]) -> Iterator[tuple[int, int]]:
        reached = 0
        try:
            for start, length in areas:
                reached = start
                for extent in end.extents(start, length):
                    if extent.is_data:
                        yield extent.start, extent.end
                    reached = extent.end
                assert reached == start + length, f"{end.name}: its extents end at {reached}"
        except OSError as error:
            raise read_failed(end.name, reached, error) from error

    # --- what a thread does

    def work(self, hand: Hand) -> int | None:
        """Compare one part; returns how many bytes that moved, None when there is none left."""
        hand.begin()
        with self._planning:
            part, is_known = next(self._parts, (None, False)) if self.different is None else (None, False)
            if part is not None:
                with self._counting:
                    self._handed_out = part.end
                    self._under_way.add(part.start)
        hand.end()
        if part is None:
            return None
        moved = self._compare(part, is_known, hand)
        with self._counting:
            self._under_way.remove(part.start)
            self._bytes_read += moved
        return moved

    def _compare(self, part: Extent, is_known: bool, hand: Hand) -> int:
        room = max(self.crew.tuner.setting.block, part.length)
        buffers = hand.take(room)
        written = buffers[: part.length]
        wanted = buffers[room : room + part.length]
        ends = [(self._destination, written)] if is_known else [(self._source, wanted), (self._destination, written)]
        if not all(self._read(end, part.start, buffer, hand) for end, buffer in ends):
            return 0
        if not is_known and (index := first_difference(wanted, written)) is not None:
            self._differs(part.start + index)
            return part.length
        found = [
            self._digest(block, written[block.start - part.start : block.end - part.start])
            for block in part.split(BLOCK)
        ]
        if is_known:
            for block, digest in zip(part.split(BLOCK), found, strict=True):
                if digest != self._known.of(block.start // BLOCK):
                    self._look_closer(block, written[block.start - part.start : block.end - part.start], wanted, hand)
        return part.length

    def _read(self, end: Endpoint, start: int, buffer: memoryview, hand: Hand) -> bool:
        """Read a part, at the pace that is allowed; False if the job halted meanwhile."""
        while buffer:
            length = min(len(buffer), self.crew.request())
            self.crew.pace(length if end is self._destination else 0)
            if self.crew.halted:
                return False
            read_fully(end, start, buffer[:length], self._size, hand)
            start, buffer = start + length, buffer[length:]
        return True

    def _digest(self, block: Extent, data: memoryview) -> bytes:
        """Add a block to the checksum and return its digest."""
        if is_zero(data):
            return ZERO
        index, digest = block.start // BLOCK, digest_of(data)
        term = contribution(index, digest)
        with self._counting:
            self.contributions += term
        return digest

    def _look_closer(self, block: Extent, written: memoryview, wanted: memoryview, hand: Hand) -> None:
        """Find the first byte that differs in a block whose digest does.

        If none does, the source reads differently now than in the copy, and what it is now is what was written.
        """
        wanted = wanted[: block.length]
        if self._read(self._source, block.start, wanted, hand):
            index = first_difference(wanted, written)
            if index is not None:
                self._differs(block.start + index)

    def _differs(self, offset: int) -> None:
        """Note a difference: no part behind it is begun, and those before it are under way."""
        with self._counting:
            self.different = offset if self.different is None else min(self.different, offset)

    def progress(self) -> Progress:
        waited = self.crew.waited()
        with self._counting:
            done = min(self._under_way, default=self._handed_out)
            return Progress(self._size, done, self._bytes_read, 0, waited)
