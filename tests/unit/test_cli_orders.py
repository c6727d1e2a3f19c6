"""The commands that order a migration about: what each one sends, says and ends with."""

from __future__ import annotations

from typing import Any

import pytest

from migrator.cli import exits
from tests.unit.cli_stand_in import MIGRATION_ID, StandIn, fault, run, serving

PATH = f"/migrations/{MIGRATION_ID}/action"
ORDERS: list[tuple[str, Any]] = [
    (f"migration-cancel {MIGRATION_ID}", {"cancel": {}}),
    (f"migration-cancel --force {MIGRATION_ID}", {"cancel": {"force": True}}),
    (f"migration-pause {MIGRATION_ID}", {"pause": {}}),
    (f"migration-resume {MIGRATION_ID}", {"resume": {}}),
    (f"migration-retry {MIGRATION_ID}", {"retry": {}}),
    (f"migration-set-rate {MIGRATION_ID} 65536", {"set_rate": {"bytes_per_second": 65536}}),
    (f"migration-set-rate {MIGRATION_ID} 50M", {"set_rate": {"bytes_per_second": 50 << 20}}),
    (f"migration-set-rate {MIGRATION_ID} 1.5g", {"set_rate": {"bytes_per_second": 3 << 29}}),
    (f"migration-set-rate {MIGRATION_ID} none", {"set_rate": {"bytes_per_second": None}}),
    (f"migration-undo {MIGRATION_ID}", {"undo": {}}),
]


def served(answer: Any) -> Any:
    return serving({f"POST {PATH}": answer})


@pytest.mark.parametrize(("line", "body"), ORDERS)
def test_an_order_is_sent_and_its_acceptance_said(line: str, body: Any) -> None:
    with served((202, "")) as service:
        result = service.run(*line.split())
    assert (result.code, result.err) == (exits.SUCCESS, "")
    assert MIGRATION_ID in result.out
    assert result.out.count("\n") == 1
    assert service.sent("POST", PATH) == [body]


@pytest.mark.parametrize("line", [line for line, _ in ORDERS])
def test_a_refused_order_ends_2_with_the_reason_in_one_line(line: str) -> None:
    with served(fault(409, "Migration x cannot be\nthat.", "conflictingRequest")) as service:
        result = service.run(*line.split())
    assert (result.code, result.out, result.err) == (exits.REFUSED, "", "Migration x cannot be that.\n")


@pytest.mark.parametrize("rate", ["0", "-5M", "fast", "5X", "M", "", "nan", "inf", "1e999"])
def test_a_rate_that_is_none_is_refused_before_anything_is_sent(rate: str) -> None:
    with served((202, "")) as service:
        result = service.run("migration-set-rate", MIGRATION_ID, "--", rate)
    assert result.code == exits.REFUSED
    assert "is no rate: write 65536, 50M, 1.5G or none" in result.err
    assert service.requests == []


@pytest.mark.parametrize("command", sorted({line.split()[0] for line, _ in ORDERS}))
def test_each_explains_itself(command: str) -> None:
    result = run("help", command)
    assert result.code == 0
    assert "<migration>" in result.out
    assert "ID of the migration" in result.out


def test_without_a_service_an_order_ends_1() -> None:
    with served((202, "")) as service:
        url = service.url
    result = StandIn({}, url=url).run("migration-pause", MIGRATION_ID)
    assert result.code == exits.ERROR
