"""Extents of a volume and sets of byte ranges: the arithmetic of what is to be copied and what is done."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

#: Work is cut at multiples of it. 1 MiB keeps a disk busy with two requests in flight; larger buffers gained nothing.
BLOCK = 1 << 20


class Extent(NamedTuple):
    """``length`` bytes at ``start`` that hold data, or read as zeros; data is an upper bound."""

    start: int
    length: int
    is_data: bool

    @property
    def end(self) -> int:
        return self.start + self.length

    def split(self, block: int = BLOCK) -> Iterator[Extent]:
        """Cut it at every multiple of ``block``."""
        start = self.start
        while start < self.end:
            end = min(self.end, (start // block + 1) * block)
            yield Extent(start, end - start, self.is_data)
            start = end


def units(extents: Iterable[Extent], size: Callable[[], int]) -> Iterator[list[Extent]]:
    """Put neighbouring extents together, so that all data between two multiples of a unit comes at once.

    ``size`` is asked for each unit, in bytes.

    A group has the data of one unit with the holes around it, or a hole alone, of whole units as far as possible and
    of any length.
    """
    group: list[Extent] = []
    unit = border = 0  # where the unit of the group ends
    for extent in extents:
        start = extent.start
        while start < extent.end:
            if group and start >= border:
                yield group
                group = []
            if not group:
                unit = size()
                border = (start // unit + 1) * unit
            end = min(extent.end, border)
            if not extent.is_data and not group and extent.end > border:
                end = extent.end // unit * unit
                yield [Extent(start, end - start, False)]
            else:
                group.append(Extent(start, end - start, extent.is_data))
            start = end
    if group:
        yield group


class Ranges:
    """A set of bytes as ``[start, length]`` pairs: sorted, disjoint, neighbours merged."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, pairs: Iterable[Sequence[int]] = ()) -> None:
        """Raises ValueError for a negative start or length."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, length in pairs:
            self.add(start, length)

    def add(self, start: int, length: int) -> None:
        """Put the bytes in, whether or not some are there already."""
        if start < 0 or length < 0:
            raise ValueError(f"no range: {length} bytes at {start}")
        if not length:
            return
        end = start + length
        first = bisect_left(self._ends, start)
        behind = bisect_right(self._starts, end)
        if first < behind:
            start = min(start, self._starts[first])
            end = max(end, self._ends[behind - 1])
        self._starts[first:behind] = [start]
        self._ends[first:behind] = [end]

    def merge(self, other: Ranges) -> None:
        """Put in all bytes of ``other``."""
        for start, length in other.as_list():
            self.add(start, length)

    def remaining(self, start: int, length: int) -> list[list[int]]:
        """Return, as pairs, the bytes of the given range that are not in the set."""
        end = start + length
        gaps = []
        for index in range(bisect_right(self._ends, start), len(self._starts)):
            if self._starts[index] >= end:
                break
            if self._starts[index] > start:
                gaps.append([start, self._starts[index] - start])
            start = self._ends[index]
        if start < end:
            gaps.append([start, end - start])
        return gaps

    def within(self, start: int, length: int) -> Ranges:
        """Return the part of the set that lies in the given range."""
        gaps = Ranges(self.remaining(start, length))
        return Ranges(gaps.remaining(start, length))

    @property
    def total(self) -> int:
        """Number of bytes in the set."""
        return sum(self._ends) - sum(self._starts)

    def as_list(self) -> list[list[int]]:
        return [[start, end - start] for start, end in zip(self._starts, self._ends, strict=True)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self.as_list() == other.as_list()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ranges({self.as_list()})"
