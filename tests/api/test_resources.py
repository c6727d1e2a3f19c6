"""Snapshots, volume types, services, pools, and the migrations' own resource."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from migrator.db import api as db_api
from migrator.db.models import MigrationStep, utcnow
from tests.api.arcs import Step, run
from tests.api.conftest import DESTINATION, SOURCE, Api, Peers

UUID = "5c1f2cf6-0000-4000-8000-000000000000"


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_the_life_of_a_snapshot(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume(size=2)
    new = {"snapshot": {"volume_id": volume_id, "name": "s", "metadata": {"k": "v"}, "force": "false"}}
    fields = {"id", "created_at", "updated_at", "name", "description", "volume_id", "status", "size", "metadata"}
    kept = run(
        api,
        [
            Step(
                "it is made",
                "POST /snapshots",
                202,
                {"snapshot.status": "creating", "snapshot.size": 2, "snapshot.metadata": {"k": "v"}},
                new,
                "joe",
                keep={"id": "snapshot.id"},
            ),
            Step("a stranger does not see it", "GET /snapshots/$id", 404, token="eve", project="other"),
            Step("it is listed", "GET /snapshots?volume_id=$volume&name=s", 200, {"snapshots.#": 1}, token="joe"),
            Step("by metadata", "GET /snapshots?metadata=%7B'k':'v'%7D", 200, {"snapshots.#": 1}, token="joe"),
            Step("by other metadata", "GET /snapshots?metadata=%7B'k':'x'%7D", 200, {"snapshots.#": 0}, token="joe"),
            Step(
                "in detail, too",
                "GET /snapshots/detail",
                200,
                {"snapshots.0.id": "$id", "snapshots.0.user_id": "joe"},
                token="joe",
                version="3.41",
            ),
            Step("not yet", "DELETE /snapshots/$id", 400, {"fault": "it is creating"}, token="joe"),
            Step(
                "it is renamed", "PUT /snapshots/$id", 200, {"snapshot.name": "t"}, {"snapshot": {"name": "t"}}, "joe"
            ),
            Step("to nothing else", "PUT /snapshots/$id", 400, {}, {"snapshot": {"size": 3}}, "joe"),
        ],
        volume=volume_id,
    )
    peers.wait_for("a@file1", "create_snapshot", snapshot_id=kept["id"])
    assert set(api("GET", "/snapshots").json["snapshots"][0]) == fields
    extended = {f"os-extended-snapshot-attributes:{name}" for name in ("project_id", "progress")}
    for version, more in (
        ("3.13", set()),
        ("3.14", {"group_snapshot_id"}),
        ("3.65", {"group_snapshot_id", "user_id", "consumes_quota"}),
    ):
        shown = set(api("GET", f"/snapshots/{kept['id']}", version=version).json["snapshot"])
        assert shown == fields | extended | more
    ready = api.make_snapshot(volume_id)
    assert api("DELETE", f"/snapshots/{ready}", token="joe").status == 202
    peers.wait_for("a@file1", "delete_snapshot", snapshot_id=ready)
    assert api("GET", f"/snapshots/{ready}").json["snapshot"]["status"] == "deleting"


@pytest.mark.parametrize(
    ("values", "wanted", "version", "status", "reason"),
    [
        ({"status": "in-use"}, {}, "3.0", 400, "status must be available; it is in-use"),
        ({"status": "in-use"}, {"force": True}, "3.0", 202, ""),
        ({"status": "in-use"}, {}, "3.66", 202, ""),
        ({}, {"force": False}, "3.66", 400, "it can only be true"),
        ({"status": "creating"}, {"force": True}, "3.0", 400, "it is creating"),
        ({}, {"force": "perhaps"}, "3.0", 400, "not a 'boolean'"),
        ({}, {"colour": "red"}, "3.0", 400, "'colour' was unexpected"),
        ({}, {"volume_id": "x"}, "3.0", 400, "not a 'UUID'"),
        ({}, {"volume_id": UUID}, "3.0", 404, UUID),
    ],
)
def test_snapshots_of_volumes_in_use_and_bad_requests(
    api: Api, values: dict[str, Any], wanted: dict[str, Any], version: str, status: int, reason: str
) -> None:
    volume_id = api.make_volume(**values)
    answer = api("POST", "/snapshots", {"snapshot": {"volume_id": volume_id, **wanted}}, version=version)
    assert answer.status == status, answer.text
    assert status == 202 or reason in answer.fault


def test_a_snapshot_of_nothing_is_buried_at_once(api: Api) -> None:
    snapshot_id = api.make_snapshot(api.make_volume(host=None, status="error"))
    assert api("DELETE", f"/snapshots/{snapshot_id}").status == 202
    assert api("GET", f"/snapshots/{snapshot_id}").status == 404


# --- types -----------------------------------------------------------------------------------------------------------


def _by_specs() -> list[Step]:
    """Types by their extra specs, where one of them is public and the other describes the deployment."""
    known, hidden = (quote(str(specs)) for specs in ({"multiattach": "<is> False"}, {"tier": "1"}))
    other = quote(str({"tier": "2"}))
    return [
        Step("by a spec", f"GET /types?extra_specs={hidden}", 200, {"volume_types.#": 1}, version="3.52"),
        Step("by a value none has", f"GET /types?extra_specs={other}", 200, {"volume_types": []}, version="3.52"),
        Step("not before", f"GET /types?extra_specs={hidden}", 400, {"fault": "extra_specs"}, version="3.51"),
        Step("by what is shown", f"GET /types?extra_specs={known}", 200, {"volume_types.#": 1}, None, "joe", "3.52"),
        Step("and not else", f"GET /types?extra_specs={hidden}", 200, {"volume_types": []}, None, "joe", "3.52"),
        Step("no pairs", "GET /types?extra_specs=x", 400, {"fault": "extra_specs"}, version="3.52"),
    ]  # fmt: skip


def test_the_life_of_a_volume_type(api: Api) -> None:
    new = {
        "volume_type": {
            "name": "gold",
            "description": "fast",
            "extra_specs": {"tier": "1", "multiattach": "<is> False"},
        }
    }
    private = {"volume_type": {"name": "secret", "os-volume-type-access:is_public": "no"}}
    kept = run(
        api,
        [
            Step(
                "it is made",
                "POST /types",
                200,
                {
                    "volume_type.name": "gold",
                    "volume_type.is_public": True,
                    "volume_type.os-volume-type-access:is_public": True,
                    "volume_type.extra_specs": {"tier": "1", "multiattach": "<is> False"},
                    "volume_type.qos_specs_id": None,
                },
                new,
                keep={"id": "volume_type.id"},
            ),
            Step("its name is taken", "POST /types", 409, {"fault": "gold already exists"}, new),
            Step(
                "a private one",
                "POST /types",
                200,
                {"volume_type.is_public": False},
                private,
                keep={"secret": "volume_type.id"},
            ),
            Step(
                "a tenant sees what is public",
                "GET /types",
                200,
                {"volume_types.#": 1, "volume_types.0.extra_specs": {"multiattach": "<is> False"}},
                token="joe",
            ),
            Step("and not what is private", "GET /types/$secret", 404, token="joe"),
            Step("nor uses it", "POST /volumes", 404, {}, {"volume": {"size": 1, "volume_type": "secret"}}, "joe"),
            Step("an administrator too, unless asked for", "GET /types", 200, {"volume_types.#": 1}),
            Step("all of them", "GET /types?is_public=None", 200, {"volume_types.#": 2}),
            Step(
                "private ones",
                "GET /types?is_public=false",
                200,
                {"volume_types.#": 1, "volume_types.0.name": "secret"},
            ),
            Step("or what is meant", "GET /types?is_public=perhaps", 400),
            *_by_specs(),
            Step(
                "page by page", "GET /types?is_public=None&limit=1&sort=name", 200, {"volume_type_links.0.rel": "next"}
            ),
            Step(
                "it is changed",
                "PUT /types/$id",
                200,
                {"volume_type.name": "gold2"},
                {"volume_type": {"name": "gold2"}},
            ),
            Step("not to a name taken", "PUT /types/$id", 409, {}, {"volume_type": {"name": "secret"}}),
            Step("not to nothing", "PUT /types/$id", 400, {}, {"volume_type": {}}),
            Step(
                "specs are added",
                "POST /types/$id/extra_specs",
                200,
                {"extra_specs": {"a": "b"}},
                {"extra_specs": {"a": "b"}},
            ),
            Step("one is changed", "PUT /types/$id/extra_specs/a", 200, {"a": "c"}, {"a": "c"}),
            Step("under its own key", "PUT /types/$id/extra_specs/a", 400, {"fault": "'a'"}, {"b": "c"}),
            Step("one at a time", "PUT /types/$id/extra_specs/a", 400, {}, {"a": "c", "b": "c"}),
            Step("keys have no spaces", "POST /types/$id/extra_specs", 400, {}, {"extra_specs": {"a b": "c"}}),
            Step("one is shown", "GET /types/$id/extra_specs/a", 200, {"a": "c"}),
            Step("to administrators", "GET /types/$id/extra_specs/a", 404, token="joe"),
            Step(
                "all are shown",
                "GET /types/$id/extra_specs",
                200,
                {"extra_specs": {"tier": "1", "multiattach": "<is> False", "a": "c"}},
            ),
            Step("one goes", "DELETE /types/$id/extra_specs/a", 202),
            Step("once", "DELETE /types/$id/extra_specs/a", 404),
            Step("there is no default", "GET /types/default", 404, {"fault": "default"}),
            Step("it goes", "DELETE /types/$secret", 202),
            Step("and frees its name", "POST /types", 200, {}, private),
            Step("and is gone", "GET /types/$secret", 404),
        ],
    )
    api.make_volume(volume_type_id=kept["id"])
    run(
        api,
        [
            Step("a type in use stays", "DELETE /types/$id", 400, {"fault": "volumes are of this type"}),
            Step("and as it is", "POST /types/$id/extra_specs", 400, {}, {"extra_specs": {"a": "b"}}),
        ],
        **kept,
    )


def test_names_of_255_characters_are_names_like_any_other(api: Api, peers: Peers) -> None:
    """field.md bug 47 (LP1948962): a volume of a type with such a name could not be migrated."""
    name = "t" * 255
    type_id = api("POST", "/types", {"volume_type": {"name": name}}).json["volume_type"]["id"]
    volume = api("POST", "/volumes", {"volume": {"size": 1, "volume_type": name}}).json["volume"]
    assert volume["volume_type"] == name
    volume_id = api.make_volume(volume_type_id=type_id)
    assert api("POST", f"/volumes/{volume_id}/action", {"os-migrate_volume": {"host": DESTINATION}}).status == 202
    assert api("POST", "/types", {"volume_type": {"name": "t" * 256}}).status == 400
    assert api("POST", "/types", {"volume_type": {"name": " "}}).status == 400


def test_the_default_type(make_api: Any) -> None:
    api = make_api(default_volume_type="usual")
    assert api("GET", "/types/default").status == 404
    api("POST", "/types", {"volume_type": {"name": "usual"}})
    assert api("GET", "/types/default").json["volume_type"]["name"] == "usual"


# --- services and pools ----------------------------------------------------------------------------------------------


def test_services_are_listed_and_switched(api: Api) -> None:
    api.silence("b@file2", 300)
    body = {"host": "a@file1", "binary": "migrator-volume"}
    base = {"binary", "host", "zone", "status", "state", "updated_at", "disabled_reason"}
    volume_only = {"replication_status", "active_backend_id", "frozen"}
    services = api("GET", "/os-services").json["services"]
    assert [set(service) for service in services] == [base | volume_only, base | volume_only, base]
    assert set(api("GET", "/os-services", version="3.49").json["services"][0]) == base | volume_only | {
        "cluster",
        "backend_state",
    }
    assert {service["host"]: service["state"] for service in services} == {
        "a@file1": "up",
        "b@file2": "down",
        "s": "up",
    }
    run(
        api,
        [
            Step(
                "by binary",
                "GET /os-services?binary=migrator-scheduler",
                200,
                {"services.#": 1, "services.0.host": "s"},
            ),
            Step("as other tools call it", "GET /os-services?binary=other-volume", 200, {"services.#": 2}),
            Step("by host", "GET /os-services?host=a", 200, {"services.#": 1, "services.0.host": "a@file1"}),
            Step("by its full name", "GET /os-services?host=b@file2", 200, {"services.#": 1}),
            Step("none", "GET /os-services?host=z", 200, {"services.#": 0}),
            Step(
                "disabled",
                "PUT /os-services/disable",
                200,
                {"status": "disabled", "disabled": True, "host": "a@file1", "binary": "migrator-volume"},
                body,
            ),
            Step(
                "so it is",
                "GET /os-services?host=a",
                200,
                {"services.0.status": "disabled", "services.0.disabled_reason": None},
            ),
            Step(
                "with a reason",
                "PUT /os-services/disable-log-reason",
                200,
                {"disabled_reason": "new disks"},
                {**body, "disabled_reason": "new disks"},
            ),
            Step("that is shown", "GET /os-services?host=a", 200, {"services.0.disabled_reason": "new disks"}),
            Step(
                "enabled",
                "PUT /os-services/enable",
                200,
                {"status": "enabled", "disabled": False},
                {**body, "binary": "other-volume"},
            ),
            Step(
                "all is forgotten",
                "GET /os-services?host=a",
                200,
                {"services.0.status": "enabled", "services.0.disabled_reason": None},
            ),
            Step(
                "no such service",
                "PUT /os-services/enable",
                404,
                {"fault": "migrator-volume on z"},
                {**body, "host": "z"},
            ),
            Step("no host", "PUT /os-services/enable", 400, {"fault": "'host'"}, {"binary": "migrator-volume"}),
            Step("no binary", "PUT /os-services/enable", 400, {}, {"host": "a@file1"}),
            Step("an unknown key", "PUT /os-services/enable", 400, {"fault": "'x'"}, {**body, "x": 1}),
            Step("no reason", "PUT /os-services/disable-log-reason", 400, {"fault": "disabled_reason"}, body),
            Step("nothing else", "PUT /os-services/explode", 404, {}, body),
        ],
    )


def test_pools_as_the_scheduler_knows_them(api: Api, peers: Peers) -> None:
    peers.pools = [
        {"name": name, "capabilities": {"total_capacity_gb": 10.0, "free_capacity_gb": 5.0}}
        for name in (SOURCE, DESTINATION)
    ]
    assert api("GET", "/scheduler-stats/get_pools").json == {"pools": [{"name": SOURCE}, {"name": DESTINATION}]}
    assert api("GET", "/scheduler-stats/get_pools?detail=True").json == {"pools": peers.pools}
    only = api("GET", "/scheduler-stats/get_pools?name=b%40file2%23pool2", version="3.28").json
    assert only == {"pools": [{"name": DESTINATION}]}
    assert api("GET", "/scheduler-stats/get_pools?detail=perhaps").status == 400


# --- migrations ------------------------------------------------------------------------------------------------------


def test_a_migration_says_all_there_is_to_know(api: Api) -> None:
    """field.md pains 2 and 16: neither how far it was could be learnt, nor afterwards what had been done by whom."""
    volume_id = api.make_volume()
    migration_id = api.make_migration(
        volume_id,
        step="copy_data",
        destination_host=DESTINATION,
        attempts=2,
        owner="somebody",
        bytes_done=512 * 1024**2,
        rate=256.0 * 1024**2,
        bytes_moved=300 * 1024**2,
        moved_seconds=3.0,
        bytes_per_second=1 << 30,
        keep_source_seconds=60,
        heartbeat_at=db_api.now_seconds() - 3,
        stalled_since=db_api.now_seconds() - 2,
        error_step="copy_data",
        error_code="NoSpace",
        error_message="full",
        verdicts=[{"pool": DESTINATION, "filter": "capacity", "passed": True, "reason": "fits"}],
    )
    began = utcnow()
    step = {
        "migration_id": migration_id,
        "step": "create_destination",
        "direction": "forward",
        "attempt": 1,
        "started_at": began,
        "finished_at": began,
        "result": "done",
    }
    api.db.run(lambda session: session.execute(sa.insert(MigrationStep).values(**step)))
    shown = api("GET", f"/migrations/{migration_id}").json["migration"]
    assert 3 <= shown.pop("heartbeat_age_seconds") < 60
    assert 2 <= shown.pop("stalled_seconds") < 60
    row = api.migration(migration_id)
    text = began.isoformat(timespec="microseconds")
    assert shown == {
        "id": migration_id,
        "volume_id": volume_id,
        "destination_volume_id": row.destination_volume_id,
        "status": "running",
        "plan": "host_copy",
        "step": "copy_data",
        "direction": "forward",
        "attempts": 2,
        "source_host": SOURCE,
        "destination_host": DESTINATION,
        "force_host_copy": False,
        "lock_volume": False,
        "new_type_id": None,
        "verify": "readback",
        "bytes_per_second": 1 << 30,
        "bytes_total": 1024**3,
        "bytes_done": 512 * 1024**2,
        "bytes_verified": None,
        "bytes_allocated": None,
        "rate_bytes_per_second": 256.0 * 1024**2,
        "rate_overall_bytes_per_second": 100.0 * 1024**2,
        "eta_seconds": 2.0,
        "checksum": None,
        "keep_source_seconds": 60,
        "source_kept_until": None,
        "undone_at": None,
        "error": {"step": "copy_data", "code": "NoSpace", "message": "full"},
        "verdicts": [{"pool": DESTINATION, "filter": "capacity", "passed": True, "reason": "fits"}],
        "steps": [
            {
                "step": "create_destination",
                "direction": "forward",
                "attempt": 1,
                "started_at": text,
                "finished_at": text,
                "result": "done",
                "bytes": None,
                "message": None,
            }
        ],
        "requested_by": {"user_id": "op", "project_id": "ops", "request_id": "req-1"},
        "created_at": row.created_at.isoformat(timespec="microseconds"),
        "updated_at": None,
        "finished_at": None,
    }
    assert api("GET", f"/migrations/{UUID}").json["itemNotFound"]["message"] == f"Migration {UUID} could not be found."
