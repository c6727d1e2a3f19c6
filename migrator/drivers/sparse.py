"""Sparse bytes in memory that know which writes a power cut would lose.

Kept are blocks of 64 KiB that were ever written, so a volume of 8 TiB costs what was written to it.  Blocks are
immutable and replaced whole: copies share them, and the content as of the last flush is kept for free.
"""

from __future__ import annotations

import mmap
import random
import threading
from collections.abc import Iterator
from typing import TypeAlias

BLOCK = 64 * 1024

Buffer: TypeAlias = "bytearray | memoryview | mmap.mmap"
"""Memory that is read into."""

Data: TypeAlias = "bytes | Buffer"
"""Memory that is written from."""

Extent: TypeAlias = tuple[int, int, bool]
"""Start, length, and whether it holds data; what holds none reads as zeros."""


class Sparse:
    """``size`` bytes, zeros at first.  Every call is atomic and may come from any thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._blocks: dict[int, bytes] = {}
        #: What the blocks written since the last flush held at that time; None: nothing.
        self._flushed: dict[int, bytes | None] = {}

    def read(self, offset: int, buffer: Buffer) -> int:
        """Fill ``buffer`` from ``offset``; return how many bytes lay before the end."""
        target = memoryview(buffer).cast("B")
        length = max(0, min(len(target), self.size - offset))
        with self._lock:
            for index, first, last, done in _pieces(offset, length):
                block = self._blocks.get(index)
                target[done : done + last - first] = bytes(last - first) if block is None else block[first:last]
        return length

    def write(self, offset: int, data: Data) -> int:
        """Write ``data`` at ``offset``; return how many bytes lay before the end."""
        source = memoryview(data).cast("B")
        length = max(0, min(len(source), self.size - offset))
        with self._lock:
            for index, first, last, done in _pieces(offset, length):
                self._put(index, first, bytes(source[done : done + last - first]))
        return length

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, and no longer hold data where it covers whole blocks; clipped at the end."""
        with self._lock:
            end = min(offset + length, self.size)
            # Whole blocks are looked up among those that exist, because the range may cover terabytes.
            first_whole, last_whole = -(-offset // BLOCK), end // BLOCK
            if end == self.size:
                last_whole = -(-end // BLOCK)
            for index in [i for i in self._blocks if first_whole <= i < last_whole]:
                self._keep(index)
                del self._blocks[index]
            for index in {offset // BLOCK, max(offset, end - 1) // BLOCK} & self._blocks.keys():
                first, last = max(offset - index * BLOCK, 0), min(end - index * BLOCK, BLOCK)
                if first < last:
                    self._put(index, first, bytes(last - first))

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        """Yield the extents of a range in order, neighbours of one kind merged, without a gap, clipped at the end."""
        end = min(start + length, self.size)
        with self._lock:
            held = sorted(i for i in self._blocks if start < (i + 1) * BLOCK and i * BLOCK < end)
        at = start
        for first, last in _runs(held):
            begin, stop = max(first * BLOCK, start), min(last * BLOCK, end)
            if at < begin:
                yield at, begin - at, False
            yield begin, stop - begin, True
            at = stop
        if at < end:
            yield at, end - at, False

    def flush(self) -> None:
        """Make every write so far survive a power cut."""
        with self._lock:
            self._flushed.clear()

    def power_cut(self, chance: random.Random | None = None) -> None:
        """Lose what was written since the last flush; with ``chance``, each block survives or not by it."""
        with self._lock:
            for index, block in sorted(self._flushed.items()):
                if chance is not None and chance.random() < 0.5:
                    continue
                if block is None:
                    self._blocks.pop(index, None)
                else:
                    self._blocks[index] = block
            self._flushed.clear()

    def copy(self, size: int) -> Sparse:
        """Return flushed, independent bytes of the same content, grown to ``size``."""
        other = Sparse(max(size, self.size))
        with self._lock:
            other._blocks = dict(self._blocks)
        return other

    def durable(self) -> Sparse:
        """Return, as flushed and independent bytes, what a power cut now would leave."""
        other = Sparse(self.size)
        with self._lock:
            blocks: dict[int, bytes | None] = {**self._blocks, **self._flushed}
        other._blocks = {index: block for index, block in blocks.items() if block is not None}
        return other

    @property
    def allocated(self) -> int:
        """Bytes of memory that the blocks stand for."""
        return len(self._blocks) * BLOCK

    def _keep(self, index: int) -> None:
        self._flushed.setdefault(index, self._blocks.get(index))

    def _put(self, index: int, first: int, piece: bytes) -> None:
        self._keep(index)
        if len(piece) < BLOCK:
            block = bytearray(self._blocks.get(index) or bytes(BLOCK))
            block[first : first + len(piece)] = piece
            piece = bytes(block)
        self._blocks[index] = piece


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield, block by block: its index, first and last byte inside it, and the bytes that came before."""
    done = 0
    while done < length:
        index, first = divmod(offset + done, BLOCK)
        last = min(BLOCK, first + length - done)
        yield index, first, last, done
        done += last - first


def _runs(indices: list[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last + 1 of each run of consecutive numbers."""
    begin = previous = None
    for index in indices:
        if begin is None or previous is None:
            begin = index
        elif index != previous + 1:
            yield begin, previous + 1
            begin = index
        previous = index
    if begin is not None and previous is not None:
        yield begin, previous + 1
