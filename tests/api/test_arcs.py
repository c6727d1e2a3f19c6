"""One arc for each resource that an operator works through: what is asked, in turn, and what is refused on the way.

In front of a real scheduler and real volume services; migrations are placed and go no further.
"""

from __future__ import annotations

from pathlib import Path

from tests.api.arcs import Step, run
from tests.api.conftest import DESTINATION, SOURCE, Api
from tests.api.plant import Plant
from tests.support.data import GIB
from tests.support.waiting import until

UUID = "5c1f2cf6-0000-4000-8000-000000000000"
CONNECTOR = {"host": "compute1", "initiator": "iqn.1993-08.org.debian:01:compute1"}
NEWEST = "3.71"


def test_migrations(api: Api, plant: Plant) -> None:
    """Plan, dry run, begin, limit, cancel."""
    slow = {"set_rate": {"bytes_per_second": 1}}
    there = {"migration.id": "$id", "migration.destination_host": DESTINATION}
    run(
        api,
        [
            Step("a plan needs a volume", "GET /migrations/plan", 400, {"fault": "volume_id"}),
            Step("that there is", f"GET /migrations/plan?volume_id={UUID}", 404, {"fault": UUID}),
            Step("it is for operators", "GET /migrations/plan?volume_id=$volume", 403, token="joe"),
            Step(
                "planned",
                "GET /migrations/plan?volume_id=$volume",
                200,
                {"plan.possible": True, "plan.blockers": [], "plan.destination_host": DESTINATION},
            ),
            Step("nothing is there yet", "GET /migrations", 200, {"migrations": []}),
            Step("no volume", "POST /migrations", 400, {"fault": "'volume_id'"}, {"migration": {}}),
            Step("not for tenants", "POST /migrations", 403, {}, {"migration": {"volume_id": "$volume"}}, "joe"),
            Step(
                "where it is",
                "POST /migrations",
                400,
                {"fault": SOURCE},
                {"migration": {"volume_id": "$volume", "host": SOURCE}},
            ),
            Step(
                "tried",
                "POST /migrations",
                200,
                {"plan.possible": True},
                {"migration": {"volume_id": "$volume", "dry_run": True}},
            ),
            Step("which began nothing", "GET /migrations", 200, {"migrations.#": 0}),
            Step(
                "begun",
                "POST /migrations",
                202,
                {"migration.volume_id": "$volume", "migration.direction": "forward", "migration.error": None},
                {"migration": {"volume_id": "$volume", "host": DESTINATION, "force_host_copy": True}},
                keep={"id": "migration.id"},
            ),
            Step(
                "a second one",
                "POST /migrations",
                400,
                {"fault": "$id"},
                {"migration": {"volume_id": "$volume", "host": DESTINATION}},
            ),
            Step("the plan says so", "GET /migrations/plan?volume_id=$volume", 200, {"plan.possible": False}),
            Step("shown", "GET /migrations/$id", 200, there),
            Step("not to tenants", "GET /migrations/$id", 403, token="joe"),
            Step("found by its volume", "GET /migrations?volume_id=$volume", 200, {"migrations.0.id": "$id"}),
            Step("by a status that is none", "GET /migrations?status=lost", 400, {"fault": "status"}),
            Step("limited", "POST /migrations/$id/action", 202, {}, {"set_rate": {"bytes_per_second": 1 << 20}}),
            Step("so it is", "GET /migrations/$id", 200, {"migration.bytes_per_second": 1 << 20}),
            Step("too slow", "POST /migrations/$id/action", 400, {"fault": "minimum"}, slow),
            Step("nothing failed", "POST /migrations/$id/action", 409, {"fault": "it is not over"}, {"retry": {}}),
            Step("no such order", "POST /migrations/$id/action", 400, {"fault": "stop"}, {"stop": {}}),
            Step("two at once", "POST /migrations/$id/action", 400, {"fault": "2"}, {"pause": {}, "cancel": {}}),
            Step("cancelled", "POST /migrations/$id/action", 202, {}, {"cancel": {}}),
            Step("of none", f"POST /migrations/{UUID}/action", 404, {"fault": UUID}, {"cancel": {}}),
            Step("it cannot be deleted", "DELETE /migrations/$id", 405, {"@allow": "GET"}),
        ],
        volume=plant.volume(),
    )  # fmt: skip


def test_attachments(api: Api, plant: Plant) -> None:
    """Reserve, connect, complete, and give back; through a service that really exports the file."""
    another = _reserve(instance_uuid=UUID.replace("5", "6"))
    nothing: dict[str, object] = {"attachment": {}}
    run(
        api,
        [
            Step("not yet there", "POST /attachments", 404, {}, _reserve(), "joe", "3.26"),
            Step("of nothing", "POST /attachments", 404, {"fault": UUID}, _reserve(UUID), "joe", NEWEST),
            Step("of others", "POST /attachments", 404, {}, _reserve(), "eve", NEWEST, project="other"),
            Step("in no such way", "POST /attachments", 400, {"fault": "mode"}, _reserve(mode="wo"), "joe", NEWEST),
            Step(
                "reserved",
                "POST /attachments",
                200,
                {"attachment.status": "reserved", "attachment.volume_id": "$volume", "attachment.connection_info": {}},
                _reserve(),
                "joe",
                NEWEST,
                {"id": "attachment.id"},
            ),
            Step("taken", "POST /attachments", 400, {"fault": "reserved"}, another, "joe", NEWEST),
            Step("so it is shown", "GET /volumes/$volume", 200, {"volume.status": "reserved"}, token="joe"),
            Step("completed too early", "POST /attachments/$id/action", 404, {}, {"os-complete": {}}, "joe", "3.43"),
            Step("no connector", "PUT /attachments/$id", 400, {"fault": "connector"}, nothing, "joe", NEWEST),
            Step(
                "connected",
                "PUT /attachments/$id",
                200,
                {"attachment.status": "attaching"},
                {"attachment": {"connector": CONNECTOR}},
                "admin",
                NEWEST,
                {"path": "attachment.connection_info.device_path"},
            ),
            Step("completed", "POST /attachments/$id/action", 204, {}, {"os-complete": None}, "joe", NEWEST),
            Step("in use", "GET /volumes/$volume", 200, {"volume.status": "in-use"}, token="joe"),
            Step("listed", "GET /attachments/detail", 200, {"attachments.0.id": "$id"}, None, "joe", NEWEST),
            Step("not to others", "GET /attachments/$id", 404, {}, None, "eve", NEWEST, project="other"),
            Step("not deleted under it", "DELETE /volumes/$volume", 400, {"fault": "attached"}, token="joe"),
            Step("detached", "DELETE /attachments/$id", 200, {"attachments": []}, None, "joe", NEWEST),
            Step("once", "DELETE /attachments/$id", 404, {}, None, "joe", NEWEST),
            Step("free again", "GET /volumes/$volume", 200, {"volume.status": "available"}, token="joe"),
        ],
        volume=plant.volume(user_id="joe"),
    )  # fmt: skip


def _reserve(volume: str = "$volume", **more: str) -> dict[str, object]:
    return {"attachment": {"volume_uuid": volume, "instance_uuid": UUID, **more}}


def test_managing(api: Api, plant: Plant, tmp_path: Path) -> None:
    """A file in a pool becomes a volume, and a file again."""
    file = tmp_path / "file1" / "disk.img"
    file.write_bytes(b"\0" * 4096)

    def step(
        title: str, request: str, status: int, expect: dict[str, object], body: object = None, **more: str
    ) -> Step:
        return Step(title, request, status, expect, body, version=NEWEST, **more)  # type: ignore[arg-type]

    def manage(host: str, name: str = "disk.img") -> dict[str, object]:
        return {"volume": {"host": host, "ref": {"source-name": name}, "name": "m"}}

    listing = f"/manageable_volumes?host={SOURCE.replace('#', '%23')}"
    kept = run(
        api,
        [
            step("for operators", f"GET {listing}", 403, {}, token="joe"),
            step("of no place", "GET /manageable_volumes", 400, {"fault": "host"}),
            step("of no service", "GET /manageable_volumes?host=c@file3", 404, {"fault": "c@file3"}),
            step(
                "listed",
                f"GET {listing}",
                200,
                {"manageable-volumes.#": 1, "manageable-volumes.0.reference": {"source-name": "disk.img"}},
            ),
            step("not for tenants", "POST /manageable_volumes", 403, {}, manage(SOURCE), token="joe"),
            step("no pool", "POST /manageable_volumes", 400, {"fault": "pool"}, manage("a@file1")),
            step("no file", "POST /manageable_volumes", 400, {"fault": "other.img"}, manage(SOURCE, "other.img")),
            step("nothing of it", "POST /manageable_volumes", 400, {"fault": "ref"}, {"volume": {"host": SOURCE}}),
            step(
                "managed",
                "POST /manageable_volumes",
                202,
                {"volume.status": "managing", "volume.name": "m"},
                manage(SOURCE),
                keep={"id": "volume.id"},  # type: ignore[arg-type]
            ),
        ],
    )
    until(lambda: api.get_volume(kept["id"]).status == "available", "the file is a volume")
    assert (tmp_path / "file1" / f"volume-{kept['id']}").stat().st_size == GIB
    there = {"volume.size": 1, "volume.os-vol-host-attr:host": SOURCE}
    run(
        api,
        [
            step("a volume of 1 GiB", "GET /volumes/$id", 200, there),
            step("given up by operators", "POST /volumes/$id/action", 403, {}, {"os-unmanage": {}}, token="joe"),
            step("given up", "POST /volumes/$id/action", 202, {}, {"os-unmanage": {}}),
        ],
        **kept,
    )  # fmt: skip
    until(lambda: api.get_volume(kept["id"]).deleted_at is not None, "the volume is forgotten")
    assert (tmp_path / "file1" / f"volume-{kept['id']}").exists()
    run(api, [step("once", "POST /volumes/$id/action", 404, {}, {"os-unmanage": {}})], **kept)


def test_workers(api: Api) -> None:
    """Who works for a dead service, by each way to name it; nothing of these changes anything."""
    api.beat("dead@nfs", cluster="east")
    api.silence("dead@nfs", 3600)

    def step(
        title: str, status: int, body: object, expect: dict[str, object] | None = None, token: str = "admin"
    ) -> Step:
        return Step(title, "POST /workers/cleanup", status, expect or {}, body, token, "3.24")

    before = api.contents()
    run(
        api,
        [
            step("for operators", 403, {}, token="joe"),
            Step("not yet there", "POST /workers/cleanup", 404, {}, {}, version="3.23"),
            step("nobody can", 202, {"host": "dead@nfs"}, {"cleaning": [], "unavailable.0.host": "dead@nfs"}),
            step("by its cluster", 202, {"cluster_name": "east"}, {"unavailable.#": 1}),
            step("of nobody", 202, {"host": "c@file3"}, {"cleaning": [], "unavailable": []}),
            step("of a resource that is none", 400, {"resource_id": "x"}, {"fault": "resource_id"}),
            step("of a kind that is none", 400, {"resource_type": "Server"}, {"fault": "resource_type"}),
            step("of what is unknown", 400, {"no_such": 1}, {"fault": "no_such"}),
            step("of a number that is none", 400, {"service_id": "1; DROP"}, {"fault": "service_id"}),
        ],
    )
    assert api.contents() == before
