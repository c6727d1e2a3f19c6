"""The checksum of a volume, and the digests of its blocks from which it is made.

The format, ``xxh3-128:<32 hexadecimal digits>``: the volume is cut into blocks of 1 MiB, the last of which may be
shorter.  The digest of a block is the XXH3-128 of its bytes (in the canonical order of its bytes, most significant
first).  Every block that is not all zeros contributes the XXH3-128 of its offset, as 8 bytes with the least significant
first, followed by its digest.  The checksum is the sum of all contributions as numbers, modulo 2 ** 128.

So it depends on the bytes alone: not on the order in which threads come by, nor on how an end lays out its holes.  It
finds faults of hardware and software; it is no proof against somebody who wants two volumes to look alike.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterator

import xxhash

from migrator.volume.extents import BLOCK, Ranges

DIGEST = 16
#: The digest that stands for a block of zeros; that a real one has it is as likely as any other mistake of a digest.
ZERO = bytes(DIGEST)
#: Memory that the digests of one volume may take; what does not fit is not known, and both ends are compared there.
TABLE_BYTES = 16 << 20
_PAGE = 64  # digests in one piece of the table
_PAGE_COST = _PAGE * DIGEST + 120  # with what Python adds
_OFFSET_BYTES = 8
_MODULUS = 1 << 128
_ZEROS = memoryview(mmap.mmap(-1, BLOCK))


def digest_of(block: memoryview) -> bytes:
    """Return the digest of a whole block that is not all zeros."""
    return xxhash.xxh3_128_digest(block)


@functools.lru_cache(maxsize=4)
def _of_zeros(length: int) -> bytes:
    return xxhash.xxh3_128_digest(_ZEROS[:length])


def contribution(index: int, digest: bytes) -> int:
    """Return what a block that is not all zeros adds to the checksum of its volume."""
    text = (index * BLOCK).to_bytes(_OFFSET_BYTES, "little") + digest
    return int.from_bytes(xxhash.xxh3_128_digest(text), "big")


def checksum(contributions: int) -> str:
    """Return the checksum that a sum of contributions makes."""
    return f"xxh3-128:{contributions % _MODULUS:032x}"


class Stretch:
    """Digests the whole blocks in a part of a volume whose bytes are fed in order, from ``start`` on."""

    def __init__(self, start: int, size: int) -> None:
        self._offset = start
        self._size = size
        self._state: xxhash.xxh3_128 | None = None
        #: Zeros since the last data of the block.
        self._zeros = 0
        # A block whose beginning is not seen has no digest.
        self._is_whole = start % BLOCK == 0
        self.start = -(-start // BLOCK) * BLOCK
        #: Behind the last whole block so far.
        self.end = self.start
        #: The whole blocks that are not all zeros.
        self.found: list[tuple[int, bytes]] = []

    def feed(self, data: memoryview) -> None:
        """Take bytes, zeros or not."""
        while data:
            part = data[: BLOCK - self._offset % BLOCK]
            data = data[len(part) :]
            if len(part) == BLOCK:
                self._offset = self.end = self._offset + BLOCK
                self._keep(digest_of(part), BLOCK)
                continue
            self._flush_zeros()
            assert self._state is not None, "made a line above"
            self._state.update(part)
            self._advance(len(part))

    def feed_zeros(self, length: int) -> None:
        while length:
            part = min(length, BLOCK - self._offset % BLOCK)
            length -= part
            self._zeros += part
            self._advance(part)

    def _flush_zeros(self) -> None:
        if self._state is None:
            self._state = xxhash.xxh3_128()
        self._state.update(_ZEROS[: self._zeros])
        self._zeros = 0

    def _advance(self, length: int) -> None:
        self._offset += length
        if self._offset % BLOCK and self._offset != self._size:
            return
        if self._is_whole:
            if self._state is not None:
                self._flush_zeros()
                self._keep(self._state.digest(), (self._offset - 1) % BLOCK + 1)
            self.end = self._offset
        self._state, self._zeros, self._is_whole = None, 0, True

    def _keep(self, digest: bytes, length: int) -> None:
        if digest != _of_zeros(length):
            self.found.append(((self._offset - 1) // BLOCK, digest))


class Digests:
    """What is known of the blocks of one volume; not for several threads at once."""

    def __init__(self, size: int, table_bytes: int = TABLE_BYTES) -> None:
        self._size = size
        self._most_pages = table_bytes // _PAGE_COST
        self._pages: dict[int, bytearray] = {}
        self._sum = 0
        #: Bytes whose blocks are in the sum, and bytes whose digests are in the table too; whole blocks each.
        self._summed = Ranges()
        self.known = Ranges()

    def add(self, stretch: Stretch) -> None:
        """Take what was found in a part of the volume."""
        if stretch.end <= stretch.start:
            return
        self._summed.add(stretch.start, stretch.end - stretch.start)
        reached = stretch.start
        for index, digest in stretch.found:
            self._sum = (self._sum + contribution(index, digest)) % _MODULUS
            if not self._keep(index, digest):
                self.known.add(reached, index * BLOCK - reached)
                reached = min((index + 1) * BLOCK, self._size)
        self.known.add(reached, stretch.end - reached)

    def add_zeros(self, start: int, length: int) -> None:
        """Take the whole blocks of a range that reads as zeros."""
        first = -(-start // BLOCK) * BLOCK
        end = start + length
        behind = end if end == self._size else end // BLOCK * BLOCK
        if behind > first:
            self._summed.add(first, behind - first)
            self.known.add(first, behind - first)

    def _keep(self, index: int, digest: bytes) -> bool:
        page = self._pages.get(index // _PAGE)
        if page is None:
            if len(self._pages) >= self._most_pages:
                return False
            page = self._pages[index // _PAGE] = bytearray(_PAGE * DIGEST)
        at = index % _PAGE * DIGEST
        page[at : at + DIGEST] = digest
        return True

    def of(self, index: int) -> bytes:
        """Return the digest of a block that is known, ZERO for one of zeros."""
        page = self._pages.get(index // _PAGE)
        at = index % _PAGE * DIGEST
        return ZERO if page is None else bytes(page[at : at + DIGEST])

    def data(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of every known block that is not all zeros, in order."""
        for number in sorted(self._pages):
            page = self._pages[number]
            for slot in range(_PAGE):
                if page[slot * DIGEST : (slot + 1) * DIGEST] != ZERO:
                    start = (number * _PAGE + slot) * BLOCK
                    yield start, min(start + BLOCK, self._size)

    @property
    def checksum(self) -> str | None:
        """The checksum of the volume; None unless all of it was taken."""
        return None if self._summed.remaining(0, self._size) else checksum(self._sum)
