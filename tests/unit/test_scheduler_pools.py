"""Reports of pools: sense, nonsense and messages that overtake each other; and how pools are shown."""

from __future__ import annotations

import json
import logging
import math
import threading
from typing import Any

import pytest

from migrator.backend_name import BackendName
from migrator.scheduler.pools import PoolRegistry, pools_of_report, view
from tests.support.pools import make_pool, make_report, make_usage

PUBLIC_KEYS = {
    "pool_name",
    "volume_backend_name",
    "total_capacity_gb",
    "free_capacity_gb",
    "allocated_capacity_gb",
    "provisioned_capacity_gb",
    "reserved_percentage",
    "max_over_subscription_ratio",
    "thin_provisioning_support",
    "thick_provisioning_support",
    "total_volumes",
    "storage_protocol",
    "driver_version",
    "vendor_name",
    "multiattach",
    "QoS_support",
    "backend_state",
    "location_info",
    "timestamp",
}


def free(registry: PoolRegistry) -> dict[str, float]:
    return {pool.host: pool.free_gib for pool in registry.all()}


# --- reports ---------------------------------------------------------------------------------------------------------


def test_a_report_becomes_pools() -> None:
    report = make_report("hosta@file1", free_gib=40, thin=True, capabilities={"ssd": True})
    [pool] = pools_of_report(report)
    assert pool.name == BackendName("hosta", "file1", "pool1")
    assert (pool.host, pool.service) == ("hosta@file1#pool1", "hosta@file1")
    assert (pool.backend_name, pool.availability_zone, pool.driver) == ("file1", "zone1", "file")
    assert (pool.total_gib, pool.free_gib, pool.allocated_gib) == (100.0, 40.0, 0.0)
    assert (pool.thin, pool.max_over_subscription_ratio, pool.kept_gib) == (True, 20.0, 0.0)
    assert pool.capabilities == {"ssd": True}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"total_gib": None}, id="no total"),
        pytest.param({"free_gib": "unknown"}, id="a word for a size"),
        pytest.param({"free_gib": "5"}, id="a text for a size"),
        pytest.param({"free_gib": -1}, id="less than nothing free"),
        pytest.param({"free_gib": math.nan}, id="not a number"),
        pytest.param({"total_gib": math.inf}, id="infinite"),
        pytest.param({"allocated_gib": True}, id="a truth for a size"),
        pytest.param({"location": 5}, id="a number for a location"),
        pytest.param({"pool": "p#1"}, id="a name that is none"),
        pytest.param({"pool": ""}, id="no name"),
    ],
)
def test_a_pool_that_makes_no_sense_is_left_out_and_named(
    wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    report = make_report("hosta@file1", **wrong)
    report["pools"].append({**make_report()["pools"][0], "pool": "pool2"})
    with caplog.at_level(logging.WARNING):
        assert [pool.host for pool in pools_of_report(report)] == ["hosta@file1#pool2"]
    assert "hosta@file1" in caplog.text


@pytest.mark.parametrize("missing", ["pool", "total_gib", "free_gib", "allocated_gib", "thin", "location"])
def test_a_pool_without_a_field_is_left_out(missing: str) -> None:
    report = make_report()
    del report["pools"][0][missing]
    assert pools_of_report(report) == []


@pytest.mark.parametrize("pools", [None, 5, "pool1", {"pool": "pool1"}, [5, "pool1", None]])
def test_a_report_without_a_list_of_pools_has_none(pools: Any) -> None:
    assert pools_of_report({**make_report(), "pools": pools}) == []


@pytest.mark.parametrize("host", ["hosta", "", "a@b@c", "a b@c"])
def test_a_report_of_nobody_known_has_no_pools(host: str) -> None:
    assert pools_of_report(make_report(host)) == []


def test_a_ratio_below_one_promises_no_less_than_there_is() -> None:
    [pool] = pools_of_report({**make_report(), "max_over_subscription_ratio": 0.5})
    assert pool.max_over_subscription_ratio == 1.0


# --- the registry ----------------------------------------------------------------------------------------------------


def test_a_newer_report_replaces_all_pools_of_its_backend_and_no_other() -> None:
    registry = PoolRegistry()
    first = make_report("hosta@file1", reported_at=10)
    first["pools"].append({**first["pools"][0], "pool": "pool2"})
    registry.update(first)
    registry.update(make_report("hostb@file2", reported_at=10))
    registry.update(make_report("hosta@file1", reported_at=20, free_gib=70))
    assert free(registry) == {"hosta@file1#pool1": 70.0, "hostb@file2#pool1": 100.0}


def test_an_older_report_that_comes_late_changes_nothing() -> None:
    registry = PoolRegistry()
    registry.update(make_report(reported_at=20, free_gib=70))
    registry.update(make_report(reported_at=10, free_gib=90))
    assert free(registry) == {"hosta@file1#pool1": 70.0}


@pytest.mark.parametrize("report", [{}, {"host": "hosta@file1"}, {"host": "hosta@file1", "reported_at": "now"}])
def test_a_report_without_sender_or_time_changes_nothing(report: dict[str, Any]) -> None:
    registry = PoolRegistry()
    registry.update(make_report(reported_at=1))
    registry.update(report)
    assert free(registry) == {"hosta@file1#pool1": 100.0}


def test_a_pool_is_found_by_its_name() -> None:
    registry = PoolRegistry()
    registry.update(make_report("hosta@file1"))
    found = registry.get(BackendName.parse("hosta@file1#pool1"))
    assert found is not None
    assert found.host == "hosta@file1#pool1"
    for name in ("hosta@file1#pool2", "hosta@file2#pool1", "hosta@file1", "hosta"):
        assert registry.get(BackendName.parse(name)) is None


def test_reports_from_many_threads_leave_the_newest_of_each_backend() -> None:
    registry = PoolRegistry()
    start = threading.Barrier(8)

    def send(first: int) -> None:
        start.wait(10)
        for number in range(first, 400, 8):
            registry.update(make_report(f"h{number % 5}@x", reported_at=number, free_gib=number / 4))

    threads = [threading.Thread(target=send, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert free(registry) == {f"h{number}@x#pool1": (395 + number) / 4 for number in range(5)}


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_a_plain_view_is_the_name_alone() -> None:
    assert view(make_pool(), make_usage(), detail=False) == {"name": "hosta@file1#pool1"}


def test_a_detailed_view_has_what_clients_read() -> None:
    pool = make_pool(
        thin=True,
        free_gib=40.126,
        allocated_gib=59.5,
        reserved_percentage=10.0,
        reported_at=1_700_000_000.25,
        capabilities={"ssd": True, "pool_name": "another"},
    )
    shown = view(pool, make_usage(provisioned=80, reserved=8, volumes=7), detail=True)
    assert shown["name"] == "hosta@file1#pool1"
    capabilities = shown["capabilities"]
    assert set(capabilities) == PUBLIC_KEYS | {"ssd"}
    assert capabilities["pool_name"] == "pool1", "no driver renames its pool"
    assert capabilities["total_capacity_gb"] == 100.0
    assert capabilities["free_capacity_gb"] == 32.13, "less what is reserved by work under way"
    assert (capabilities["allocated_capacity_gb"], capabilities["provisioned_capacity_gb"]) == (59.5, 80)
    assert (capabilities["thin_provisioning_support"], capabilities["thick_provisioning_support"]) == (True, False)
    assert (capabilities["total_volumes"], capabilities["reserved_percentage"]) == (7, 10.0)
    assert capabilities["max_over_subscription_ratio"] == "20.0"
    assert capabilities["location_info"] == "place of hosta@file1#pool1"
    assert capabilities["timestamp"] == "2023-11-14T22:13:20.250000"
    json.dumps(shown)


def test_free_space_is_never_shown_below_zero() -> None:
    shown = view(make_pool(free_gib=5.0), make_usage(reserved=8), detail=True)
    assert shown["capabilities"]["free_capacity_gb"] == 0.0
