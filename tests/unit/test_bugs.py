"""The page of bugs that teach us: every number has its row, and every test named there exists and names the number."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.processes import ROOT

PAGE = ROOT / "doc" / "source" / "contributor" / "bugs.rst"
#: What a table lists, by the title above it: the word for one, how many there are, and whether it has a column for LP.
TABLES = {"Bugs": ("bug", 49, True), "What operators suffer": ("pain", 16, False)}


@dataclass(frozen=True)
class Row:
    """One bug or pain as the page has it."""

    word: str
    number: int
    reports: list[str]
    text: str
    tests: list[str]


def table(title: str) -> Iterator[Row]:
    """The rows of the table below that title; the first one is its head."""
    word, _, reported = TABLES[title]
    body = PAGE.read_text(encoding="utf-8").split(f"\n{title}\n{'=' * len(title)}\n")[1]
    for row in re.split(r"\n(?=[A-Z])", body)[0].split("   * - ")[2:]:
        number, *cells = (" ".join(cell.split()) for cell in row.split("\n     - "))
        reports = cells.pop(0).split(", ") if reported else []
        yield Row(word, int(number), reports, cells[0], re.findall(r"``([^`]+)``", cells[1]))


ROWS = [row for title in TABLES for row in table(title)]


@functools.cache
def functions(path: str) -> dict[str, str]:
    """The source of every test of a file, and before it what the file says of itself."""
    source = (ROOT / "tests" / path).read_text(encoding="utf-8")
    tree = ast.parse(source)
    whole = ast.get_docstring(tree) or ""
    return {
        node.name: f"{whole}\n{ast.get_source_segment(source, node)}"
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def named(word: str, text: str) -> set[int]:
    """The numbers that stand behind the word: ``bug 4``, ``bugs 1, 2 (LP1218054) and 7``, ``pains 1 to 3``."""
    found: set[int] = set()
    without_reports = re.sub(r"\([^()]*LP[^()]*\)", "", text)
    for series in re.findall(rf"\b{word}s?((?:[\s,]|\band\b|\bto\b|\b\d{{1,2}}\b)+)", without_reports):
        for first, last in re.findall(r"(\d+)(?:\s+to\s+(\d+))?", series):
            found |= set(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("field.md bug 7 (LP1775418).", {7}),
        ("field.md bugs 21 (LP1398177), 26 (LP1880971, LP1502138), 27 (LP1490445): left", {21, 26, 27}),
        ("bugs 12, 13, 16\nand 17: 3 of them; bugs 4 to 6", {12, 13, 16, 17, 4, 5, 6}),
        ("debug 5, a bug of 6, bug 2019190", set()),
    ],
)
def test_numbers_are_read_as_they_are_written(text: str, numbers: set[int]) -> None:
    assert named("bug", text) == numbers


@pytest.mark.parametrize("title", TABLES)
def test_every_number_has_one_row(title: str) -> None:
    word, count, reported = TABLES[title]
    rows = [row for row in ROWS if row.word == word]
    assert [row.number for row in rows] == list(range(1, count + 1))
    for row in rows:
        assert row.text.endswith((".", ".)"))
        assert row.tests
        assert all(re.fullmatch(r"\d{7}", report) for report in row.reports)
        assert bool(row.reports) == reported


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.word} {row.number}")
def test_every_test_that_is_listed_exists_and_names_the_number(row: Row) -> None:
    """Else the page promises what nobody tests, or whoever changes a test does not learn what it is for."""
    for test in row.tests:
        path, _, name = test.partition("::")
        assert name.startswith("test_")
        assert name in functions(path), f"there is no {test}"
        assert row.number in named(row.word, functions(path)[name]), f"{test} does not name {row.word} {row.number}"


def test_whoever_names_a_report_names_its_number() -> None:
    """A wrong number leads whoever reads it astray."""
    number_of = {report: row.number for row in ROWS for report in row.reports}
    wrong = []
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, source in functions(str(file.relative_to(ROOT / "tests"))).items():
            told = {number_of[report] for report in re.findall(r"LP(\d{7})", source) if report in number_of}
            if "field.md" in source and not told <= named("bug", source):
                wrong.append(f"{file.name}::{name}: {sorted(told - named('bug', source))}")
    assert wrong == []
