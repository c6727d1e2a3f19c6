"""``migrator plan``: what it asks, what it shows, and what it ends with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from migrator.cli import exits
from tests.unit.cli_stand_in import DESTINATION, VOLUME_ID, fault, run, serving, volume

PATH = "/migrations/plan"
FITTING = {
    "pool": DESTINATION,
    "needed_gib": 1,
    "total_gib": 100.0,
    "free_gib": 40.5,
    "kept_gib": 0.0,
    "reserved_gib": 2.0,
    "provisioned_gib": 3.0,
    "room_gib": 38.5,
    "volumes": 3,
    "fits": True,
    "rank": 1,
    "score": 1.0,
    "weighers": [{"weigher": "free_capacity", "measure": 38.5, "multiplier": 1.0, "score": 1.0}],
    "filters": [{"filter": "capacity", "passed": True, "reason": "needs 1 GiB", "remedy": None}],
}
REFUSED = {
    **FITTING,
    "pool": "c@file3#pool3",
    "fits": False,
    "rank": None,
    "score": None,
    "filters": [{"filter": "capacity", "passed": False, "reason": "needs 1 GiB, 0.0 free", "remedy": "make room"}],
}


def answer(**changes: Any) -> dict[str, Any]:
    plan = {
        "volume_id": VOLUME_ID,
        "possible": True,
        "blockers": [],
        "source_host": "a@file1#pool1",
        "requested_host": None,
        "destination_host": DESTINATION,
        "plan": "host_copy",
        "plans": [
            {"plan": "assisted", "chosen": False, "reason": "another file system"},
            {"plan": "host_copy", "chosen": True, "reason": "not assisted: another file system"},
        ],
        "bytes_total": 1 << 30,
        "bytes_allocated": 3 << 20,
        "bytes_to_copy": 3 << 20,
        "seconds_expected": 4.25,
        "measured": {"of": "from a to b", "migrations": 2},
        "pools": [FITTING, REFUSED],
        **changes,
    }
    return {"plan": plan}


def served(body: Any, status: int = 200) -> Any:
    found = {"volumes": [volume()]}
    return serving({f"GET {PATH}": (status, body), "GET /volumes/detail": (200, found)})


def test_it_asks_by_id_and_shows_the_pools_the_ways_and_the_time() -> None:
    with served(answer()) as service:
        result = service.run("plan", "vol1")
    assert (result.code, result.err) == (exits.SUCCESS, "")
    assert service.requests[-1].query == {"volume_id": [VOLUME_ID]}
    for said in (DESTINATION, "38.5 GiB", "4.2 s", "3.0 MiB", "another file system", "capacity: needs 1 GiB, 0.0 free"):
        assert said in result.out
    assert "In The Way" not in result.out


def test_every_wish_is_asked_for() -> None:
    with served(answer()) as service:
        line = f"plan {VOLUME_ID} {DESTINATION} --force-host-copy --lock-volume --verify none --rate 50M"
        assert service.run(*line.split()).code == exits.SUCCESS
    assert service.requests[-1].query == {
        "volume_id": [VOLUME_ID],
        "host": [DESTINATION],
        "force_host_copy": ["true"],
        "lock_volume": ["true"],
        "verify": ["none"],
        "bytes_per_second": [str(50 << 20)],
    }


@pytest.mark.parametrize("form", [(), ("-f", "json")])
def test_what_is_in_the_way_is_shown_with_its_remedy_and_ends_2(form: tuple[str, ...]) -> None:
    blocker = {"code": "InvalidVolume", "reason": "it has snapshots", "remedy": "delete its snapshots, 2 in all"}
    body = answer(possible=False, blockers=[blocker], plan=None, destination_host=None, seconds_expected=None)
    with served(body) as service:
        result = service.run("plan", VOLUME_ID, *form)
    assert (result.code, result.err) == (exits.REFUSED, "")
    assert "it has snapshots" in result.out
    assert "delete its snapshots, 2 in all" in result.out


def test_machines_get_all_of_it_unchanged() -> None:
    with served(answer()) as service:
        result = service.run("plan", VOLUME_ID, "-f", "json")
    assert json.loads(result.out) == answer()["plan"]


def test_a_refused_question_is_one_line() -> None:
    code, body = fault(400, "Invalid host x:\nno")
    with served(body, code) as service:
        result = service.run("plan", VOLUME_ID, "x")
    assert (result.code, result.out, result.err) == (exits.REFUSED, "", "Invalid host x: no\n")


def test_it_explains_itself() -> None:
    result = run("help", "plan")
    assert result.code == 0
    said = " ".join(result.out.split())
    assert "changes nothing" in said
    assert "2 if something is in the way" in said
