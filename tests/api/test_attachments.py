"""The attachments resource: reserve, connect, complete, detach; the compute service's swap of a migrated volume."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from migrator import errors
from migrator.db import volumes
from migrator.db.models import Volume
from tests.api.arcs import Step, run
from tests.api.conftest import DESTINATION, Answer, Api, Peers

SERVER, OTHER = str(uuid.uuid4()), str(uuid.uuid4())
UUID = "5c1f2cf6-0000-4000-8000-000000000000"
CONNECTOR = {"ip": "127.0.0.1", "initiator": "iqn.fake", "host": "compute1", "mountpoint": "/dev/vdb"}


def post(api: Api, volume_id: str, server: str | None = SERVER, token: str = "joe", **more: Any) -> Answer:
    version = more.pop("version", "3.54")
    body = {"attachment": {"volume_uuid": volume_id, "instance_uuid": server, **more}}
    return api("POST", "/attachments", body, token=token, version=version)


def put(api: Api, attachment_id: str, token: str = "joe", **connector: Any) -> Answer:
    body = {"attachment": {"connector": {**CONNECTOR, **connector}}}
    return api("PUT", f"/attachments/{attachment_id}", body, token=token, version="3.54")


def complete(api: Api, attachment_id: str, token: str = "joe") -> Answer:
    return api("POST", f"/attachments/{attachment_id}/action", {"os-complete": None}, token=token, version="3.44")


def delete(api: Api, attachment_id: str, token: str = "joe") -> Answer:
    return api("DELETE", f"/attachments/{attachment_id}", token=token, version="3.44")


def states(api: Api, volume_id: str) -> tuple[str, str]:
    volume = api.get_volume(volume_id)
    return volume.status, volume.attach_status


def attached(api: Api, volume_id: str, server: str = SERVER, **more: Any) -> str:
    """Attach a volume as the compute service does; return the attachment's id."""
    answer = post(api, volume_id, server, **more)
    assert answer.status == 200, answer.text
    attachment_id = str(answer.json["attachment"]["id"])
    assert put(api, attachment_id).status == 200
    assert complete(api, attachment_id).status == 204
    return attachment_id


# --- one volume, one server ------------------------------------------------------------------------------------------


def test_from_reserved_to_detached(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    kept = run(
        api,
        [
            Step(
                "reserve",
                "POST /attachments",
                200,
                {
                    "attachment.status": "reserved",
                    "attachment.instance": SERVER,
                    "attachment.volume_id": volume_id,
                    "attachment.attached_at": "",
                    "attachment.detached_at": "",
                    "attachment.attach_mode": "null",
                    "attachment.connection_info": {},
                },
                {"attachment": {"volume_uuid": volume_id, "connector": None, "instance_uuid": SERVER}},
                token="joe",
                version="3.44",
                keep={"id": "attachment.id"},
            ),
            Step("is reserved", f"GET /volumes/{volume_id}", 200, {"volume.status": "reserved"}),
            Step(
                "connect",
                "PUT /attachments/$id",
                200,
                {
                    "attachment.status": "attaching",
                    "attachment.attach_mode": "rw",
                    "attachment.connection_info": {
                        "qos_specs": None,
                        "access_mode": "rw",
                        "encrypted": False,
                        "cacheable": False,
                        "driver_volume_type": "gpfs",
                        "device_path": f"/srv/volume-{volume_id}",
                        "auth_password": "s3cret",
                        "attachment_id": "$id",
                        "enforce_multipath": False,
                    },
                },
                {"attachment": {"connector": CONNECTOR}},
                token="joe",
                version="3.44",
            ),
            Step("is attaching", f"GET /volumes/{volume_id}", 200, {"volume.status": "attaching"}),
            Step(
                "complete",
                "POST /attachments/$id/action",
                204,
                body={"os-complete": None},
                token="joe",
                version="3.44",
            ),
            Step(
                "is in use",
                f"GET /volumes/{volume_id}",
                200,
                {
                    "volume.status": "in-use",
                    "volume.attachments.#": 1,
                    "volume.attachments.0.id": volume_id,
                    "volume.attachments.0.attachment_id": "$id",
                    "volume.attachments.0.server_id": SERVER,
                    "volume.attachments.0.host_name": "compute1",
                    "volume.attachments.0.device": "/dev/vdb",
                },
            ),
            Step("detach", "DELETE /attachments/$id", 200, {"attachments": []}, token="joe", version="3.44"),
            Step(
                "is available",
                f"GET /volumes/{volume_id}",
                200,
                {"volume.status": "available", "volume.attachments": []},
            ),
            Step("is gone", "GET /attachments/$id", 404, {"fault": "$id could not be found"}, version="3.44"),
        ],
    )
    peers.wait_for(
        "a@file1",
        "initialize_connection",
        volume_id=volume_id,
        connector={**CONNECTOR, "mode": "rw"},
        writable=True,
    )
    peers.wait_for("a@file1", "terminate_connection", volume_id=volume_id, connector={**CONNECTOR, "mode": "rw"})
    assert states(api, volume_id) == ("available", "detached")
    assert kept["id"]


def test_all_in_one_call_and_what_others_see_of_secrets(api: Api, peers: Peers) -> None:
    """Whoever connects needs the secrets; a look at the attachment shows them to administrators and services alone."""
    volume_id = api.make_volume()
    made = post(api, volume_id, connector={**CONNECTOR, "enforce_multipath": True})
    assert made.status == 200
    view = made.json["attachment"]
    assert (view["status"], states(api, volume_id)) == ("attaching", ("attaching", "attaching"))
    assert view["connection_info"]["auth_password"] == "s3cret"
    assert view["connection_info"]["enforce_multipath"] is True
    for token, seen in (("joe", "***"), ("admin", "s3cret")):
        shown = api("GET", f"/attachments/{view['id']}", token=token, version="3.27").json["attachment"]
        assert shown["connection_info"]["auth_password"] == seen
        assert shown["connection_info"]["device_path"] == f"/srv/volume-{volume_id}"


def test_a_backend_that_refuses_leaves_no_reservation(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    peers.refusal = errors.InvalidInput(field="connector", reason="no initiator")
    answer = post(api, volume_id, connector=CONNECTOR)
    assert (answer.status, "no initiator" in answer.fault) == (400, True)
    assert states(api, volume_id) == ("available", "detached")
    assert api("GET", "/attachments", version="3.27").json["attachments"] == []


def test_a_backend_that_is_away_leaves_no_reservation(make_api: Any) -> None:
    api = make_api(rpc_step_timeout_seconds=1)
    volume_id = api.make_volume()
    assert post(api, volume_id, connector=CONNECTOR).status == 503
    assert states(api, volume_id) == ("available", "detached")


def test_detached_while_it_is_being_connected(api: Api, peers: Peers) -> None:
    """The connection that comes too late is taken back, and the volume is nobody's."""
    volume_id = api.make_volume()
    attachment_id = post(api, volume_id).json["attachment"]["id"]
    gone: list[int] = []
    peers.meanwhile = lambda: gone.append(delete(api, attachment_id).status)
    assert put(api, attachment_id).status == 404
    assert gone == [200]
    peers.wait_for("a@file1", "terminate_connection", volume_id=volume_id, connector={**CONNECTOR, "mode": "rw"})
    assert states(api, volume_id) == ("available", "detached")


@pytest.mark.parametrize(
    ("volume", "more", "connector", "mode"),
    [
        ({}, {"mode": "ro"}, {}, "ro"),
        ({}, {"mode": "rw"}, {"mode": "ro"}, "rw"),
        ({}, {}, {"mode": "ro"}, "ro"),
        ({}, {}, {"mode": "no such"}, "rw"),
        ({"readonly": True}, {"mode": "rw"}, {"mode": "rw"}, "ro"),
    ],
)
def test_modes(
    api: Api, peers: Peers, volume: dict[str, Any], more: dict[str, str], connector: dict[str, str], mode: str
) -> None:
    """What the attachment says counts before what the connector says, and a read-only volume before both."""
    volume_id = api.make_volume(**volume)
    attachment_id = post(api, volume_id, **more).json["attachment"]["id"]
    view = put(api, attachment_id, **connector).json["attachment"]
    assert (view["attach_mode"], view["connection_info"]["access_mode"]) == (mode, mode)
    sent = {**CONNECTOR, "mode": mode}
    peers.wait_for("a@file1", "initialize_connection", volume_id=volume_id, connector=sent, writable=mode == "rw")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"status": "in-use"}, "status must be available to reserve; it is in-use"),
        ({"status": "reserved"}, "it is reserved"),
        ({"status": "attaching"}, "it is attaching"),
        ({"status": "retyping"}, "it is retyping"),
        ({"status": "extending"}, "it is extending"),
        ({"status": "creating", "host": None}, "it is creating"),
        ({"status": "error"}, "it is error"),
        ({"status": "error_extending", "multiattach": True}, "status must be available or in-use to reserve"),
        ({"status": "maintenance"}, "status is maintenance: it is locked"),
    ],
)
def test_volumes_that_cannot_be_reserved(api: Api, values: dict[str, Any], reason: str) -> None:
    volume_id = api.make_volume(**values)
    before = api.contents()
    answer = post(api, volume_id)
    assert (answer.status, reason in answer.fault) == (400, True), answer.text
    assert api.contents() == before


@pytest.mark.parametrize(
    ("body", "version", "status", "reason"),
    [
        ({"volume_uuid": "none"}, "3.27", 400, "volume_uuid"),
        ({"instance_uuid": SERVER}, "3.27", 400, "'volume_uuid' is a required property"),
        ({"volume_uuid": UUID}, "3.27", 404, f"Volume {UUID} could not be found"),
        ({"volume_uuid": UUID}, "3.26", 404, "could not be found"),
        ({"volume_uuid": UUID, "mode": "ro"}, "3.53", 400, "'mode' was unexpected"),
        ({"volume_uuid": UUID, "mode": "wo"}, "3.54", 400, "attachment.mode"),
        ({"volume_uuid": UUID, "connector": "text"}, "3.27", 400, "attachment.connector"),
        ({"volume_uuid": UUID, "instance_uuid": "i-1"}, "3.27", 400, "attachment.instance_uuid"),
    ],
)
def test_bodies_that_are_wrong(api: Api, body: dict[str, Any], version: str, status: int, reason: str) -> None:
    answer = api("POST", "/attachments", {"attachment": body}, token="joe", version=version)
    assert (answer.status, reason in answer.fault) == (status, True), answer.text


def test_attachments_of_others_do_not_exist(api: Api, peers: Peers) -> None:
    foreign = api.make_volume(project_id="others")
    assert post(api, foreign).status == 404
    attachment_id = post(api, foreign, token="admin").json["attachment"]["id"]
    assert api("GET", f"/attachments/{attachment_id}", token="joe", version="3.27").status == 404
    assert put(api, attachment_id).status == 404
    assert complete(api, attachment_id).status == 404
    assert delete(api, attachment_id).status == 404
    assert delete(api, attachment_id, token="admin").status == 200


def test_an_attachment_that_is_none_and_one_that_cannot_be_connected(api: Api, peers: Peers) -> None:
    assert {put(api, UUID).status, complete(api, UUID).status, delete(api, UUID).status} == {404}
    volume_id = api.make_volume()
    attachment_id = post(api, volume_id).json["attachment"]["id"]
    assert "connector" in api("PUT", f"/attachments/{attachment_id}", {"attachment": {}}, version="3.27").fault
    api.db.run(lambda s: volumes.update_where(s, volume_id, status="error"))
    answer = put(api, attachment_id)
    assert (answer.status, "its status is error" in answer.fault) == (409, True)
    early = api("POST", f"/attachments/{attachment_id}/action", {"os-complete": None}, version="3.43")
    assert early.status == 404


# --- several servers -------------------------------------------------------------------------------------------------


def test_a_multiattach_volume_serves_several_servers(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume(multiattach=True)
    first = attached(api, volume_id)
    second = post(api, volume_id, OTHER).json["attachment"]["id"]
    assert states(api, volume_id)[0] == "reserved"
    assert put(api, second, host="compute2").status == 200
    assert states(api, volume_id) == ("attaching", "attaching")
    assert complete(api, second).status == 204
    assert states(api, volume_id) == ("in-use", "attached")
    left = delete(api, first).json["attachments"]
    assert [row["id"] for row in left] == [second]
    assert states(api, volume_id) == ("in-use", "attached")
    assert delete(api, second).json == {"attachments": []}
    assert states(api, volume_id) == ("available", "detached")


def test_what_is_left_decides_the_status(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume(multiattach=True)
    first = attached(api, volume_id)
    post(api, volume_id, OTHER)
    delete(api, first)
    assert states(api, volume_id) == ("reserved", "reserved")


def test_hosts_that_share_a_connection_keep_it(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume(multiattach=True)
    first, second = attached(api, volume_id), attached(api, volume_id, OTHER)
    delete(api, first)
    assert ("a@file1", "terminate_connection") not in [heard[:2] for heard in peers.heard]
    delete(api, second)
    peers.wait_for("a@file1", "terminate_connection", volume_id=volume_id, connector={**CONNECTOR, "mode": "rw"})


def test_a_server_on_its_way_to_another_host_has_two_attachments(api: Api, peers: Peers) -> None:
    """LP1694530: a server could not be moved to another host while it ran."""
    volume_id = api.make_volume()
    first = attached(api, volume_id)
    assert post(api, volume_id, OTHER).status == 400
    second = post(api, volume_id).json["attachment"]["id"]
    assert states(api, volume_id) == ("in-use", "attached")
    answer = put(api, second)
    assert (answer.status, "connected by another attachment" in answer.fault) == (409, True), "the same host"
    assert put(api, second, host="compute2").status == 200
    assert complete(api, second).status == 204
    delete(api, first)
    assert states(api, volume_id) == ("in-use", "attached")
    peers.wait_for("a@file1", "terminate_connection", volume_id=volume_id, connector={**CONNECTOR, "mode": "rw"})


def test_a_bootable_multiattach_volume_has_a_rule_of_its_own(make_api: Any, tmp_path: Any) -> None:
    (tmp_path / "policy.yaml").write_text('"volume:multiattach_bootable_volume": "!"\n')
    api = make_api()
    volume_id = api.make_volume(multiattach=True, bootable=True)
    assert post(api, volume_id).status == 200
    api.db.run(lambda s: volumes.update_where(s, volume_id, status="in-use"))
    answer = post(api, volume_id, OTHER)
    assert (answer.status, "volume:multiattach_bootable_volume" in answer.fault) == (403, True)


def test_of_many_requests_at_once_one_wins(any_api: Api) -> None:
    """field.md bug 40: check and act are one statement."""
    volume_id = any_api.make_volume()
    servers = [str(uuid.uuid4()) for _ in range(12)]
    with ThreadPoolExecutor(len(servers)) as pool:
        answers = list(pool.map(lambda server: post(any_api, volume_id, server), servers))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 11
    assert len(any_api.contents()["attachments"]) == 1


# --- lists -----------------------------------------------------------------------------------------------------------


def test_lists_with_filters_and_pages(api: Api) -> None:
    mine, theirs = api.make_volume(), api.make_volume(project_id="others")
    ids = [api.attach(mine, instance_uuid=SERVER), api.attach(mine, attach_status="reserved"), api.attach(theirs)]

    def found(query: str = "", token: str = "joe", version: str = "3.27") -> set[str]:
        answer = api("GET", f"/attachments{query}", token=token, version=version)
        return {row["id"] for row in answer.json["attachments"]}

    assert found() == found("?all_tenants=1") == set(ids[:2])
    assert found("?all_tenants=1", "admin") == set(ids)
    assert found(f"?instance_id={SERVER}") == found("?status=attached") == found("?attach_status=attached") == {ids[0]}
    assert found(f"?volume_id={theirs}") == set()
    assert found(f"?volume_id={theirs}&all_tenants=1", "admin") == {ids[2]}
    assert api("GET", "/attachments?mood=good", version="3.31").status == 400
    page = api("GET", "/attachments?limit=1&sort=id:asc", token="joe", version="3.27").json
    assert [row["id"] for row in page["attachments"]] == sorted(ids[:2])[:1]
    assert found(f"?marker={page['attachments'][0]['id']}&sort=id:asc") == {sorted(ids[:2])[1]}
    (row,) = api("GET", f"/attachments/detail?instance_id={SERVER}", token="joe", version="3.27").json["attachments"]
    assert set(row) == {
        *("id", "status", "instance", "volume_id"),
        *("attached_at", "detached_at", "attach_mode", "connection_info"),
    }
    (short,) = api("GET", f"/attachments?instance_id={SERVER}", token="joe", version="3.27").json["attachments"]
    assert set(short) == {"id", "status", "instance", "volume_id"}


def test_work_on_a_volume_is_not_overwritten_by_its_attachments(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    attachment_id = attached(api, volume_id)
    api.db.run(lambda s: volumes.update_where(s, volume_id, Volume.status == "in-use", status="extending"))
    assert delete(api, attachment_id).status == 200
    assert states(api, volume_id) == ("extending", "detached")


def test_the_place_of_the_volume_is_asked(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume(host=DESTINATION)
    attached(api, volume_id)
    assert {who for who, method, _ in peers.heard if method == "initialize_connection"} == {"b@file2"}
