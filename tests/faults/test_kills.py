"""SIGKILL of each service at random instants of many migrations at once, and its restart.

Each round moves every volume, both ways and by both plans, so that one kill meets several steps; which it met is told.
MIGRATOR_FAULT_SECONDS (for each service) makes it longer, MIGRATOR_FAULT_SEED repeats one.
"""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from migrator.volume import states
from tests.support.bed import KILLS, A, B, Bed
from tests.support.waiting import until

SECONDS = float(os.environ.get("MIGRATOR_FAULT_SECONDS") or 14)
VOLUMES = 8
DATA_MIB = 24
STEPS = {plan.name: [step.name for step in plan.steps] for plan in (states.HOST_COPY, states.ASSISTED)}
#: A kill of the API leaves its port to its children; it is killed with them.
WAYS = {"hosta": tuple(KILLS), "hostb": tuple(KILLS), "scheduler": tuple(KILLS), "api": ("all",)}
#: Met at the kill: plan, step, direction.
Instant = tuple[str, str, str]


@pytest.fixture(scope="module")
def volumes(shared: Bed) -> list[str]:
    """Half of them on each backend."""
    return [shared.volume(random.Random(number), DATA_MIB, on=(A, B)[number % 2]) for number in range(VOLUMES)]


@pytest.mark.parametrize("name", WAYS)
def test_a_service_is_killed_at_any_instant_and_nothing_is_lost(
    shared: Bed, volumes: list[str], chance: random.Random, name: str
) -> None:
    """field.md pain 1 (LP1278035), bugs 21 (LP1398177) and 24 (LP1344341): a death left copies and rows behind."""
    met: Counter[Instant] = Counter()
    ends: Counter[str] = Counter()
    rounds, deadline = 0, time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        one_round(shared, volumes, chance, name, met, ends)
        rounds += 1
    table = "\n".join(f"  {count:3} {' '.join(instant)}" for instant, count in sorted(met.items()))
    print(f"{name}: {rounds} kills met {met.total()} migrations at\n{table}\nthey ended {dict(ends)}")
    assert ends["success"] > 0, "none ever got through"
    assert met, "no kill ever met a migration under way"


def one_round(
    bed: Bed, volumes: list[str], chance: random.Random, name: str, met: Counter[Instant], ends: Counter[str]
) -> None:
    """Move every volume, kill the service at some instant, start it again, and look."""
    forced = {volume_id: chance.random() < 0.7 for volume_id in volumes}
    plan = chance.choice(tuple(STEPS))
    step, later = chance.choice(STEPS[plan]), chance.uniform(0, 0.03)
    before = {row["id"] for row in bed.audit.rows("SELECT id FROM migrations")}
    asked = threading.Event()
    with ThreadPoolExecutor(3) as users:
        requests = [users.submit(ask, bed, volume_id, forced[volume_id]) for volume_id in volumes]
        wait_for(bed, step, asked, requests)
        threading.Event().wait(later)  # the instant is to be any, so there is nothing to wait for
        bed.kill(name, chance.choice(WAYS[name]))
        for row in bed.audit.under_way():
            met[row["plan"], row["step"], row["direction"]] += 1
        bed.start(name)
        bed.ready(name)
    bed.settle()
    new = [row for row in bed.audit.rows("SELECT * FROM migrations") if row["id"] not in before]
    ends.update(row["end"] for row in new)
    assert not [row for row in new if row["end"] == "stuck"], new


def ask(bed: Bed, volume_id: str, forced: bool) -> int | None:
    """Ask for a migration; None where nobody knows what became of the request."""
    try:
        status, answer = bed.rest.migrate(volume_id, bed.other(volume_id), force_host_copy=forced)
    except (OSError, http.client.HTTPException):
        return None
    assert status in (202, 503), answer
    return status


def wait_for(bed: Bed, step: str, asked: threading.Event, requests: list[Any]) -> None:
    """Wait until any migration is at the step, or all are over: then the kill meets what it meets."""

    def there() -> bool:
        rows = bed.audit.under_way()
        done = all(request.done() for request in requests)
        return any(row["step"] == step for row in rows) or (done and not rows)

    until(there, f"a migration at {step}", 60, pause=0.001)
