"""The copy engine: moves the bytes of one endpoint to another, in the order in which this file reads.

    copy      supervises: checkpoints, progress, the end
    _Copy     what is to be done (the extents of what is not done yet, cut into pieces), and what each thread does with
              a piece; what was done
    Crew      the threads: the first error wins and stops the others
    Control   how somebody else stops or slows the job while it runs

Rules, each kept by a test:

 1. Nothing is reported as done before a flush that began after it was written has succeeded.
 2. A hole of the source is skipped only on a destination that reads as zeros there; otherwise it is zeroed, so that
    a destination that was used before never shows what it held (LP2045431).
 3. Reads and writes may be short.  An end of the source that comes early, or sizes that differ, are errors.
 4. Memory is bounded by ``threads`` buffers of one block, whatever the size of the volume.
 5. Whoever opened the endpoints closes them; when the engine returns or raises, no call to them is under way.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from migrator.volume.endpoints import Endpoint, WriteFailed, WrongSize, is_zero, read_failed, write_failed
from migrator.volume.extents import BLOCK, Extent, Ranges

#: Zeros inside a block of data are looked for in this unit: small enough not to inflate a sparse volume on a source
#: that cannot tell its holes, large enough that looking at 1 MiB of random data costs some microseconds.
GRANULE = 64 * 1024
#: What is zeroed at once where length does not matter: little enough to notice a stop within a second anyway.
ZERO_PIECE = 64 * BLOCK
#: Memory that the buffers of one job may take together.
MAX_BUFFERS = 32 * BLOCK
#: Seconds between two reports of progress; a stop from inside such a report is therefore noticed in time.
TICK_SECONDS = 0.25
#: A rate limit lets through at once what it allows in this time, so that it is met over seconds and not in jerks.
BURST_SECONDS = 0.25


# --- what goes in and comes out --------------------------------------------------------------------------------------


class Stopped(Exception):
    """The job was told to stop and did; ``reason`` is ``cancel`` or ``pause``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class CopyOptions:
    """Two threads of 1 MiB were the fastest of all that was tried on one disk; a far target wants more."""

    threads: int = 2
    block: int = BLOCK
    checkpoint_seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.threads < 1 or self.block < 1 or self.threads * self.block > MAX_BUFFERS:
            raise ValueError(f"{self.threads} threads with {self.block} bytes each")


@dataclass(frozen=True)
class Progress:
    """Finished work, in bytes: of the volume's ``bytes_total`` so many are dealt with, holes and earlier runs counted.

    ``bytes_read`` and ``bytes_written`` are the data that this run moved.
    """

    bytes_total: int
    bytes_done: int
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """What survives a power cut: the ranges that need never be copied again."""

    ranges: list[list[int]]
    progress: Progress


@dataclass(frozen=True)
class Result:
    progress: Progress
    seconds: float


# --- control ---------------------------------------------------------------------------------------------------------


class Control:
    """How another thread stops a job or changes its rate; one per job."""

    def __init__(self, bytes_per_second: float | None = None) -> None:
        self.bytes_per_second = bytes_per_second
        self.reason: str | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._tokens = 0.0
        self._filled_at = time.monotonic()

    def stop(self, reason: str) -> None:
        """Ask the job to stop; the first reason counts."""
        with self._lock:
            self.reason = self.reason or reason
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the job is to stop."""
        self._stop.wait(seconds)

    def admit(self, length: int) -> float:
        """Take ``length`` bytes out of the bucket and return 0, or the seconds after which to ask again.

        The bucket may go into debt, so that a request larger than it gets through; the next ones wait for that.
        """
        with self._lock:
            rate, now = self.bytes_per_second, time.monotonic()
            passed, self._filled_at = now - self._filled_at, now
            if rate is None:
                self._tokens = 0.0
                return 0.0
            self._tokens = min(self._tokens + passed * rate, rate * BURST_SECONDS)
            if self._tokens < 0 or rate <= 0:
                return -self._tokens / rate if rate > 0 else TICK_SECONDS
            self._tokens -= length
            return 0.0


# --- threads ---------------------------------------------------------------------------------------------------------


class Crew:
    """Threads that share one job, each with a page-aligned buffer of its own; used as a context manager.

    Leaving the context waits until every thread has ended; leaving it by an exception makes them end.  What went
    wrong first is kept in ``error``.
    """

    def __init__(self, control: Control) -> None:
        self.changed = threading.Condition()
        self.error: BaseException | None = None
        self._control = control
        self._running = 0

    @property
    def halted(self) -> bool:
        """True when the threads should end: the job was stopped, or one of them failed."""
        return self.error is not None or self._control.reason is not None

    def start(self, threads: int, buffer: int, work: Callable[[memoryview], None]) -> None:
        for number in range(threads):
            thread = threading.Thread(target=self._run, args=(work, buffer), name=f"copy-{number}", daemon=True)
            with self.changed:
                self._running += 1
            thread.start()

    def _run(self, work: Callable[[memoryview], None], buffer: int) -> None:
        try:
            work(memoryview(mmap.mmap(-1, buffer)))
        except BaseException as error:  # the top of a thread: whatever it is, the caller's thread raises it
            self.fail(error)
        finally:
            with self.changed:
                self._running -= 1
                self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def pace(self, length: int) -> None:
        """Wait as long as the rate limit asks for before ``length`` bytes are moved."""
        while not self.halted and (seconds := self._control.admit(length)):
            self._control.wait(min(seconds, TICK_SECONDS))

    def work_on(self, seconds: float) -> bool:
        """Let the threads work for so long; False once they all have ended."""
        with self.changed:
            return not self.changed.wait_for(lambda: not self._running, seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error)
        with self.changed:
            self.changed.wait_for(lambda: not self._running)


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
    _check_ends(source, destination)
    job = _Copy(source, destination, done, destination_is_zero, options.block, Crew(control))
    with job.crew as crew:
        crew.start(options.threads, options.block, job.work)
        due = began + options.checkpoint_seconds
        while crew.work_on(TICK_SECONDS if crew.halted else min(TICK_SECONDS, max(0.0, due - time.monotonic()))):
            if crew.halted:
                continue
            on_progress(job.progress())
            if time.monotonic() >= due:
                on_checkpoint(job.checkpoint())
                due = time.monotonic() + options.checkpoint_seconds
    if crew.error is not None:
        raise crew.error
    complete = job.is_complete()
    if complete or control.reason == "pause":
        on_checkpoint(job.checkpoint())
    if not complete:
        raise Stopped(control.reason or "cancel")
    return Result(job.progress(), time.monotonic() - began)


def _check_ends(source: Endpoint, destination: Endpoint) -> None:
    if source.place == destination.place:
        # Copied onto itself it would look like success, and then the source is deleted (LP1404013, LP1798468).
        raise WriteFailed(destination.name, reason="it is the source itself")
    if destination.size != source.size:
        raise WrongSize(destination.name, wanted=source.size, got=destination.size)


class _Copy:
    """One run of the engine: the pieces that are left, shared by the threads, and what came of them."""

    def __init__(
        self, source: Endpoint, destination: Endpoint, done: Ranges, destination_is_zero: bool, block: int, crew: Crew
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
        self._block = block
        self._lock = threading.Lock()
        self._done = done.within(0, self._size)
        self._bytes_read = self._bytes_written = 0
        self._reached = 0
        self._pieces = self._cut()

    # --- what is to be done

    def _cut(self) -> Iterator[Extent]:
        """Yield the pieces of what is not done, lazily: a volume may have millions of extents."""
        zero_piece = self._block if self._writes_zeros else ZERO_PIECE
        for start, length in self._done.remaining(0, self._size):
            self._reached = start
            for extent in self._source.extents(start, length):
                if not extent.is_data and self._destination_is_zero:
                    yield extent
                else:
                    yield from extent.split(self._block if extent.is_data else zero_piece)
                self._reached = extent.end

    def _next(self) -> Extent | None:
        with self._lock:
            try:
                return next(self._pieces, None)
            except OSError as error:
                raise read_failed(self._source.name, self._reached, error) from error

    # --- what a thread does

    def work(self, buffer: memoryview) -> None:
        while not self.crew.halted and (piece := self._next()) is not None:
            if piece.is_data or self._writes_zeros:
                self.crew.pace(piece.length)
                if self.crew.halted:
                    return
            read = written = 0
            if piece.is_data:
                read, written = piece.length, self._copy_data(piece, buffer[: piece.length])
            else:
                self._zero(piece.start, piece.length)
            with self._lock:
                self._done.add(piece.start, piece.length)
                self._bytes_read += read
                self._bytes_written += written

    def _copy_data(self, piece: Extent, buffer: memoryview) -> int:
        read_fully(self._source, piece.start, buffer, self._size)
        written = 0
        for start, length, is_data in _runs(buffer):
            if is_data:
                self._write(piece.start + start, buffer[start : start + length])
                written += length
            else:
                self._zero(piece.start + start, length)
        return written

    def _write(self, offset: int, data: memoryview) -> None:
        while data:
            try:
                count = self._destination.pwrite(offset, data)
            except OSError as error:
                raise write_failed(self._destination.name, offset, error) from error
            if count <= 0:
                raise WriteFailed(self._destination.name, offset=offset, wanted=len(data), reason="wrote nothing")
            offset, data = offset + count, data[count:]

    def _zero(self, start: int, length: int) -> None:
        """Make sure that the destination reads as zeros there."""
        if self._destination_is_zero:
            return
        try:
            self._destination.zero(start, length)
        except OSError as error:
            raise write_failed(self._destination.name, start, error, "zeroing: ") from error

    # --- what was done

    def progress(self) -> Progress:
        with self._lock:
            return Progress(self._size, self._done.total, self._bytes_read, self._bytes_written)

    def is_complete(self) -> bool:
        """Tell whether every byte is dealt with; raises WrongSize if the source is not as large as it was."""
        if self._source.size != self._size:
            raise WrongSize(self._source.name, wanted=self._size, got=self._source.size)
        complete = not self._done.remaining(0, self._size)
        # Extents with a gap between them would otherwise look like a success.
        assert complete or self.crew.halted, f"{self._source.name}: its extents left out {self._done}"
        return complete

    def checkpoint(self) -> Checkpoint:
        """Flush the destination; return what was done before that began."""
        progress = self.progress()
        with self._lock:
            ranges = self._done.as_list()
        try:
            self._destination.flush()
        except OSError as error:
            raise write_failed(self._destination.name, 0, error, "flushing: ") from error
        return Checkpoint(ranges, progress)


def read_fully(endpoint: Endpoint, offset: int, buffer: memoryview, size: int) -> None:
    """Fill the buffer; raises ReadFailed, or WrongSize when the end comes before ``size``."""
    while buffer:
        try:
            count = endpoint.pread_into(offset, buffer)
        except OSError as error:
            raise read_failed(endpoint.name, offset, error) from error
        if count <= 0:
            raise WrongSize(endpoint.name, offset=offset, wanted=size, got=offset)
        offset, buffer = offset + count, buffer[count:]


def _runs(buffer: memoryview) -> Iterator[Extent]:
    """Divide a block into runs of data and of zeros, in granules."""
    if is_zero(buffer):
        yield Extent(0, len(buffer), False)
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
