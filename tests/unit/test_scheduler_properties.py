"""What must hold of the scheduler for any report and any load, tried on generated ones."""

from __future__ import annotations

import json
import math
import random
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator import conf as config
from migrator.backend_name import BackendName
from migrator.scheduler import choose
from migrator.scheduler.choose import Chooser
from migrator.scheduler.pools import Pool, PoolRegistry, Usage, view
from tests.support.pools import NOW, make_pool, make_report, make_request, make_usage, service

CHOOSER = Chooser(config.load("tests", [], []))

# --- reservations never over-fill ---

POOL: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    total_gib=st.integers(0, 200).map(float),
    used_share=st.floats(0, 1),
    thin=st.booleans(),
    max_over_subscription_ratio=st.sampled_from([1.0, 1.5, 2.0, 20.0]),
    reserved_percentage=st.sampled_from([0.0, 5.0, 50.0, 100.0]),
)


def built(number: int, values: dict[str, Any]) -> Pool:
    values = dict(values)
    free = values["total_gib"] * (1 - values.pop("used_share"))
    return make_pool(f"host@b{number}#p", free_gib=free, **values)


def may_hold(pool: Pool, provisioned_before: float) -> float:
    """GiB that the rules let a pool take in all until its next report, worked out without the filter."""
    kept = pool.total_gib * pool.reserved_percentage / 100
    if not pool.thin:
        return pool.free_gib - kept
    ratio = pool.max_over_subscription_ratio
    return min((pool.free_gib - kept) * ratio, (pool.total_gib - kept) * ratio - provisioned_before)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(POOL, min_size=1, max_size=4),
    st.lists(st.integers(0, 100), min_size=4, max_size=4),
    st.lists(st.integers(1, 120), max_size=25),
)
def test_choices_one_after_the_other_never_over_fill_a_pool_and_never_refuse_one_with_room(
    drawn: list[dict[str, Any]], before: list[int], sizes: list[int]
) -> None:
    """field.md pain 11: every choice counts at once, long before a report can show it."""
    pools = [built(number, values) for number, values in enumerate(drawn)]
    used = {pool.name: make_usage(provisioned=start) for pool, start in zip(pools, before, strict=False)}
    limits = {pool.name: may_hold(pool, used[pool.name].provisioned_gib) for pool in pools}
    given_away = dict.fromkeys(used, 0.0)
    for size in sizes:
        choice = CHOOSER.choose([(pool, used[pool.name]) for pool in pools], make_request(*pools, size_gib=size))
        if choice.pool is None:
            assert all(given_away[pool.name] + size > limits[pool.name] - 1e-6 for pool in pools), choice.reason()
            continue
        name = choice.pool.name
        given_away[name] += size
        assert given_away[name] <= limits[name] + 1e-6
        now = used[name]
        used[name] = Usage(now.provisioned_gib + size, now.reserved_gib + size, now.volumes + 1)


# --- verdicts ---


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(POOL, max_size=5), st.integers(1, 300), st.sampled_from([0, choose.EXPLAIN_ALL]))
def test_every_candidate_is_accounted_for(drawn: list[dict[str, Any]], size: int, others: int) -> None:
    """Few candidates: a verdict of every filter for each; many: one for each that fails. The rest fit."""
    pools = [built(number, values) for number, values in enumerate(drawn)]
    pools += [make_pool(f"other@b{number}#p", total_gib=0.0, free_gib=0.0) for number in range(others)]
    random.Random(size).shuffle(pools)
    request = make_request(*pools, size_gib=size)
    choice = CHOOSER.choose([(pool, make_usage()) for pool in pools], request)
    failed = {verdict.pool for verdict in choice.verdicts if not verdict.passed}
    if len(pools) <= choose.EXPLAIN_ALL:
        assert len(choice.verdicts) == len(pools) * len(CHOOSER.filters)
    else:
        assert len(choice.verdicts) == len(failed)
    assert choice.fitting == len(pools) - len(failed)
    assert (choice.pool is None) == (len(failed) == len(pools))
    assert choice.pool is None or str(choice.pool.name) not in failed
    assert "\n" not in choice.reason()
    assert choice.reason()
    again = CHOOSER.choose([(pool, make_usage()) for pool in reversed(pools)], request)
    assert again.pool == choice.pool


# --- garbage ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
REPORT = make_report()
POOL_KEYS = list(REPORT["pools"][0])
GARBAGE_POOL = st.fixed_dictionaries({}, optional=dict.fromkeys(POOL_KEYS, JSON)).map(
    lambda changes: make_report()["pools"][0] | {"pool": "garbage"} | changes
)


def usable(registry: PoolRegistry) -> None:
    """Every pool that is known can be shown, and all of them chosen from."""
    pools = registry.all()
    for pool in pools:
        assert registry.get(pool.name) == pool, pool
        json.dumps(view(pool, make_usage(), True), allow_nan=False)
    choice = CHOOSER.choose([(pool, make_usage()) for pool in pools], make_request(*pools))
    assert all(math.isfinite(score) for scores in choice.scores.values() for score in scores.values())


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(GARBAGE_POOL | JSON, max_size=4))
def test_garbage_among_the_pools_never_hides_the_good_one(garbage: list[Any]) -> None:
    registry = PoolRegistry()
    registry.update(make_report() | {"pools": [*garbage, make_report()["pools"][0]]})
    assert registry.get(BackendName("hosta", "file1", "pool1")) is not None
    usable(registry)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(REPORT, JSON)) | JSON)
def test_a_garbage_report_never_breaks_the_registry(garbage: Any) -> None:
    registry = PoolRegistry()
    registry.update(make_report("hostb@file2"))
    registry.update(make_report() | garbage if isinstance(garbage, dict) else garbage)
    assert registry.get(BackendName("hostb", "file2", "pool1")) is not None
    usable(registry)


@pytest.mark.parametrize("extreme", [1e308, 10**400, 5e-324], ids=["huge", "beyond floats", "tiny"])
@pytest.mark.parametrize("key", ["total_gib", "free_gib", "allocated_gib"])
def test_sizes_that_no_pool_can_have_do_not_stop_the_choice(extreme: float, key: str) -> None:
    registry = PoolRegistry()
    registry.update(make_report("hostb@file2", thin=True, **{key: extreme}))
    registry.update(make_report())
    usable(registry)


def test_a_report_from_a_wrong_clock_is_not_believed_for_ever() -> None:
    """One report of the far future must not keep out all later ones, nor break the list of pools."""
    registry = PoolRegistry()
    registry.update(make_report(reported_at=1e15))
    registry.update(make_report(reported_at=NOW))
    assert [pool.reported_at for pool in registry.all()] == [NOW]


def test_a_forgotten_backend_has_no_pools_until_it_reports_again() -> None:
    registry = PoolRegistry()
    for host in ("hosta@file1", "hostb@file2"):
        registry.update(make_report(host, reported_at=NOW))
    registry.forget(BackendName("hosta", "file1"))
    registry.forget(BackendName("nobody", "ever"))
    assert [pool.host for pool in registry.all()] == ["hostb@file2#pool1"]
    registry.update(make_report("hosta@file1", reported_at=NOW - 1))
    assert sorted(pool.host for pool in registry.all()) == ["hosta@file1#pool1", "hostb@file2#pool1"]


def test_a_reader_never_sees_half_a_report() -> None:
    """Writers and readers at once: all pools of a backend are of one report, and the last one stays."""
    registry = PoolRegistry()
    rounds = 150
    torn: list[set[float]] = []

    def write(host: str) -> None:
        for at in range(rounds):
            both = [make_report(pool="p1")["pools"][0], make_report(pool="p2")["pools"][0]]
            registry.update(make_report(host, reported_at=float(at)) | {"pools": both})

    def read() -> None:
        for _ in range(rounds):
            seen: dict[str, set[float]] = {}
            for pool in registry.all():
                seen.setdefault(pool.service, set()).add(pool.reported_at)
            torn.extend(times for times in seen.values() if len(times) != 1)

    threads = [threading.Thread(target=write, args=[f"host@b{number}"]) for number in range(4)]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not torn
    assert len(registry.all()) == 8
    assert {pool.reported_at for pool in registry.all()} == {rounds - 1.0}


# --- reasons ---


def test_a_reason_tells_of_the_nearest_misses_first_and_counts_the_rest_by_filter() -> None:
    """field.md pain 6 (LP1605673): a pool short of a GiB must not drown among full ones that are down as well."""
    down = [make_pool(f"down{number}@b#p", free_gib=1.0) for number in range(6)]
    short = make_pool("z@b#short", free_gib=9.0)
    services = {pool.service: service(up=False, seconds_since_heartbeat=99.0) for pool in down}
    request = make_request(services=services | {short.service: service()})
    reason = CHOOSER.choose([(pool, make_usage()) for pool in [*down, short]], request).reason()
    assert reason.startswith("z@b#short: capacity: needs 10 GiB, 9.0 GiB free of 100.0")
    assert reason.endswith("; and 4 more by capacity, 6 more by service_up")


def test_what_was_excluded_is_not_said_to_be_unknown() -> None:
    pool = make_pool()
    request = make_request(pool, requested=pool.name, exclude=frozenset({pool.name}))
    choice = CHOOSER.choose([(pool, make_usage())], request)
    assert choice.pool is None
    assert "report" not in choice.reason()


def test_when_all_pools_are_excluded_the_reason_does_not_say_that_there_are_none() -> None:
    pool = make_pool()
    choice = CHOOSER.choose([(pool, make_usage())], make_request(pool, exclude=frozenset({pool.name})))
    assert choice.pool is None
    assert "reported a pool" not in choice.reason()
