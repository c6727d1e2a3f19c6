"""Comparison of a copy with its source, read back from where it lies, and the checksum of what was read."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator

import xxhash

from migrator.volume.copy import TICK_SECONDS, Control, Crew, Progress, Stopped, read_fully
from migrator.volume.endpoints import Different, Endpoint, WrongSize, first_difference, is_zero, read_failed
from migrator.volume.extents import BLOCK, Extent

THREADS = 2
_OFFSET_BYTES = 8


def verify(
    source: Endpoint,
    destination: Endpoint,
    *,
    control: Control,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> str:
    """Compare all that either end calls data, and return the checksum of the volume: ``xxh3-128:<hex>``.

    The checksum is that of every 1 MiB block which is not all zeros (the last may be shorter), in order, each behind
    its offset as 8 bytes, least significant first: so it does not depend on how an end lays out its holes.  Both
    endpoints should have been opened for reading only, after the last flush: then they read what is stored, not what
    is cached.  Raises Different with the offset of the first byte that differs, other CopyErrors, or Stopped.
    """
    if destination.size != source.size:
        raise WrongSize(destination.name, wanted=source.size, got=destination.size)
    job = _Verify(source, destination, Crew(control))
    with job.crew as crew:
        crew.start(THREADS, 2 * BLOCK, job.work)
        while crew.work_on(TICK_SECONDS):
            on_progress(job.progress())
    if crew.error is not None:
        raise crew.error
    if control.reason is not None:
        raise Stopped(control.reason)
    return f"xxh3-128:{job.hash.hexdigest()}"


class _Verify:
    """One comparison: threads read blocks ahead, but judge them in the order of the volume."""

    def __init__(self, source: Endpoint, destination: Endpoint, crew: Crew) -> None:
        self.crew = crew
        self.hash = xxhash.xxh3_128()
        self._ends = (source, destination)
        self._size = source.size
        self._lock = threading.Lock()
        self._blocks = enumerate(self._data())
        self._turn = 0
        self._bytes_done = self._bytes_read = 0

    def _data(self) -> Iterator[Extent]:
        """Yield, block by block, what either end calls data, in whole blocks, so that the checksum sees whole ones."""
        reached = 0
        for start, end in heapq.merge(*map(self._data_of, self._ends)):
            start = max(start // BLOCK * BLOCK, reached)
            reached = max(reached, min(-(-end // BLOCK) * BLOCK, self._size))
            yield from Extent(start, reached - start, True).split(BLOCK)

    def _data_of(self, end: Endpoint) -> Iterator[tuple[int, int]]:
        reached = 0
        try:
            for extent in end.extents(0, self._size):
                if extent.is_data:
                    yield extent.start, extent.end
                reached = extent.end
        except OSError as error:
            raise read_failed(end.name, reached, error) from error
        assert reached == self._size, f"{end.name}: its extents end at {reached}"

    def work(self, buffer: memoryview) -> None:
        while not self.crew.halted:
            with self._lock:
                number, block = next(self._blocks, (0, None))
            if block is None:
                return
            self.crew.pace(block.length)
            buffers = (buffer[: block.length], buffer[BLOCK : BLOCK + block.length])
            for end, part in zip(self._ends, buffers, strict=True):
                read_fully(end, block.start, part, self._size)
            difference = first_difference(*buffers)
            if self._wait_for_turn(number):
                self._judge(block, buffers[0], difference)

    def _wait_for_turn(self, number: int) -> bool:
        """Wait until all blocks before this one were judged; False if the job halted meanwhile."""
        with self.crew.changed:
            while self._turn != number and not self.crew.halted:
                self.crew.changed.wait(TICK_SECONDS)
        return not self.crew.halted

    def _judge(self, block: Extent, data: memoryview, difference: int | None) -> None:
        if difference is not None:
            raise Different(self._ends[1].name, offset=block.start + difference)
        if not is_zero(data):
            self.hash.update(block.start.to_bytes(_OFFSET_BYTES, "little"))
            self.hash.update(data)
        with self.crew.changed:
            self._turn += 1
            self._bytes_done = block.end
            self._bytes_read += block.length
            self.crew.changed.notify_all()

    def progress(self) -> Progress:
        with self.crew.changed:
            return Progress(self._size, self._bytes_done, self._bytes_read)
