"""The choice: which pools are asked, in which order filters and weighers speak, and the words that it ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator import conf as config
from migrator import errors
from migrator.backend_name import BackendName
from migrator.scheduler import choose
from migrator.scheduler.choose import Choice, Chooser
from migrator.scheduler.filters import Request
from migrator.scheduler.pools import Pool, Usage
from tests.support.pools import make_pool, make_request, make_usage, service

FILTERS = ["service_up", "availability_zone", "different_place", "capabilities", "capacity"]


def chooser(**options: Any) -> Chooser:
    conf = config.load("tests", [], [])
    for name, value in options.items():
        conf.set_override(name, value)
    return Chooser(conf)


def choice(pools: Sequence[Pool], usages: Sequence[Usage] = (), /, **request: Any) -> Choice:
    """What the configuration's defaults choose among ``pools``, all of them idle unless ``usages`` says more."""
    used = [*usages, *[make_usage()] * (len(pools) - len(usages))]
    return chooser().choose(zip(pools, used, strict=True), make_request(*pools, **request))


def chosen(found: Choice) -> str | None:
    return found.pool.host if found.pool is not None else None


# --- the configuration -----------------------------------------------------------------------------------------------


def test_filters_and_weighers_are_asked_in_the_order_of_the_options() -> None:
    names = list(reversed(FILTERS))
    made = chooser(scheduler_default_filters=names, scheduler_default_weighers=["volume_number", "free_capacity"])
    assert [each.name for each in made.filters] == names
    assert [each.name for each in made.weighers] == ["volume_number", "free_capacity"]
    pool = make_pool()
    verdicts = made.choose([(pool, make_usage())], make_request(pool)).verdicts
    assert [verdict.filter for verdict in verdicts] == names


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("scheduler_default_filters", sorted(FILTERS)),
        ("scheduler_default_weighers", ["allocated_capacity", "free_capacity", "volume_number"]),
    ],
)
def test_an_unknown_name_ends_the_start_with_a_line_that_says_which_there_are(option: str, known: list[str]) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        chooser(**{option: ["capacity", "magic"] if option.endswith("filters") else ["magic"]})
    assert str(caught.value) == f"{option}: 'magic' is not one of {', '.join(known)}"


# --- candidates ------------------------------------------------------------------------------------------------------

POOLS = [make_pool(name) for name in ("a@x#1", "a@x#2", "a@y#1", "b@x#1")]


@pytest.mark.parametrize(
    ("requested", "asked"),
    [
        (None, ["a@x#1", "a@x#2", "a@y#1", "b@x#1"]),
        ("a@x#2", ["a@x#2"]),
        ("a@x", ["a@x#1", "a@x#2"]),
        ("a", ["a@x#1", "a@x#2", "a@y#1"]),
    ],
)
def test_only_pools_of_the_place_asked_for_are_candidates(requested: str | None, asked: list[str]) -> None:
    found = choice(POOLS, requested=BackendName.parse(requested) if requested else None)
    assert sorted({verdict.pool for verdict in found.verdicts}) == asked
    assert chosen(found) in asked


def test_a_place_that_nobody_reported_is_named() -> None:
    found = choice(POOLS, requested=BackendName.parse("a@x#9"))
    assert found.pool is None
    assert found.reason() == "a@x#9: known: no report of it has come from its backend"


def test_without_any_pool_the_reason_says_so() -> None:
    assert choice([]).reason() == "no backend has reported a pool yet"


def test_excluded_pools_are_not_even_asked() -> None:
    found = choice(POOLS, exclude=frozenset(BackendName.parse(name) for name in ("a@x#1", "a@x#2", "b@x#1")))
    assert chosen(found) == "a@y#1"
    assert {verdict.pool for verdict in found.verdicts} == {"a@y#1"}


# --- the best --------------------------------------------------------------------------------------------------------


def test_the_pool_with_most_free_space_wins() -> None:
    pools = [make_pool("a@x#1", free_gib=50.0), make_pool("a@x#2", free_gib=90.0), make_pool("a@x#3", free_gib=70.0)]
    found = choice(pools)
    assert chosen(found) == "a@x#2"
    assert list(found.scores.items()) == [
        ("a@x#2", {"free_capacity": 1.0}),
        ("a@x#3", {"free_capacity": 0.5}),
        ("a@x#1", {"free_capacity": 0.0}),
    ]
    assert found.reason() == "a@x#2 of 3 that fit"


def test_work_under_way_counts_as_space_that_is_taken() -> None:
    pools = [make_pool("a@x#1", free_gib=60.0), make_pool("a@x#2", free_gib=70.0)]
    assert chosen(choice(pools, [make_usage(), make_usage(reserved=20)])) == "a@x#1"


def test_a_thin_pool_is_weighed_by_what_it_may_still_promise() -> None:
    thin = make_pool("a@x#1", thin=True, max_over_subscription_ratio=3.0)
    assert chosen(choice([thin, make_pool("a@x#2")])) == "a@x#1"
    assert chosen(choice([thin, make_pool("a@x#2")], [make_usage(provisioned=250)])) == "a@x#2"


@pytest.mark.parametrize("order", [("a@x#1", "a@x#2", "b@x#1"), ("b@x#1", "a@x#2", "a@x#1")])
def test_equal_pools_are_decided_by_name_whatever_order_they_reported_in(order: Sequence[str]) -> None:
    assert chosen(choice([make_pool(name) for name in order])) == "a@x#1"


@pytest.mark.parametrize(
    ("options", "best"),
    [
        pytest.param({"free_capacity_multiplier": -1.0}, "a@x#2", id="fill pools in turn"),
        pytest.param({"scheduler_default_weighers": ["volume_number"]}, "a@x#3", id="fewest volumes"),
        pytest.param({"scheduler_default_weighers": ["allocated_capacity"]}, "a@x#1", id="least promised"),
        pytest.param(
            {"scheduler_default_weighers": ["free_capacity", "volume_number"], "volume_number_multiplier": -2.0},
            "a@x#3",
            id="the sum of two, one of them doubled",
        ),
        pytest.param({"scheduler_default_weighers": []}, "a@x#1", id="no weigher at all"),
    ],
)
def test_the_configured_weights_decide(options: dict[str, Any], best: str) -> None:
    pools = [
        make_pool("a@x#1", free_gib=90.0),
        make_pool("a@x#2", free_gib=20.0),
        make_pool("a@x#3", free_gib=60.0),
    ]
    usages = [
        make_usage(provisioned=10, volumes=9),
        make_usage(provisioned=80, volumes=4),
        make_usage(provisioned=40, volumes=1),
    ]
    found = chooser(**options).choose(zip(pools, usages, strict=True), make_request(*pools))
    assert chosen(found) == best


def test_a_pool_that_fails_is_not_weighed() -> None:
    pools = [make_pool("a@x#1", free_gib=90.0, availability_zone="z9"), make_pool("a@x#2", free_gib=20.0)]
    found = choice(pools, availability_zone="zone1")
    assert chosen(found) == "a@x#2"
    assert list(found.scores) == ["a@x#2"]


# --- verdicts and reasons --------------------------------------------------------------------------------------------


def test_every_filter_gives_its_verdict_on_every_candidate() -> None:
    pools = [make_pool("a@x#1", availability_zone="z9", free_gib=1.0), make_pool("a@x#2")]
    found = choice(pools, availability_zone="zone1")
    told = [(verdict.pool, verdict.filter, verdict.passed) for verdict in found.verdicts]
    failed = {("a@x#1", "availability_zone"), ("a@x#1", "capacity")}
    assert told == [(pool.host, name, (pool.host, name) not in failed) for pool in pools for name in FILTERS]
    assert all(verdict.reason for verdict in found.verdicts)


def many(count: int, **values: Any) -> list[Pool]:
    return [make_pool(f"h{number:04}@x#1", **values) for number in range(count)]


@pytest.mark.parametrize(("count", "verdicts"), [(choose.EXPLAIN_ALL, 5), (choose.EXPLAIN_ALL + 1, 0)])
def test_beyond_a_bound_only_failures_are_kept(count: int, verdicts: int) -> None:
    found = choice(many(count))
    assert len(found.verdicts) == verdicts * count
    assert len(found.scores) == choose.EXPLAIN_ALL, "the best, not all"
    assert found.reason() == f"h0000@x#1 of {count} that fit"


def test_beyond_the_bound_a_pool_is_told_by_its_first_failure() -> None:
    count = choose.EXPLAIN_ALL + 1
    found = choice(many(count, free_gib=1.0, availability_zone="z9"), availability_zone="zone1")
    assert [verdict.filter for verdict in found.verdicts] == ["availability_zone"] * count


def test_many_and_few_candidates_lead_to_the_same_choice() -> None:
    """The two ways to ask the filters must agree."""
    pools = [make_pool(f"h{number:04}@x#1", free_gib=float(number % 97)) for number in range(choose.EXPLAIN_ALL + 100)]
    whole = choice(pools, size_gib=50)
    fitting = [pool for pool in pools if pool.free_gib >= 50]
    assert whole.fitting == len(fitting)
    assert chosen(whole) == chosen(choice(fitting[: choose.EXPLAIN_ALL], size_gib=50)) == "h0096@x#1"
    refused = {verdict.pool for verdict in whole.verdicts if not verdict.passed}
    assert refused == {pool.host for pool in pools} - {pool.host for pool in fitting}


def test_the_reason_names_the_filter_and_the_numbers() -> None:
    """field.md pain 6 (LP1605673): "no valid host", and no word why."""
    pools = [make_pool("a@x#1", free_gib=3.0), make_pool("a@x#2", capabilities={"ssd": False})]
    found = choice(pools, extra_specs={"pool_name": "2", "ssd": "<is> True"}, size_gib=4)
    assert found.pool is None
    assert found.reason() == (
        "a@x#1: capabilities: pool_name: wanted '2', found '1'; "
        "a@x#1: capacity: needs 4 GiB, 3.0 GiB free of 100.0, 0.0 GiB kept back (0 %), "
        "0 GiB reserved by work under way; "
        "a@x#2: capabilities: ssd: wanted '<is> True', found False"
    )


def test_a_long_reason_tells_the_three_nearest_misses_and_counts_the_rest_by_filter() -> None:
    pools = [make_pool(f"a@x#{number}", availability_zone="z9") for number in range(4)] + [
        make_pool(f"b@x#{number}", free_gib=1.0) for number in range(2)
    ]
    reason = choice(pools, availability_zone="zone1").reason()
    told = reason.split("; ")
    assert [words.split(": ")[:2] for words in told[:2]] == [["b@x#0", "capacity"], ["b@x#1", "capacity"]]
    assert told[2:] == ["a@x#0: availability_zone: lies in z9, wanted zone1", "and 3 more by availability_zone"]


# --- never too much --------------------------------------------------------------------------------------------------


@st.composite
def pool_and_sizes(draw: st.DrawFn) -> tuple[Pool, list[int]]:
    total = draw(st.integers(0, 200))
    pool = make_pool(
        total_gib=float(total),
        free_gib=float(draw(st.integers(0, total))),
        thin=draw(st.booleans()),
        max_over_subscription_ratio=draw(st.sampled_from([1.0, 1.5, 3.0])),
        reserved_percentage=float(draw(st.integers(0, 100))),
    )
    return pool, draw(st.lists(st.integers(1, 60), max_size=30))


@settings(deadline=None)
@given(pool_and_sizes())
def test_choices_one_after_the_other_never_give_away_more_than_there_is(drawn: tuple[Pool, list[int]]) -> None:
    """field.md pain 11: each choice sees what the ones before it took, and the last report shows none of them."""
    pool, sizes = drawn
    asked = chooser()
    usage = make_usage(provisioned=pool.total_gib - pool.free_gib)
    for size in sizes:
        request = make_request(pool, size_gib=size)
        if asked.choose([(pool, usage)], request).pool is not None:
            usage = Usage(usage.provisioned_gib + size, usage.reserved_gib + size, usage.volumes + 1)
    kept = pool.total_gib * pool.reserved_percentage / 100
    if pool.thin:
        limit = (pool.total_gib - kept) * pool.max_over_subscription_ratio
        assert usage.volumes == 0 or usage.provisioned_gib <= limit
    else:
        assert usage.volumes == 0 or usage.reserved_gib <= pool.free_gib - kept


@given(pool_and_sizes())
def test_what_was_refused_really_did_not_fit(drawn: tuple[Pool, list[int]]) -> None:
    """The other side: a filter that refuses everything never over-fills anything either."""
    pool, sizes = drawn
    kept = pool.total_gib * pool.reserved_percentage / 100
    for size in sizes:
        fits = size <= pool.free_gib - kept
        request = dataclasses.replace(make_request(pool), size_gib=size)
        if fits:  # what fits without any over-subscription fits a thin pool too
            used = make_usage(provisioned=pool.total_gib - pool.free_gib)
            assert _choose(pool, used, request).pool is pool


CHOOSER = chooser()


def _choose(pool: Pool, usage: Usage, request: Request) -> Choice:
    return CHOOSER.choose([(pool, usage)], request)


def test_a_service_that_is_down_keeps_all_its_pools_out() -> None:
    pools = [make_pool("a@x#1"), make_pool("a@x#2"), make_pool("b@x#1", free_gib=20.0)]
    services = {"a@x": service(up=False, seconds_since_heartbeat=61.0), "b@x": service()}
    assert chosen(choice(pools, services=services)) == "b@x#1"
