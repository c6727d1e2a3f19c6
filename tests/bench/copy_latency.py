"""``make bench-copy``: how much of a link's bandwidth is left when the target answers late.

The target is nbdkit, which delays every write and admits no more than a rate; the round trip is that of the delay, so
it grows and the rate stays.  A copier that waits for every answer gets ``block / (delay + block / rate)``; the table
shows what share of the rate each tool gets.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.copy_beds import Absent, fill_empty, run, same
from tests.support.data import MIB
from tests.support.waiting import until

DELAYS_MS = (1, 5, 20)
#: Bytes per second that the server admits: much less than a loopback moves, so that the limit is the server's.
RATE = 200 * MIB
#: So much is copied: more than a second's worth, so that the tools' start counts little.
SECONDS = 2


@dataclass(frozen=True)
class Late:
    """A server that answers ``milliseconds`` late."""

    milliseconds: int

    @property
    def name(self) -> str:
        return f"latency file-nbd nbdkit {self.milliseconds}ms"

    @contextmanager
    def serve(self, path: Path, directory: Path) -> Iterator[str]:
        """Serve a file until the end of the context; yields its address."""
        where = directory / "late.sock"
        where.unlink(missing_ok=True)
        late = f"wdelay={self.milliseconds}ms"
        filters = ["--filter=delay", "--filter=rate"]
        # In bits; the bucket is small, for a full one would let all of a short copy pass at once.
        rate = [f"rate={RATE * 8}", "burstiness=0.1"]
        argv = ["nbdkit", "-f", "-t", "64", "-U", str(where), *filters, "file", str(path), late, *rate]
        try:
            server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except FileNotFoundError:
            raise Absent("nbdkit is not installed") from None
        try:
            until(lambda: server.poll() is not None or where.exists(), "a server that listens")
            if server.poll() is not None:
                assert server.stderr is not None
                raise Absent(f"nbdkit: {server.stderr.read(300).decode(errors='replace').strip()}")
            yield f"nbd+unix:///?socket={where}"
        finally:
            server.kill()
            server.wait()


LATE = [Late(milliseconds) for milliseconds in DELAYS_MS]
Tool = Callable[[Path, str], list[str]]


def expected_seconds(wanted: list[Late], tools: int, rounds: int, size: int) -> float:
    """By what the rate allows."""
    return len(wanted) * tools * rounds * (size / RATE + 1)


def size_of(size: int) -> int:
    """How much is copied of a volume of ``size`` bytes."""
    return min(size, SECONDS * RATE) // 4096 * 4096


def measure(late: Late, source: Path, size: int, rounds: int, tools: dict[str, Tool]) -> dict[str, list[float]]:
    """Let the tools take turns; returns the seconds of each.  Raises Absent, SystemExit where bytes differ."""
    target = source.parent / "late"
    table: dict[str, list[float]] = {tool: [] for tool in tools}
    for number in range(rounds):
        for tool in tools if number % 2 == 0 else reversed(tools):
            fill_empty(target, size)
            with late.serve(target, source.parent) as address:
                began = time.perf_counter()
                run(*tools[tool](source, address))
                table[tool].append(time.perf_counter() - began)
            if not same(source, target, size):
                raise SystemExit(f"{late.name}: what {tool} wrote differs from the source")
            target.unlink()
    return table


def lines(late: Late, table: dict[str, list[float]], size: int) -> Iterator[str]:
    """Yield the table of one delay."""
    yield f"\n{late.name}, {size // MIB} MiB, rate {RATE // MIB} MiB/s"
    yield f"  {'':<28}{'median s':>9}{'MB/s':>8}{'least':>8}{'most':>8}{'share of the rate':>19}"
    for tool, seconds in table.items():
        median = statistics.median(seconds)
        yield (
            f"  {tool:<28}{median:>9.2f}{size / 1e6 / median:>8.0f}{min(seconds):>8.2f}{max(seconds):>8.2f}"
            f"{100 * size / median / RATE:>17.0f} %"
        )
