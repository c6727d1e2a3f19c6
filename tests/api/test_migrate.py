"""os-migrate_volume: what is refused and why, what a 202 leaves in the database, and who wins of many."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from migrator.db import snapshots
from tests.api.arcs import Step, run
from tests.api.conftest import DESTINATION, SOURCE, Answer, Api, Peers

UUID = "5c1f2cf6-0000-4000-8000-000000000000"


def migrate(api: Api, volume_id: str, version: str | None = None, token: str = "admin", **wanted: Any) -> Answer:
    return api("POST", f"/volumes/{volume_id}/action", {"os-migrate_volume": wanted}, version=version, token=token)


# --- accepted --------------------------------------------------------------------------------------------------------


def test_an_accepted_request_has_marked_the_volume_and_told_the_scheduler(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    answer = migrate(api, volume_id, host=DESTINATION)
    assert (answer.status, answer.text) == (202, b"")
    volume = api.get_volume(volume_id)
    assert (volume.status, volume.migration_status, volume.previous_status) == ("available", "starting", "available")
    row = api.migration(str(volume.migration_id))
    assert (row.volume_id, row.source_host, row.requested_host) == (volume_id, SOURCE, DESTINATION)
    assert (row.plan, row.step, row.force_host_copy, row.lock_volume) == ("assisted", "pick_destination", False, False)
    assert (row.user_id, row.project_id) == ("admin", "demo")
    assert row.request_id == answer.headers["x-openstack-request-id"]
    peers.wait_for("scheduler", "migrate", migration_id=row.id)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        (True, True),
        ("true", True),
        ("True", True),
        ("1", True),
        ("on", True),
        ("YES", True),
        (False, False),
        ("off", False),
    ],
)
def test_booleans_may_be_words(api: Api, word: Any, meant: bool) -> None:
    """field.md bug 46 (LP1232698), the other half: what clients send as booleans is understood."""
    volume_id = api.make_volume()
    assert migrate(api, volume_id, host=DESTINATION, force_host_copy=word, lock_volume=word).status == 202
    volume = api.get_volume(volume_id)
    row = api.migration(str(volume.migration_id))
    assert (row.force_host_copy, row.lock_volume) == (meant, meant)
    assert row.plan == ("host_copy" if meant else "assisted")
    assert volume.status == ("maintenance" if meant else "available")


@pytest.mark.parametrize("host", ["b@file2", "b@file2#pool2", "a@file1#pool9", "a@file1"])
def test_a_pool_or_only_a_backend_may_be_named(api: Api, host: str) -> None:
    volume_id = api.make_volume()
    assert migrate(api, volume_id, host=host).status == 202
    assert api.migration(str(api.get_volume(volume_id).migration_id)).requested_host == host


@pytest.mark.parametrize("replication_status", [None, "disabled", "not-capable"])
def test_a_volume_that_is_not_replicated_may_go(api: Api, replication_status: str | None) -> None:
    """field.md bug 44 (LP1727248): not-capable means not replicated, too."""
    volume_id = api.make_volume(replication_status=replication_status)
    assert migrate(api, volume_id, host=DESTINATION).status == 202


def test_a_volume_whose_last_migration_ended_may_go_again(api: Api) -> None:
    for ended in ("success", "error"):
        volume_id = api.make_volume(migration_status=ended)
        assert migrate(api, volume_id, host=DESTINATION).status == 202


@pytest.mark.parametrize("cluster", ["vault@file2", "vault@file2#pool2"])
def test_a_cluster_stands_for_a_service_of_it_that_is_up(api: Api, cluster: str) -> None:
    api.beat("c@file2", cluster="vault")
    api.silence("c@file2", 1000)
    api.beat("d@file2", cluster="vault")
    volume_id = api.make_volume()
    assert migrate(api, volume_id, cluster=cluster, version="3.16").status == 202
    requested = api.migration(str(api.get_volume(volume_id).migration_id)).requested_host
    assert requested == cluster.replace("vault", "d")


# --- refused ---------------------------------------------------------------------------------------------------------

#: Body, microversion, what the fault says.
BAD_BODIES: list[tuple[Any, str, str]] = [
    ({}, "3.0", "'host' is a required property"),
    ({"host": ""}, "3.0", "os-migrate_volume.host"),
    ({"host": "  "}, "3.0", "os-migrate_volume.host"),
    ({"host": None}, "3.0", "os-migrate_volume.host"),
    ({"host": 7}, "3.0", "7 is not of type 'string'"),
    ({"host": ["b@file2"]}, "3.0", "os-migrate_volume.host"),
    ({"host": "b@" + "x" * 300}, "3.0", "os-migrate_volume.host"),
    ({"host": DESTINATION, "force_host_copy": "maybe"}, "3.0", "'maybe' is not a 'boolean'"),
    ({"host": DESTINATION, "force_host_copy": 1}, "3.0", "os-migrate_volume.force_host_copy"),
    ({"host": DESTINATION, "force_host_copy": None}, "3.0", "os-migrate_volume.force_host_copy"),
    ({"host": DESTINATION, "lock_volume": "locked"}, "3.0", "os-migrate_volume.lock_volume"),
    ({"host": DESTINATION, "lock_volume": []}, "3.0", "os-migrate_volume.lock_volume"),
    ({"host": DESTINATION, "speed": 3}, "3.0", "'speed' was unexpected"),
    ({"host": DESTINATION, "cluster": "x"}, "3.15", "'cluster' was unexpected"),
    ("b@file2", "3.0", "os-migrate_volume"),
    (None, "3.0", "os-migrate_volume"),
    ({}, "3.16", "exactly one of host and cluster"),
    ({"host": None}, "3.16", "exactly one of host and cluster"),
    ({"host": DESTINATION, "cluster": "vault@file2"}, "3.16", "exactly one of host and cluster"),
    ({"cluster": "nobody@file2"}, "3.16", "no service serves nobody@file2"),
    ({"cluster": "vault"}, "3.16", "names no backend"),
    ({"host": "b"}, "3.0", "names no backend"),
    ({"host": "b@file2#"}, "3.0", "not of the form host@backend#pool"),
    ({"host": "b@@file2"}, "3.0", "not of the form host@backend#pool"),
    ({"host": "b@file2@x"}, "3.0", "not of the form host@backend#pool"),
    ({"host": "../etc@file2"}, "3.0", "not of the form host@backend#pool"),
    ({"host": "b @file2"}, "3.0", "not of the form host@backend#pool"),
    ({"host": "z@file9#pool1"}, "3.0", "there is no volume service z@file9"),
    ({"host": SOURCE}, "3.0", "is there already"),
]


@pytest.mark.parametrize(("wanted", "version", "reason"), BAD_BODIES)
def test_a_bad_request_is_400_with_its_reason_and_changes_nothing(
    api: Api, wanted: Any, version: str, reason: str
) -> None:
    """field.md bug 46 (LP1253904, LP1232698): a missing host was a 500, force_host_copy was not checked."""
    volume_id = api.make_volume()
    before = api.contents()
    answer = api("POST", f"/volumes/{volume_id}/action", {"os-migrate_volume": wanted}, version=version)
    assert answer.status == 400, answer.text
    assert reason in answer.fault
    assert api.contents() == before


def _refusal(api: Api, volume_id: str) -> str:
    before = api.contents()
    answer = migrate(api, volume_id, host=DESTINATION)
    assert answer.status == 400, answer.text
    assert volume_id in answer.fault
    assert api.contents() == before
    return answer.fault


@pytest.mark.parametrize(
    "status", ["creating", "error", "deleting", "extending", "attaching", "reserved", "maintenance", "error_deleting"]
)
def test_a_volume_that_is_not_available_stays(api: Api, status: str) -> None:
    assert _refusal(api, api.make_volume(status=status)).endswith(f"status must be available; it is {status}")


def test_a_volume_in_use_needs_the_compute_service(api: Api) -> None:
    """field.md pain 7: refused, and nobody was told."""
    volume_id = api.make_volume(status="in-use", attach_status="attached")
    api.attach(volume_id)
    assert "migrating attached volumes needs the compute service, which this deployment doesn't configure" in _refusal(
        api, volume_id
    )


def test_a_volume_with_snapshots_stays(api: Api) -> None:
    volume_id = api.make_volume()
    api.make_snapshot(volume_id)
    assert "it has snapshots" in _refusal(api, volume_id)


def test_deleted_snapshots_do_not_count(api: Api) -> None:
    volume_id = api.make_volume()
    snapshot_id = api.make_snapshot(volume_id)
    api.db.run(lambda session: snapshots.bury(session, snapshot_id))
    assert migrate(api, volume_id, host=DESTINATION).status == 202


def test_other_obstacles_each_have_their_own_words(api: Api) -> None:
    """field.md pain 5: one sentence named all the reasons that there could be."""
    reserved = api.make_volume()
    api.attach(reserved, attach_status="reserved")
    assert "it is attached or reserved for a server" in _refusal(api, reserved)
    assert "it belongs to group 9" in _refusal(api, api.make_volume(group_id="9"))
    replicated = api.make_volume(replication_status="enabled")
    assert "replication_status is enabled" in _refusal(api, replicated)
    nowhere = api.make_volume(host=None, status="creating")
    assert "it is on no backend yet; status is creating" in _refusal(api, nowhere)


def test_one_migration_at_a_time_and_its_id_is_named(api: Api) -> None:
    volume_id = api.make_volume()
    migration_id = api.make_migration(volume_id, step="copy_data")
    reason = _refusal(api, volume_id)
    assert f"it is being migrated already: migration {migration_id} to {DESTINATION} is running at copy_data" in reason


def test_a_locked_volume_says_that_it_is_being_migrated(api: Api) -> None:
    volume_id = api.make_volume()
    migration_id = api.make_migration(volume_id, lock=True)
    assert f"migration {migration_id}" in _refusal(api, volume_id)


def test_a_destination_that_is_disabled_or_down_is_refused_at_once(api: Api) -> None:
    volume_id = api.make_volume()
    api.silence("b@file2", 300)
    silent = r"volume service b@file2 is down, its last sign of life was 3\d\d s ago"
    assert re.search(silent, migrate(api, volume_id, host=DESTINATION).fault)
    api.disable("b@file2", "new disks")
    answer = migrate(api, volume_id, host=DESTINATION)
    assert answer.status == 400
    assert "volume service b@file2 is disabled: new disks" in answer.fault
    assert api.get_volume(volume_id).migration_status is None


def test_a_source_whose_service_is_down_is_refused_at_once(api: Api) -> None:
    """Else the volume would stay at ``starting`` for ever (field.md pain 12)."""
    volume_id = api.make_volume()
    api.silence("a@file1", 300)
    assert "its backend cannot be read: volume service a@file1 is down" in _refusal(api, volume_id)
    orphan = api.make_volume(host="gone@file1#pool1")
    assert "there is no volume service gone@file1" in _refusal(api, orphan)


def test_a_source_that_is_only_disabled_may_be_emptied(api: Api) -> None:
    volume_id = api.make_volume()
    api.disable("a@file1", "to be emptied")
    assert migrate(api, volume_id, host=DESTINATION).status == 202


def test_a_cluster_all_of_whose_services_are_down_is_refused(api: Api) -> None:
    api.beat("c@file2", cluster="vault")
    api.silence("c@file2", 1000)
    answer = migrate(api, api.make_volume(), cluster="vault@file2", version="3.16")
    assert answer.status == 400
    assert "no service of vault@file2 is up and enabled" in answer.fault


def test_who_may_not_migrate(api: Api) -> None:
    volume_id = api.make_volume()
    before = api.contents()
    body = {"os-migrate_volume": {"host": DESTINATION}}
    run(
        api,
        [
            Step("the owner", "POST /volumes/$id/action", 403, {"fault": "migrate_volume"}, body, "joe"),
            Step("a stranger", "POST /volumes/$id/action", 403, {}, body, "eve", project="other"),
            Step("nobody", "POST /volumes/$id/action", 401, {}, body, ""),
            Step("what is not there", f"POST /volumes/{UUID}/action", 404, {"fault": UUID}, body),
            Step(
                "a malformed host is said first",
                f"POST /volumes/{UUID}/action",
                400,
                {},
                {"os-migrate_volume": {"host": "x"}},
            ),
        ],
        id=volume_id,
    )
    assert api.contents() == before


def test_a_twin_is_not_migrated(api: Api) -> None:
    volume_id = api.make_volume()
    twin_id = api.make_twin(volume_id, api.make_migration(volume_id, step="copy_data"))
    assert f"it is the destination of a migration of volume {volume_id}" in _refusal(api, twin_id)


# --- many at once ----------------------------------------------------------------------------------------------------


def test_of_fifty_concurrent_requests_exactly_one_wins(any_api: Api) -> None:
    """field.md bug 40 (LP1493476, LP1494466): check-then-act let several migrations of one volume begin."""
    api = any_api
    volume_id = api.make_volume()
    together = threading.Barrier(50)

    def ask(_: int) -> Answer:
        together.wait(30)
        return migrate(api, volume_id, host=DESTINATION)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    losers = [answer for answer in answers if answer.status != 202]
    assert len(losers) == 49
    row_id = api.get_volume(volume_id).migration_id
    for answer in losers:
        assert answer.status == 400, answer.text
        assert f"it is being migrated already: migration {row_id}" in answer.fault
    assert len(api.contents()["migrations"]) == 1


@pytest.mark.parametrize("action", ["snapshot", "delete", "extend"])
def test_of_a_migration_and_an_operation_of_the_owner_neither_is_lost(any_api: Api, action: str) -> None:
    """Whichever comes first: the migration is refused, or it is cancelled by what the owner does."""
    api = any_api
    method, path = {
        "snapshot": ("POST", "/snapshots"),
        "delete": ("DELETE", "/volumes/{}"),
        "extend": ("POST", "/volumes/{}/action"),
    }[action]
    for _ in range(10):
        volume_id = api.make_volume()
        together = threading.Barrier(2)

        def owner(volume_id: str = volume_id, together: threading.Barrier = together) -> Answer:
            together.wait(30)
            bodies = {"snapshot": {"snapshot": {"volume_id": volume_id}}, "extend": {"os-extend": {"new_size": 2}}}
            return api(method, path.format(volume_id), bodies.get(action), token="joe")

        def operator(volume_id: str = volume_id, together: threading.Barrier = together) -> Answer:
            together.wait(30)
            return migrate(api, volume_id, host=DESTINATION)

        with ThreadPoolExecutor(2) as pool:
            owned, moved = pool.submit(owner), pool.submit(operator)
            owners, operators = owned.result(), moved.result()
        if operators.status == 202 and owners.status == 202:
            row = api.migration(str(api.get_volume(volume_id).migration_id))
            assert row.cancel_requested
        else:
            assert {operators.status, owners.status} <= {202, 400, 404, 409}
            assert 202 in (operators.status, owners.status)
