"""Broker and database refused, and silent, while migrations start, copy and end; then everything goes on by itself.

The servers are real and are not touched: a proxy stands before them.  An outage takes 5 s, longer than a lease and a
time-out of these deployments; MIGRATOR_FAULT_OUTAGE_SECONDS makes it longer, 30 s say.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from migrator import conf as config
from migrator.db import api
from tests.support.bed import A, B, Bed
from tests.support.proxy import Proxy
from tests.support.waiting import until

SECONDS = float(os.environ.get("MIGRATOR_FAULT_OUTAGE_SECONDS") or 5)
#: A request is answered within this, seconds, whatever is away.
PATIENCE = 25.0
VOLUMES_AT_MOST = 10
#: After the outage all is over within this, seconds.
RECOVERY = 60.0

#: What is away: the database that the deployment runs on, and the proxy before the server.
SERVERS: dict[str, tuple[str, Callable[[Bed], Proxy]]] = {
    "broker": ("mariadb", lambda bed: bed.broker),
    "mariadb": ("mariadb", lambda bed: bed.database),
    "postgresql": ("postgresql", lambda bed: bed.database),
}
MODES: dict[str, Callable[[Proxy], None]] = {"refuses": Proxy.down, "is silent": Proxy.stall}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shared", "server"), [(kind, name) for name, (kind, _) in SERVERS.items()], indirect=["shared"]
)
def test_an_outage_at_the_start_in_the_copy_and_at_the_end(
    shared: Bed, chance: random.Random, server: str, mode: str
) -> None:
    """field.md part 5: a call that was not answered ended the migration, or nothing ever did."""
    proxy = SERVERS[server][1](shared)
    survives(shared, chance, f"{server} {mode}", lambda: MODES[mode](proxy), proxy.up)


def survives(bed: Bed, chance: random.Random, what: str, away: Callable[[], None], back: Callable[[], None]) -> None:
    """Meet migrations at the start, in the copy and at the end by an outage, and see that all goes on by itself."""
    volumes = [bed.volume(chance, mib) for mib in (4, 60, 60, 60, 4)]
    for volume_id in volumes[:-1]:
        assert ask(bed, volume_id) == 202
    until(lambda: {"copy_data", "verify_copy"} <= steps(bed), "some copy and some end", 60, pause=0.001)
    assert ask(bed, volumes[-1]) == 202
    met = sorted(row["step"] for row in bed.audit.under_way())
    away()
    answers = during(bed)
    back()
    began = time.monotonic()
    bed.settle(RECOVERY)
    ends = [bed.audit.newest(volume_id)["end"] for volume_id in volumes]
    print(f"{what}: met {met}, they ended {ends} {time.monotonic() - began:.1f} s later; answers {answers}")
    assert set(ends) <= {"success", "error"}
    assert len(met) > 1
    for _ in (A, B):  # there and back: both services work again
        bed.rest.moved(volumes[0], bed.other(volumes[0]), force_host_copy=True)
    for volume_id in list(bed.wanted):
        bed.rest.delete(volume_id)
        del bed.wanted[volume_id]
    bed.settle()


#: What needs an answer of another service: method, path, body.
QUESTIONS: dict[str, tuple[str, str, Any]] = {
    "pools": ("GET", "/scheduler-stats/get_pools?detail=True", None),
    "plan": ("GET", "/migrations/plan?volume_id={}", None),
    "dry run": ("POST", "/migrations", {"migration": {"volume_id": "{}", "dry_run": True}}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fresh", [True, False], ids=["never connected", "connected"])
def test_a_question_is_answered_with_the_reason_while_the_broker_is_away(
    shared: Bed, chance: random.Random, mode: str, fresh: bool
) -> None:
    """field.md part 5: what waits for a broker holds a thread of the API, and its client, for as long.

    The first call of a process waits for its queue of answers, in oslo.messaging without any limit.
    """
    volume_id = shared.volume(chance, 1)
    if fresh:
        shared.kill("api")
    MODES[mode](shared.broker)
    if fresh:
        shared.start("api")
        shared.ready("api")
    with ThreadPoolExecutor(len(QUESTIONS)) as askers:
        asked = {name: askers.submit(question, shared, volume_id, name) for name in QUESTIONS}
        refusals = {name: answer.result() for name, answer in asked.items()}
    shared.broker.up()
    for name, (status, answer) in refusals.items():
        assert status == 503, (name, answer)
        assert "message broker" in str(answer), (name, answer)
    until(lambda: all(question(shared, volume_id, name)[0] == 200 for name in QUESTIONS), "they are answered", RECOVERY)
    shared.rest.delete(volume_id)
    del shared.wanted[volume_id]
    shared.settle()


def question(bed: Bed, volume_id: str, name: str) -> tuple[int, Any]:
    """Ask; raises TimeoutError behind the time-out of the tests' client."""
    method, path, body = QUESTIONS[name]
    return bed.rest.request(method, path.format(volume_id), json.loads(json.dumps(body).replace("{}", volume_id)))


@pytest.mark.parametrize("database", ["mysql+pymysql://u@h/d", "postgresql+psycopg2://u@h/d?tcp_user_timeout=5"])
def test_a_silent_database_is_given_up_unless_its_url_says_otherwise(database: str) -> None:
    """Only what changes tables may wait for ever; what the URL says itself is left alone."""
    conf = config.load("tests", [], [])
    conf.set_override("connection", database, "database")
    conf.set_override("max_retries", 0, "database")
    wanted = api.URL_DEFAULTS[sa.make_url(database).get_backend_name()] | dict(sa.make_url(database).query)
    assert dict(api.url(conf).query) == wanted
    patient = dict(api.url(conf, long_statements=True).query)
    assert "read_timeout" not in patient
    assert patient["connect_timeout"] == "10"


def ask(bed: Bed, volume_id: str) -> int:
    return bed.rest.migrate(volume_id, bed.other(volume_id), force_host_copy=True)[0]


def steps(bed: Bed) -> set[str]:
    return {row["step"] for row in bed.audit.under_way()}


def during(bed: Bed) -> dict[str, Any]:
    """Go on asking until the outage is over; every answer must come in time and be one that a client knows."""
    over = time.monotonic() + SECONDS
    seconds: list[float] = []
    answers: set[int] = set()

    def ask_once() -> bool:
        began = time.monotonic()
        if len(bed.wanted) < VOLUMES_AT_MOST:
            status, answer = bed.rest.request("POST", "/volumes", {"volume": {"size": 1}})
        else:
            status, answer = bed.rest.request("GET", "/volumes")
        seconds.append(time.monotonic() - began)
        answers.add(status)
        assert status in (200, 202, 503), answer
        if status == 202:
            bed.wanted[answer["volume"]["id"]] = None
        return time.monotonic() >= over

    until(ask_once, "the outage is over", SECONDS + PATIENCE, pause=0.1)
    assert max(seconds) < PATIENCE
    return {"statuses": sorted(answers), "count": len(seconds), "slowest": round(max(seconds), 2)}
