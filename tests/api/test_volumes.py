"""Volumes: create, list, show, update, delete."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.arcs import Step, run
from tests.api.conftest import DESTINATION, SOURCE, Api, Peers

UUID = "5c1f2cf6-0000-4000-8000-000000000000"


def test_the_life_of_a_volume(api: Api, peers: Peers) -> None:
    new = {"volume": {"size": 2, "name": " data ", "description": "mine", "metadata": {"k": "v"}}}
    kept = run(
        api,
        [
            Step(
                "it is created",
                "POST /volumes",
                202,
                {
                    "volume.status": "creating",
                    "volume.name": "data",
                    "volume.size": 2,
                    "volume.metadata": {"k": "v"},
                    "volume.bootable": "false",
                    "volume.availability_zone": "nova",
                    "volume.attachments": [],
                    "volume.user_id": "joe",
                },
                body=new,
                token="joe",
                keep={"id": "volume.id"},
            ),
            Step("it is seen by its project", "GET /volumes/$id", 200, {"volume.id": "$id"}, token="joe"),
            Step("not by another", "GET /volumes/$id", 404, token="eve", project="other"),
            Step("an administrator may come from anywhere", "GET /volumes/$id", 200, project="other"),
            Step(
                "it is renamed",
                "PUT /volumes/$id",
                200,
                {"volume.name": "new", "volume.description": None, "volume.metadata": {"a": "b"}},
                body={"volume": {"name": "new", "description": None, "metadata": {"a": "b"}}},
                token="joe",
            ),
            Step("it cannot go while it is made", "DELETE /volumes/$id", 400, {"fault": "it is creating"}, token="joe"),
            Step("nobody else deletes it", "DELETE /volumes/$id", 404, token="eve", project="other"),
            Step("force is for administrators", "DELETE /volumes/$id?force=true", 403, token="joe", version="3.23"),
            Step("by force it can, and leaves nothing", "DELETE /volumes/$id?force=true", 202, version="3.23"),
            Step("it is gone", "GET /volumes/$id", 404),
        ],
    )
    peers.wait_for("scheduler", "create_volume", volume_id=kept["id"])
    assert api.get_volume(kept["id"]).status == "deleted"  # it had no host: no service needed to hear of it


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({}, "size: it is required"),
        ({"size": 0}, "0 is not a 'size in GiB'"),
        ({"size": -1}, "size in GiB"),
        ({"size": "one"}, "size in GiB"),
        ({"size": 2**31}, "size in GiB"),
        ({"size": True}, "True is not of type"),
        ({"size": 1.5}, "1.5 is not of type"),
        ({"size": 1, "name": "x" * 256}, "volume.name"),
        ({"size": 1, "metadata": {"k": 1}}, "volume.metadata.k"),
        ({"size": 1, "metadata": {"k": "v" * 256}}, "volume.metadata.k"),
        ({"size": 1, "metadata": {"": "v"}}, "volume.metadata"),
        ({"size": 1, "metadata": []}, "volume.metadata"),
        ({"size": 1, "snapshot_id": "nonsense"}, "volume.snapshot_id"),
        ({"size": 1, "imageRef": UUID}, "creating from an image is not supported here"),
        ({"size": 1, "backup_id": UUID}, "creating from a backup is not supported here"),
        ({"size": 1, "group_id": UUID}, "groups is not supported here"),
        ({"size": 1, "multiattach": True}, "it is a property of the volume type"),
        ({"size": 1, "availability_zone": "mars"}, "there is no zone 'mars'"),
        ({"size": 1, "colour": "red"}, "'colour' was unexpected"),
        ({"size": 1, "snapshot_id": UUID, "source_volid": UUID}, "cannot be used together"),
    ],
)
def test_what_cannot_be_created(api: Api, wanted: dict[str, Any], reason: str) -> None:
    before = api.contents()
    answer = api("POST", "/volumes", {"volume": wanted}, version="3.53")
    assert answer.status == 400, answer.text
    assert reason in answer.fault
    assert api.contents() == before


def test_what_a_volume_may_be_made_of(api: Api) -> None:
    source = api.make_volume(size=3)
    snapshot = api.make_snapshot(source, volume_size=2)
    strange = api.make_volume(project_id="other")
    busy = api.make_snapshot(source, status="creating")
    moving = api.make_volume()
    api.make_migration(moving)
    run(
        api,
        [
            Step("nothing of that id", "POST /volumes", 404, {}, {"volume": {"size": 1, "source_volid": UUID}}),
            Step("no such snapshot", "POST /volumes", 404, {}, {"volume": {"size": 1, "snapshot_id": UUID}}),
            Step("somebody else's", "POST /volumes", 404, {}, {"volume": {"source_volid": "$strange"}}, "joe"),
            Step(
                "too small",
                "POST /volumes",
                400,
                {"fault": "less than the 3 GiB"},
                {"volume": {"size": 2, "source_volid": "$source"}},
            ),
            Step(
                "too small",
                "POST /volumes",
                400,
                {"fault": "less than the 2 GiB"},
                {"volume": {"size": 1, "snapshot_id": "$snapshot"}},
            ),
            Step("not ready", "POST /volumes", 400, {"fault": "it is creating"}, {"volume": {"snapshot_id": "$busy"}}),
            Step(
                "on its way", "POST /volumes", 400, {"fault": "is moving it"}, {"volume": {"source_volid": "$moving"}}
            ),
            Step(
                "elsewhere",
                "POST /volumes",
                400,
                {"fault": "in zone nova, not z"},
                {"volume": {"source_volid": "$source", "availability_zone": "z"}},
            ),
            Step("no such type", "POST /volumes", 404, {}, {"volume": {"size": 1, "volume_type": "gold"}}),
        ],
        source=source,
        snapshot=snapshot,
        strange=strange,
        busy=busy,
        moving=moving,
    )


@pytest.mark.parametrize("kind", ["snapshot_id", "source_volid"])
def test_a_copy_is_made_beside_what_it_is_a_copy_of(api: Api, peers: Peers, kind: str) -> None:
    source = api.make_volume(size=3, availability_zone="z2")
    origin = source if kind == "source_volid" else api.make_snapshot(source, volume_size=3)
    answer = api("POST", "/volumes", {"volume": {kind: origin}})
    assert answer.status == 202, answer.text
    made = api.get_volume(answer.json["volume"]["id"])
    assert (made.size, made.host, made.availability_zone) == (3, SOURCE, "z2")
    assert getattr(made, kind) == origin
    assert made.placed_at is not None
    peers.wait_for("a@file1", "create_volume", volume_id=made.id)


def test_a_type_is_found_by_id_by_name_and_by_default(make_api: Any) -> None:
    api = make_api(default_volume_type="usual")
    assert "default type 'usual' does not exist" in api("POST", "/volumes", {"volume": {"size": 1}}).fault
    ids = {
        name: api("POST", "/types", {"volume_type": {"name": name}}).json["volume_type"]["id"]
        for name in ("usual", "gold")
    }
    for wanted, got in ((None, "usual"), ("gold", "gold"), (ids["gold"], "gold")):
        body = {"volume": {"size": "1", "volume_type": wanted}}
        volume = api("POST", "/volumes", body, version="3.63").json["volume"]
        assert (volume["volume_type"], volume["volume_type_id"]) == (got, ids[got])


def test_a_zone_of_a_backend_is_known(api: Api) -> None:
    api.beat("c@file3", zone="east")
    answer = api("POST", "/volumes", {"volume": {"size": 1, "availability_zone": "east"}})
    assert answer.json["volume"]["availability_zone"] == "east"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"volume": {"size": 3}}, "'size' was unexpected"),
        ({"volume": {"metadata": {"k": None}}}, "volume.metadata.k"),
        ({"volume": {}}, "volume"),
        ({}, "'volume' is a required property"),
    ],
)
def test_what_cannot_be_updated(api: Api, body: dict[str, Any], reason: str) -> None:
    volume_id = api.make_volume()
    answer = api("PUT", f"/volumes/{volume_id}", body, version="3.53")
    assert answer.status == 400
    assert reason in answer.fault


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_attachments_and_times_look_as_clients_expect(api: Api) -> None:
    volume_id = api.make_volume(status="in-use", attach_status="attached")
    attachment_id = api.attach(volume_id)
    api.attach(volume_id, attach_status="reserved")
    volume = api("GET", f"/volumes/{volume_id}").json["volume"]
    (attachment,) = volume["attachments"]
    assert set(attachment) == {"id", "attachment_id", "volume_id", "server_id", "host_name", "device", "attached_at"}
    assert (attachment["id"], attachment["attachment_id"], attachment["host_name"]) == (
        volume_id,
        attachment_id,
        "compute1",
    )
    assert len(volume["created_at"]) == len("2026-01-02T15:04:05.000000")
    mine = api("GET", f"/volumes/{volume_id}", token="joe").json["volume"]
    assert mine["attachments"][0]["host_name"] is None


def test_the_host_is_for_administrators_and_always_names_the_pool(api: Api) -> None:
    volume_id = api.make_volume(name_id=UUID, migration_status="success")
    shown = api("GET", f"/volumes/{volume_id}").json["volume"]
    assert shown["os-vol-host-attr:host"] == SOURCE
    assert shown["os-vol-mig-status-attr:migstat"] == shown["migration_status"] == "success"
    assert shown["os-vol-mig-status-attr:name_id"] == UUID
    mine = api("GET", f"/volumes/{volume_id}", token="joe").json["volume"]
    assert not {key for key in mine if "host-attr" in key or "mig-status" in key or key == "migration_status"}


def test_a_twin_is_an_administrators_business_alone(api: Api) -> None:
    """field.md bug 39 (LP1970768): a tenant could delete the temporary volume of a migration."""
    volume_id = api.make_volume(display_name="v")
    twin_id = api.make_twin(volume_id, api.make_migration(volume_id, step="copy_data"))
    before = api.contents()
    refused = {"fault": f"it is the destination of a migration of volume {volume_id}"}
    run(
        api,
        [
            Step("the tenant does not see it", "GET /volumes/$twin", 404, token="joe"),
            Step("nor in lists", "GET /volumes", 200, {"volumes.#": 1, "volumes.0.id": "$volume"}, token="joe"),
            Step("nor in detail", "GET /volumes/detail", 200, {"volumes.#": 1}, token="joe"),
            Step("nor deletes it", "DELETE /volumes/$twin", 404, token="joe"),
            Step("nor makes snapshots of it", "POST /snapshots", 404, {}, {"snapshot": {"volume_id": "$twin"}}, "joe"),
            Step("nor copies it", "POST /volumes", 404, {}, {"volume": {"source_volid": "$twin"}}, "joe"),
            Step(
                "an administrator sees it",
                "GET /volumes/$twin",
                200,
                {"volume.migration_status": "target:$volume", "volume.consumes_quota": False},
                version="3.65",
            ),
            Step("with all tenants too", "GET /volumes?all_tenants=1", 200, {"volumes.#": 2}),
            Step("but not in a tenant's list", "GET /volumes", 200, {"volumes.#": 1}),
            Step("and does not delete it", "DELETE /volumes/$twin?cascade=true", 400, refused),
            Step("not by force", "DELETE /volumes/$twin?force=true", 400, refused, version="3.23"),
            Step("nor extends it", "POST /volumes/$twin/action", 400, refused, {"os-extend": {"new_size": 9}}),
            Step("nor renames it", "PUT /volumes/$twin", 400, refused, {"volume": {"name": "x"}}),
            Step("nor makes snapshots", "POST /snapshots", 400, refused, {"snapshot": {"volume_id": "$twin"}}),
            Step("nor copies", "POST /volumes", 400, refused, {"volume": {"source_volid": "$twin"}}),
        ],
        volume=volume_id,
        twin=twin_id,
    )
    assert api.contents() == before


# --- delete and extend -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["available", "error", "error_deleting", "error_extending"])
def test_what_can_be_deleted(api: Api, peers: Peers, status: str) -> None:
    volume_id = api.make_volume(status=status)
    assert api("DELETE", f"/volumes/{volume_id}", token="joe").status == 202
    assert api.get_volume(volume_id).status == "deleting"
    peers.wait_for("a@file1", "delete_volume", volume_id=volume_id)


def test_what_cannot_be_deleted(api: Api) -> None:
    with_snapshot, attached, grouped = api.make_volume(), api.make_volume(), api.make_volume(group_id="9")
    api.make_snapshot(with_snapshot)
    api.attach(attached)
    busy = [api.make_volume(status=status) for status in ("in-use", "creating", "maintenance", "extending", "deleting")]
    before = api.contents()
    for volume_id, reason in [
        (with_snapshot, "it has snapshots"),
        (attached, "it is attached"),
        (grouped, "it belongs to group 9"),
        *((volume_id, "status") for volume_id in busy),
    ]:
        answer = api("DELETE", f"/volumes/{volume_id}")
        assert answer.status == 400, answer.text
        assert reason in answer.fault
    assert api("DELETE", f"/volumes/{attached}?cascade=perhaps").status == 400
    assert api("DELETE", f"/volumes/{attached}?force=1", version="3.23").status == 400
    assert api.contents() == before


def test_what_lies_on_no_backend_is_gone_at_once_with_its_snapshots(api: Api) -> None:
    volume_id = api.make_volume(status="error", host=None)
    snapshot_id = api.make_snapshot(volume_id)
    assert api("DELETE", f"/volumes/{volume_id}?cascade=true").status == 202
    assert api("GET", f"/volumes/{volume_id}").status == 404
    assert api("GET", f"/snapshots/{snapshot_id}").status == 404


def test_snapshots_go_with_their_volume_in_a_cascade(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    snapshot_ids = [api.make_snapshot(volume_id) for _ in range(2)]
    assert api("DELETE", f"/volumes/{volume_id}?cascade=True").status == 202
    assert api.get_volume(volume_id).status == "deleting"
    for snapshot_id in snapshot_ids:
        assert api("GET", f"/snapshots/{snapshot_id}").json["snapshot"]["status"] == "deleting"
    peers.wait_for("a@file1", "delete_volume", volume_id=volume_id)


@pytest.mark.parametrize(
    ("values", "new_size", "reason"),
    [
        ({}, 1, "the new size must be more than 1 GiB; it is 1 GiB"),
        ({}, 0, "size in GiB"),
        ({}, "big", "size in GiB"),
        ({}, None, "os-extend.new_size"),
        ({"status": "in-use"}, 2, "it is in-use, which is enough from 3.42 on"),
        ({"status": "error"}, 2, "status must be available; it is error"),
        ({"status": "maintenance"}, 2, "status is maintenance"),
    ],
)
def test_what_cannot_be_extended(api: Api, values: dict[str, Any], new_size: Any, reason: str) -> None:
    volume_id = api.make_volume(**values)
    answer = api("POST", f"/volumes/{volume_id}/action", {"os-extend": {"new_size": new_size}}, token="joe")
    assert answer.status == 400
    assert reason in answer.fault


def test_extending_tells_the_volume_service(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    assert api("POST", f"/volumes/{volume_id}/action", {"os-extend": {"new_size": 2}}, token="joe").status == 202
    volume = api.get_volume(volume_id)
    assert (volume.status, volume.size, volume.wanted_size) == ("extending", 1, 2)
    peers.wait_for("a@file1", "extend_volume", volume_id=volume_id)


# --- what an owner does during a migration ---------------------------------------------------------------------------

OPERATIONS: dict[str, tuple[str, str, Any]] = {
    "delete": ("DELETE", "/volumes/{}", None),
    "extend": ("POST", "/volumes/{}/action", {"os-extend": {"new_size": 2}}),
    "snapshot": ("POST", "/snapshots", {"snapshot": {"volume_id": "{}"}}),
}


def _operate(api: Api, name: str, volume_id: str) -> Any:
    method, path, body = OPERATIONS[name]
    if name == "snapshot":
        body = {"snapshot": {"volume_id": volume_id}}
    return api(method, path.format(volume_id), body, token="joe")


@pytest.mark.parametrize("name", OPERATIONS)
def test_before_the_line_the_owner_wins_and_the_migration_is_cancelled(api: Api, peers: Peers, name: str) -> None:
    volume_id = api.make_volume()
    migration_id = api.make_migration(volume_id, step="copy_data")
    assert _operate(api, name, volume_id).status == 202
    assert api.migration(migration_id).cancel_requested
    taken = {"delete": "deleting", "extend": "extending", "snapshot": "available"}
    assert api.get_volume(volume_id).status == taken[name]
    peers.wait_for("a@file1", "run_migration", migration_id=migration_id)


def test_a_queued_migration_is_cancelled_at_the_scheduler(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    migration_id = api.make_migration(volume_id)
    assert _operate(api, "delete", volume_id).status == 202
    peers.wait_for("scheduler", "migrate", migration_id=migration_id)


@pytest.mark.parametrize("name", OPERATIONS)
def test_behind_the_line_the_owner_is_told_to_come_back(api: Api, name: str) -> None:
    volume_id = api.make_volume()
    migration_id = api.make_migration(volume_id, step="delete_source", destination_host=DESTINATION)
    before = api.contents()
    answer = _operate(api, name, volume_id)
    assert answer.status == 409
    assert f"Migration {migration_id} of volume {volume_id} can no longer be cancelled" in answer.fault
    assert int(answer.headers["retry-after"]) > 0
    assert api.contents() == before


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_locked_volume_is_its_migrations_alone(api: Api, name: str) -> None:
    volume_id = api.make_volume()
    migration_id = api.make_migration(volume_id, lock=True, step="copy_data")
    before = api.contents()
    answer = _operate(api, name, volume_id)
    assert answer.status == 400
    assert f"status is maintenance: migration {migration_id} has locked it until its end" in answer.fault
    assert api.contents() == before
