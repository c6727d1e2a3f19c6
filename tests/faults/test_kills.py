"""SIGKILL of each service while migrations stand at every step of both plans, and its restart.

In each round every volume moves, some to be met at each step: the database holds them there (holding.py), so that which
steps a kill meets is no matter of luck.  Half of those that are to be met in the copy are slow ones, and met in the
middle of it; the others at its end, when all is written and nothing says so.  Each service is the source of some of
them and the destination of others.  MIGRATOR_FAULT_INSTANTS asks for more of each step than the default, and
MIGRATOR_FAULT_SECONDS gives each turn longer for it; MIGRATOR_FAULT_SEED repeats the dice.
"""

from __future__ import annotations

import http.client
import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from migrator.volume import states
from tests.conftest import require
from tests.faults.holding import holding, prepare
from tests.support.bed import KILLS, A, B, Bed, bed
from tests.support.deployment import SERVERS
from tests.support.waiting import until

#: So many migrations are to be met at each step, by kills of what works for them in each role; once the seconds are
#: over, one of each is enough: a slow machine has not brought them all to their places in time.
INSTANTS = int(os.environ.get("MIGRATOR_FAULT_INSTANTS") or 10)
SECONDS = float(os.environ.get("MIGRATOR_FAULT_SECONDS") or 60)
STEPS = [(plan.name, step.name) for plan in (states.HOST_COPY, states.ASSISTED) for step in plan.steps]
#: Volumes for each step on each backend, and what they hold.
EACH, DATA_MIB = 1, 2
#: All work at once.  Leases of one service are renewed together, so that a row which is held would hold up all others
#: then; a dead owner on the same machine is told by its process, not by its lease.
OPTIONS = f"max_migrations_per_backend = {2 * EACH * len(STEPS)}\nmigration_lease_seconds = 60\n"
#: A kill of the API leaves its port to its children; it is killed with them.
WAYS = {"hosta": tuple(KILLS), "hostb": tuple(KILLS), "scheduler": tuple(KILLS), "api": ("all",)}
#: Who is killed in turn until enough was met in both roles, or in the only one.
TURNS = {"volume": ("hosta", "hostb"), "scheduler": ("scheduler",), "api": ("api",)}
#: Arrives within this, seconds, or is met where it is: less than a statement may take here.
ARRIVAL = 3.2
MOST_ROUNDS = 5 * INSTANTS
#: Bytes per second of a slow copy: it takes longer than all others need to arrive.
SLOW = 256 << 10
#: How the table calls what was met in the middle of a copy.
MIDDLE = "in the middle of it"
_MIDDLE = (states.HOST_COPY.name, MIDDLE)
#: Role of the killed service, plan, step.
Instant = tuple[str, str, str]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, broker: str) -> Iterator[Bed]:
    """A deployment with as many volumes on each backend as there are steps to be met at, and some."""
    require("mariadb", SERVERS["mariadb"])
    with bed(tmp_path_factory.mktemp("crowd"), broker, OPTIONS) as opened:
        prepare(opened.audit.engine)
        for number in range(2 * EACH * len(STEPS)):
            opened.volume(random.Random(number), DATA_MIB, on=(A, B)[number % 2])
        yield opened


@pytest.mark.parametrize("turn", TURNS)
def test_a_service_is_killed_at_every_step_and_nothing_is_lost(crowd: Bed, chance: random.Random, turn: str) -> None:
    """field.md pain 1, bugs 38 (LP1278035), 21 (LP1398177) and 24 (LP1344341): a death left copies and rows behind."""
    met: Counter[Instant] = Counter()
    ends: Counter[str] = Counter()
    roles = ("source", "destination") if turn == "volume" else (turn,)
    wanted = [(role, *step) for role in roles for step in STEPS]
    kills, deadline = 0, time.monotonic() + SECONDS
    for name in itertools.islice(itertools.cycle(TURNS[turn]), MOST_ROUNDS):
        one_round(crowd, chance, name, met, ends)
        kills += 1
        enough = 1 if time.monotonic() > deadline else INSTANTS
        if all(met[instant] >= enough for instant in wanted) and all(met[each, *_MIDDLE] for each in roles):
            break
    print(f"{turn}: {kills} kills met {met.total()} migrations; they ended {dict(ends)}\n{table(met, roles)}")
    assert ends["success"] > 0, "none ever got through"
    assert not [instant for instant in wanted if not met[instant]], "steps that were never met"
    assert all(met[each, *_MIDDLE] for each in roles), "no copy was met half way"


def table(met: Counter[Instant], roles: tuple[str, ...]) -> str:
    """Step by step, how many migrations were met in each role."""
    lines = [f"  {'':<12}{'':<22}" + "".join(f"{role:>14}" for role in roles)]
    for plan, step in [*STEPS, _MIDDLE]:
        lines.append(f"  {plan:<12}{step:<22}" + "".join(f"{met[role, plan, step]:14}" for role in roles))
    return "\n".join(lines)


def one_round(bed: Bed, chance: random.Random, name: str, met: Counter[Instant], ends: Counter[str]) -> None:
    """Move every volume, kill the service when each is where it shall be met, start it again, and look."""
    targets = choose(bed, chance)
    slow = {each for each, (_, step) in targets.items() if step == states.COPY_DATA.name and chance.random() < 0.5}
    before = {row["id"] for row in bed.audit.rows("SELECT id FROM migrations")}
    with holding(bed.audit.engine, targets):
        # Those to be held at the first step come last: there a migration holds up all that go to the same pool.
        for first in (False, True):
            some = {each: at for each, at in targets.items() if (at[1] == states.FIRST_STEP) is first}
            with ThreadPoolExecutor(3) as users:
                list(
                    users.map(
                        lambda volume_id, plans=some: ask(bed, volume_id, plans[volume_id][0], volume_id in slow), some
                    )
                )
            arrive(bed, some)
        threading.Event().wait(chance.uniform(0, 0.05))  # the instant is to be any, so there is nothing to wait for
        bed.kill(name, chance.choice(WAYS[name]))
        for row in bed.audit.under_way():
            met[role(name, row["source_host"]), row["plan"], row["step"]] += 1
            if row["step"] == states.COPY_DATA.name and 0 < row["bytes_done"] < row["bytes_total"]:
                met[role(name, row["source_host"]), row["plan"], MIDDLE] += 1
    bed.start(name)
    bed.ready(name)
    for row in bed.audit.under_way():
        bed.rest.request("POST", f"/migrations/{row['id']}/action", {"set_rate": {"bytes_per_second": None}})
    bed.settle()
    new = [row for row in bed.audit.rows("SELECT * FROM migrations") if row["id"] not in before]
    ends.update(row["end"] for row in new)
    assert not [row for row in new if row["end"] == "stuck"], new


def choose(bed: Bed, chance: random.Random) -> dict[str, tuple[str, str]]:
    """Say for every volume at which step it is to be met, each step as often on each side as can be."""
    targets: dict[str, tuple[str, str]] = {}
    for host in (A, B):
        there = [each for each in bed.wanted if bed.audit.volume(each)["host"] == host]
        chance.shuffle(there)
        targets |= dict(zip(there, itertools.cycle(STEPS), strict=False))
    return targets


def role(name: str, source_host: str) -> str:
    if not name.startswith("host"):
        return name
    return "source" if source_host.startswith(f"{name}@") else "destination"


def arrive(bed: Bed, targets: dict[str, tuple[str, str]]) -> None:
    """Wait until every migration is at its step; what is late is met where it is."""

    late: Counter[str] = Counter()

    def there() -> bool:
        at = {row["volume_id"]: (row["plan"], row["step"]) for row in bed.audit.under_way()}
        late.clear()
        late.update(f"{target} at {at.get(each)}" for each, target in targets.items() if at.get(each) != target)
        return not late

    try:
        until(there, "all are where they shall be met", ARRIVAL, pause=0.01)
    except AssertionError:
        print(f"late: {dict(late)}")


def ask(bed: Bed, volume_id: str, plan: str, slow: bool) -> None:
    """Ask for a migration by the plan; nobody knows what became of a request that was not answered."""
    wanted = {"volume_id": volume_id, "host": bed.other(volume_id), "force_host_copy": plan == states.HOST_COPY.name}
    if slow:
        wanted["bytes_per_second"] = SLOW
    try:
        status, answer = bed.rest.request("POST", "/migrations", {"migration": wanted})
    except (OSError, http.client.HTTPException):
        return
    assert status in (202, 503), answer
