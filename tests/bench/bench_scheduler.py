"""What one choice of the scheduler costs, by the number of pools.

Prints a table; asserts nothing.  ``python -m tests.bench.bench_scheduler`` runs it alone.
"""

from __future__ import annotations

import os
import platform
import statistics
import time

from migrator import conf as config
from migrator.scheduler.choose import EXPLAIN_ALL, Chooser
from migrator.scheduler.filters import Request
from migrator.scheduler.pools import Pool, Usage
from tests.support.pools import make_pool, make_request, make_usage

COUNTS = (10, 100, 1_000, 10_000)
ROUNDS = 9
POOLS_PER_BACKEND = 4
#: What two specs of a volume type usually ask for.
SPECS = {"volume_backend_name": "fast", "capabilities:ssd": "<is> True"}


def pools(count: int) -> list[tuple[Pool, Usage]]:
    """Pools of many backends, half of them thin, one in eleven too full for the request."""
    made = []
    for number in range(count):
        pool = make_pool(
            f"host{number // POOLS_PER_BACKEND:05}@file1#pool{number % POOLS_PER_BACKEND}",
            total_gib=1000.0,
            free_gib=float(20 + number % 11 * 90),
            thin=number % 2 == 0,
            reserved_percentage=1.0,
            capabilities={"ssd": True, "disks": number % 24},
        )
        made.append((pool, make_usage(number % 500, number % 7, number % 30)))
    return made


def measure(
    chooser: Chooser, candidates: list[tuple[Pool, Usage]], request: Request
) -> tuple[list[float], list[float]]:
    """Milliseconds of each choice, and of putting its verdicts into words, which only a migration's row keeps."""
    choices, words = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        found = chooser.choose(candidates, request)
        chosen = time.perf_counter()
        assert found.pool is not None
        assert isinstance(found.verdicts, list)
        choices.append((chosen - began) * 1e3)
        words.append((time.perf_counter() - chosen) * 1e3)
    return choices, words


def shown(samples: list[float]) -> str:
    return f"{statistics.median(samples):.2f} ({min(samples):.2f} … {max(samples):.2f})"


def main() -> None:
    chooser = Chooser(config.load("bench", [], []))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {ROUNDS} rounds;")
    print(f"filters {', '.join(each.name for each in chooser.filters)}; {len(SPECS)} extra specs;")
    print(f"median (smallest … largest); the verdicts of up to {EXPLAIN_ALL} pools are put into words\n")
    print(f"{'pools':>6} {'choice, ms':>28} {'words of its verdicts, ms':>28}")
    for count in COUNTS:
        candidates = pools(count)
        request = make_request(*(pool for pool, _ in candidates), extra_specs=SPECS, availability_zone="zone1")
        chooser.choose(candidates, request)
        choices, words = measure(chooser, candidates, request)
        print(f"{count:>6} {shown(choices):>28} {shown(words):>28}")


if __name__ == "__main__":
    main()
