"""Unmodified clients against migrator-all as it is started for a first try, without an identity service."""

from __future__ import annotations

from typing import Any

import openstack
import pytest
from cinderclient import client as cinder
from keystoneauth1 import noauth, session

from tests.integration.clients.conftest import A, B, Failed, Program, properties, table
from tests.support.data import GIB
from tests.support.processes import AllInOne
from tests.support.waiting import until

SERVER = "5c1f2cf6-0000-4000-8000-000000000001"


def other(host: str) -> str:
    return B if host == A else A


@pytest.fixture
def cinder_program(service: AllInOne) -> Program:
    options = ("--user-id", "admin", "--project-id", "P", "--endpoint", f"{service.url}/v3")
    return Program("cinder", {"OS_AUTH_TYPE": "noauth", "OS_VOLUME_API_VERSION": "3.71"}, options)


@pytest.fixture
def openstack_program(service: AllInOne) -> Program:
    environment = {"OS_AUTH_TYPE": "none", "OS_ENDPOINT": f"{service.url}/v3", "OS_VOLUME_API_VERSION": "3"}
    return Program("openstack", environment)


def test_the_program_cinder(service: AllInOne, cinder_program: Program) -> None:
    """Create, list, show, migrate, and what the services and pools are."""
    rest = service.rest(project="P")
    made = properties(cinder_program("create", "--name", "Bücher 📚", "--metadata", "k=v", "--poll", "1"))
    volume_id = made["id"]
    assert (made["status"], made["size"], made["name"]) == ("available", "1", "Bücher 📚")
    assert [row[:2] for row in table(cinder_program("list", "--fields", "name"))[1:]] == [[volume_id, "Bücher 📚"]]
    host = made["os-vol-host-attr:host"]
    assert "accepted" in cinder_program("migrate", "Bücher 📚", other(host), "--force-host-copy", "True")
    rest.wait_migration(volume_id)
    shown = properties(cinder_program("show", volume_id))
    assert (shown["os-vol-host-attr:host"], shown["migration_status"]) == (other(host), "success")
    refused = cinder_program("migrate", volume_id, other(host))
    assert "is there already" in refused, "the program prints why, and ends with 0 all the same"
    assert "accepted" not in refused
    pools = table(cinder_program("get-pools"))
    assert {row[1] for row in pools if row[0] == "name"} == {A, B}
    services = table(cinder_program("service-list"))
    assert {(row[0], row[1]) for row in services[1:]} >= {("migrator-volume", "node@file1")}


def test_the_program_cinder_on_types_files_snapshots_and_attachments(
    service: AllInOne, cinder_program: Program
) -> None:
    """Managing a file and its snapshot, a retype that moves it, and the calls of a server; in a project of its own."""
    words = [word if word != "P" else "Q" for word in cinder_program.options]
    cinder_program = Program("cinder", cinder_program.environment, tuple(words))
    rest = service.rest(project="Q")
    for name in ("disk.img", "snapshot.img"):
        with service.path("file1", "pool1", "x").with_name(name).open("wb") as file:
            file.truncate(GIB)
    for backend in ("file1", "file2"):
        cinder_program("type-create", f"cinder {backend}")
        cinder_program("type-key", f"cinder {backend}", "set", f"volume_backend_name={backend}")
    assert {row[1] for row in table(cinder_program("type-list"))} >= {"cinder file1", "cinder file2"}
    lying = table(cinder_program("manageable-list", A))
    assert [row[:3] for row in lying if "disk.img" in row[0]] == [["{'source-name': 'disk.img'}", "1", "True"]]

    made = properties(cinder_program("manage", "--name", "taken", "--volume-type", "cinder file1", A, "disk.img"))
    volume_id = made["id"]
    rest.wait_volume(volume_id, "available")
    snapshot = properties(cinder_program("snapshot-manage", "--name", "old", volume_id, "snapshot.img"))
    assert snapshot["volume_id"] == volume_id
    assert snapshot["status"] in ("managing", "available")  # the program looks again before it prints

    def snapshots() -> list[list[str]]:
        return table(cinder_program("snapshot-list", "--volume-id", volume_id))[1:]

    until(lambda: [row[2:4] for row in snapshots()] == [["available", "old"]], "it is a snapshot", 30)
    cinder_program("snapshot-unmanage", snapshot["id"])
    until(lambda: snapshots() == [], "it is a file again", 30)

    cinder_program("retype", "--migration-policy", "on-demand", volume_id, "cinder file2")
    assert rest.wait_migration(volume_id)["status"] == "success"
    shown = properties(cinder_program("show", volume_id))
    assert (shown["os-vol-host-attr:host"], shown["volume_type"], shown["status"]) == (B, "cinder file2", "available")

    cinder_program("attachment-create", volume_id, SERVER)
    (attachment,) = table(cinder_program("attachment-list"))[1:]
    assert attachment[1:4] == [volume_id, "reserved", SERVER]
    cinder_program("attachment-delete", attachment[0])
    assert properties(cinder_program("show", volume_id))["status"] == "available"


def test_the_library_of_cinder(service: AllInOne) -> None:
    """Retype with a migration, snapshots, attachments, and managing what is there."""
    auth = noauth.NoAuth()
    client = cinder.Client("3.71", session=session.Session(auth=auth), endpoint_override=f"{service.url}/v3")
    rest = service.rest(project="admin")
    kinds = {name: client.volume_types.create(f"on {name}") for name in ("file1", "file2")}
    for name, kind in kinds.items():
        kind.set_keys({"volume_backend_name": name})
    volume = client.volumes.create(1, name="v", volume_type="on file1")
    rest.wait_volume(volume.id, "available")
    assert getattr(client.volumes.get(volume.id), "os-vol-host-attr:host") == A
    client.volumes.retype(volume, "on file2", "on-demand")
    assert rest.wait_migration(volume.id)["status"] == "success"
    now = client.volumes.get(volume.id)
    assert (now.volume_type, getattr(now, "os-vol-host-attr:host"), now.status) == ("on file2", B, "available")

    snapshot = client.volume_snapshots.create(volume.id, name="s")
    until(lambda: client.volume_snapshots.get(snapshot.id).status == "available", "the snapshot is there")
    assert [row.name for row in client.volume_snapshots.list()] == ["s"]
    client.volume_snapshots.delete(snapshot.id)
    until(lambda: client.volume_snapshots.list() == [], "the snapshot is gone")

    made = client.attachments.create(volume.id, {"host": "compute1"}, SERVER, mode="rw")
    attachment_id = made["connection_info"]["attachment_id"]
    client.attachments.complete(attachment_id)
    assert client.volumes.get(volume.id).attachments[0]["server_id"] == SERVER
    client.attachments.delete(attachment_id)

    lying = service.path("file1", "pool1", "x").with_name("x.img")
    with lying.open("wb") as file:
        file.truncate(GIB)
    taken = client.volumes.manage(A, {"source-name": "x.img"}, name="taken")
    assert rest.wait_volume(taken.id, "available")["size"] == 1


def test_the_program_openstack(service: AllInOne, openstack_program: Program) -> None:
    rest = service.rest(project="admin")
    made = openstack_program.json("volume", "create", "--size", "1", "moving")
    host = rest.wait_volume(made["id"], "available")["os-vol-host-attr:host"]
    assert "moving" in {row["Name"] for row in openstack_program.json("volume", "list")}
    openstack_program("volume", "migrate", "--host", other(host), "moving")
    assert rest.wait_migration(made["id"])["status"] == "success"
    shown = openstack_program.json("volume", "show", "moving")
    assert (shown["os-vol-host-attr:host"], shown["status"]) == (other(host), "available")
    with pytest.raises(Failed, match="there is no volume service"):
        openstack_program("volume", "migrate", "--host", "z@file9#p", "moving")
    listed = openstack_program.json("volume", "service", "list")
    assert {row["Host"] for row in listed if row["Binary"] == "migrator-volume"} == {"node@file1", "node@file2"}
    assert {row["Name"] for row in openstack_program.json("volume", "backend", "pool", "list")} == {A, B}


def test_the_program_openstack_on_types_snapshots_and_attachments(
    service: AllInOne, openstack_program: Program
) -> None:
    rest = service.rest(project="admin")
    newest = Program("openstack", {**openstack_program.environment, "OS_VOLUME_API_VERSION": "3.71"})
    for backend in ("file1", "file2"):
        kind = ("--property", f"volume_backend_name={backend}", f"openstack {backend}")
        assert newest.json("volume", "type", "create", *kind)["is_public"] is True
    assert {row["Name"] for row in newest.json("volume", "type", "list")} >= {"openstack file1", "openstack file2"}
    made = newest.json("volume", "create", "--size", "1", "--type", "openstack file1", "retyped")
    assert rest.wait_volume(made["id"], "available")["os-vol-host-attr:host"] == A
    newest("volume", "set", "--type", "openstack file2", "--migration-policy", "on-demand", "retyped")
    assert rest.wait_migration(made["id"])["status"] == "success"
    shown = newest.json("volume", "show", "retyped")
    assert (shown["os-vol-host-attr:host"], shown["type"], shown["status"]) == (B, "openstack file2", "available")

    newest("volume", "snapshot", "create", "--volume", "retyped", "kept")

    def status() -> str:
        return str(newest.json("volume", "snapshot", "show", "kept")["status"])

    until(lambda: status() == "available", "the snapshot is there", 30)
    assert [row["Name"] for row in newest.json("volume", "snapshot", "list", "--volume", "retyped")] == ["kept"]
    body = {"attachment": {"volume_uuid": made["id"], "instance_uuid": SERVER}}
    attachment = rest.ok("POST", "/attachments", body)["attachment"]  # the program itself would ask Nova for the server
    listed = newest.json("volume", "attachment", "list", "--volume-id", made["id"])
    assert [(row["ID"], row["Status"]) for row in listed] == [(attachment["id"], "reserved")]
    newest("volume", "attachment", "delete", attachment["id"])
    with pytest.raises(Failed, match="it has snapshots"):
        newest("volume", "delete", "retyped")
    newest("volume", "delete", "--purge", "retyped")
    until(lambda: rest.request("GET", f"/volumes/{made['id']}")[0] == 404, "it is gone, with its snapshot", 30)


def test_the_library_openstacksdk(service: AllInOne) -> None:
    cloud: Any = openstack.connect(
        auth_type="none", auth={"endpoint": f"{service.url}/v3"}, block_storage_endpoint_override=f"{service.url}/v3"
    )
    storage, rest = cloud.block_storage, service.rest(project="admin")
    made = storage.create_volume(size=1, name="by the library")
    storage.wait_for_status(made, "available", interval=1, wait=30)
    volume = storage.get_volume(made.id)
    storage.migrate_volume(volume, host=other(volume.host))
    assert rest.wait_migration(made.id)["status"] == "success"
    assert storage.get_volume(made.id).host == other(volume.host)
    kind = storage.create_type(name="plain")
    assert "plain" in {found.name for found in storage.types()}
    storage.retype_volume(made.id, kind.name, migration_policy="never")
    snapshot = storage.create_snapshot(volume_id=made.id, name="s")
    storage.wait_for_status(snapshot, "available", interval=1, wait=30)
    assert [found.name for found in storage.snapshots()] == ["s"]
    attachment = storage.create_attachment(rest.create(1)["id"], connector={"host": "compute1"}, instance_id=SERVER)
    assert attachment.id in {found.id for found in storage.attachments()}
    assert {found.name for found in storage.backend_pools()} == {A, B}
    assert {found.host for found in storage.services(binary="cinder-volume")} == {"node@file1", "node@file2"}
    cloud.close()
