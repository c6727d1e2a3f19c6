"""Broker and database refused, and silent, while migrations start, copy and end; then everything goes on by itself.

The servers are real and are not touched: a proxy stands before them.  MIGRATOR_FAULT_OUTAGE_SECONDS makes it longer.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
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

SERVERS: dict[str, Callable[[Bed], Proxy]] = {"broker": lambda bed: bed.broker, "database": lambda bed: bed.database}
MODES: dict[str, Callable[[Proxy], None]] = {"refuses": Proxy.down, "is silent": Proxy.stall}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("server", SERVERS)
def test_an_outage_at_the_start_in_the_copy_and_at_the_end(
    shared: Bed, chance: random.Random, server: str, mode: str
) -> None:
    """field.md part 5: a call that was not answered ended the migration, or nothing ever did."""
    volumes = [shared.volume(chance, mib) for mib in (4, 60, 60, 60, 4)]
    proxy = SERVERS[server](shared)
    for volume_id in volumes[:-1]:
        assert ask(shared, volume_id) == 202
    until(lambda: {"copy_data", "verify_copy"} <= steps(shared), "some copy and some end", 60, pause=0.001)
    assert ask(shared, volumes[-1]) == 202
    met = sorted(row["step"] for row in shared.audit.under_way())
    MODES[mode](proxy)
    answers = during(shared)
    proxy.up()
    began = time.monotonic()
    shared.settle(RECOVERY)
    ends = [shared.audit.newest(volume_id)["end"] for volume_id in volumes]
    print(f"{server} {mode}: met {met}, they ended {ends} {time.monotonic() - began:.1f} s later; answers {answers}")
    assert set(ends) <= {"success", "error"}
    assert len(met) > 1
    for _ in (A, B):  # there and back: both services work again
        shared.rest.moved(volumes[0], shared.other(volumes[0]), force_host_copy=True)
    for volume_id in list(shared.wanted):
        shared.rest.delete(volume_id)
        del shared.wanted[volume_id]
    shared.settle()


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
