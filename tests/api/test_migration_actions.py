"""Orders to a migration: what each one writes, whom it tells, and what is refused in which words."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from migrator.db import migrations, volumes
from migrator.db.models import CopiedRange, Migration
from migrator.volume import states
from migrator.volume.states import Direction, End, Order
from tests.api.conftest import DESTINATION, SOURCE, Answer, Api, Peers

UUID = "5c1f2cf6-0000-4000-8000-000000000000"
HOUR = 3600


def order(api: Api, migration_id: str, word: str, body: Any = None, **more: Any) -> Answer:
    return api("POST", f"/migrations/{migration_id}/action", {word: {} if body is None else body}, **more)


def refused(api: Api, migration_id: str, word: str, body: Any = None) -> str:
    """Give an order that must be answered 409 and change nothing; return the reason."""
    before = api.contents()
    answer = order(api, migration_id, word, body)
    assert answer.status == 409, answer.text
    assert migration_id in answer.fault
    assert api.contents() == before
    return answer.fault


# --- what is allowed where: the machine's table, walked ------------------------------------------------------------

PLACES: list[dict[str, Any]] = [
    {"plan": plan.name, "step": step.name, "direction": direction.value, "end": None}
    for plan in states.PLANS.values()
    for step in plan.steps
    for direction in Direction
    if direction is Direction.FORWARD or not plan.behind_line(step.name)
] + [{"plan": "host_copy", "step": "pick_destination", "direction": "back", "end": end.value} for end in End]
RATE = {"bytes_per_second": 1 << 20}
#: Orders that are allowed or not by where the migration stands alone; the others ask for more.
SIMPLE = {Order.CANCEL: None, Order.PAUSE: None, Order.SET_RATE: RATE}


@pytest.mark.parametrize("word", SIMPLE)
def test_an_order_is_taken_exactly_where_the_machine_allows_it(api: Api, word: Order) -> None:
    for place in PLACES:
        migration_id = api.make_migration(api.make_volume(), destination_host=DESTINATION, **place)
        at = migrations.position(api.migration(migration_id))
        if states.may(word, at):
            assert order(api, migration_id, word, SIMPLE[word]).status == 202, place
        else:
            refused(api, migration_id, word, SIMPLE[word])


@pytest.mark.parametrize("word", Order)
def test_an_order_that_no_migration_gets_is_404_and_one_that_is_none_400(api: Api, word: Order) -> None:
    body = RATE if word is Order.SET_RATE else None
    assert order(api, UUID, word, body).status == 404
    migration_id = api.make_migration(api.make_volume())
    wrongs: list[Any] = [{"x": 1}, [], "now", 7]
    for wrong in wrongs:
        assert order(api, migration_id, word, wrong).status == 400


# --- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "who"), [("pick_destination", "scheduler"), ("copy_data", "a@file1")])
def test_a_cancel_is_written_and_whoever_works_on_it_is_told(api: Api, peers: Peers, step: str, who: str) -> None:
    migration_id = api.make_migration(api.make_volume(), step=step)
    for _ in range(2):
        answer = order(api, migration_id, "cancel")
        assert (answer.status, answer.text) == (202, b"")
    assert api.migration(migration_id).cancel_requested
    peers.wait_for(who, "migrate" if who == "scheduler" else "run_migration", migration_id=migration_id)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (
            {"step": "delete_source", "destination_host": DESTINATION},
            "it is at delete_source, past its point of no return",
        ),
        ({"step": "delete_source", "end": "success"}, "it is over and ended success"),
        ({"end": "cancelled"}, "it is over and ended cancelled"),
        ({"end": "stuck"}, "it is over and ended stuck"),
    ],
)
def test_a_cancel_that_comes_too_late_is_409_with_the_reason(api: Api, columns: dict[str, Any], reason: str) -> None:
    migration_id = api.make_migration(api.make_volume(), **columns)
    answer = order(api, migration_id, "cancel")
    assert answer.status == 409
    assert reason in answer.fault
    assert not api.migration(migration_id).cancel_requested


@pytest.mark.parametrize(
    "body", [{"cancel": {"now": True}}, {"cancel": "now"}, {"retreat": {}}, {}, {"cancel": {}, "x": {}}]
)
def test_actions_that_there_are_not(api: Api, body: Any) -> None:
    migration_id = api.make_migration(api.make_volume())
    assert api("POST", f"/migrations/{migration_id}/action", body).status == 400
    assert not api.migration(migration_id).cancel_requested


def test_a_locked_migration_is_cancelled_by_an_administrator_who_forces_it_alone(make_api: Any, tmp_path: Any) -> None:
    (tmp_path / "policy.yaml").write_text('"migrations:cancel": "role:member"\n')
    api = make_api()
    locked = api.make_migration(api.make_volume(), lock=True, project_id="demo")
    free = api.make_migration(api.make_volume(), project_id="demo")
    assert order(api, free, "cancel", token="joe").status == 202
    for body, token in ({}, "joe"), ({"force": True}, "joe"), ({}, "admin"), ({"force": False}, "admin"):
        assert "begun with lock_volume" in order(api, locked, "cancel", body, token=token).fault
    assert not api.migration(locked).cancel_requested
    assert order(api, locked, "cancel", {"force": True}).status == 202
    assert api.migration(locked).cancel_requested


# --- pause, resume, set_rate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "who"), [("pick_destination", "scheduler"), ("copy_data", "a@file1")])
def test_a_migration_is_paused_and_goes_on(api: Api, peers: Peers, step: str, who: str) -> None:
    migration_id = api.make_migration(api.make_volume(), step=step, not_before=api.db.now() + HOUR)
    assert "it is not paused" in refused(api, migration_id, "resume")
    for _ in range(2):
        assert order(api, migration_id, "pause").status == 202
    shown = api("GET", f"/migrations/{migration_id}").json["migration"]
    assert shown["status"] == "paused"
    assert [m["id"] for m in api("GET", "/migrations?status=paused").json["migrations"]] == [migration_id]
    peers.heard.clear()
    assert order(api, migration_id, "resume").status == 202
    row = api.migration(migration_id)
    assert (row.paused, row.not_before) == (False, 0.0), "nobody who says go on means a wait"
    peers.wait_for(who, "migrate" if who == "scheduler" else "run_migration", migration_id=migration_id)


def test_a_cancel_ends_a_pause_and_cannot_be_paused(api: Api) -> None:
    migration_id = api.make_migration(api.make_volume(), step="copy_data")
    assert order(api, migration_id, "pause").status == 202
    assert order(api, migration_id, "cancel").status == 202
    row = api.migration(migration_id)
    assert (row.cancel_requested, row.paused) == (True, False)
    assert "it is being cancelled" in refused(api, migration_id, "pause")
    assert "it is being cancelled" in refused(api, migration_id, "resume")


@pytest.mark.parametrize("limit", [64 * 1024, 10**9, None])
def test_a_rate_is_written(api: Api, limit: int | None) -> None:
    migration_id = api.make_migration(api.make_volume(), step="copy_data", bytes_per_second=5)
    assert order(api, migration_id, "set_rate", {"bytes_per_second": limit}).status == 202
    assert api.migration(migration_id).bytes_per_second == limit
    assert api("GET", f"/migrations/{migration_id}").json["migration"]["bytes_per_second"] == limit


@pytest.mark.parametrize("limit", [0, -1, 65535, 1 << 60, 70000.5, "70000", True, [], {}])
def test_a_rate_that_is_none_is_400(api: Api, limit: Any) -> None:
    migration_id = api.make_migration(api.make_volume())
    answer = order(api, migration_id, "set_rate", {"bytes_per_second": limit})
    assert answer.status == 400
    assert "bytes_per_second" in answer.fault
    assert order(api, migration_id, "set_rate").status == 400
    assert api.migration(migration_id).bytes_per_second is None


# --- retry -----------------------------------------------------------------------------------------------------------


def taken_back(api: Api, **columns: Any) -> tuple[str, str]:
    """A volume and its migration, which failed at its verification and was taken back."""
    volume_id = api.make_volume()
    migration_id = api.make_migration(
        volume_id,
        **{
            "end": "error",
            "direction": "back",
            "generation": 9,
            "destination_host": DESTINATION,
            "destination_location": {"place": "x"},
            "error_step": "verify_copy",
            "error_code": "VerifyMismatch",
            "error_message": "differ",
            "bytes_done": 1024**3,
            "checksum": "xxh3-128:0",
            "cancel_requested": True,
            "finished_at": api.get_volume(volume_id).created_at,
            "ended_at": 5.0,
            **columns,
        },
    )
    api.db.run(
        lambda s: volumes.update_where(s, volume_id, migration_status="error", previous_status=None, status="available")
    )
    row = {"migration_id": migration_id, "start": 0, "length": 1024**3}
    api.db.run(lambda s: s.execute(sa.insert(CopiedRange).values(**row)))
    return volume_id, migration_id


@pytest.mark.parametrize("end", ["error", "cancelled"])
@pytest.mark.parametrize(("force", "plan"), [(True, "host_copy"), (False, "assisted")])
def test_a_retry_begins_anew_on_a_clean_destination(api: Api, peers: Peers, end: str, force: bool, plan: str) -> None:
    volume_id, migration_id = taken_back(api, end=end, force_host_copy=force)
    old = api.migration(migration_id)
    assert order(api, migration_id, "retry").status == 202
    new = api.migration(migration_id)
    assert (new.end, new.plan, new.step, new.direction, new.attempts) == (None, plan, "pick_destination", "forward", 0)
    assert (new.destination_host, new.destination_location, new.requested_host) == (None, None, DESTINATION)
    assert (new.bytes_done, new.checksum, new.error_code, new.finished_at, new.ended_at) == (0, None, None, None, None)
    assert (new.cancel_requested, new.generation) == (False, 10)
    assert new.destination_volume_id != old.destination_volume_id, "what was left of the old one has a name of its own"
    assert api.db.read(lambda s: migrations.copied(s, migration_id)) == []
    volume = api.get_volume(volume_id)
    assert (volume.migration_status, volume.previous_status, volume.migration_id) == (
        "starting",
        "available",
        migration_id,
    )
    peers.wait_for("scheduler", "migrate", migration_id=migration_id)
    assert "it is not over" in refused(api, migration_id, "retry")


def test_a_retry_locks_the_volume_again(api: Api) -> None:
    volume_id, migration_id = taken_back(api, lock_volume=True)
    assert order(api, migration_id, "retry").status == 202
    assert api.get_volume(volume_id).status == "maintenance"


def test_what_stands_against_a_retry_is_said(api: Api) -> None:
    """As of the first request: whatever would refuse that refuses this."""
    volume_id, migration_id = taken_back(api)

    def after(**changes: Any) -> str:
        api.db.run(lambda s: volumes.update_where(s, volume_id, **changes))
        return refused(api, migration_id, "retry")

    assert "status must be available; it is error" in after(status="error")
    assert "it is in-use" in after(status="in-use")
    assert "no longer on a@file1#pool1" in after(status="available", host=DESTINATION)
    assert f"migrated again since, by migration {UUID}" in after(host=SOURCE, migration_id=UUID)
    snapshot = api.make_snapshot(volume_id)
    assert "it has snapshots" in after(migration_id=migration_id)
    api.db.run(lambda s: s.execute(sa.text("DELETE FROM snapshots WHERE id = :id"), {"id": snapshot}))
    api.disable("b@file2", "repairs")
    assert "b@file2 is disabled: repairs" in refused(api, migration_id, "retry")
    api.beat("a@file1")
    api.silence("a@file1", 1000)
    api.db.run(lambda s: s.execute(sa.text("UPDATE services SET disabled = 0")))
    assert "volume service a@file1 is down" in refused(api, migration_id, "retry")
    api.db.run(lambda s: volumes.bury(s, volume_id))
    assert f"volume {volume_id} is gone" in refused(api, migration_id, "retry")


def test_of_many_retries_and_new_requests_exactly_one_wins(api: Api) -> None:
    """field.md bug 40 (LP1493476): two requests at once both migrated the volume."""
    volume_id, migration_id = taken_back(api)
    barrier = threading.Barrier(6)

    def ask(number: int) -> int:
        barrier.wait()
        if number % 2:
            return order(api, migration_id, "retry").status
        body = {"os-migrate_volume": {"host": DESTINATION}}
        return api("POST", f"/volumes/{volume_id}/action", body).status

    with ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(ask, range(6)))
    assert statuses[0] == 202
    assert set(statuses[1:]) <= {400, 409}
    running = sa.select(sa.func.count()).where(Migration.volume_id == volume_id, Migration.end.is_(None))
    assert api.db.read(lambda s: s.scalar(running)) == 1


def test_a_stuck_migration_is_taken_back_once_more(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    columns: dict[str, Any] = {"step": "copy_data", "direction": "back", "end": "stuck", "generation": 3}
    migration_id = api.make_migration(volume_id, error_code="DriverError", **columns)
    api.db.run(lambda s: volumes.update_where(s, volume_id, migration_status="error", previous_status=None))
    twin = api.migration(migration_id).destination_volume_id
    assert order(api, migration_id, "retry").status == 202
    row = api.migration(migration_id)
    assert (row.end, row.step, row.direction, row.attempts, row.generation) == (None, "copy_data", "back", 0, 4)
    assert (row.destination_volume_id, row.error_code) == (twin, "DriverError"), "the reason is still the reason"
    assert api.get_volume(volume_id).migration_status == "migrating"
    peers.wait_for("a@file1", "run_migration", migration_id=migration_id)


def test_a_stuck_migration_is_not_retried_under_another_that_runs(api: Api) -> None:
    volume_id = api.make_volume()
    stuck = api.make_migration(volume_id, step="copy_data", direction="back", end="stuck")
    api.db.run(lambda s: volumes.update_where(s, volume_id, migration_status="error", previous_status=None))
    api.make_migration(volume_id)
    assert "another migration moves volume" in refused(api, stuck, "retry")


# --- undo ------------------------------------------------------------------------------------------------------------


def kept(api: Api, **changes: Any) -> tuple[str, str, str]:
    """A volume that was migrated a while ago, its migration, and the twin's row that names the source kept."""
    volume_id = api.make_volume()
    migration_id = api.make_migration(volume_id)
    row = api.migration(migration_id)
    twin_id = row.destination_volume_id
    now = api.db.now()
    api.db.run(
        lambda s: s.execute(
            sa.update(Migration)
            .where(Migration.id == migration_id)
            .values(
                step="delete_source",
                end="success",
                destination_host=DESTINATION,
                switched_at=now - 60,
                keep_source_seconds=HOUR,
                keep_source_until=now + HOUR,
                **changes,
            )
        )
    )
    api.make_volume(
        id=twin_id,
        twin_of=volume_id,
        migration_id=migration_id,
        status="maintenance",
        migration_status=f"target:{volume_id}",
        host=SOURCE,
        name_id=volume_id,
        availability_zone="zone-a",
        provider_id="p-a",
    )
    values = {"host": DESTINATION, "name_id": twin_id, "migration_status": "success", "availability_zone": "zone-b"}
    api.db.run(lambda s: volumes.update_where(s, volume_id, previous_status=None, provider_id="p-b", **values))
    return volume_id, migration_id, twin_id


def test_an_undo_puts_the_volume_back_and_gives_the_new_place_to_the_twin(api: Api, peers: Peers) -> None:
    volume_id, migration_id, twin_id = kept(api)
    shown = api("GET", f"/migrations/{migration_id}").json["migration"]
    assert shown["source_kept_until"] > shown["created_at"]
    assert order(api, migration_id, "undo").status == 202
    volume, twin = api.get_volume(volume_id), api.get_volume(twin_id)
    columns = ("host", "name_id", "availability_zone", "provider_id", "status", "migration_status")
    assert [getattr(volume, column) for column in columns] == [SOURCE, None, "zone-a", "p-a", "available", "success"]
    assert [getattr(twin, column) for column in columns] == [
        *(DESTINATION, None, "zone-b", "p-b", "deleting", "deleting"),
    ]
    peers.wait_for("b@file2", "delete_volume", volume_id=twin_id)
    shown = api("GET", f"/migrations/{migration_id}").json["migration"]
    assert (shown["status"], shown["source_kept_until"]) == ("success", None)
    assert shown["undone_at"] > shown["created_at"]
    assert "it was undone at" in refused(api, migration_id, "undo")


def test_what_stands_against_an_undo_is_said(api: Api) -> None:
    volume_id, migration_id, twin_id = kept(api)
    switched_at = api.migration(migration_id).switched_at

    def after(changed: str, **changes: Any) -> str:
        api.db.run(lambda s: volumes.update_where(s, changed, **changes))
        return refused(api, migration_id, "undo")

    assert "status must be available; it is in-use" in after(volume_id, status="in-use")
    assert "has 2 GiB now and had 1" in after(volume_id, status="available", size=2)
    assert "was made writable at" in after(volume_id, size=1, writable_at=switched_at)
    assert f"migration {UUID} has moved the volume since" in after(volume_id, writable_at=None, migration_id=UUID)
    assert "no longer on b@file2#pool2" in after(volume_id, migration_id=migration_id, host="b@file2#pool3")
    snapshot = api.make_snapshot(volume_id)
    assert "the volume has snapshots" in after(volume_id, host=DESTINATION)
    api.db.run(lambda s: s.execute(sa.text("DELETE FROM snapshots WHERE id = :id"), {"id": snapshot}))
    attachment = api.attach(volume_id)
    assert "attached or reserved" in refused(api, migration_id, "undo")
    api.db.run(lambda s: s.execute(sa.text("DELETE FROM attachments WHERE id = :id"), {"id": attachment}))
    assert "no longer there" in after(twin_id, status="deleting")
    api.db.run(lambda s: volumes.remove(s, twin_id))
    assert "no longer there" in refused(api, migration_id, "undo")
    api.db.run(lambda s: volumes.bury(s, volume_id))
    api.make_volume(id=twin_id, twin_of=volume_id, status="maintenance", host=SOURCE)
    assert f"volume {volume_id} is gone" in refused(api, migration_id, "undo")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"keep_source_until": None}, "its source was not kept"),
        ({"keep_source_until": 1000.0}, "was kept until 1970-01-01 00:16:40 UTC and is no longer there"),
        ({"new_type_id": UUID}, f"the type {UUID}, which is not taken back"),
        ({"end": None}, "it is not over; it is running at delete_source"),
        ({"end": "error"}, "it is over and ended error"),
    ],
)
def test_a_migration_that_cannot_be_undone(api: Api, columns: dict[str, Any], reason: str) -> None:
    _, migration_id, _ = kept(api)
    api.db.run(lambda s: s.execute(sa.update(Migration).where(Migration.id == migration_id).values(**columns)))
    assert reason in refused(api, migration_id, "undo")


def test_a_volume_that_was_writable_since_the_switch_stays_whatever_the_clock_says(api: Api) -> None:
    """The database's clock may have been put back, or be that of another server by now."""
    volume_id, migration_id, _ = kept(api)
    earlier = (api.migration(migration_id).switched_at or 0.0) - 3600.0
    api.db.run(lambda s: volumes.update_where(s, volume_id, writable_at=earlier))
    assert "was made writable at" in refused(api, migration_id, "undo")


def test_of_many_undos_and_new_migrations_exactly_one_wins(api: Api) -> None:
    volume_id, migration_id, _ = kept(api)
    api.beat("c@file3")
    barrier = threading.Barrier(6)

    def ask(number: int) -> int:
        barrier.wait()
        if number % 2:
            return order(api, migration_id, "undo").status
        body = {"os-migrate_volume": {"host": "c@file3#pool3"}}
        return api("POST", f"/volumes/{volume_id}/action", body).status

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(ask, range(6)))
    assert statuses[1::2].count(202) <= 1
    volume, row = api.get_volume(volume_id), api.migration(migration_id)
    # An undo first and a migration from the old place then both are right; a migration first keeps the undo out.
    assert volume.host == (SOURCE if row.undone_at is not None else DESTINATION)
    assert statuses[1::2].count(202) == int(row.undone_at is not None)
    assert statuses[0::2].count(202) <= 1


# --- the requests that begin a migration ---------------------------------------------------------------------------


def test_a_new_migration_takes_its_wishes_from_the_configuration(make_api: Any) -> None:
    api = make_api(verify="inline", keep_source_seconds=90)
    for host in (SOURCE, DESTINATION):
        api.beat(host.partition("#")[0])
    volume_id = api.make_volume()
    assert api("POST", f"/volumes/{volume_id}/action", {"os-migrate_volume": {"host": DESTINATION}}).status == 202
    row = api.migration(str(api.get_volume(volume_id).migration_id))
    assert (row.verify, row.keep_source_seconds, row.bytes_per_second) == ("inline", 90, None)
