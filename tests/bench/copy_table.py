"""What ``make bench-copy`` prints: a table for each case, and at the end who was faster, by how much and why."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.support.data import GIB

OURS = "ours, "
WARM, BARE, FULL, READ_BACK = (f"{OURS}{how}" for how in ("warm worker", "bare", "hash and checkpoints", "read back"))
#: Reads the source and copies nothing: what a read-back verification can come to at best.
READS = "only reading, dd direct"


@dataclass
class Samples:
    """What the rounds of one tool gave; ``rss`` in KiB; ``note`` says why there is nothing."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    rss: int = 0
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu)


Table = dict[str, Samples]


class Start(NamedTuple):
    """What our program takes to do nothing, in seconds of the clock and of the processor."""

    seconds: float
    cpu: float


@dataclass(frozen=True)
class Measured:
    """One case that was measured: its name, the bytes of its volume, what each tool gave."""

    name: str
    size: int
    table: Table


def _copied(table: Table) -> Table:
    """Those that copied something."""
    return {tool: samples for tool, samples in table.items() if samples.seconds and tool != READS}


def lines(measured: Measured) -> Iterator[str]:
    """Yield the table of one case."""
    yield f"\n{measured.name}, {measured.size / GIB:g} GiB"
    yield f"  {'':<28}{'median s':>9}{'MB/s':>8}{'least':>8}{'most':>8}{'CPU s/GiB':>11}{'MiB':>6}{'rounds':>8}"
    best = min((samples.median for samples in _copied(measured.table).values()), default=0.0)
    for tool, samples in measured.table.items():
        if not samples.seconds:
            yield f"  {tool:<28}{'-':>9}  {samples.note or 'no round'}"
            continue
        marks = " *" if samples.median <= best and tool != READS else ""
        note = f"  {samples.note}" if samples.note else ""
        yield (
            f"  {tool:<28}{samples.median:>9.2f}{measured.size / 1e6 / samples.median:>8.0f}"
            f"{min(samples.seconds):>8.2f}{max(samples.seconds):>8.2f}{samples.median_cpu * GIB / measured.size:>11.2f}"
            f"{samples.rss / 1024:>6.0f}{len(samples.seconds):>8}{marks}{note}"
        )


def summary(all_measured: list[Measured], start: Start) -> Iterator[str]:
    """Yield a line for each case: ours beside the fastest of the others, and where it is not faster, why."""
    yield (
        "\nOurs beside the fastest other tool; bare, warm worker: more than 100 % is faster; hash: what checksum and"
        " checkpoints cost;\nread back: of the speed of reading alone; CPU: ours / the least of the others, s/GiB"
    )
    yield f"  {'':<36}{'fastest other':<28}{'bare':>7}{'warm':>7}{'hash':>7}{'read back':>11}{'CPU':>13}  why slower"
    for measured in all_measured:
        copied = _copied(measured.table)
        others = {tool: samples for tool, samples in copied.items() if not tool.startswith(OURS)}
        ours = copied.get(BARE)
        if ours is None or not others:
            continue
        tool, other = min(others.items(), key=lambda item: item[1].median)
        least = min(samples.median_cpu for samples in others.values())
        cpu = f"{_per_gib(ours.median_cpu, measured)} / {_per_gib(least, measured)}"
        speeds = _speed(BARE, copied, other) + _speed(WARM, copied, other)
        yield (
            f"  {measured.name:<36}{tool:<28}{speeds}{_cost(copied):>7}"
            f"{_read_back(measured, start):>11}{cpu:>13}  {why(ours, other, start)}"
        ).rstrip()


def _speed(tool: str, copied: Table, other: Samples) -> str:
    return f"{100 * other.median / copied[tool].median:>5.0f} %" if tool in copied else f"{'-':>7}"


def _per_gib(seconds: float, measured: Measured) -> str:
    return f"{seconds * GIB / measured.size:.2f}"


def _cost(copied: Table) -> str:
    if FULL not in copied:
        return "-"
    return f"{100 * (copied[FULL].median / copied[BARE].median - 1):+.0f} %"


def _read_back(measured: Measured, start: Start) -> str:
    """The speed of the verification beside that of reading alone; both read the whole volume."""
    table = measured.table
    if not all(tool in table and table[tool].seconds for tool in (FULL, READ_BACK, READS)):
        return "-"
    # One process copies and verifies: what it takes more than a copy is the verification.
    seconds = table[READ_BACK].median - table[FULL].median
    return f"{100 * table[READS].median / seconds:.0f} %" if seconds > start.seconds / 10 else "-"


def why(ours: Samples, other: Samples, start: Start) -> str:
    """Say what a loss comes of, as far as the figures tell; empty where there is none."""
    if ours.median <= other.median:
        return ""
    if ours.median - start.seconds <= other.median:
        return f"Python's start, {start.seconds:.2f} s"
    if min(ours.seconds) <= max(other.seconds):
        return "less than the rounds differ among themselves"
    more, less = max(0.0, ours.median_cpu - start.cpu), other.median_cpu
    return f"{'works' if more > less else 'waits'} longer: CPU {more:.2f} s, start left out, against {less:.2f} s"
