"""The resources around volumes as unmodified clients use them, with a real backend's service behind the API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref import simple_server

import openstack
import pytest
from cinderclient import client as cinder
from cinderclient import exceptions as cinder_exceptions
from cinderclient.v3.contrib import list_extensions

from migrator import rpc
from migrator.conf import GIB
from migrator.drivers.file import FileDriver
from tests.api.conftest import Api, Peers, _Scheduler
from tests.api.storage import BACKEND, PLACE, Storage, begin, lay
from tests.api.test_clients import _Quiet, _Server, _session
from tests.contract.worlds import options
from tests.support.waiting import until


@pytest.fixture
def api(make_api: Callable[..., Api], tmp_path: Path) -> Api:
    made = make_api(transport_url=f"local://{tmp_path.name}/")
    made.beat(BACKEND, cluster="east")
    return made


@pytest.fixture
def storage(api: Api, tmp_path: Path) -> Iterator[Storage]:
    """A backend of files, and a scheduler that knows its pool."""
    paths = {"pool1": str(tmp_path / "pool1")}
    made = Storage(api, FileDriver(BACKEND, options(file_pools=paths, file_thin_provisioning=True)))
    pools = [{"name": PLACE, "capabilities": {"pool_name": "pool1", "volume_backend_name": "files"}}]
    scheduler = rpc.server(api.bus, rpc.SCHEDULER_TOPIC, "s", [_Scheduler(Peers(pools=pools))])
    scheduler.start()
    yield made
    scheduler.stop()
    made.stop()


@pytest.fixture
def url(api: Api, storage: Storage) -> Iterator[str]:
    """The address of the application on a socket."""
    server = simple_server.make_server("127.0.0.1", 0, api.app, _Server, _Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(url: str) -> Any:
    return cinder.Client("3.71", session=_session(url, "/v3/demo"), endpoint_override=f"{url}/v3/demo")


def test_cinderclient_takes_over_a_file_and_gives_it_up(client: Any, storage: Storage, tmp_path: Path) -> None:
    lay(tmp_path / "pool1" / "x.img", size=GIB)
    (found,) = client.volumes.list_manageable(PLACE, detailed=True)
    assert (found.reference, found.size, found.safe_to_manage) == ({"source-name": "x.img"}, 1, True)
    made = client.volumes.manage(PLACE, found.reference, name="taken", metadata={"k": "v"}, bootable=True)
    volume = storage.settled(made.id)
    assert (volume.status, volume.display_name, volume.bootable) == ("available", "taken", True)
    client.volumes.unmanage(made.id)
    assert storage.settled(made.id).deleted_at is not None
    assert begin(tmp_path / "pool1" / f"volume-{made.id}") == b"old data"
    with pytest.raises(cinder_exceptions.BadRequest, match="there is no 'y'"):
        client.volumes.manage(PLACE, {"source-name": "y"})


def test_cinderclient_takes_over_a_snapshot_and_gives_it_up(
    api: Api, client: Any, storage: Storage, tmp_path: Path
) -> None:
    lay(tmp_path / "pool1" / "x.img", size=GIB)
    volume_id = api.make_volume(host=PLACE)
    (found,) = client.volume_snapshots.list_manageable(PLACE, detailed=True)
    assert (found.reference, found.size, found.source_reference) == ({"source-name": "x.img"}, 1, None)
    made = client.volume_snapshots.manage(volume_id, found.reference, name="taken", metadata={"k": "v"})
    assert (made.volume_id, made.name, made.metadata) == (volume_id, "taken", {"k": "v"})
    until(lambda: client.volume_snapshots.get(made.id).status == "available", "it is managed")
    (entry,) = client.volume_snapshots.list_manageable(PLACE, detailed=True)
    assert (entry.cinder_id, entry.reason_not_safe) == (made.id, "it is managed already")
    client.volume_snapshots.unmanage(made.id)
    until(lambda: client.volume_snapshots.list() == [], "it is forgotten")
    assert begin(tmp_path / "pool1" / f"snapshot-{made.id}") == b"old data"


def test_cinderclient_on_metadata_types_and_snapshots(api: Api, client: Any) -> None:
    volume = client.volumes.get(api.make_volume())
    client.volumes.set_metadata(volume, {"a": "1", "b": "2"})
    client.volumes.delete_metadata(volume, ["a"])
    assert client.volumes.get(volume.id).metadata == {"b": "2"}
    client.volumes.update_all_metadata(volume, {"c": "3"})
    assert client.volumes.summary(False)["volume-summary"] == {
        "total_count": 1,
        "total_size": 1,
        "metadata": {"c": ["3"]},
    }
    snapshot = client.volume_snapshots.get(api.make_snapshot(volume.id))
    client.volume_snapshots.set_metadata(snapshot, {"a": "1"})
    assert client.volume_snapshots.get(snapshot.id).metadata == {"a": "1"}
    client.volume_snapshots.reset_state(snapshot, "error")
    client.volume_snapshots.delete(snapshot, force=True)
    kind = client.volume_types.create("secret", is_public=False)
    client.volume_type_access.add_project_access(kind.id, "demo")
    assert [access.project_id for access in client.volume_type_access.list(kind)] == ["demo"]
    client.volume_type_access.remove_project_access(kind.id, "demo")
    assert client.volume_type_access.list(kind) == []
    assert client.volume_encryption_types.list([kind]) == []


def test_cinderclient_on_services_clusters_and_hosts(api: Api, client: Any) -> None:
    client.services.freeze_host(BACKEND)
    assert [service.frozen for service in client.services.list(host=BACKEND)] == [True]
    client.services.thaw_host(BACKEND)
    (cluster,) = client.clusters.list(detailed=True)
    assert (cluster.name, cluster.num_hosts, cluster.state) == ("east", 1, "up")
    assert client.clusters.update("east", "cinder-volume", disabled=True, disabled_reason="why").status == "disabled"
    assert client.clusters.update("east", "cinder-volume", disabled=False).status == "enabled"
    assert client.clusters.show("east").num_down_hosts == 0
    cleaning, unavailable = client.workers.clean(is_up=True, host=BACKEND)
    assert ([service.host for service in cleaning], unavailable) == ([BACKEND], [])
    assert [zone.zoneName for zone in client.availability_zones.list()] == ["nova"]
    assert client.capabilities.get(PLACE).volume_backend_name == "files"
    assert {"os-services", "os-volume-manage"} <= {e.alias for e in list_extensions.ListExtManager(client).show_all()}
    assert {"volume", "snapshot"} <= {each.resource for each in client.resource_filters.list()}


def test_cinderclient_on_what_is_used(api: Api, client: Any) -> None:
    api.make_volume(size=3)
    used = {limit.name: limit.value for limit in client.limits.get().absolute}
    assert (used["totalVolumesUsed"], used["totalGigabytesUsed"], used["maxTotalVolumes"]) == (1, 3, -1)
    assert client.quotas.get("demo").volumes == -1
    assert client.quotas.get("demo", usage=True).gigabytes == {"limit": -1, "in_use": 3, "reserved": 0}
    assert client.quotas.defaults("demo").snapshots == -1


def test_openstacksdk(api: Api, url: str, storage: Storage, tmp_path: Path) -> None:
    connection = openstack.connect(
        auth_type="admin_token",
        auth={"endpoint": f"{url}/v3/demo", "token": "admin:demo"},
        block_storage_api_version="3",
        block_storage_endpoint_override=f"{url}/v3/demo",
    )
    cloud: Any = connection.block_storage
    lay(tmp_path / "pool1" / "x.img", size=GIB)
    made = cloud.manage_volume(host=PLACE, ref={"source-name": "x.img"}, name="taken")
    assert storage.settled(made.id).status == "available"
    assert cloud.set_volume_metadata(made, k="v").metadata == {"k": "v"}
    cloud.delete_volume_metadata(made, keys=["k"])
    assert cloud.get_volume_metadata(made).metadata == {}
    assert (cloud.summary(all_projects=False).total_count, cloud.get_limits().absolute.total_volumes_used) == (1, 1)
    assert [zone.name for zone in cloud.availability_zones()] == ["nova"]
    assert cloud.get_quota_set("demo").volumes == -1
    cloud.freeze_service(next(iter(cloud.services(host=BACKEND))))
    assert next(iter(cloud.services(host=BACKEND))).is_frozen
    kind = cloud.create_type(name="secret", is_public=False)
    cloud.add_type_access(kind, "demo")
    assert [access["project_id"] for access in cloud.get_type_access(kind)] == ["demo"]
    snapshot = cloud.get_snapshot(api.make_snapshot(made.id))
    cloud.reset_snapshot(snapshot, "error")
    assert cloud.get_snapshot(snapshot).status == "error"
    assert {each.resource for each in cloud.resource_filters()} >= {"volume"}
    cloud.delete_snapshot(snapshot)
    connection.close()
