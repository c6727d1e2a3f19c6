"""The copy engine: moves the bytes of one endpoint to another, in the order in which this file reads.

    copy      supervises: checkpoints, progress, the end
    _Copy     what is to be done (the extents of what is not done yet, in units), and what each thread does with a
              unit; what was done
    Crew      the threads: the first error wins and stops the others (crew.py)
    Tuner     how many of them work, and on how much at once (tuning.py)
    Control   how somebody else stops or slows the job while it runs (control.py)
    Digests   what passed by, for the checksum and the verification (digests.py)

Rules, each kept by a test:

 1. Nothing is reported as done before a flush that began after it was written has succeeded.
 2. A hole of the source is skipped only on a destination that reads as zeros there; otherwise it is zeroed, so that
    a destination that was used before never shows what it held (LP2045431).
 3. Reads and writes may be short.  An end of the source that comes early, or sizes that differ, are errors.
 4. Memory is bounded, whatever the size of the volume: that of buffers by tuning.py, that of digests by digests.py.
 5. Whoever opened the endpoints closes them; when the engine returns or raises, no call to them is under way.
 6. The calling thread calls no endpoint while threads work: it goes on reporting when a device hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import cast

from migrator.volume.control import TICK_SECONDS, Control, Stopped
from migrator.volume.crew import Crew, Hand
from migrator.volume.digests import Digests, Stretch
from migrator.volume.endpoints import (
    Cacheable,
    Endpoint,
    ReadFailed,
    WriteFailed,
    WrongSize,
    is_zero,
    read_failed,
    write_failed,
)
from migrator.volume.extents import BLOCK, Extent, Ranges, units
from migrator.volume.tuning import Tuner

#: Zeros inside a block of data are looked for in this unit: small enough not to inflate a sparse volume on a source
#: that cannot tell its holes, large enough that looking at 1 MiB of random data costs some microseconds.
GRANULE = 64 * 1024
#: What is zeroed at once where length does not matter: little enough to notice a stop within a second anyway.
ZERO_PIECE = 64 * BLOCK


# --- what goes in and comes out --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CopyOptions:
    """``threads`` and ``block`` (bytes) are found by measurement where they are None; raises ValueError."""

    threads: int | None = None
    block: int | None = None
    checkpoint_seconds: float = 2.0
    #: Make a checksum of what passes by.
    hash: bool = True

    def __post_init__(self) -> None:
        self.tuner()

    def tuner(self, buffers: int = 1, may_cache: bool = False) -> Tuner:
        return Tuner(depth=self.threads, block=self.block, buffers=buffers, may_cache=may_cache)


@dataclass(frozen=True)
class Progress:
    """Finished work, in bytes: of the volume's ``bytes_total`` so many are dealt with, holes and earlier runs counted.

    ``bytes_read`` and ``bytes_written`` are the data that this run moved.  ``waited_seconds``: for so long the oldest
    request under way has not come back.
    """

    bytes_total: int
    bytes_done: int
    bytes_read: int = 0
    bytes_written: int = 0
    waited_seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """What survives a power cut: the ranges that need never be copied again."""

    ranges: list[list[int]]
    progress: Progress


@dataclass(frozen=True)
class Result:
    """``digests`` are None where none were wanted; their checksum is None where an earlier run did a part."""

    progress: Progress
    seconds: float
    digests: Digests | None = None

    @property
    def checksum(self) -> str | None:
        return self.digests.checksum if self.digests is not None else None


# --- the copy --------------------------------------------------------------------------------------------------------


def copy(
    source: Endpoint,
    destination: Endpoint,
    *,
    done: Ranges,
    destination_is_zero: bool,
    options: CopyOptions,
    control: Control,
    on_checkpoint: Callable[[Checkpoint], None],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Make the destination equal to the source, except for ``done``, which an earlier run has checkpointed.

    ``destination_is_zero``: it read as zeros everywhere when it was new, and only copies of this source have written
    to it since.  The source may not change meanwhile.  Both callbacks run in the calling thread; what they raise ends
    the copy.  The last checkpoint has everything.  Raises CopyError, or Stopped (after a last checkpoint if the reason
    is ``pause``).
    """
    began = time.monotonic()
    size = _check_ends(source, destination)
    digests = Digests(size) if options.hash else None
    may_cache = any(end.capabilities.may_cache for end in (source, destination))
    crew = Crew(control, options.tuner(may_cache=may_cache))
    job = _Copy(source, destination, done, destination_is_zero, crew, digests)
    _supervise(job, options.checkpoint_seconds, on_checkpoint, on_progress)
    _raise(job.crew)
    complete = job.is_complete()
    if complete or control.reason == "pause":
        on_checkpoint(_last_flush(job, on_progress))
    if not complete:
        raise Stopped(control.reason or "cancel")
    return Result(job.progress(), time.monotonic() - began, digests)


def _check_ends(source: Endpoint, destination: Endpoint) -> int:
    if source.place == destination.place:
        # Copied onto itself it would look like success, and then the source is deleted (LP1404013, LP1798468).
        raise WriteFailed(destination.name, reason="it is the source itself")
    size = source.size
    if destination.size != size:
        raise WrongSize(destination.name, wanted=size, got=destination.size)
    return size


def _supervise(
    job: _Copy,
    checkpoint_seconds: float,
    on_checkpoint: Callable[[Checkpoint], None],
    on_progress: Callable[[Progress], None],
) -> None:
    """Let the threads work to their end; report progress, and from time to time have what they wrote flushed."""
    with job.crew as crew:
        crew.start(job.work)
        due = time.monotonic() + checkpoint_seconds
        while crew.work_on(min(TICK_SECONDS, max(0.0, due - time.monotonic())), job.has_flushed):
            on_progress(job.progress())
            if (checkpoint := job.take_checkpoint()) is not None:
                on_checkpoint(checkpoint)
                due = time.monotonic() + checkpoint_seconds
            elif time.monotonic() >= due and not crew.halted:
                crew.aside(job.flush)
                due = float("inf")


def _raise(crew: Crew) -> None:
    if crew.error is not None:
        raise crew.error


def _last_flush(job: _Copy, on_progress: Callable[[Progress], None]) -> Checkpoint:
    job.take_checkpoint()  # one that nobody looked at any more
    with job.crew as crew:
        crew.aside(job.flush)
        while crew.work_on(TICK_SECONDS):
            on_progress(job.progress())
    _raise(crew)
    checkpoint = job.take_checkpoint()
    assert checkpoint is not None, "a flush makes a checkpoint or an error"
    return checkpoint


class _Copy:
    """One run of the engine: the units that are left, shared by the threads, and what came of them."""

    def __init__(
        self,
        source: Endpoint,
        destination: Endpoint,
        done: Ranges,
        destination_is_zero: bool,
        crew: Crew,
        digests: Digests | None,
    ) -> None:
        self.crew = crew
        self._source = source
        self._destination = destination
        self._size = source.size
        # Why a resumed copy may skip holes too: what is not in ``done`` may hold writes of the run before, newer than
        # its last checkpoint and torn by a crash.  But it wrote only where the source has data, and only the source's
        # own bytes; where this run finds zeros, that one can have written nothing but zeros.
        self._destination_is_zero = destination_is_zero
        self._writes_zeros = not destination_is_zero and not destination.capabilities.zeroes_cheaply
        self._digests = digests
        # Two locks: whoever asks the source for its extents may wait for a device, whoever counts may not.
        self._planning = Lock()
        self._counting = Lock()
        self._done = done.within(0, self._size)
        self._bytes_read = self._bytes_written = 0
        self._reached = 0
        self._uses_cache = False
        self._checkpoint: Checkpoint | None = None
        self._units = self._plan(self._done.remaining(0, self._size))

    # --- what is to be done

    def _plan(self, gaps: list[list[int]]) -> Iterator[list[Extent]]:
        """Yield the units of what is not done, lazily: a volume may have millions of extents."""
        for start, length in gaps:
            tiled = self._tiled(start, self._source.extents(start, length), start + length)
            for group in units(tiled, self._unit):
                if any(extent.is_data for extent in group) or self._destination_is_zero:
                    yield group
                else:
                    start, end = group[0].start, group[-1].end
                    hole = Extent(start, end - start, False)
                    yield from ([piece] for piece in hole.split(BLOCK if self._writes_zeros else ZERO_PIECE))

    def _unit(self) -> int:
        """What a thread takes at once: whole blocks of the checksum, and at least one request."""
        return max(BLOCK, self.crew.tuner.setting.block // BLOCK * BLOCK)

    def _tiled(self, start: int, extents: Iterable[Extent], end: int) -> Iterator[Extent]:
        """Pass extents on; a gap between two of them would otherwise look like a success."""
        self._reached = start
        for extent in extents:
            if extent.start != self._reached:
                break
            yield extent
            self._reached = extent.end
        if self._reached != end:
            raise ReadFailed(self._source.name, offset=self._reached, wanted=end, reason="its extents leave a gap")

    def _next(self, hand: Hand) -> list[Extent] | None:
        hand.begin()
        with self._planning:
            self._go_as_tuned()
            try:
                return next(self._units, None)
            except OSError as error:
                raise read_failed(self._source.name, self._reached, error) from error
            finally:
                hand.end()

    def _go_as_tuned(self) -> None:
        """Have both ends go through the page cache, or past it."""
        wanted = self.crew.tuner.setting.cached
        if wanted == self._uses_cache:
            return
        for end, failed in ((self._source, read_failed), (self._destination, write_failed)):
            if end.capabilities.may_cache:
                try:
                    cast(Cacheable, end).use_cache(wanted)
                except OSError as error:
                    raise failed(end.name, self._reached, error) from error
        self._uses_cache = wanted

    # --- what a thread does

    def work(self, hand: Hand) -> int | None:
        """Deal with one unit; returns how many bytes that moved, None when there is none left."""
        group = self._next(hand)
        if group is None:
            return None
        unit = _Unit(self._size, group, self._digests is not None)
        has_data = any(extent.is_data for extent in group)
        for extent in group:
            for piece in self._requests(extent):
                if piece.is_data or self._writes_zeros:
                    self.crew.pace(piece.length)
                if self.crew.halted:
                    self._count(unit)
                    return 0
                if piece.is_data:
                    self._copy_data(piece, hand, unit)
                else:
                    self._zero(piece.start, piece.length, hand)
                    if has_data:
                        unit.zeros(piece.length)
                unit.reached = piece.end
                if unit.reached - unit.counted >= self.crew.request():
                    self._count(unit)
        self._count(unit)
        self._digest(unit, group if not has_data else [])
        return unit.moved

    def _requests(self, extent: Extent) -> Iterator[Extent]:
        """Cut data into requests, and zeros too if they have to be written."""
        if not extent.is_data and not self._writes_zeros:
            yield extent
            return
        while extent.length:
            length = self.crew.request()
            # Behind a beginning that no alignment divides, the following requests are aligned again.
            head = extent._replace(length=min(length - extent.start % length, extent.length))
            yield head
            extent = Extent(head.end, extent.length - head.length, extent.is_data)

    def _copy_data(self, piece: Extent, hand: Hand, unit: _Unit) -> None:
        buffer = hand.take(max(self.crew.tuner.setting.block, piece.length))[: piece.length]
        read_fully(self._source, piece.start, buffer, self._size, hand)
        unit.read += piece.length
        for start, length, is_data in _runs(buffer):
            part = buffer[start : start + length]
            if is_data:
                self._write(piece.start + start, part, hand)
                unit.data(part)
            else:
                self._zero(piece.start + start, length, hand)
                unit.zeros(length)

    def _write(self, offset: int, data: memoryview, hand: Hand) -> None:
        while data:
            hand.begin()
            try:
                count = self._destination.pwrite(offset, data)
            except OSError as error:
                raise write_failed(self._destination.name, offset, error) from error
            hand.end()
            if count <= 0:
                raise WriteFailed(self._destination.name, offset=offset, wanted=len(data), reason="wrote nothing")
            offset, data = offset + count, data[count:]

    def _zero(self, start: int, length: int, hand: Hand) -> None:
        """Make sure that the destination reads as zeros there."""
        if self._destination_is_zero:
            return
        hand.begin()
        try:
            self._destination.zero(start, length)
        except OSError as error:
            raise write_failed(self._destination.name, start, error, "zeroing: ") from error
        hand.end()

    # --- what was done

    def _count(self, unit: _Unit) -> None:
        with self._counting:
            self._done.add(unit.counted, unit.reached - unit.counted)
            self._bytes_read += unit.read
            self._bytes_written += unit.written
        unit.moved += unit.read + unit.written
        unit.counted, unit.read, unit.written = unit.reached, 0, 0

    def _digest(self, unit: _Unit, holes: list[Extent]) -> None:
        if self._digests is None:
            return
        with self._counting:
            for hole in holes[:1]:
                self._digests.add_zeros(hole.start, holes[-1].end - hole.start)
            if unit.stretch is not None and not holes:
                self._digests.add(unit.stretch)

    def progress(self) -> Progress:
        waited = self.crew.waited()
        with self._counting:
            return Progress(self._size, self._done.total, self._bytes_read, self._bytes_written, waited)

    def is_complete(self) -> bool:
        """Tell whether every byte is dealt with; raises WrongSize if the source is not as large as it was."""
        if self._source.size != self._size:
            raise WrongSize(self._source.name, wanted=self._size, got=self._source.size)
        complete = not self._done.remaining(0, self._size)
        assert complete or self.crew.halted, f"{self._source.name}: left out all but {self._done}"
        return complete

    def flush(self, hand: Hand) -> None:
        """Flush the destination; what was done before that began is then to be had from ``take_checkpoint``."""
        progress = self.progress()
        with self._counting:
            ranges = self._done.as_list()
        hand.begin()
        try:
            self._destination.flush()
        except OSError as error:
            raise write_failed(self._destination.name, 0, error, "flushing: ") from error
        hand.end()
        self.crew.tuner.disturb()
        with self.crew.changed:
            self._checkpoint = Checkpoint(ranges, progress)
            self.crew.changed.notify_all()

    def has_flushed(self) -> bool:
        return self._checkpoint is not None

    def take_checkpoint(self) -> Checkpoint | None:
        with self.crew.changed:
            checkpoint, self._checkpoint = self._checkpoint, None
        return checkpoint


class _Unit:
    """How far a thread is with its unit; ``read`` and ``written`` were not counted yet."""

    def __init__(self, size: int, group: list[Extent], with_digest: bool) -> None:
        self.reached = self.counted = group[0].start
        self.read = self.written = self.moved = 0
        self.stretch = Stretch(self.reached, size) if with_digest else None

    def data(self, part: memoryview) -> None:
        self.written += len(part)
        if self.stretch is not None:
            self.stretch.feed(part)

    def zeros(self, length: int) -> None:
        if self.stretch is not None:
            self.stretch.feed_zeros(length)


# --- bytes -----------------------------------------------------------------------------------------------------------


def read_fully(endpoint: Endpoint, offset: int, buffer: memoryview, size: int, hand: Hand) -> None:
    """Fill the buffer; raises ReadFailed, or WrongSize when the end comes before ``size``."""
    while buffer:
        hand.begin()
        try:
            count = endpoint.pread_into(offset, buffer)
        except OSError as error:
            raise read_failed(endpoint.name, offset, error) from error
        hand.end()
        if count <= 0:
            raise WrongSize(endpoint.name, offset=offset, wanted=size, got=offset)
        offset, buffer = offset + count, buffer[count:]


def _runs(buffer: memoryview) -> Iterator[Extent]:
    """Divide a block into runs of data and of zeros, in granules."""
    if is_zero(buffer):
        yield Extent(0, len(buffer), False)
        return
    if 0 not in bytes(buffer[::GRANULE]):  # each granule begins with something: most data is soon told
        yield Extent(0, len(buffer), True)
        return
    run = Extent(0, 0, True)
    for granule in Extent(0, len(buffer), True).split(GRANULE):
        is_data = not is_zero(buffer[granule.start : granule.end])
        if is_data != run.is_data:
            if run.length:
                yield run
            run = Extent(granule.start, 0, is_data)
        run = run._replace(length=granule.end - run.start)
    yield run
