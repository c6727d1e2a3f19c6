"""The clients that people use, unmodified, against the application on a socket."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from typing import Any
from wsgiref import simple_server

import openstack
import pytest
from cinderclient import client as cinder
from cinderclient import exceptions as cinder_exceptions
from keystoneauth1 import adapter, discover, session, token_endpoint
from openstack import exceptions as sdk_exceptions
from openstack import utils as sdk_utils

from tests.api.conftest import DESTINATION, SOURCE, Api, Peers


class _Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    daemon_threads = True


class _Quiet(simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as inherited
        """The access log of the application is enough."""


@pytest.fixture
def url(api: Api, peers: Peers) -> Iterator[str]:
    """The address of the application on a socket."""
    peers.pools = [
        {"name": name, "capabilities": {"total_capacity_gb": 10.0, "free_capacity_gb": 5.0, "volume_backend_name": "x"}}
        for name in (SOURCE, DESTINATION)
    ]
    server = simple_server.make_server("127.0.0.1", 0, api.app, _Server, _Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _session(url: str, path: str, token: str = "admin:demo") -> session.Session:
    return session.Session(auth=token_endpoint.Token(url + path, token))


@pytest.mark.parametrize("path", ["", "/v3", "/v3/demo"])
def test_keystoneauth_discovers_versions_from_every_address(url: str, path: str) -> None:
    found = discover.Discover(_session(url, path), url + path).version_data()
    assert [(data["version"], data["url"]) for data in found] == [((3, 0), f"{url}/v3/")]
    assert (found[0]["min_microversion"], found[0]["max_microversion"]) == ((3, 0), (3, 71))


@pytest.mark.parametrize("version", ["3.0", "3.16", "3.71"])
def test_cinderclient(api: Api, url: str, version: str) -> None:
    client = cinder.Client(version, session=_session(url, "/v3/demo"), endpoint_override=f"{url}/v3/demo")
    made = client.volumes.create(1, name="v", metadata={"k": "v"}, description="d")
    assert (made.status, made.bootable, made.metadata) == ("creating", "false", {"k": "v"})
    volume_id = api.make_volume(display_name="moving")
    assert {volume.name for volume in client.volumes.list()} == {"v", "moving"}
    assert [volume.id for volume in client.volumes.list(search_opts={"metadata": {"k": "v"}})] == [made.id]
    assert [v.name for v in client.volumes.list(limit=1, sort="name:asc", search_opts={"all_tenants": 1})] == ["moving"]
    assert client.volumes.find(name="moving").id == volume_id
    volume = client.volumes.get(volume_id)
    assert getattr(volume, "os-vol-host-attr:host") == SOURCE
    assert [pool.name for pool in client.pools.list(detailed=False)] == [SOURCE, DESTINATION]
    assert client.pools.list(detailed=True)[0].free_capacity_gb == 5.0
    assert [(s.host, s.state) for s in client.services.list(host="a@file1", binary="cinder-volume")] == [
        ("a@file1", "up")
    ]
    assert client.services.disable_log_reason("b@file2", "migrator-volume", "why").disabled_reason == "why"
    with pytest.raises(cinder_exceptions.BadRequest, match="is disabled: why"):
        client.volumes.migrate_volume(volume_id, DESTINATION, False, False)
    assert client.services.enable("b@file2", "migrator-volume").status == "enabled"
    response, _ = client.volumes.migrate_volume(volume_id, DESTINATION, False, False)
    assert response.status_code == 202
    assert client.volumes.get(volume_id).migration_status == "starting"
    with pytest.raises(cinder_exceptions.BadRequest, match="migrated already"):
        client.volumes.migrate_volume(volume_id, DESTINATION, True, False)
    other = api.make_volume(display_name="other")
    snapshot = client.volume_snapshots.create(other, name="s")
    assert client.volume_snapshots.get(snapshot.id).size == 1
    kind = client.volume_types.create("gold", "fast")
    kind.set_keys({"a": "b"})
    assert client.volume_types.get(kind.id).get_keys() == {"a": "b"}
    kind.unset_keys(["a"])
    client.volume_types.delete(kind)
    client.volumes.reset_state(other, "error")
    with pytest.raises(cinder_exceptions.NotFound, match="could not be found"):
        client.volumes.get("5c1f2cf6-0000-4000-8000-000000000000")


def test_cinderclient_negotiates_and_reads_messages(url: str) -> None:
    client = cinder.Client("3.71", session=_session(url, "/v3/demo"), endpoint_override=f"{url}/v3/demo")
    assert client.messages.list() == []
    with pytest.raises(cinder_exceptions.NotAcceptable):
        client.client.get("/volumes", headers={"OpenStack-API-Version": "volume 3.99"})


@pytest.fixture
def cloud(url: str) -> Iterator[Any]:
    """An openstacksdk connection to the application."""
    auth = {"endpoint": f"{url}/v3/demo", "token": "admin:demo"}
    connection = openstack.connect(
        auth_type="admin_token",
        auth=auth,
        block_storage_api_version="3",
        block_storage_endpoint_override=f"{url}/v3/demo",
    )
    yield connection.block_storage
    connection.close()


def test_openstacksdk(api: Api, cloud: Any) -> None:
    assert sdk_utils.maximum_supported_microversion(cloud, "3.71") == "3.71"
    made = cloud.create_volume(size=1, name="v", metadata={"k": "v"})
    assert (made.status, made.is_bootable, made.consumes_quota) == ("creating", False, True)
    volume_id = api.make_volume(display_name="moving")
    assert {volume.name for volume in cloud.volumes(details=True)} == {"v", "moving"}
    assert {volume.name for volume in cloud.volumes(details=False, limit=1)} == {"v", "moving"}
    assert cloud.find_volume("moving").id == volume_id
    volume = cloud.get_volume(volume_id)
    assert (volume.host, volume.project_id, volume.migration_status) == (SOURCE, "demo", None)
    assert [pool.name for pool in cloud.backend_pools()] == [SOURCE, DESTINATION]
    assert {service.host for service in cloud.services(binary="cinder-volume")} == {"a@file1", "b@file2"}
    with pytest.raises(sdk_exceptions.BadRequestException, match="there is no volume service z@file9"):
        cloud.migrate_volume(volume_id, host="z@file9#p")
    cloud.migrate_volume(volume_id, host=DESTINATION)
    assert cloud.get_volume(volume_id).migration_status == "starting"
    other = api.make_volume(display_name="other")
    cloud.extend_volume(other, 2)
    assert cloud.get_volume(other).status == "extending"
    kind = cloud.create_type(name="gold", extra_specs={"a": "b"})
    assert cloud.get_type(kind).extra_specs == {"a": "b"}
    assert [kind.name for kind in cloud.types()] == ["gold"]
    cloud.delete_volume(api.make_volume(display_name="gone"), ignore_missing=False)
    assert len(list(cloud.snapshots())) == 0


def test_an_adapter_finds_our_own_resource(api: Api, url: str) -> None:
    client = adapter.Adapter(
        _session(url, "/v3/demo"),
        service_type="block-storage",
        default_microversion="3.71",
        endpoint_override=f"{url}/v3/demo",
    )
    migration_id = api.make_migration(api.make_volume())
    assert client.get(f"/migrations/{migration_id}").json()["migration"]["status"] == "queued"
    assert client.post(f"/migrations/{migration_id}/action", json={"cancel": {}}).status_code == 202


def test_cinderclient_attaches_by_both_flows_and_retypes(api: Api, url: str) -> None:
    client = cinder.Client("3.71", session=_session(url, "/v3/demo"), endpoint_override=f"{url}/v3/demo")
    connector = {"host": "compute1", "ip": "127.0.0.1", "mountpoint": "/dev/vdb"}
    volume_id, server = api.make_volume(), "5c1f2cf6-0000-4000-8000-000000000001"
    made = client.attachments.create(volume_id, connector, server, mode="rw")
    assert made["connection_info"]["access_mode"] == "rw"
    client.attachments.complete(made["connection_info"]["attachment_id"])
    (shown,) = client.attachments.list(search_opts={"volume_id": volume_id})
    assert (shown.status, client.attachments.show(shown.id).instance) == ("attached", server)
    assert client.volumes.get(volume_id).status == "in-use"
    client.attachments.delete(shown.id)
    volume = client.volumes.get(volume_id)
    assert volume.status == "available"

    client.volumes.reserve(volume)
    assert client.volumes.initialize_connection(volume, connector)["driver_volume_type"] == "gpfs"
    client.volumes.attach(volume, server, "/dev/vdb", mode="rw")
    assert client.volumes.get(volume_id).attachments[0]["server_id"] == server
    client.volumes.extend(volume, 2)
    assert client.volumes.get(volume_id).status == "extending"
    client.volumes.reset_state(volume, "in-use")
    client.volumes.begin_detaching(volume)
    client.volumes.terminate_connection(volume, connector)
    client.volumes.detach(volume)
    client.volumes.set_bootable(volume, True)
    client.volumes.update_readonly_flag(volume, True)
    client.volumes.set_image_metadata(volume, {"os": "debian"})
    client.volumes.retype(volume, client.volume_types.create("fast").name, "on-demand")
    now = client.volumes.get(volume_id)
    assert (now.status, now.bootable, now.volume_type) == ("available", "true", "fast")
    assert now.volume_image_metadata == {"os": "debian"}
    client.volumes.force_delete(volume)
    assert client.volumes.get(volume_id).status == "deleting"


def test_openstacksdk_attaches_and_retypes(api: Api, cloud: Any) -> None:
    volume_id = api.make_volume()
    connector = {"host": "compute1", "ip": "127.0.0.1"}
    made = cloud.create_attachment(volume_id, connector=connector, instance_id=None)
    assert [row.id for row in cloud.attachments()] == [made.id]
    cloud.complete_attachment(made.id)
    assert cloud.get_volume(volume_id).status == "in-use"
    cloud.delete_attachment(made.id)
    kind = cloud.create_type(name="fast")
    cloud.retype_volume(volume_id, kind.name, migration_policy="never")
    assert cloud.get_volume(volume_id).volume_type == "fast"
