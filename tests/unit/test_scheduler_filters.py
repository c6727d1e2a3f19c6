"""Every filter, as tables of named cases: what passes, what does not, and the words with their numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from migrator import conf as config
from migrator.backend_name import BackendName
from migrator.scheduler.filters import Filter, Request
from migrator.scheduler.filters.availability_zone import AvailabilityZoneFilter
from migrator.scheduler.filters.capabilities import CapabilitiesFilter
from migrator.scheduler.filters.capacity import CapacityFilter
from migrator.scheduler.filters.different_place import DifferentPlaceFilter
from migrator.scheduler.filters.service_up import ServiceUpFilter
from migrator.scheduler.pools import Pool, Usage
from tests.support.pools import NOW, make_pool, make_request, make_usage, service

CONF = config.load("tests", [], [])
IDLE = make_usage()


def told(kind: type[Filter], pool: Pool, usage: Usage, request: Request) -> tuple[bool, str]:
    """What a filter of that kind says: does the pool pass, and why."""
    judge = kind(CONF)
    reason = judge.against(pool, usage, request)
    return (True, judge.in_favour(pool, usage, request)) if reason is None else (False, reason)


# --- availability_zone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "passes", "reason"),
    [
        pytest.param(None, True, "no zone was asked for", id="none asked for"),
        pytest.param("zone1", True, "lies in zone1", id="the pool's"),
        pytest.param("zone2", False, "lies in zone1, wanted zone2", id="another"),
        pytest.param("Zone1", False, "lies in zone1, wanted Zone1", id="another case is another zone"),
    ],
)
def test_zone(wanted: str | None, passes: bool, reason: str) -> None:
    pool = make_pool(availability_zone="zone1")
    request = make_request(availability_zone=wanted)
    assert told(AvailabilityZoneFilter, pool, IDLE, request) == (passes, reason)


# --- capacity --------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A pool with its usage, the GiB wanted, and what is said."""

    pool: dict[str, Any]
    usage: Usage
    size: int
    passes: bool
    reason: str


THICK = {"total_gib": 100.0, "free_gib": 40.0}
#: Whole devices: 40 GiB are free, but no more than 20 of them in one piece.
DEVICES = {**THICK, "capabilities": {"largest_free_gib": 20.0}}
THIN = {"total_gib": 100.0, "free_gib": 40.0, "thin": True, "max_over_subscription_ratio": 2.0}

CAPACITY = {
    "thick with room": Case(
        THICK,
        make_usage(),
        40,
        True,
        "needs 40 GiB, 40.0 GiB free of 100.0, 0.0 GiB kept back (0 %), 0 GiB reserved by work under way",
    ),
    "thick one GiB short": Case(
        THICK,
        make_usage(),
        41,
        False,
        "needs 41 GiB, 40.0 GiB free of 100.0, 0.0 GiB kept back (0 %), 0 GiB reserved by work under way",
    ),
    "devices, the largest of which is just large enough": Case(
        DEVICES,
        make_usage(),
        20,
        True,
        "needs 20 GiB, 40.0 GiB free of 100.0, largest free piece 20 GiB, 0.0 GiB kept back (0 %), "
        "0 GiB reserved by work under way",
    ),
    "devices, none of which is large enough though their sum is": Case(
        DEVICES,
        make_usage(),
        21,
        False,
        "needs 21 GiB, 40.0 GiB free of 100.0, largest free piece 20 GiB, 0.0 GiB kept back (0 %), "
        "0 GiB reserved by work under way",
    ),
    "devices, all of them taken": Case(
        {**THICK, "capabilities": {"largest_free_gib": 0.0}},
        make_usage(),
        1,
        False,
        "needs 1 GiB, 40.0 GiB free of 100.0, largest free piece 0 GiB, 0.0 GiB kept back (0 %), "
        "0 GiB reserved by work under way",
    ),
    "a largest piece that is no number": Case(
        {**THICK, "capabilities": {"largest_free_gib": "much"}},
        make_usage(),
        40,
        True,
        "needs 40 GiB, 40.0 GiB free of 100.0, 0.0 GiB kept back (0 %), 0 GiB reserved by work under way",
    ),
    "thick that keeps ten per cent back": Case(
        {**THICK, "reserved_percentage": 10.0},
        make_usage(),
        31,
        False,
        "needs 31 GiB, 40.0 GiB free of 100.0, 10.0 GiB kept back (10 %), 0 GiB reserved by work under way",
    ),
    "thick that keeps ten per cent back, filled to them": Case(
        {**THICK, "reserved_percentage": 10.0},
        make_usage(),
        30,
        True,
        "needs 30 GiB, 40.0 GiB free of 100.0, 10.0 GiB kept back (10 %), 0 GiB reserved by work under way",
    ),
    "thick with migrations on their way to it": Case(
        THICK,
        make_usage(provisioned=75, reserved=15),
        26,
        False,
        "needs 26 GiB, 40.0 GiB free of 100.0, 0.0 GiB kept back (0 %), 15 GiB reserved by work under way",
    ),
    "thick with migrations on their way and just enough": Case(
        THICK,
        make_usage(provisioned=75, reserved=15),
        25,
        True,
        "needs 25 GiB, 40.0 GiB free of 100.0, 0.0 GiB kept back (0 %), 15 GiB reserved by work under way",
    ),
    "thick that is full": Case(
        {"total_gib": 100.0, "free_gib": 0.0},
        make_usage(provisioned=100),
        1,
        False,
        "needs 1 GiB, 0.0 GiB free of 100.0, 0.0 GiB kept back (0 %), 0 GiB reserved by work under way",
    ),
    "thick is never over-subscribed": Case(
        {**THICK, "max_over_subscription_ratio": 20.0},
        make_usage(),
        80,
        False,
        "needs 80 GiB, 40.0 GiB free of 100.0, 0.0 GiB kept back (0 %), 0 GiB reserved by work under way",
    ),
    "thin may promise more than is free": Case(
        THIN,
        make_usage(provisioned=60),
        80,
        True,
        "needs 80 GiB, 40.0 GiB free of 100.0, 0.0 GiB kept back (0 %), over-subscribed up to 2 times, "
        "0 GiB reserved by work under way",
    ),
    "thin would promise too much in all": Case(
        {**THIN, "free_gib": 90.0},
        make_usage(provisioned=150),
        51,
        False,
        "needs 51 GiB, would promise 201 GiB in all, at most 200.0 GiB are allowed (100.0 GiB, 0 % kept back, times 2)",
    ),
    "thin that keeps a quarter back would promise too much": Case(
        {**THIN, "free_gib": 90.0, "reserved_percentage": 25.0},
        make_usage(provisioned=100),
        51,
        False,
        "needs 51 GiB, would promise 151 GiB in all, at most 150.0 GiB are allowed "
        "(100.0 GiB, 25 % kept back, times 2)",
    ),
    "thin and nearly full is not over-subscribed by its size": Case(
        {**THIN, "free_gib": 5.0},
        make_usage(provisioned=95),
        11,
        False,
        "needs 11 GiB, 5.0 GiB free of 100.0, 0.0 GiB kept back (0 %), over-subscribed up to 2 times, "
        "0 GiB reserved by work under way",
    ),
    "thin with migrations on their way to it": Case(
        THIN,
        make_usage(provisioned=60, reserved=30),
        51,
        False,
        "needs 51 GiB, 40.0 GiB free of 100.0, 0.0 GiB kept back (0 %), over-subscribed up to 2 times, "
        "30 GiB reserved by work under way",
    ),
}


@pytest.mark.parametrize("case", CAPACITY.values(), ids=CAPACITY.keys())
def test_capacity(case: Case) -> None:
    """field.md pain 11: parallel moves over-filled a pool, since nobody counted those under way."""
    pool, request = make_pool(**case.pool), make_request(size_gib=case.size)
    assert told(CapacityFilter, pool, case.usage, request) == (case.passes, case.reason)


# --- capabilities ----------------------------------------------------------------------------------------------------

REPORTED = {
    "ssd": True,
    "encrypts": False,
    "disks": 12,
    "speed": "7200",
    "raid": ["5", "6"],
    "model": "AX-2",
    "site": {"row": {"rack": "r17"}, "floor": 3},
}


@pytest.mark.parametrize(
    ("key", "wanted", "passes"),
    [
        # plain values
        ("model", "AX-2", True),
        ("model", "AX-3", False),
        ("model", "ax-2", False),
        ("disks", "12", True),
        ("disks", "12.0", True),
        ("disks", "13", False),
        ("ssd", "True", True),
        ("ssd", "true", True),
        ("ssd", "false", False),
        ("encrypts", "False", True),
        # booleans
        ("ssd", "<is> True", True),
        ("ssd", "<is> yes", True),
        ("ssd", "<is> False", False),
        ("encrypts", "<is> False", True),
        ("encrypts", "<is> true", False),
        # numbers
        ("disks", ">= 12", True),
        ("disks", ">= 13", False),
        ("disks", "<= 12", True),
        ("disks", "<= 11", False),
        ("disks", "== 12", True),
        ("disks", "== 11", False),
        ("disks", "!= 11", True),
        ("disks", "!= 12", False),
        ("disks", "= 10", True),
        ("disks", "= 13", False),
        ("speed", ">= 5400", True),
        ("disks", ">= many", False),
        ("model", ">= 1", False),
        # texts
        ("model", "s== AX-2", True),
        ("model", "s== AX-3", False),
        ("model", "s!= AX-3", True),
        ("model", "s!= AX-2", False),
        ("model", "s>= AX-2", True),
        ("model", "s> AX-2", False),
        ("model", "s> AX-1", True),
        ("model", "s<= AX-2", True),
        ("model", "s< AX-2", False),
        ("model", "s< AX-3", True),
        # parts and choices
        ("model", "<in> AX", True),
        ("model", "<in> BX", False),
        ("model", "<or> AX-1 <or> AX-2", True),
        ("model", "<or> AX-1 <or> AX-3", False),
        # lists: any of the values may do
        ("raid", "6", True),
        ("raid", "10", False),
        ("raid", "<or> 1 <or> 5", True),
        ("raid", ">= 6", True),
        ("raid", ">= 7", False),
        # nested ones
        ("site.floor", "3", True),
        ("site.row.rack", "r17", True),
        ("site:row:rack", "r17", True),
        ("site.row.rack", "r18", False),
        ("site.cellar", "3", False),
        ("model.floor", "3", False),
        # an operator without a value is a value
        ("model", ">=", False),
    ],
)
def test_capability(key: str, wanted: str, passes: bool) -> None:
    pool, request = make_pool(capabilities=REPORTED), make_request(extra_specs={f"capabilities:{key}": wanted})
    assert told(CapabilitiesFilter, pool, IDLE, request)[0] is passes


@pytest.mark.parametrize(
    ("specs", "passes", "reason"),
    [
        pytest.param({}, True, "no extra specs were asked for", id="none"),
        pytest.param({"model": "AX-2"}, True, "offers all 1 extra specs", id="without a scope"),
        pytest.param({"capabilities:model": "AX-2", "disks": "12"}, True, "offers all 2 extra specs", id="both ways"),
        pytest.param({"quota:iops": "1"}, True, "no extra specs were asked for", id="another scope"),
        pytest.param({"RESKEY:availability_zones": "z"}, True, "no extra specs were asked for", id="a reserved scope"),
        pytest.param({"model": "AX-3"}, False, "model: wanted 'AX-3', found 'AX-2'", id="another value"),
        pytest.param({"colour": "red"}, False, "colour: wanted 'red', not reported", id="a missing one"),
        pytest.param({"disks": ">= 24"}, False, "disks: wanted '>= 24', found 12", id="too few"),
        pytest.param({"ssd": "<is> False"}, False, "ssd: wanted '<is> False', found True", id="the opposite"),
        pytest.param({"raid": "10"}, False, "raid: wanted '10', found ['5', '6']", id="none of a list"),
        pytest.param(
            {"capabilities:site:row:rack": "r1"}, False, "site.row.rack: wanted 'r1', found 'r17'", id="a nested one"
        ),
        pytest.param({"model": "AX-2", "disks": "1"}, False, "disks: wanted '1', found 12", id="one of two"),
    ],
)
def test_extra_specs(specs: dict[str, str], passes: bool, reason: str) -> None:
    """field.md LP1605673: the reason why a type does not fit was masked."""
    pool = make_pool(capabilities=REPORTED)
    assert told(CapabilitiesFilter, pool, IDLE, make_request(extra_specs=specs)) == (passes, reason)


@pytest.mark.parametrize(
    ("key", "wanted", "other"),
    [
        ("volume_backend_name", "fast", "slow"),
        ("pool_name", "pool1", "pool2"),
        ("thin_provisioning_support", "<is> False", "<is> True"),
        ("thick_provisioning_support", "<is> True", "<is> False"),
        ("total_capacity_gb", ">= 100", ">= 101"),
        ("free_capacity_gb", ">= 100", ">= 101"),
        ("reserved_percentage", "<= 0", ">= 1"),
        ("storage_protocol", "file", "memory"),
    ],
)
def test_what_is_known_of_every_pool_can_be_asked_for(key: str, wanted: str, other: str) -> None:
    for text, passes in ((wanted, True), (other, False)):
        request = make_request(extra_specs={key: text})
        assert told(CapabilitiesFilter, make_pool(), IDLE, request)[0] is passes, text


def test_a_driver_cannot_report_away_what_is_known_of_its_pool() -> None:
    pool = make_pool(capabilities={"pool_name": "pool9"})
    assert told(CapabilitiesFilter, pool, IDLE, make_request(extra_specs={"pool_name": "pool1"}))[0]


def test_a_backend_without_a_name_fits_no_type_that_names_one() -> None:
    request = make_request(extra_specs={"volume_backend_name": "fast"})
    passes, reason = told(CapabilitiesFilter, make_pool(backend_name=None), IDLE, request)
    assert (passes, reason) == (False, "volume_backend_name: wanted 'fast', not reported")


def test_specs_of_one_request_are_not_answered_from_the_one_before() -> None:
    judge = CapabilitiesFilter(CONF)
    pool = make_pool(capabilities=REPORTED)
    for model, passes in (("AX-2", True), ("AX-3", False), ("AX-2", True)):
        assert (judge.against(pool, IDLE, make_request(extra_specs={"model": model})) is None) is passes


# --- different_place -------------------------------------------------------------------------------------------------

SOURCE = BackendName.parse("hosta@file1#pool1")


@pytest.mark.parametrize(
    ("name", "place", "source_place", "passes", "reason"),
    [
        pytest.param("hostb@file2#pool2", "y", "x", True, "is not hosta@file1#pool1", id="another pool"),
        pytest.param("hosta@file1#pool2", "y", "x", True, "is not hosta@file1#pool1", id="another pool of the backend"),
        pytest.param("hosta@file1#pool1", "x", "x", False, "the volume lies there already", id="the source"),
        pytest.param(
            "hosta@file1#pool1", "y", None, False, "the volume lies there already", id="the source, unreported"
        ),
        pytest.param(
            "hostb@file2#pool2",
            "x",
            "x",
            False,
            "is the same place as hosta@file1#pool1 under another name (x)",
            id="the source under another name",
        ),
        pytest.param("hostb@file2#pool2", None, None, True, "is not hosta@file1#pool1", id="places unknown"),
        pytest.param("hostb@file2#pool2", "x", None, True, "is not hosta@file1#pool1", id="the source's place unknown"),
    ],
)
def test_place(name: str, place: str | None, source_place: str | None, passes: bool, reason: str) -> None:
    """field.md bugs 4 (LP1404013: two backends on one store, and the move deleted the volume) and 5 (LP1871524)."""
    pool = make_pool(name, location={"place": place} if place else {})
    location = {"place": source_place} if source_place else None
    request = make_request(source=SOURCE, source_location=location)
    assert told(DifferentPlaceFilter, pool, IDLE, request) == (passes, reason)


def test_a_new_volume_lies_nowhere_yet() -> None:
    assert told(DifferentPlaceFilter, make_pool(), IDLE, make_request()) == (True, "nothing is there yet")


# --- service_up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "passes", "reason"),
    [
        pytest.param({}, True, "its service gave a sign of life 3 s ago", id="up"),
        pytest.param(
            {"up": False, "seconds_since_heartbeat": 75.4},
            False,
            "its service gave no sign of life for 75 s",
            id="down",
        ),
        pytest.param(
            {"disabled": True, "disabled_reason": "new disks"},
            False,
            "its service is disabled (new disks)",
            id="disabled",
        ),
        pytest.param(
            {"disabled": True}, False, "its service is disabled (no reason was given)", id="disabled without a reason"
        ),
        pytest.param({"frozen": True}, False, "its backend is frozen and takes no new volumes", id="frozen"),
    ],
)
def test_service(state: dict[str, Any], passes: bool, reason: str) -> None:
    pool = make_pool()
    request = make_request(services={"hosta@file1": service(**state)})
    assert told(ServiceUpFilter, pool, IDLE, request) == (passes, reason)


def test_a_pool_whose_service_nobody_knows_is_refused() -> None:
    request = make_request(services={"hosta@file2": service()})
    assert told(ServiceUpFilter, make_pool(), IDLE, request) == (False, "no service hosta@file1 is registered")


@pytest.mark.parametrize(("age", "passes"), [(0, True), (180, True), (181, False), (-5, True)])
def test_a_report_may_be_as_old_as_the_option_says(age: float, passes: bool) -> None:
    assert CONF.pool_report_max_age_seconds == 180
    pool = make_pool(reported_at=NOW - age)
    verdict = told(ServiceUpFilter, pool, IDLE, make_request(pool))
    assert verdict == (passes, "its service gave a sign of life 3 s ago" if passes else "its last report is 181 s old")
