"""Digests of blocks and the checksum that they make: of the bytes alone, in any order, in bounded memory."""

from __future__ import annotations

import random
import sys

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.volume.digests import DIGEST, ZERO, Digests, Stretch, checksum, contribution
from migrator.volume.extents import BLOCK, Extent
from tests.support.disks import naive

SIZE = 5 * BLOCK + 4097


def volume(seed: int, size: int = SIZE) -> bytes:
    chance = random.Random(seed)
    content = bytearray(size)
    for start in range(0, size, BLOCK // 4):
        if chance.random() < 0.5:
            content[start : start + 1000] = chance.randbytes(min(1000, size - start))
    return bytes(content)


def fed(content: bytes, start: int, end: int, cuts: list[int]) -> Stretch:
    """Feed a part in pieces; some that are zeros as what they are."""
    stretch = Stretch(start, len(content))
    for one, other in zip([start, *cuts], [*cuts, end], strict=True):
        piece = content[one:other]
        if piece.strip(b"\0") or one % 2:
            stretch.feed(memoryview(bytearray(piece)))
        else:
            stretch.feed_zeros(len(piece))
    return stretch


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 20), st.lists(st.integers(0, SIZE), max_size=8), st.randoms(use_true_random=False))
def test_any_division_in_any_order_gives_the_checksum_of_the_bytes(
    seed: int, cuts: list[int], chance: random.Random
) -> None:
    content = volume(seed)
    digests = Digests(SIZE)
    stretches = []
    for start in range(0, SIZE, 2 * BLOCK):
        end = min(start + 2 * BLOCK, SIZE)
        stretches.append(fed(content, start, end, sorted(cut for cut in cuts if start <= cut <= end)))
    chance.shuffle(stretches)
    for stretch in stretches:
        assert digests.checksum is None
        digests.add(stretch)
    assert digests.checksum == naive(content)
    for block in Extent(0, SIZE, True).split():
        data = content[block.start : block.end]
        wanted = xxhash.xxh3_128(data).digest() if data.strip(b"\0") else ZERO
        assert digests.of(block.start // BLOCK) == wanted


def test_a_block_whose_beginning_or_end_is_missing_is_not_known() -> None:
    content = b"x" * SIZE
    digests = Digests(SIZE)
    digests.add(fed(content, BLOCK // 2, 3 * BLOCK + 1, []))
    assert digests.known.as_list() == [[BLOCK, 2 * BLOCK]]
    digests.add(fed(content, BLOCK // 2, BLOCK, []))
    assert digests.known.as_list() == [[BLOCK, 2 * BLOCK]]
    digests.add(fed(content, 4 * BLOCK, SIZE, []))
    assert digests.known.as_list() == [[BLOCK, 2 * BLOCK], [4 * BLOCK, SIZE - 4 * BLOCK]]
    assert digests.checksum is None


@pytest.mark.parametrize(
    ("start", "length", "known"),
    [
        (0, SIZE, [[0, SIZE]]),
        (1, SIZE - 1, [[BLOCK, SIZE - BLOCK]]),
        (BLOCK, BLOCK + 5, [[BLOCK, BLOCK]]),
        (5 * BLOCK, 4096, []),
        (5, 10, []),
        (0, 0, []),
    ],
)
def test_holes_count_by_whole_blocks(start: int, length: int, known: list[list[int]]) -> None:
    digests = Digests(SIZE)
    digests.add_zeros(start, length)
    assert digests.known.as_list() == known
    assert (digests.checksum == checksum(0)) == (known == [[0, SIZE]])


def test_a_volume_of_nothing_has_the_checksum_of_nothing() -> None:
    assert Digests(0).checksum == checksum(0) == "xxh3-128:" + 32 * "0"


def test_equal_blocks_at_different_places_count_differently() -> None:
    digest = xxhash.xxh3_128(b"x").digest()
    assert contribution(0, digest) != contribution(1, digest)


def test_what_does_not_fit_the_table_is_unknown_but_in_the_checksum() -> None:
    size = 1 << 40
    digests = Digests(size, table_bytes=10_000)
    whole = Digests(size)
    pages = 0
    digests.add_zeros(0, size)
    digests.known = type(digests.known)()
    for number in range(0, size // BLOCK, 1000):
        for one in (digests, whole):
            stretch = Stretch(number * BLOCK, size)
            stretch.feed(memoryview(bytearray((number + 1).to_bytes(8, "little"))))
            stretch.feed_zeros(BLOCK - 8)
            one.add(stretch)
        pages += 1
    known = [start // BLOCK for start, _ in digests.known.as_list()]
    assert 0 < len(known) < 10_000 / DIGEST < pages
    assert all(digests.of(number) == whole.of(number) != ZERO for number in known)
    assert digests._sum == whole._sum
    table = sum(sys.getsizeof(page) for page in digests._pages.values())
    assert table <= 10_000


def test_digests_of_900_gib_fit() -> None:
    """The cost of a page is not underrated: a full table stays within its bound."""
    digests = Digests(1 << 40)
    assert digests._most_pages * 64 * BLOCK >= 900 << 30
    page = bytearray(64 * DIGEST)
    assert digests._most_pages * sys.getsizeof(page) <= 16 << 20


def test_the_data_that_is_known_comes_in_order() -> None:
    digests = Digests(SIZE)
    content = bytearray(SIZE)
    for index in (5, 0, 3):
        content[index * BLOCK + 7] = 1
        start = index * BLOCK
        digests.add(fed(bytes(content), start, min(start + BLOCK, SIZE), []))
    assert list(digests.data()) == [(0, BLOCK), (3 * BLOCK, 4 * BLOCK), (5 * BLOCK, SIZE)]
