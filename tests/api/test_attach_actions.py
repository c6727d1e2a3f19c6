"""The older attach flow, step by step, and what administrators force."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from migrator import errors
from migrator.db import volumes
from migrator.db.models import Migration
from tests.api.arcs import Step, run
from tests.api.conftest import Answer, Api, Peers

SERVER, OTHER = str(uuid.uuid4()), str(uuid.uuid4())
UUID = "5c1f2cf6-0000-4000-8000-000000000000"
CONNECTOR = {"ip": "127.0.0.1", "initiator": "iqn.fake", "host": "compute1"}
ATTACH = {"instance_uuid": SERVER, "mountpoint": "/dev/vdb"}


def act(api: Api, volume_id: str, action: str, body: Any = None, token: str = "joe", version: str = "3.0") -> Answer:
    return api("POST", f"/volumes/{volume_id}/action", {action: body}, token=token, version=version)


def states(api: Api, volume_id: str) -> tuple[str, str]:
    volume = api.get_volume(volume_id)
    return volume.status, volume.attach_status


# --- the flow --------------------------------------------------------------------------------------------------------


def test_reserve_connect_attach_and_back(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    action = f"POST /volumes/{volume_id}/action"

    def status(word: str) -> Step:
        return Step(f"is {word}", f"GET /volumes/{volume_id}", 200, {"volume.status": word})

    run(
        api,
        [
            Step("reserve", action, 202, body={"os-reserve": None}, token="joe"),
            status("attaching"),
            Step("not twice", action, 400, {"fault": "it is attaching"}, {"os-reserve": {}}, token="joe"),
            Step(
                "connect",
                action,
                200,
                {
                    "connection_info": {
                        "driver_volume_type": "gpfs",
                        "enforce_multipath": False,
                        "data": {
                            "qos_specs": None,
                            "access_mode": "rw",
                            "encrypted": False,
                            "cacheable": False,
                            "device_path": f"/srv/volume-{volume_id}",
                            "auth_password": "s3cret",
                        },
                    }
                },
                {"os-initialize_connection": {"connector": CONNECTOR}},
                token="joe",
            ),
            Step("attach", action, 202, body={"os-attach": ATTACH}, token="joe"),
            Step("again", action, 202, body={"os-attach": ATTACH}, token="joe"),
            Step(
                "is in use",
                f"GET /volumes/{volume_id}",
                200,
                {
                    "volume.status": "in-use",
                    "volume.attachments.#": 1,
                    "volume.attachments.0.server_id": SERVER,
                    "volume.attachments.0.device": "/dev/vdb",
                },
            ),
            Step("announce", action, 202, body={"os-begin_detaching": None}, token="joe"),
            status("detaching"),
            Step("take back", action, 202, body={"os-roll_detaching": {}}, token="joe"),
            status("in-use"),
            Step("announce", action, 202, body={"os-begin_detaching": {}}, token="joe"),
            Step("disconnect", action, 202, body={"os-terminate_connection": {"connector": CONNECTOR}}, token="joe"),
            Step("detach", action, 202, body={"os-detach": {}}, token="joe"),
            status("available"),
            Step("detach of nothing", action, 202, body={"os-detach": None}, token="joe"),
        ],
    )
    assert states(api, volume_id) == ("available", "detached")
    peers.wait_for("a@file1", "terminate_connection", volume_id=volume_id, connector=CONNECTOR)


def test_a_reservation_is_given_up(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    for body in (None, {}, {"anything": 1}):
        act(api, volume_id, "os-reserve")
        assert act(api, volume_id, "os-unreserve", body).status == 202
        assert states(api, volume_id)[0] == "available"
    assert act(api, volume_id, "os-unreserve").status == 202
    act(api, volume_id, "os-reserve")
    assert act(api, volume_id, "os-terminate_connection", {"connector": None}).status == 202
    assert states(api, volume_id)[0] == "available"
    shared = api.make_volume(status="attaching", attach_status="attached", multiattach=True)
    api.attach(shared)
    act(api, shared, "os-unreserve")
    assert states(api, shared) == ("in-use", "attached")


def test_a_multiattach_volume(api: Api) -> None:
    volume_id = api.make_volume(multiattach=True)
    for server in (SERVER, OTHER):
        assert act(api, volume_id, "os-reserve").status == 202
        assert act(api, volume_id, "os-attach", {**ATTACH, "instance_uuid": server}).status == 202
    answer = act(api, volume_id, "os-detach", {})
    assert (answer.status, "it has 2 attachments; say which" in answer.fault) == (400, True)
    rows = api("GET", f"/volumes/{volume_id}").json["volume"]["attachments"]
    assert {row["server_id"] for row in rows} == {SERVER, OTHER}
    assert act(api, volume_id, "os-detach", {"attachment_id": rows[0]["attachment_id"]}).status == 202
    assert states(api, volume_id) == ("in-use", "attached")
    assert act(api, volume_id, "os-detach", {"attachment_id": None}).status == 202
    assert states(api, volume_id) == ("available", "detached")
    assert act(api, volume_id, "os-detach", {"attachment_id": rows[0]["attachment_id"]}).status == 202


def test_a_host_without_a_server(api: Api) -> None:
    volume_id = api.make_volume()
    body = {"host_name": "backup1", "mountpoint": "/mnt", "mode": "ro"}
    assert act(api, volume_id, "os-attach", body).status == 202
    assert act(api, volume_id, "os-attach", body).status == 202
    (row,) = api("GET", f"/volumes/{volume_id}").json["volume"]["attachments"]
    assert (row["server_id"], row["host_name"]) == (None, "backup1")


@pytest.mark.parametrize("status", ["in-use", "reserved", "detaching", "retyping", "extending", "error", "deleting"])
def test_statuses_that_cannot_be_attached(api: Api, status: str) -> None:
    volume_id = api.make_volume(status=status)
    before = api.contents()
    for action, body in (("os-reserve", {}), ("os-attach", ATTACH)):
        answer = act(api, volume_id, action, body)
        assert (answer.status, f"it is {status}" in answer.fault) == (400, True), answer.text
    assert api.contents() == before


@pytest.mark.parametrize("status", ["available", "reserved", "detaching", "error"])
def test_statuses_that_cannot_be_detached(api: Api, status: str) -> None:
    volume_id = api.make_volume(status=status)
    answer = act(api, volume_id, "os-begin_detaching")
    assert (answer.status, f"they are {status} and detached" in answer.fault) == (400, True)
    assert act(api, volume_id, "os-roll_detaching").status == 202
    assert states(api, volume_id)[0] == ("in-use" if status == "detaching" else status)


def test_read_only_volumes_are_attached_read_only(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    assert act(api, volume_id, "os-update_readonly_flag", {"readonly": "True"}).status == 202
    answer = act(api, volume_id, "os-attach", ATTACH)
    assert (answer.status, "read-only" in answer.fault) == (400, True)
    act(api, volume_id, "os-reserve")
    info = act(api, volume_id, "os-initialize_connection", {"connector": CONNECTOR}).json["connection_info"]
    assert info["data"]["access_mode"] == "ro"
    sent = {**CONNECTOR, "mode": "ro"}
    peers.wait_for("a@file1", "initialize_connection", volume_id=volume_id, connector=sent, writable=False)
    assert act(api, volume_id, "os-attach", {**ATTACH, "mode": "ro"}).status == 202
    answer = act(api, volume_id, "os-update_readonly_flag", {"readonly": False})
    assert (answer.status, "status must be available; it is in-use" in answer.fault) == (400, True)


@pytest.mark.parametrize(
    ("action", "body", "reason"),
    [
        ("os-attach", {"mountpoint": "/dev/vdb"}, "os-attach"),
        ("os-attach", {"instance_uuid": SERVER}, "'mountpoint' is a required property"),
        ("os-attach", {**ATTACH, "mode": "wo"}, "os-attach.mode"),
        ("os-attach", {**ATTACH, "instance_uuid": "i"}, "os-attach.instance_uuid"),
        ("os-attach", {**ATTACH, "mountpoint": ""}, "os-attach.mountpoint"),
        ("os-detach", {"attachment_id": "x"}, "os-detach.attachment_id"),
        ("os-detach", {"attachment": None}, "'attachment' was unexpected"),
        ("os-initialize_connection", {}, "'connector' is a required property"),
        ("os-initialize_connection", {"connector": {}}, "connector"),
        ("os-terminate_connection", {}, "'connector' is a required property"),
        ("os-set_bootable", {"bootable": "perhaps"}, "not a 'boolean'"),
        ("os-set_bootable", {}, "'bootable' is a required property"),
        ("os-update_readonly_flag", {"readonly": "perhaps"}, "not a 'boolean'"),
        ("os-set_image_metadata", {"metadata": {"k": 1}}, "metadata"),
        ("os-unset_image_metadata", {}, "'key' is a required property"),
    ],
)
def test_bodies_that_are_wrong(api: Api, action: str, body: Any, reason: str) -> None:
    answer = act(api, api.make_volume(), action, body)
    assert (answer.status, reason in answer.fault) == (400, True), answer.text


def test_an_attachment_of_another_volume(api: Api) -> None:
    one, other = api.make_volume(status="in-use"), api.make_volume(status="in-use")
    attachment_id = api.attach(other)
    answer = act(api, one, "os-detach", {"attachment_id": attachment_id})
    assert (answer.status, "not an attachment of volume" in answer.fault) == (400, True)


# --- migrations ------------------------------------------------------------------------------------------------------

TAKES: dict[str, tuple[Any, int]] = {
    "os-reserve": ({}, 202),
    "os-attach": (ATTACH, 202),
    "os-initialize_connection": ({"connector": CONNECTOR}, 200),
}


@pytest.mark.parametrize("action", TAKES)
def test_a_migration_before_the_line_gives_way(api: Api, peers: Peers, action: str) -> None:
    """states.md, lock_volume false; each of them may let somebody write, so each says when that was."""
    body, status = TAKES[action]
    volume_id = api.make_volume()
    migration_id = api.make_migration(volume_id, step="verify_copy")
    assert act(api, volume_id, action, body).status == status
    assert api.migration(migration_id).cancel_requested
    assert api.get_volume(volume_id).writable_at is not None
    peers.wait_for("a@file1", "run_migration", migration_id=migration_id)


@pytest.mark.parametrize("action", TAKES)
@pytest.mark.parametrize(
    ("lock", "step", "status", "reason"),
    [
        (False, "delete_source", 409, "can no longer be cancelled"),
        (True, "copy_data", 400, "has locked it until its end"),
    ],
)
def test_a_migration_that_does_not_give_way(
    api: Api, action: str, lock: bool, step: str, status: int, reason: str
) -> None:
    volume_id = api.make_volume()
    api.make_migration(volume_id, lock=lock, step=step)
    before = api.contents()
    answer = act(api, volume_id, action, TAKES[action][0])
    assert (answer.status, reason in answer.fault) == (status, True), answer.text
    assert ("retry-after" in answer.headers) == (status == 409)
    assert api.contents() == before


def test_a_host_that_is_offered_a_volume_without_a_reservation_keeps_it_from_being_moved(
    api: Api, peers: Peers
) -> None:
    """What it writes to the old place would be lost: nothing else tells of it."""
    volume_id, destination = api.make_volume(), {"host": "b@file2#pool2"}
    api.beat("a@file1")
    api.beat("b@file2")
    assert act(api, volume_id, "os-initialize_connection", {"connector": CONNECTOR}).status == 200
    refused = act(api, volume_id, "os-migrate_volume", destination, token="admin")
    assert (refused.status, "it is attaching" in refused.fault) == (400, True), refused.text
    assert act(api, volume_id, "os-terminate_connection", {"connector": CONNECTOR}).status == 202
    assert states(api, volume_id) == ("available", "detached")
    assert act(api, volume_id, "os-migrate_volume", destination, token="admin").status == 202


@pytest.mark.parametrize("reserved", [True, False])
def test_an_offer_that_failed_leaves_the_status_as_it_was(api: Api, peers: Peers, reserved: bool) -> None:
    volume_id = api.make_volume(status="attaching" if reserved else "available")
    peers.refusal = errors.DriverError(backend="a@file1", reason="on purpose")
    assert act(api, volume_id, "os-initialize_connection", {"connector": CONNECTOR}).status == 500
    assert states(api, volume_id)[0] == ("attaching" if reserved else "available")


def test_an_offer_that_failed_does_not_end_anothers(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    peers.refusal = errors.DriverError(backend="a@file1", reason="on purpose")

    def other() -> None:
        peers.meanwhile, peers.refusal = (lambda: None), None
        assert act(api, volume_id, "os-initialize_connection", {"connector": {**CONNECTOR, "host": "c2"}}).status == 200
        peers.refusal = errors.DriverError(backend="a@file1", reason="on purpose")

    peers.meanwhile = other
    assert act(api, volume_id, "os-initialize_connection", {"connector": CONNECTOR}).status == 500
    assert states(api, volume_id)[0] == "attaching"


def test_a_swap_begins_unseen_and_a_detach_by_the_old_flow_ends_it(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume(status="in-use", attach_status="attached")
    api.attach(volume_id, instance_uuid=SERVER)
    migration_id = api.make_migration(volume_id, plan="attached", step="swap_by_compute")
    assert act(api, volume_id, "os-begin_detaching").status == 202
    assert states(api, volume_id) == ("in-use", "attached")
    assert act(api, volume_id, "os-detach", {}).status == 202
    assert states(api, volume_id) == ("available", "detached")
    assert api.migration(migration_id).cancel_requested


def test_a_twin_is_none_of_a_tenants_business(api: Api) -> None:
    volume_id = api.make_volume(status="in-use")
    migration_id = api.make_migration(volume_id, plan="attached", step="swap_by_compute")
    twin_id = api.make_twin(volume_id, migration_id)
    for action, (body, _) in TAKES.items():
        assert act(api, twin_id, action, body).status == 404
    for action in ("os-unreserve", "os-begin_detaching", "os-roll_detaching", "os-detach"):
        assert act(api, twin_id, action, {}).status == 404
    assert act(api, twin_id, "os-reserve", token="admin").status == 202
    api.db.run(lambda s: s.execute(sa.update(Migration).values(cancel_requested=True)))
    assert act(api, twin_id, "os-attach", ATTACH, token="admin").status == 400


# --- what administrators force ---------------------------------------------------------------------------------------


def test_force_detach(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume(status="detaching", attach_status="attached")
    attachment_id = api.attach(volume_id)
    body = {"attachment_id": attachment_id, "connector": CONNECTOR}
    assert act(api, volume_id, "os-force_detach", body).status == 403
    assert act(api, volume_id, "os-force_detach", body, token="admin").status == 202
    assert states(api, volume_id) == ("available", "detached")
    peers.wait_for("a@file1", "terminate_connection", volume_id=volume_id, connector=CONNECTOR)
    assert act(api, volume_id, "os-force_detach", {}, token="admin").status == 202


@pytest.mark.parametrize(
    "status", ["creating", "deleting", "error_deleting", "retyping", "maintenance", "attaching", "reserved"]
)
def test_force_delete_asks_for_no_status(api: Api, peers: Peers, status: str) -> None:
    volume_id = api.make_volume(status=status)
    api.attach(volume_id, attach_status="reserved")
    assert act(api, volume_id, "os-force_delete", {}).status == 403
    assert act(api, volume_id, "os-force_delete", {}, token="admin").status == 202
    assert api.get_volume(volume_id).status == "deleting"
    assert "'reserved'" not in str(api.contents()["attachments"])
    peers.wait_for("a@file1", "delete_volume", volume_id=volume_id)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda api, volume_id: api.attach(volume_id), "it is attached"),
        (lambda api, volume_id: api.attach(volume_id, attach_status="attaching"), "it is attached"),
        (lambda api, volume_id: api.make_snapshot(volume_id), "it has snapshots"),
        (lambda api, volume_id: api.make_migration(volume_id, lock=True, step="copy_data"), "has locked it"),
    ],
)
def test_what_cannot_even_be_forced(api: Api, spoil: Callable[[Api, str], Any], reason: str) -> None:
    volume_id = api.make_volume()
    spoil(api, volume_id)
    before = api.contents()
    answer = act(api, volume_id, "os-force_delete", {}, token="admin")
    assert (answer.status, reason in answer.fault) == (400, True)
    assert api.contents() == before


def test_a_cascade_takes_snapshots_that_are_at_rest(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    ids = [api.make_snapshot(volume_id, status=status) for status in ("available", "error", "error_deleting")]
    busy = api.make_snapshot(volume_id, status="creating")
    answer = api("DELETE", f"/volumes/{volume_id}?cascade=True", token="joe")
    assert (answer.status, "one of its snapshots is neither available nor in error" in answer.fault) == (400, True)
    assert api.get_volume(volume_id).status == "available"
    forced = api("DELETE", f"/volumes/{volume_id}?cascade=True&force=True", token="admin", version="3.23")
    assert forced.status == 202
    shown = str(api.contents()["snapshots"])
    assert shown.count("'deleting'") == len([*ids, busy])


# --- flags, image metadata, extend -----------------------------------------------------------------------------------


def test_bootable(api: Api) -> None:
    volume_id = api.make_volume()
    for value, shown in (("True", "true"), (False, "false")):
        answer = act(api, volume_id, "os-set_bootable", {"bootable": value})
        assert (answer.status, answer.text) == (200, b"")
        assert api("GET", f"/volumes/{volume_id}").json["volume"]["bootable"] == shown
    locked = api.make_volume(status="maintenance")
    assert act(api, locked, "os-set_bootable", {"bootable": True}).status == 400


def test_image_metadata(api: Api) -> None:
    """field.md bug 17 (LP1538926): it belongs to the volume's own row, which a migration never changes."""
    volume_id = api.make_volume()
    plain = api("GET", f"/volumes/{volume_id}", token="joe").json["volume"]
    assert "volume_image_metadata" not in plain
    first = act(api, volume_id, "os-set_image_metadata", {"metadata": {"os": "debian", "min_ram": "0"}})
    assert (first.status, first.json) == (200, {"metadata": {"os": "debian", "min_ram": "0"}})
    act(api, volume_id, "os-set_image_metadata", {"metadata": {"min_ram": "512"}})
    wanted = {"os": "debian", "min_ram": "512"}
    assert act(api, volume_id, "os-show_image_metadata").json == {"metadata": wanted}
    assert api("GET", f"/volumes/{volume_id}", token="joe").json["volume"]["volume_image_metadata"] == wanted
    (listed,) = api("GET", "/volumes/detail", token="joe").json["volumes"]
    assert listed["volume_image_metadata"] == wanted
    assert act(api, volume_id, "os-unset_image_metadata", {"key": "os"}).status == 200
    assert act(api, volume_id, "os-unset_image_metadata", {"key": "os"}).status == 404
    too_many = {str(number): "" for number in range(128)}
    assert act(api, volume_id, "os-set_image_metadata", {"metadata": too_many}).status == 400
    assert act(api, volume_id, "os-show_image_metadata").json == {"metadata": {"min_ram": "512"}}


def test_volumes_in_use_are_extended_from_3_42_on(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume(status="in-use", attach_status="attached")
    api.attach(volume_id)
    assert act(api, volume_id, "os-extend", {"new_size": 2}, version="3.41").status == 400
    began = api.db.now()
    assert act(api, volume_id, "os-extend", {"new_size": 2}, version="3.42").status == 202
    volume = api.get_volume(volume_id)
    assert (volume.status, volume.wanted_size, volume.attach_status) == ("extending", 2, "attached")
    assert volume.writable_at is not None
    assert volume.writable_at >= began - 1
    peers.wait_for("a@file1", "extend_volume", volume_id=volume_id)


def test_extending_in_use_has_a_rule_of_its_own(make_api: Callable[..., Api], tmp_path: Any) -> None:
    (tmp_path / "policy.yaml").write_text('"volume:extend_attached_volume": "!"\n')
    api = make_api()
    volume_id = api.make_volume(status="in-use")
    answer = act(api, volume_id, "os-extend", {"new_size": 2}, version="3.42")
    assert (answer.status, "volume:extend_attached_volume" in answer.fault) == (403, True)
    api.db.run(lambda s: volumes.update_where(s, volume_id, status="available"))
    assert act(api, volume_id, "os-extend", {"new_size": 2}, version="3.42").status == 202
