"""The copy benchmark itself: it compares what it says it compares, says why a row is slower, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.bench_copy import ROOT, arguments_of, plan_of
from tests.bench.copy_beds import KINDS, RANDOM, is_random, same
from tests.bench.copy_progress import Progress
from tests.bench.copy_table import BARE, READS, Measured, Samples, Start, lines, summary, why
from tests.support.data import MIB

#: Of the clock, and of the processor.
START = Start(0.06, 0.05)
SIZE = RANDOM + 5 * MIB + 4096


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("offset", [0, 4 * MIB - 1, RANDOM, SIZE - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_byte_is_found_wherever_it_is(tmp_path: Path, kind: str, offset: int) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    KINDS[kind](one, SIZE)
    KINDS[kind](other, SIZE)
    assert same(one, other, SIZE)
    assert is_random(one, SIZE) == (kind == "random")
    flip(other, offset)
    assert not same(one, other, SIZE)
    assert not same(other, one, SIZE)
    assert not is_random(other, SIZE)


@pytest.mark.parametrize(
    ("ours", "other", "words"),
    [
        (Samples([1.0], [0.5]), Samples([1.0], [0.5]), ""),
        (Samples([1.05], [0.5]), Samples([1.0], [0.5]), "Python's start, 0.06 s"),
        (Samples([1.0, 1.5, 1.5], [0.5]), Samples([1.0, 1.0, 1.2], [0.5]), "less than the rounds differ"),
        (Samples([2.0], [1.0]), Samples([1.0], [0.5]), "works longer: CPU 0.95 s, start left out, against 0.50 s"),
        (Samples([2.0], [0.1]), Samples([1.0], [0.5]), "waits longer: CPU 0.05 s, start left out, against 0.50 s"),
    ],
)
def test_a_slower_row_says_what_the_figures_tell_of_it(ours: Samples, other: Samples, words: str) -> None:
    assert why(ours, other, START).startswith(words)
    assert bool(why(ours, other, START)) == bool(words)


def test_reading_alone_is_no_copy_and_never_the_fastest() -> None:
    table = {BARE: Samples([2.0], [0.2]), "cp": Samples([4.0], [0.4]), READS: Samples([1.0], [0.1])}
    measured = Measured("disk", 1 << 30, table)
    assert [line.split("  ")[1] for line in lines(measured) if "*" in line] == [BARE]
    (row,) = [line for line in summary([measured], START) if line.startswith("  disk")]
    assert row.split() == ["disk", "cp", "200", "%", "-", "-", "-", "0.20", "/", "0.40"]


def test_what_does_not_fit_into_the_time_is_not_begun() -> None:
    progress = Progress(200.0, limit_seconds=100.0, shows=False)
    assert progress.fits(90.0)
    assert not progress.fits(110.0)
    assert Progress(200.0, shows=False).fits(1e6)
    progress.step("something", 90.0)
    assert progress.fits(110.0), "all went faster than foretold"
    assert progress.left < 110.0


def test_a_part_can_be_chosen_and_the_whole_has_every_row_that_is_wanted() -> None:
    whole = plan_of(arguments_of([]))
    routes = {(case.place, case.route, case.server.over if case.server else "") for case in whole.wanted}
    assert routes >= {(place, "file-file", "") for place in ("disk", "xfs", "tmpfs")}
    assert routes >= {("disk", "file-block", ""), ("disk", "block-block", "")}
    assert routes >= {("disk", "file-nbd", over) for over in ("unix", "tcp", "tls")}
    assert {case.kind for case in whole.wanted if case.route == "file-file"} == set(KINDS)
    assert [late.milliseconds for late in whole.late] == [1, 5, 20]
    assert (whole.rounds, whole.size) == (5, 4 << 30)
    part = plan_of(arguments_of(["--only", "block-block tenth", "--only", "latency 5ms", "--other-size", "64M"]))
    assert [case.name for case in part.wanted] == ["disk block-block tenth"]
    assert [late.milliseconds for late in part.late] == [5]
    assert part.size_of(part.wanted[0]) == 64 * MIB


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    words = ["--size", "64M", "--rounds", "1000", "--only", "disk file-file random", "--directory", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.bench_copy", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as bench:
        assert bench.stderr is not None
        for line in bench.stderr:
            if "cp --sparse" in line:
                assert list(tmp_path.iterdir())
                bench.send_signal(signal.SIGINT)
                break
        bench.communicate(timeout=60)
    assert bench.returncode == 1
    assert list(tmp_path.iterdir()) == []
