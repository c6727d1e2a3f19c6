"""Range sets and extents against a set of plain numbers."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.volume.extents import Extent, Ranges, units

SPACE = 40
pairs = st.lists(st.tuples(st.integers(0, SPACE), st.integers(0, 10)))


def numbers(ranges: list[list[int]]) -> set[int]:
    return {n for start, length in ranges for n in range(start, start + length)}


@given(pairs)
def test_ranges_are_the_set_of_what_was_added(given_pairs: list[tuple[int, int]]) -> None:
    ranges = Ranges(given_pairs)
    wanted = numbers([list(pair) for pair in given_pairs])
    assert numbers(ranges.as_list()) == wanted
    assert ranges.total == len(wanted)


@given(pairs)
def test_ranges_are_sorted_and_neighbours_are_merged(given_pairs: list[tuple[int, int]]) -> None:
    listed = Ranges(given_pairs).as_list()
    assert all(length > 0 for _, length in listed)
    assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(listed))


@given(pairs, st.integers(0, SPACE), st.integers(0, SPACE))
def test_remaining_and_within_divide_a_range(given_pairs: list[tuple[int, int]], start: int, length: int) -> None:
    ranges, asked = Ranges(given_pairs), set(range(start, start + length))
    assert numbers(ranges.remaining(start, length)) == asked - numbers(ranges.as_list())
    assert numbers(ranges.within(start, length).as_list()) == asked & numbers(ranges.as_list())
    assert Ranges(ranges.remaining(start, length)).as_list() == ranges.remaining(start, length)


@given(pairs, pairs)
def test_merging_is_the_union(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    merged = Ranges(one)
    merged.merge(Ranges(other))
    assert merged == Ranges(one + other)


@given(pairs)
def test_a_list_makes_the_same_ranges_again(given_pairs: list[tuple[int, int]]) -> None:
    ranges = Ranges(given_pairs)
    assert Ranges(ranges.as_list()) == ranges


@pytest.mark.parametrize("pair", [(-1, 5), (5, -1)])
def test_what_is_no_range_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no range"):
        Ranges([pair])


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 300), st.booleans())
def test_split_tiles_an_extent_at_multiples_of_the_block(start: int, length: int, block: int, is_data: bool) -> None:
    pieces = list(Extent(start, length, is_data).split(block))
    assert sum(piece.length for piece in pieces) == length
    at = start
    for piece in pieces:
        assert (piece.start, piece.is_data) == (at, is_data)
        assert 0 < piece.length <= block
        assert piece.start // block == (piece.end - 1) // block
        at = piece.end


@given(st.lists(st.tuples(st.integers(1, 3000), st.booleans()), max_size=30), st.integers(1, 700), st.integers(0, 900))
def test_units_tile_what_they_are_made_of_and_data_never_crosses_one(
    pieces: list[tuple[int, bool]], unit: int, start: int
) -> None:
    extents, at = [], start
    for length, is_data in pieces:
        extents.append(Extent(at, length, is_data))
        at += length
    groups = list(units(extents, lambda: unit))
    reached = start
    for group in groups:
        for extent in group:
            assert extent.start == reached
            assert extent.length > 0
            reached = extent.end
        if any(extent.is_data for extent in group):
            assert group[0].start // unit == (group[-1].end - 1) // unit
    assert reached == at
    for whole in extents:
        for byte in (whole.start, whole.end - 1):
            part = next(part for group in groups for part in group if part.start <= byte < part.end)
            assert part.is_data == whole.is_data
    with_data = [group[0].start // unit for group in groups if any(extent.is_data for extent in group)]
    assert len(with_data) == len(set(with_data))
