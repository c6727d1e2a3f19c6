"""Unmodified clients with passwords: a real Keystone, its catalog, and roles as its operators give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import openstack
import pytest
from cinderclient import client as cinder
from cinderclient import exceptions

from tests.integration.clients.conftest import A, B, Failed, Program
from tests.support.keystone import ADMIN_PASSWORD, Keystone
from tests.support.processes import AllInOne
from tests.support.waiting import until

#: Users of the tests, with the project and the roles of each.
USERS = {
    "mary": ("tenants", ("member", "reader")),
    "rose": ("tenants", ("reader",)),
    "paul": ("others", ("member", "reader")),
}


class Cloud(NamedTuple):
    """Keystone, and a migrator-all that believes its tokens alone."""

    keystone: Keystone
    service: AllInOne

    def cinder(self, user: str) -> Any:
        project = "admin" if user == "admin" else USERS[user][0]
        return cinder.Client("3.71", session=self.keystone.session(user, project))

    def volume(self, volume_id: str) -> Any:
        """As the administrator sees it."""
        return self.cinder("admin").volumes.get(volume_id)

    def wait(self, volume_id: str, key: str, value: str) -> Any:
        client = self.cinder("admin")

        def there() -> Any:
            volume = client.volumes.get(volume_id)
            return volume if getattr(volume, key) == value else None

        return until(there, f"{key} of {volume_id} is {value}", 60, pause=0.05)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    directory = tmp_path_factory.mktemp("cloud")
    keystone = Keystone(directory / "keystone")
    try:
        for name in ("tenants", "others"):
            project_id = keystone.add_project(name)
            for user, (project, roles) in USERS.items():
                if project == name:
                    keystone.add_user(user, project_id, *roles)
        running = AllInOne(directory, _config(keystone))
        # "volumev3" beside the name of today: older clients look for it.
        for name, kind in (("migrator", "block-storage"), ("cinderv3", "volumev3")):
            keystone.add_service(name, kind, f"{running.url}/v3/%(project_id)s")
        try:
            yield Cloud(keystone, running)
        finally:
            running.process.end()
    finally:
        keystone.end()


def _config(keystone: Keystone) -> str:
    return (
        "auth_strategy = keystone\n"
        f"[keystone_authtoken]\nwww_authenticate_uri = {keystone.url}\nauth_url = {keystone.url}\n"
        f"auth_type = password\nusername = admin\npassword = {ADMIN_PASSWORD}\nuser_domain_id = default\n"
        "project_name = admin\nproject_domain_id = default\n"
    )


def other(host: str) -> str:
    return B if host == A else A


def test_an_operator_moves_what_a_tenant_has(cloud: Cloud) -> None:
    tenant, operator = cloud.cinder("mary"), cloud.cinder("admin")
    made = tenant.volumes.create(1, name="mine", metadata={"k": "v"})
    host = getattr(cloud.wait(made.id, "status", "available"), "os-vol-host-attr:host")
    assert [volume.name for volume in tenant.volumes.list()] == ["mine"]
    assert operator.volumes.list() == []
    assert made.id in {volume.id for volume in operator.volumes.list(search_opts={"all_tenants": 1})}
    with pytest.raises(exceptions.Forbidden):
        tenant.volumes.migrate_volume(made.id, other(host), False, False)
    operator.volumes.migrate_volume(made.id, other(host), True, False)
    cloud.wait(made.id, "migration_status", "success")
    assert getattr(cloud.volume(made.id), "os-vol-host-attr:host") == other(host)
    assert {pool.name for pool in operator.pools.list()} == {A, B}
    with pytest.raises(exceptions.Forbidden):
        tenant.services.list()
    shown = vars(tenant.volumes.get(made.id))["_info"]
    hidden = ("os-vol-host-attr:host", "migration_status", "os-vol-mig-status-attr:name_id")
    assert not [key for key in hidden if key in shown], "a member does not see where it lies"


def test_who_reads_cannot_act_and_who_is_elsewhere_sees_nothing(cloud: Cloud) -> None:
    volume_id = cloud.cinder("mary").volumes.create(1, name="hers").id
    cloud.wait(volume_id, "status", "available")
    reader, stranger = cloud.cinder("rose"), cloud.cinder("paul")
    assert reader.volumes.get(volume_id).name == "hers"
    acts: tuple[Callable[[], Any], ...] = (
        lambda: reader.volumes.create(1),
        lambda: reader.volumes.delete(volume_id),
        lambda: reader.volumes.extend(volume_id, 2),
        lambda: reader.volume_snapshots.create(volume_id),
        lambda: reader.attachments.create(volume_id, None, "5c1f2cf6-0000-4000-8000-000000000001"),
    )
    for act in acts:
        with pytest.raises(exceptions.Forbidden):
            act()
    assert stranger.volumes.list() == []
    for hidden in (stranger.volumes.get, stranger.volumes.delete):
        with pytest.raises(exceptions.NotFound):
            hidden(volume_id)
    theirs = cloud.keystone.project_id("tenants")
    with pytest.raises(exceptions.BadRequest, match="Malformed request url"):
        stranger.client.get("/volumes", endpoint_override=f"{cloud.service.url}/v3/{theirs}")


def test_a_wrong_token_is_refused(cloud: Cloud) -> None:
    status, answer = cloud.service.rest().request("GET", "/volumes")
    assert (status, answer["unauthorized"]["code"]) == (401, 401)


def test_the_programs(cloud: Cloud) -> None:
    openstack_program = Program("openstack", cloud.keystone.environment("admin", "admin"))
    made = openstack_program.json("volume", "create", "--size", "1", "moving")
    host = getattr(cloud.wait(made["id"], "status", "available"), "os-vol-host-attr:host")
    openstack_program("volume", "migrate", "--host", other(host), "moving")
    cloud.wait(made["id"], "migration_status", "success")
    assert getattr(cloud.volume(made["id"]), "os-vol-host-attr:host") == other(host)
    cinder_program = Program("cinder", cloud.keystone.environment("rose", "tenants"))
    with pytest.raises(Failed, match="Policy doesn't allow volume:create"):
        cinder_program("create", "1")


def test_the_library_openstacksdk(cloud: Cloud) -> None:
    """Retype with a migration, snapshots and attachments, through the catalog."""
    words = cloud.keystone.environment("admin", "admin")
    auth = {name[3:].lower(): value for name, value in words.items() if "VERSION" not in name}
    connection: Any = openstack.connect(auth=auth)
    storage = connection.block_storage
    for name in ("file1", "file2"):
        storage.create_type(name=f"on {name}", extra_specs={"volume_backend_name": name})
    made = storage.create_volume(size=1, name="v", volume_type="on file1")
    assert getattr(cloud.wait(made.id, "status", "available"), "os-vol-host-attr:host") == A
    storage.retype_volume(made.id, "on file2", migration_policy="on-demand")
    cloud.wait(made.id, "migration_status", "success")
    now = storage.get_volume(made.id)
    assert (now.host, now.volume_type, now.status) == (B, "on file2", "available")
    snapshot = storage.create_snapshot(volume_id=made.id, name="s")
    until(lambda: storage.get_snapshot(snapshot.id).status == "available", "the snapshot is there")
    attachment = storage.create_attachment(made.id, connector={"host": "compute1"}, instance_id=None)
    assert [found.id for found in storage.attachments()] == [attachment.id]
    assert {found.host for found in storage.services(binary="cinder-volume")} == {"node@file1", "node@file2"}
    connection.close()
