"""``/migrations/plan`` and ``POST /migrations``, with a real scheduler and real volume services of files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from migrator import conf as config
from migrator.db import services, volumes
from migrator.db.models import Migration
from migrator.drivers.file import FileDriver
from migrator.scheduler.manager import SchedulerManager
from tests.api.conftest import DESTINATION, SOURCE, Answer, Api
from tests.api.plant import GIB, MIB, PLACES, Plant
from tests.support.waiting import until

UUID = "5c1f2cf6-0000-4000-8000-000000000000"


def ask(api: Api, volume_id: str, token: str = "admin", **wanted: Any) -> Answer:
    return api("GET", f"/migrations/plan?{urlencode({'volume_id': volume_id, **wanted})}", token=token)


def plan(api: Api, volume_id: str, **wanted: Any) -> Any:
    answer = ask(api, volume_id, **wanted)
    assert answer.status == 200, answer.text
    return answer.json["plan"]


def post(api: Api, volume_id: str, token: str = "admin", **wanted: Any) -> Answer:
    return api("POST", "/migrations", {"migration": {"volume_id": volume_id, **wanted}}, token=token)


def chosen(plans: list[dict[str, Any]]) -> dict[str, str]:
    return {each["plan"]: each["reason"] for each in plans if each["chosen"]}


# --- what is told ----------------------------------------------------------------------------------------------------


def test_it_tells_the_way_the_pool_and_the_numbers_and_changes_nothing(api: Api, plant: Plant) -> None:
    volume_id = plant.volume(3 * MIB)
    before = api.contents()
    told = plan(api, volume_id, host=DESTINATION)
    assert (told["possible"], told["blockers"]) == (True, [])
    assert (told["source_host"], told["requested_host"], told["destination_host"]) == (SOURCE, DESTINATION, DESTINATION)
    assert told["plan"] == "assisted"
    assert chosen(told["plans"]) == {"assisted": "by a hard link"}
    assert (told["bytes_total"], told["bytes_to_copy"]) == (GIB, 0)
    assert 3 * MIB <= told["bytes_allocated"] < 4 * MIB
    (pool,) = told["pools"]
    assert (pool["pool"], pool["fits"], pool["rank"]) == (DESTINATION, True, 1)
    assert (pool["needed_gib"], pool["total_gib"], pool["free_gib"], pool["kept_gib"]) == (1, 100.0, 40.0, 10.0)
    assert [verdict["filter"] for verdict in pool["filters"]] == api.conf.scheduler_default_filters
    assert all(verdict["passed"] for verdict in pool["filters"])
    assert api.contents() == before


def test_a_forced_copy_says_so_and_how_much(api: Api, plant: Plant) -> None:
    told = plan(api, plant.volume(3 * MIB), host=DESTINATION, force_host_copy="yes", lock_volume="1")
    assert chosen(told["plans"]) == {"host_copy": "force_host_copy is asked for"}
    assert told["bytes_to_copy"] == told["bytes_allocated"] >= 3 * MIB
    assert (told["force_host_copy"], told["lock_volume"]) == (True, True)


def test_what_the_backend_cannot_do_itself_is_copied_and_its_reason_told(api: Api, plant: Plant) -> None:
    api.conf.set_override("file_thin_provisioning", False, "file2")
    plant.drivers["b@file2"] = FileDriver("b@file2", config.backend(api.conf, "file2"))
    plant.drivers["b@file2"].start()
    plant.report("b@file2")
    told = plan(api, plant.volume(), host=DESTINATION)
    (reason,) = (each["reason"] for each in told["plans"] if each["plan"] == "assisted")
    assert "thin" in reason
    assert chosen(told["plans"]) == {"host_copy": f"not assisted: {reason}"}


def test_pools_stand_in_the_order_in_which_they_would_be_taken(api: Api, plant: Plant) -> None:
    """Two pools fit by their scores; the third has no room, and the volume's own is none."""
    more = [
        {"pool": name, "total_gib": 100.0, "free_gib": free, "allocated_gib": 0.0, "thin": False}
        | {"location": {"place": name}, "capabilities": {}}
        for name, free in (("large", 90.0), ("full", 5.0))
    ]
    plant.report("b@file2", more=more, thin=False)
    told = plan(api, plant.volume())
    ranked = [(pool["pool"], pool["rank"]) for pool in told["pools"] if pool["fits"]]
    assert ranked == [("b@file2#large", 1), (DESTINATION, 2)]
    assert told["destination_host"] == "b@file2#large"
    large, small = told["pools"][:2]
    assert [w["weigher"] for w in large["weighers"]] == api.conf.scheduler_default_weighers
    assert (large["weighers"][0]["measure"], small["weighers"][0]["measure"]) == (80.0, 30.0)
    assert large["score"] > small["score"]
    against = {
        pool["pool"]: [v["filter"] for v in pool["filters"] if not v["passed"]]
        for pool in told["pools"]
        if not pool["fits"]
    }
    assert against == {SOURCE: ["different_place"], "b@file2#full": ["capacity"]}


def test_without_a_host_the_volume_stays_in_its_zone_and_with_one_it_may_leave(api: Api, plant: Plant) -> None:
    """field.md bug 14 (LP1883928): nobody had asked for another zone."""
    volume_id = plant.volume(availability_zone="elsewhere")
    told = plan(api, volume_id)
    assert (told["possible"], told["destination_host"], told["plan"]) == (False, None, None)
    (blocker,) = told["blockers"]
    assert "availability_zone" in blocker["reason"]
    assert "name a host" in blocker["remedy"]
    assert plan(api, volume_id, host=DESTINATION)["possible"]


def test_a_volume_in_use_is_moved_by_the_compute_service(make_api: Callable[..., Api], tmp_path: Path) -> None:
    api = make_api(compute_service="nova")
    for host in PLACES:
        api.beat(host)
    plant = Plant(api, tmp_path)
    volume_id = plant.volume(status="in-use", attach_status="attached")
    api.attach(volume_id, attach_mode="rw")
    told = plan(api, volume_id, host=DESTINATION, force_host_copy="true")
    plant.stop()
    assert (told["possible"], told["plan"], told["bytes_to_copy"]) == (True, "attached", GIB)
    assert told["keep_source_seconds"] == 0
    assert "compute service" in told["unmeasured"]


# --- how long --------------------------------------------------------------------------------------------------------


def test_the_time_comes_from_the_last_copies_between_both_backends(api: Api, plant: Plant) -> None:
    volume_id = plant.volume(8 * MIB)
    plant.copied(10 * MIB)
    plant.copied(10 * MIB)
    plant.copied(900 * MIB, bytes_per_second=1 << 20)  # at an order
    plant.copied(900 * MIB, source=DESTINATION, destination="c@other#p")  # elsewhere
    plant.copied(900 * MIB, end="error")
    told = plan(api, volume_id, host=DESTINATION, force_host_copy="true")
    assert told["measured"] == {
        "of": "from a@file1 to b@file2",
        "migrations": 2,
        "copy_bytes_per_second": 10 * MIB,
        "verify_bytes_per_second": 20 * MIB,
    }
    data = told["bytes_allocated"] / MIB
    assert told["copy_seconds"] == pytest.approx(data / 10, abs=0.01)
    assert told["verify_seconds"] == pytest.approx(data / 20, abs=0.01)
    assert told["seconds_expected"] == pytest.approx(data / 10 + data / 20, abs=0.01)


def test_a_rate_asked_for_and_no_comparison_change_the_time(api: Api, plant: Plant) -> None:
    volume_id = plant.volume(8 * MIB)
    plant.copied(10 * MIB)
    told = plan(api, volume_id, host=DESTINATION, force_host_copy="1", verify="none", bytes_per_second=MIB)
    assert told["seconds_expected"] == pytest.approx(told["bytes_allocated"] / MIB, abs=0.01)
    assert told["verify_seconds"] == 0.0


def test_else_from_copies_of_one_of_both_and_else_nothing_is_claimed(api: Api, plant: Plant) -> None:
    volume_id = plant.volume(8 * MIB)
    nothing = plan(api, volume_id, host=DESTINATION, force_host_copy="true")
    assert (nothing["seconds_expected"], nothing["measured"]) == (None, None)
    assert "no migration between these backends" in nothing["unmeasured"]
    plant.copied(10 * MIB, destination="c@other#p")
    told = plan(api, volume_id, host=DESTINATION, force_host_copy="true")
    assert told["measured"]["of"] == "out of a@file1 or into b@file2"
    assert told["seconds_expected"] > 0


# --- what is in the way ----------------------------------------------------------------------------------------------


def _snapshots(api: Api, volume_id: str) -> None:
    api.make_snapshot(volume_id)
    api.make_snapshot(volume_id)


def _values(**values: Any) -> Callable[[Api, str], None]:
    def change(api: Api, volume_id: str) -> None:
        api.db.run(lambda session: volumes.update_where(session, volume_id, **values))

    return change


#: What is done to a volume that could go, where it is asked to go, and what the remedy must speak of.
IN_THE_WAY: dict[str, tuple[Callable[[Api, str], Any], str, str]] = {
    "snapshots": (_snapshots, DESTINATION, "2 in all"),
    "attached": (lambda api, volume_id: api.attach(volume_id), DESTINATION, "detach it"),
    "in use, no compute service": (_values(status="in-use"), DESTINATION, "compute_service"),
    "status": (_values(status="error"), DESTINATION, "reset-state"),
    "group": (_values(group_id=UUID), DESTINATION, "group"),
    "replicated": (_values(replication_status="enabled"), DESTINATION, "replication"),
    "moving": (lambda api, volume_id: api.make_migration(volume_id), DESTINATION, "migration-cancel"),
    "half moved": (_values(migration_status="migrating"), DESTINATION, "os-reset_status"),
    "already there": (lambda api, volume_id: None, SOURCE, "another pool"),
    "unknown service": (lambda api, volume_id: None, "c@nowhere#p", "get-pools"),
    "disabled": (lambda api, volume_id: api.disable("b@file2", "works"), DESTINATION, "service-enable b@file2"),
    "down": (lambda api, volume_id: api.silence("b@file2", 600), DESTINATION, "start that volume service"),
    "source down": (lambda api, volume_id: api.silence("a@file1", 600), DESTINATION, "start volume service a@file1"),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_each_blocker_is_what_both_requests_are_refused_with(api: Api, plant: Plant, case: str) -> None:
    spoil, host, remedy = IN_THE_WAY[case]
    volume_id = plant.volume()
    spoil(api, volume_id)
    told = plan(api, volume_id, host=host)
    assert told["possible"] is False
    blocker = told["blockers"][0]
    assert remedy in blocker["remedy"]
    before = api.contents()
    for answer in (
        post(api, volume_id, host=host),
        api("POST", f"/volumes/{volume_id}/action", {"os-migrate_volume": {"host": host}}),
    ):
        assert (answer.status, answer.fault) == (400, blocker["reason"])
    assert api.contents() == before


def test_all_blockers_are_told_at_once(api: Api, plant: Plant) -> None:
    volume_id = plant.volume(group_id=UUID, replication_status="enabled")
    _snapshots(api, volume_id)
    api.disable("b@file2")
    plant.report("b@file2", free_gib=1.0)
    told = plan(api, volume_id, host=DESTINATION)
    reasons = [blocker["reason"] for blocker in told["blockers"]]
    assert [any(word in reason for reason in reasons) for word in ("disabled", "snapshots", "group", "replicated")]
    assert len(reasons) == 5, "and that no pool fits"
    assert reasons[-1].startswith("No valid backend: b@file2#pool2: service_up")


def test_what_the_scheduler_would_refuse_is_what_it_refuses(api: Api, plant: Plant) -> None:
    volume_id = plant.volume()
    plant.report("b@file2", free_gib=3.0, thin=False)
    told = plan(api, volume_id, host=DESTINATION)
    (blocker,) = told["blockers"]
    assert blocker["code"] == "NoValidBackend"
    assert "make room" in blocker["remedy"]
    answer = post(api, volume_id, host=DESTINATION)
    assert answer.status == 202
    row = _placed(api, answer)
    assert (row.end, row.error_message) == ("error", blocker["reason"])


def test_a_source_that_cannot_read_the_volume_is_in_the_way(api: Api, plant: Plant) -> None:
    volume_id = api.make_volume()  # nothing lies on its backend
    (blocker,) = plan(api, volume_id, host=DESTINATION)["blockers"]
    assert blocker["code"] == "VolumeMissing"
    assert "a@file1" in blocker["remedy"]


def test_no_report_at_all_is_said(api: Api, plant: Plant) -> None:
    api.conf.set_override("report_interval", 1)
    ignorant = SchedulerManager(api.conf, api.db, api.volume)
    plant.replace_scheduler(ignorant)
    (blocker,) = plan(api, plant.volume())["blockers"]
    assert blocker["reason"] == "No valid backend: no backend has reported a pool yet"
    assert "start the volume services" in blocker["remedy"]


def test_a_scheduler_that_is_away_is_answered_503(make_api: Callable[..., Api]) -> None:
    api = make_api(scheduler_rpc_timeout_seconds=1)
    api.beat("a@file1")
    assert ask(api, api.make_volume()).status == 503


# --- POST ------------------------------------------------------------------------------------------------------------


def _placed(api: Api, answer: Answer) -> Migration:
    """The migration once the scheduler has decided."""
    migration_id = answer.json["migration"]["id"]
    until(lambda: api.migration(migration_id).step != "pick_destination" or api.migration(migration_id).end, "a choice")
    return api.migration(migration_id)


def test_it_is_begun_and_answered_as_it_is_shown(api: Api, plant: Plant) -> None:
    volume_id = plant.volume()
    wanted = {"host": DESTINATION, "force_host_copy": "true", "verify": "inline"}
    answer = post(api, volume_id, **wanted, bytes_per_second=1 << 20, keep_source_seconds=60, lock_volume=True)
    assert answer.status == 202
    told = answer.json["migration"]
    row = _placed(api, answer)
    assert (row.volume_id, row.requested_host, row.destination_host) == (volume_id, DESTINATION, DESTINATION)
    assert (row.plan, row.verify, row.bytes_per_second, row.keep_source_seconds) == ("host_copy", "inline", 1 << 20, 60)
    assert (row.force_host_copy, row.lock_volume) == (True, True)
    assert api.get_volume(volume_id).status == "maintenance"
    shown = api("GET", f"/migrations/{row.id}").json["migration"]
    assert set(told) == set(shown)
    assert told["requested_by"]["request_id"] == answer.headers["x-openstack-request-id"]
    until(lambda: plant.ran == [row.id], "the source's service is told")


def test_without_a_host_the_scheduler_takes_the_pool_that_the_plan_named(api: Api, plant: Plant) -> None:
    volume_id = plant.volume()
    told = plan(api, volume_id)
    row = _placed(api, post(api, volume_id, host=None))
    assert row.requested_host is None
    assert row.destination_host == told["destination_host"] == DESTINATION, "never the pool it lies in"
    planned = [(p["pool"], v["filter"], v["passed"], v["reason"]) for p in told["pools"] for v in p["filters"]]
    decided = [(v["pool"], v["filter"], v["passed"], v["reason"]) for v in row.verdicts]
    assert _ageless(planned) == _ageless(decided)
    steps = api("GET", f"/migrations/{row.id}").json["migration"]["steps"]
    assert [(step["step"], step["result"]) for step in steps] == [("pick_destination", "done")]


def _ageless(verdicts: list[tuple[str, str, bool, str]]) -> list[tuple[str, str, bool, str]]:
    """The verdicts in order, but for the age of a sign of life, which grows between two looks."""
    return sorted((*most, re.sub(r"\d+ s ago", "just now", reason)) for *most, reason in verdicts)  # type: ignore[misc]


@pytest.mark.parametrize("left", [{}, {"verify": None, "bytes_per_second": None, "keep_source_seconds": None}])
def test_what_is_left_open_is_as_configured(api: Api, plant: Plant, left: dict[str, Any]) -> None:
    answer = post(api, plant.volume(), host=DESTINATION, **left)
    row = _placed(api, answer)
    assert (row.plan, row.verify, row.bytes_per_second) == ("assisted", api.conf.verify, None)
    assert row.keep_source_seconds == api.conf.keep_source_seconds


def test_a_dry_run_answers_the_plan_and_changes_nothing(api: Api, plant: Plant) -> None:
    volume_id = plant.volume()
    before = api.contents()
    answer = post(api, volume_id, host=DESTINATION, dry_run="yes")
    assert answer.status == 200
    assert answer.json["plan"] == plan(api, volume_id, host=DESTINATION)
    assert api.contents() == before


# --- refused ---------------------------------------------------------------------------------------------------------

BODIES: list[tuple[dict[str, Any], str]] = [
    ({}, "volume_id"),
    ({"volume_id": "x"}, "volume_id"),
    ({"volume_id": UUID, "host": 5}, "host"),
    ({"volume_id": UUID, "verify": "twice"}, "verify"),
    ({"volume_id": UUID, "bytes_per_second": 1}, "bytes_per_second"),
    ({"volume_id": UUID, "keep_source_seconds": -1}, "keep_source_seconds"),
    ({"volume_id": UUID, "dry_run": "perhaps"}, "dry_run"),
    ({"volume_id": UUID, "cluster": "c"}, "cluster"),
]


@pytest.mark.parametrize(("body", "field"), BODIES)
def test_a_malformed_body_is_refused_by_the_field(api: Api, body: dict[str, Any], field: str) -> None:
    answer = api("POST", "/migrations", {"migration": body})
    assert answer.status == 400
    assert field in answer.fault


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "volume_id"),
        ("volume_id=x", "volume_id"),
        (f"volume_id={UUID}&force_host_copy=perhaps", "force_host_copy"),
        (f"volume_id={UUID}&bytes_per_second=-5", "bytes_per_second"),
        (f"volume_id={UUID}&bytes_per_second={'9' * 30}", "bytes_per_second"),
        (f"volume_id={UUID}&verify=twice", "verify"),
        (f"volume_id={UUID}&hots=x", "hots"),
        (f"volume_id={UUID}&dry_run=true", "dry_run"),
    ],
)
def test_a_malformed_query_is_refused_by_the_parameter(api: Api, query: str, field: str) -> None:
    answer = api("GET", f"/migrations/plan?{query}")
    assert answer.status == 400
    assert field in answer.fault


@pytest.mark.parametrize("host", ["nowhere", "a@b#", "#", "a@@b"])
def test_what_is_no_host_is_refused(api: Api, plant: Plant, host: str) -> None:
    volume_id = plant.volume()
    assert {ask(api, volume_id, host=host).status, post(api, volume_id, host=host).status} == {400}


def test_who_may_not_and_what_is_not_there(api: Api, plant: Plant) -> None:
    volume_id = plant.volume()
    assert ask(api, volume_id, token="joe:demo").status == 403
    assert post(api, volume_id, token="joe:demo").status == 403
    assert ask(api, UUID).status == post(api, UUID).status == post(api, UUID, dry_run=True).status == 404


def test_a_twin_is_not_migrated(api: Api, plant: Plant) -> None:
    """field.md bug 39 (LP1970768): it belongs to its migration."""
    volume_id = plant.volume()
    twin_id = api.make_twin(volume_id, api.make_migration(volume_id))
    for answer in (ask(api, twin_id), post(api, twin_id)):
        assert answer.status == 400
        assert "destination of a migration" in answer.fault


def test_a_frozen_service_is_told_by_the_scheduler(api: Api, plant: Plant) -> None:
    api.db.run(lambda session: services.set_frozen(session, "b@file2", True))
    (blocker,) = plan(api, plant.volume(), host=DESTINATION)["blockers"]
    assert "thaw" in blocker["remedy"]
