"""Services frozen and cleaned up for, clusters, hosts, pools by type and what backends can do."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from migrator.db import services
from migrator.db.models import Service
from tests.api.arcs import Step, run
from tests.api.conftest import DESTINATION, SOURCE, Api, Peers

UUID = "5c1f2cf6-0000-4000-8000-000000000000"

# --- services --------------------------------------------------------------------------------------------------------


def test_a_frozen_backend_takes_nothing_new_and_says_so(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    clone = {"volume": {"size": 1, "source_volid": volume_id}}
    body = {"host": "a@file1"}
    run(
        api,
        [
            Step("frozen", "PUT /os-services/freeze", 200, {}, body),
            Step("shown", "GET /os-services?host=a@file1", 200, {"services.0.frozen": True}),
            Step("no clone", "POST /volumes", 400, {"fault": "frozen and takes no new volumes"}, clone, "joe"),
            Step("it can be emptied", f"DELETE /volumes/{volume_id}", 202, token="joe"),
            Step("thawed", "PUT /os-services/thaw", 200, {}, body),
            Step("shown", "GET /os-services?host=a@file1", 200, {"services.0.frozen": False}),
            Step("no such backend", "PUT /os-services/freeze", 404, {"fault": "z@z"}, {"host": "z@z"}),
            Step("a scheduler has none", "PUT /os-services/freeze", 404, {}, {"host": "s"}),
            Step("no host", "PUT /os-services/thaw", 400, {"fault": "'host'"}, {}),
        ],
    )


def test_a_volume_may_leave_a_frozen_backend(api: Api, peers: Peers) -> None:
    volume_id = api.make_volume()
    assert api("PUT", "/os-services/freeze", {"host": "a@file1"}).status == 200
    answer = api("POST", f"/volumes/{volume_id}/action", {"os-migrate_volume": {"host": DESTINATION}})
    assert answer.status == 202, answer.text


# --- clusters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(api: Api) -> str:
    """A cluster of two services, one of which is down; a third one is alone in another."""
    api.beat("c1@nfs", cluster="east")
    api.beat("c2@nfs", cluster="east")
    api.beat("d@nfs", cluster="west")
    api.silence("c1@nfs", 300)
    return "east"


def test_clusters(api: Api, cluster: str) -> None:
    short = {"name": "east", "binary": "migrator-volume", "state": "up", "status": "enabled"}
    body = {"name": "east", "disabled_reason": "new switches"}

    def step(title: str, request: str, status: int, expect: Any = None, body: Any = None) -> Step:
        return Step(title, request, status, expect or {}, body, version="3.7")

    run(
        api,
        [
            step("listed", "GET /clusters", 200, {"clusters.#": 2, "clusters.0": short}),
            step(
                "in detail",
                "GET /clusters/detail?name=east",
                200,
                {"clusters.#": 1, "clusters.0.num_hosts": 2, "clusters.0.num_down_hosts": 1},
            ),
            step("which have a host down", "GET /clusters?num_down_hosts=1", 200, {"clusters.#": 1}),
            step("which are up", "GET /clusters?is_up=true", 200, {"clusters.#": 2}),
            step("by binary", "GET /clusters?binary=other-volume", 200, {"clusters.#": 2}),
            step("by what there is not", "GET /clusters?frozen=true", 400, {"fault": "frozen"}),
            step("by nonsense", "GET /clusters?num_hosts=many", 400, {"fault": "num_hosts"}),
            step("one", "GET /clusters/east", 200, {"cluster.name": "east", "cluster.disabled_reason": None}),
            step("none", "GET /clusters/north", 404, {"fault": "Cluster north"}),
            step("of another binary", "GET /clusters/east?binary=migrator-scheduler", 404),
            step(
                "disabled",
                "PUT /clusters/disable",
                200,
                {"cluster": {**short, "status": "disabled", "disabled_reason": "new switches"}},
                body,
            ),
            step("so they are", "GET /clusters?disabled=true", 200, {"clusters.#": 1, "clusters.0.name": "east"}),
            step("each service of it", "GET /os-services?host=c2@nfs", 200, {"services.0.status": "disabled"}),
            step("no other", "GET /os-services?host=d@nfs", 200, {"services.0.status": "enabled"}),
            step("enabled", "PUT /clusters/enable", 200, {"cluster.status": "enabled"}, {"name": "east"}),
            step("none of that name", "PUT /clusters/enable", 404, {}, {"name": "north"}),
            step("no name", "PUT /clusters/enable", 400, {"fault": "'name'"}, {}),
        ],
    )
    replication = {"replication_status", "frozen", "active_backend_id"}
    older = set(api("GET", "/clusters/east", version="3.25").json["cluster"])
    assert set(api("GET", "/clusters/east", version="3.26").json["cluster"]) == older | replication
    assert api("GET", "/clusters?frozen=false", version="3.26").status == 200


# --- cleanup ---------------------------------------------------------------------------------------------------------


def _cleanup(api: Api, body: dict[str, Any]) -> tuple[list[str], list[str]]:
    answer = api("POST", "/workers/cleanup", body, version="3.24")
    assert answer.status == 202, answer.text
    found = answer.json
    assert set(found) == {"cleaning", "unavailable"}
    return [each["host"] for each in found["cleaning"]], [each["host"] for each in found["unavailable"]]


def test_what_a_dead_service_left_is_given_to_one_that_reaches_its_storage(api: Api, peers: Peers) -> None:
    for host, cluster in {"c1@file1": "east", "c2@nfs": "east", "d@nfs": None}.items():  # c2: no such storage in east
        api.beat(host, cluster=cluster)
        api.silence(host, 300)
    api.beat("a@file1", cluster="east")
    reaches = sa.update(Service).where(Service.host == "b@file2").values(reaches=["d@nfs"])
    api.db.run(lambda session: session.execute(reaches))
    assert _cleanup(api, {}) == (["c1@file1", "d@nfs"], ["c2@nfs"])
    peers.wait_for("a@file1", "clean_up", service="c1@file1")
    peers.wait_for("b@file2", "clean_up", service="d@nfs")
    assert _cleanup(api, {"host": "c1"}) == (["c1@file1"], [])
    assert _cleanup(api, {"cluster_name": "east"}) == (["c1@file1"], ["c2@nfs"])
    assert _cleanup(api, {"binary": "migrator-scheduler"}) == ([], [])
    assert _cleanup(api, {"is_up": "true", "host": "b@file2"}) == (["b@file2"], [])
    peers.wait_for("b@file2", "clean_up", service="b@file2")
    service_id = api.db.read(lambda s: services.states(s, 60, host="c2@nfs"))[0].service.id
    assert _cleanup(api, {"service_id": service_id}) == ([], ["c2@nfs"])
    volume_id = api.make_volume(host="d@nfs#pool", status="deleting")
    snapshot_id = api.make_snapshot(volume_id)
    for resource in ({"resource_id": volume_id, "resource_type": "Volume"}, {"resource_id": snapshot_id}):
        assert _cleanup(api, resource) == (["d@nfs"], [])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"resource_id": UUID}, 404),
        ({"resource_type": "Moon"}, 400),
        ({"resource_id": "x"}, 400),
        ({"is_up": "perhaps"}, 400),
        ({"service_id": "one"}, 400),
        ({"colour": "red"}, 400),
    ],
    ids=repr,
)
def test_cleanups_that_make_no_sense(api: Api, body: dict[str, Any], status: int) -> None:
    assert api("POST", "/workers/cleanup", body, version="3.24").status == status


# --- hosts and backends ----------------------------------------------------------------------------------------------


def test_hosts(api: Api) -> None:
    one, two = api.make_volume(size=2), api.make_volume(size=3, project_id="other")
    api.make_snapshot(one, volume_size=2)
    api.make_snapshot(two, volume_size=3, project_id="other")
    api.make_volume(host=DESTINATION, size=7)
    api.disable("b@file2")
    hosts = {host["host_name"]: host for host in api("GET", "/os-hosts").json["hosts"]}
    assert set(hosts) == {"a@file1", "b@file2", "s"}
    assert hosts["b@file2"]["service-state"] == "disabled"
    assert set(hosts["s"]) == {"host_name", "service", "zone", "service-status", "service-state", "last-update"}
    assert len(api("GET", "/os-hosts?service=migrator-scheduler").json["hosts"]) == 1
    assert api("GET", "/os-hosts?zone=mars").json["hosts"] == []

    def row(project: str, volumes: int, gib: int, snapshots: int, snapshot_gib: int) -> Any:
        return {
            "resource": {
                "host": "a@file1",
                "project": project,
                "volume_count": str(volumes),
                "total_volume_gb": str(gib),
                "snapshot_count": str(snapshots),
                "total_snapshot_gb": str(snapshot_gib),
            }
        }

    shown = api("GET", "/os-hosts/a%40file1").json["host"]
    assert shown == [row("(total)", 2, 5, 2, 5), row("demo", 1, 2, 1, 2), row("other", 1, 3, 1, 3)]
    total = api("GET", "/os-hosts/b%40file2%23pool2").json["host"][0]["resource"]
    assert (total["host"], total["volume_count"]) == (DESTINATION, "1")
    assert api("GET", "/os-hosts/z").status == 404


def test_what_a_backend_can_do(api: Api, peers: Peers) -> None:
    peers.pools = [
        {
            "name": f"a@file1#{pool}",
            "capabilities": {
                "vendor_name": "v",
                "volume_backend_name": "fast",
                "pool_name": pool,
                "driver_version": "1",
                "storage_protocol": "file",
                "thin_provisioning_support": True,
                "multiattach": pool == "pool1",
            },
        }
        for pool in ("pool1", "pool2")
    ]
    whole = api("GET", "/capabilities/a@file1").json
    assert (whole["volume_backend_name"], whole["pool_name"], whole["visibility"]) == ("fast", None, "public")
    assert whole["replication_targets"] == []
    properties = whole["properties"]
    assert properties["thin_provisioning"]["default"] is True
    assert properties["multiattach"]["default"] is False
    one = api("GET", "/capabilities/a@file1%23pool1").json
    assert (one["pool_name"], one["properties"]["multiattach"]["default"]) == ("pool1", True)
    assert api("GET", "/capabilities/z@z").status == 404
    assert api("GET", "/capabilities/a@b@c").status == 400


def test_pools_that_a_type_fits(api: Api, peers: Peers) -> None:
    type_id = api("POST", "/types", {"volume_type": {"name": "gold"}}).json["volume_type"]["id"]
    peers.pools = [{"name": SOURCE, "types": [type_id]}, {"name": DESTINATION}]

    def names(query: str, version: str) -> list[str]:
        found = api("GET", f"/scheduler-stats/get_pools?{query}", version=version).json
        return [pool["name"] for pool in found["pools"]]

    assert names("volume_type=gold", "3.35") == [SOURCE]
    assert names(f"volume_type={type_id}", "3.35") == [SOURCE]
    assert names("volume_type=gold", "3.34") == [SOURCE, DESTINATION]
    assert api("GET", "/scheduler-stats/get_pools?volume_type=tin", version="3.35").status == 404


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_what_administrators_do_to_snapshots(api: Api, peers: Peers) -> None:
    stuck = api.make_snapshot(api.make_volume(), status="deleting")
    at = f"/snapshots/{stuck}/action"
    run(
        api,
        [
            Step("no owner may", f"POST {at}", 403, {}, {"os-reset_status": {"status": "error"}}, "joe"),
            Step("reset", f"POST {at}", 202, {}, {"os-reset_status": {"status": "Error"}}),
            Step("shown", f"GET /snapshots/{stuck}", 200, {"snapshot.status": "error"}),
            Step("no order", f"POST {at}", 400, {"fault": "'creating'"}, {"os-reset_status": {"status": "creating"}}),
            Step("no word", f"POST {at}", 400, {}, {"os-reset_status": {}}),
            Step("no snapshot", f"POST /snapshots/{UUID}/action", 404, {}, {"os-force_delete": {}}),
            Step("by force, too", f"POST {at}", 202, {}, {"os-force_delete": {}}),
        ],
    )
    peers.wait_for("a@file1", "delete_snapshot", snapshot_id=stuck)
    making = api.make_snapshot(api.make_volume(), status="creating")
    refused = api("POST", f"/snapshots/{making}/action", {"os-force_delete": {}})
    assert (refused.status, "it is creating" in refused.fault) == (400, True)
