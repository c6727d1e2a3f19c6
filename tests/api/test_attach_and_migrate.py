"""Attachments and migrations: who attaches wins before the line, and the compute service swaps what is in use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from migrator import errors
from migrator.db import attachments, volumes
from migrator.db.models import Migration
from tests.api.arcs import Step, run
from tests.api.conftest import DESTINATION, Api, Peers
from tests.api.test_attachments import CONNECTOR, SERVER, delete, post, put, states


def test_a_migration_before_the_line_gives_way(api: Api, peers: Peers) -> None:
    """states.md, lock_volume false: the owner's attach wins, in one transaction, and marks the volume writable."""
    volume_id = api.make_volume()
    migration_id = api.make_migration(volume_id, step="copy_data")
    began = api.db.now()
    assert post(api, volume_id).status == 200
    volume = api.get_volume(volume_id)
    assert (volume.status, volume.migration_id) == ("reserved", migration_id)
    assert volume.writable_at is not None
    assert volume.writable_at >= began - 1
    assert api.migration(migration_id).cancel_requested
    peers.wait_for("a@file1", "run_migration", migration_id=migration_id)


@pytest.mark.parametrize(
    ("lock", "columns", "status", "reason"),
    [
        (False, {"step": "delete_source"}, 409, "can no longer be cancelled"),
        (True, {"step": "copy_data"}, 400, "has locked it until its end"),
    ],
)
def test_a_migration_that_does_not_give_way(
    api: Api, lock: bool, columns: dict[str, Any], status: int, reason: str
) -> None:
    volume_id = api.make_volume()
    api.make_migration(volume_id, lock=lock, **columns)
    before = api.contents()
    answer = post(api, volume_id)
    assert (answer.status, reason in answer.fault) == (status, True), answer.text
    assert ("retry-after" in answer.headers) == (status == 409)
    assert api.contents() == before


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_every_attach_says_when_the_volume_became_writable(api: Api, peers: Peers, mode: str) -> None:
    volume_id = api.make_volume()
    attachment_id = post(api, volume_id, mode=mode).json["attachment"]["id"]
    reserved = api.get_volume(volume_id).writable_at
    assert reserved is not None
    assert put(api, attachment_id).status == 200
    connected = api.get_volume(volume_id).writable_at
    assert connected is not None
    assert connected >= reserved


def swap(api: Api, **more: Any) -> tuple[str, str, str, str]:
    """A volume in use whose migration waits for the compute service; returns ids of volume, attachment, twin, row."""
    volume_id = api.make_volume(status="in-use", attach_status="attached", **more.pop("volume", {}))
    old = api.attach(volume_id, instance_uuid=SERVER, connector=CONNECTOR, **more)
    migration_id = api.make_migration(volume_id, plan="attached", step="swap_by_compute")
    api.db.run(lambda s: volumes.update_where(s, volume_id, migration_status="migrating"))
    return volume_id, old, api.make_twin(volume_id, migration_id), migration_id


#: How the compute service calls: an administrator of its own project.
NOVA: dict[str, Any] = {"token": "admin", "project": "service"}


def test_the_compute_service_swaps(api: Api, peers: Peers) -> None:
    """The calls of nova-calls.md in their order.  field.md bugs 29 and 31 (LP1433019, LP1614371)."""
    volume_id, old, twin_id, _ = swap(api)
    in_use = {"volume.status": "in-use", "volume.attachments.#": 1, "volume.attachments.0.attachment_id": old}
    run(
        api,
        [
            Step("begin", f"POST /volumes/{volume_id}/action", 202, body={"os-begin_detaching": None}, **NOVA),
            Step("it does not show", f"GET /volumes/{volume_id}", 200, in_use, **NOVA),
            Step(
                "a new twin", f"GET /volumes/{twin_id}", 200, {"volume.attachments": [], "volume.status": "available"}
            ),
            Step(
                "reserve the twin",
                "POST /attachments",
                200,
                {"attachment.status": "reserved", "attachment.attach_mode": "null"},
                {"attachment": {"volume_uuid": twin_id, "connector": None, "instance_uuid": SERVER}},
                version="3.44",
                keep={"new": "attachment.id"},
                **NOVA,
            ),
            Step("twin reserved", f"GET /volumes/{twin_id}", 200, {"volume.status": "reserved"}, **NOVA),
            Step(
                "connect",
                "PUT /attachments/$new",
                200,
                {"attachment.connection_info.device_path": f"/srv/volume-{twin_id}"},
                {"attachment": {"connector": CONNECTOR}},
                version="3.44",
                **NOVA,
            ),
            Step("twin attaching", f"GET /volumes/{twin_id}", 200, {"volume.status": "attaching"}, **NOVA),
            Step("done", "POST /attachments/$new/action", 204, body={"os-complete": None}, version="3.44", **NOVA),
            Step("twin in use", f"GET /volumes/{twin_id}", 200, {"volume.status": "in-use"}, **NOVA),
            Step("let go", f"DELETE /attachments/{old}", 200, {"attachments": []}, version="3.44", **NOVA),
            Step("no gap is seen", f"GET /volumes/{volume_id}", 200, in_use, **NOVA),
            Step("the old one is gone", f"GET /attachments/{old}", 404, version="3.44", **NOVA),
        ],
    )
    peers.wait_for(
        "b@file2", "initialize_connection", volume_id=twin_id, connector={**CONNECTOR, "mode": "rw"}, writable=True
    )
    api.db.run(lambda s: attachments.move(s, twin_id, volume_id))
    (view,) = api("GET", f"/volumes/{volume_id}").json["volume"]["attachments"]
    assert (view["volume_id"], view["attachment_id"] != old, view["server_id"]) == (volume_id, True, SERVER)
    assert states(api, volume_id) == ("in-use", "attached")
    assert delete(api, view["attachment_id"], token="admin").json == {"attachments": []}
    assert api.get_volume(volume_id).attach_status == "detached"


def test_the_swaps_own_detach_needs_no_answer_of_the_old_place(api: Api, peers: Peers) -> None:
    """Its service is down: refused, the compute service would not report, and keep an attachment that is gone."""
    volume_id, old, twin_id, _ = swap(api)
    new = post(api, twin_id, token="admin").json["attachment"]["id"]
    assert put(api, new, token="admin").status == 200
    peers.refusal_to_end = errors.ServiceUnavailable(service="a@file1", reason="no answer")
    before = api.contents()
    assert delete(api, old, token="admin").status == 503, "the server still needs it"
    assert api.contents() == before
    assert api("POST", f"/attachments/{new}/action", {"os-complete": None}, version="3.44", **NOVA).status == 204
    assert delete(api, old, token="admin").json == {"attachments": []}
    assert states(api, volume_id) == ("in-use", "attached")
    api.db.run(lambda s: attachments.move(s, twin_id, volume_id))
    (left,) = api.db.read(lambda s: attachments.unended(s, volume_id))
    assert (left.id, left.connector) == (old, CONNECTOR), "delete_source ends it"


def test_a_detach_waits_for_the_switch_once_the_server_was_moved(api: Api, peers: Peers) -> None:
    """Else the server loses its disk, and the attachment that it came by cannot be ended (paused, say, for hours)."""
    volume_id, _, twin_id, _ = swap(api)
    begin = {"os-begin_detaching": None}
    new = post(api, twin_id, token="admin").json["attachment"]["id"]
    assert put(api, new, token="admin").status == 200
    assert api("POST", f"/volumes/{volume_id}/action", begin, **NOVA).status == 202, "a swap begins like this"
    assert api("POST", f"/attachments/{new}/action", {"os-complete": None}, version="3.44", **NOVA).status == 204
    before = api.contents()
    answer = api("POST", f"/volumes/{volume_id}/action", begin, token="joe")
    assert (answer.status, "is about to complete" in answer.fault) == (400, True), answer.text
    assert api.contents() == before


def test_the_compute_service_fails(api: Api, peers: Peers) -> None:
    """field.md bug 34 (LP1489744): a swap that failed leaves both as they were."""
    volume_id, old, twin_id, _ = swap(api)
    new = post(api, twin_id, token="admin").json["attachment"]["id"]
    assert put(api, new, token="admin").status == 200
    roll = {"os-roll_detaching": None}
    assert api("POST", f"/volumes/{volume_id}/action", roll, **NOVA).status == 202
    assert delete(api, new, token="admin").json == {"attachments": []}
    assert states(api, twin_id) == ("available", "detached")
    assert states(api, volume_id) == ("in-use", "attached")
    assert [a["attachment_id"] for a in api("GET", f"/volumes/{volume_id}").json["volume"]["attachments"]] == [old]


def test_moved_attachments_name_the_volume_and_replace_what_was_not_removed(api: Api) -> None:
    """field.md bug 33 (LP1943431): the twin's id in the connection makes a later detach fail."""
    volume_id, old, twin_id, _ = swap(api)
    info = {"volume_id": twin_id, "serial": twin_id, "name": f"volume-{twin_id}", "target_lun": 1}
    new = api.attach(twin_id, instance_uuid=SERVER, connection_info=info)
    api.db.run(lambda s: attachments.move(s, twin_id, volume_id))
    (row,) = api.db.read(lambda s: attachments.of_volume(s, volume_id))
    assert row.id == new
    assert row.connection_info == {**info, "volume_id": volume_id, "serial": volume_id}
    assert api("GET", f"/attachments/{old}", version="3.27").status == 404


def test_a_read_only_attachment_stays_read_only(api: Api, peers: Peers) -> None:
    """field.md bug 15 (LP1802155): the swap of a read-only attachment made it writable."""
    _, _, twin_id, _ = swap(api, attach_mode="ro")
    new = post(api, twin_id, token="admin").json["attachment"]
    assert new["attach_mode"] == "ro"
    assert put(api, new["id"], token="admin").json["attachment"]["connection_info"]["access_mode"] == "ro"


@pytest.mark.parametrize(
    "columns",
    [
        {"cancel_requested": True},
        {"direction": "back"},
        {"end": "error", "direction": "back"},
        {"step": "create_destination"},
        {"plan": "host_copy", "step": "copy_data"},
    ],
)
def test_a_twin_is_attached_by_nobody_unless_its_migration_waits_for_that(api: Api, columns: dict[str, Any]) -> None:
    """field.md bug 39 (LP1970768): what looks available is in use by its migration."""
    _, _, twin_id, migration_id = swap(api)
    api.db.run(lambda s: s.execute(sa.update(Migration).where(Migration.id == migration_id).values(**columns)))
    bodies: list[dict[str, Any]] = [{"os-reserve": {}}, {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h"}}]
    for body in bodies:
        assert "which alone may use it" in api("POST", f"/volumes/{twin_id}/action", body).fault
    answer = post(api, twin_id, token="admin")
    assert (answer.status, "which alone may use it" in answer.fault) == (400, True)


def test_a_tenant_never_gets_at_a_twin(api: Api, peers: Peers) -> None:
    _, _, twin_id, _ = swap(api)
    assert post(api, twin_id, token="joe").status == 404
    new = post(api, twin_id, token="admin").json["attachment"]["id"]
    assert put(api, new).status == 404
    assert delete(api, new).status == 404
    assert api("GET", f"/attachments/{new}", token="joe", version="3.27").status == 404
    listed = api("GET", f"/attachments?volume_id={twin_id}", token="joe", version="3.27").json
    assert listed["attachments"] == []


def test_a_real_detach_during_a_swap_cancels_the_migration(api: Api, peers: Peers) -> None:
    volume_id, old, twin_id, migration_id = swap(api)
    reserved = post(api, twin_id, token="admin").json["attachment"]["id"]
    assert put(api, reserved, token="admin").status == 200  # the copy is not done: the server still needs the old one
    assert delete(api, old, token="admin").status == 200
    assert api.migration(migration_id).cancel_requested
    assert states(api, volume_id) == ("available", "detached")
    peers.wait_for("a@file1", "run_migration", migration_id=migration_id)


def test_the_end_of_a_migration_forgets_what_the_swap_removed(api: Api, peers: Peers) -> None:
    volume_id, old, twin_id, _ = swap(api)
    api.attach(twin_id, instance_uuid=SERVER)
    assert delete(api, old, token="admin").status == 200
    assert states(api, volume_id) == ("in-use", "attached")
    api.db.run(lambda s: attachments.forget_detached(s, volume_id))
    assert states(api, volume_id) == ("available", "detached")


def test_an_attach_and_a_migration_at_once(any_api: Api) -> None:
    """Invariant 6: never both.  An attach that comes second cancels, a migration that comes second is refused."""
    for _ in range(4):
        volume_id = any_api.make_volume()
        migrate = {"os-migrate_volume": {"host": DESTINATION}}
        with ThreadPoolExecutor(2) as pool:
            reserving = pool.submit(post, any_api, volume_id)
            migrating = pool.submit(any_api, "POST", f"/volumes/{volume_id}/action", migrate)
        assert reserving.result().status == 200, reserving.result().text
        assert migrating.result().status in (202, 400)
        volume = any_api.get_volume(volume_id)
        assert volume.status == "reserved"
        if migrating.result().status == 202:
            assert volume.migration_id is not None
            assert any_api.migration(volume.migration_id).cancel_requested
        else:
            assert volume.migration_id is None
