"""A disk in memory that can be dirty, short of breath, broken, full, and cut from power; and a copy between two."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import xxhash
from hypothesis import strategies as st

from migrator.volume.control import Control
from migrator.volume.copy import Checkpoint, CopyOptions, Progress, Result, copy
from migrator.volume.endpoints import Capabilities
from migrator.volume.extents import Extent, Ranges

UNIT = 512
Action = Callable[[], None]


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


def random_disk(size: int) -> Disk:
    return Disk(random.Random(size).randbytes(size))


def zero_disk(size: int) -> Disk:
    return Disk(bytes(size), set())


def naive(content: bytes) -> str:
    """The checksum in the plainest way (digests.py)."""
    total = 0
    for start in range(0, len(content), 1 << 20):
        block = content[start : start + (1 << 20)]
        if block.strip(b"\0"):
            digest = xxhash.xxh3_128(block).digest()
            total += xxhash.xxh3_128(start.to_bytes(8, "little") + digest).intdigest()
    return f"xxh3-128:{total % 2**128:032x}"
