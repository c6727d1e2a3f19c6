"""A volume in use moves with tokens of a real Keystone: whose they are, what each may do, and what nobody else may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.keystone import ADMIN_PASSWORD, Keystone
from tests.support.nova import SWAP, Nova
from tests.support.nova_cloud import OPTIONS, Cloud
from tests.support.processes import AllInOne
from tests.support.rest import Rest
from tests.support.waiting import until

#: What doc/source/admin/nova.rst gives the service user of block storage, and what Nova's own has.
SERVICE_USERS = {"migrator": ("admin", "service"), "nova": ("service",), "almost": ("admin",)}


class World(NamedTuple):
    """Keystone, the services, and the tenant whose volumes they are."""

    keystone: Keystone
    cloud: Cloud
    tenant: Rest
    mary: str


def token_of(keystone: Keystone, user: str, project: str) -> str:
    return str(keystone.session(user, project).get_token())


def config(keystone: Keystone, user: str) -> str:
    """Both sections with credentials, as an operator writes them."""
    where = f"auth_type = password\nauth_url = {keystone.url}\nuser_domain_id = default\nproject_domain_id = default\n"
    return (
        f"auth_strategy = keystone\n{OPTIONS}swap_begin_seconds = 2\nmigration_sweep_interval = 1\n"
        f"[keystone_authtoken]\nwww_authenticate_uri = {keystone.url}\n{where}"
        f"username = admin\npassword = {ADMIN_PASSWORD}\nproject_name = admin\nservice_token_roles_required = true\n"
        f"[nova]\n{where}username = {user}\npassword = {user * 2}\nproject_name = service\n"
        "valid_interfaces = internal\n"
    )


@pytest.fixture(scope="module")
def keystone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keystone]:
    running = Keystone(tmp_path_factory.mktemp("identity") / "keystone")
    service, tenants = running.add_project("service"), running.add_project("tenants")
    for name, roles in SERVICE_USERS.items():
        running.add_user(name, service, *roles)
    running.add_user("mary", tenants, "member", "reader")
    yield running
    running.end()


def open_world(directory: Path, keystone: Keystone, nova: Nova, user: str) -> Iterator[World]:
    """The services, of which block storage speaks to Nova as ``user``."""
    checked: dict[str, Any] = {}

    def check(token: str) -> Any:
        """What Keystone says of a token, as Nova asks it."""
        if token not in checked:
            headers = {"X-Subject-Token": token}
            checked[token] = keystone.session().get(f"{keystone.url}/auth/tokens", headers=headers).json()["token"]
        return checked[token]

    nova.project_of = lambda token: str(check(token)["project"]["id"])
    nova.may_swap = lambda token: "service" in {role["name"] for role in check(token)["roles"]}
    own = token_of(keystone, "nova", "service")
    nova.own_token = lambda: own
    running = AllInOne(directory, config(keystone, user))
    nova.block_url = running.url
    admin = Rest(running.url, project=keystone.project_id("admin"), token=token_of(keystone, "admin", "admin"))
    mary = token_of(keystone, "mary", "tenants")
    cloud = Cloud(admin, nova, running.state / "backends")
    cloud.running = running
    try:
        yield World(keystone, cloud, Rest(running.url, project=keystone.project_id("tenants"), token=mary), mary)
    finally:
        running.process.end()


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, keystone: Keystone) -> Iterator[World]:
    nova = Nova()
    service_id = keystone.add_service("nova", "compute", nova.url)
    yield from open_world(tmp_path, keystone, nova, request.param)
    nova.end()
    keystone.remove_service(service_id)


def used_by_mary(world: World) -> Any:
    """A volume of the tenant, which she has attached through Nova."""
    volume = world.tenant.create(1)["id"]
    disk = world.cloud.nova.attach("5c1f2cf6-0000-4000-8000-000000000001", volume, user=world.mary)
    until(lambda: len(disk.guest.acknowledged) > 5, "the guest writes")
    return disk


@pytest.mark.parametrize("world", ["migrator"], indirect=True)
def test_a_tenants_volume_is_moved_by_the_service_user(world: World) -> None:
    """The token of block storage's own user comes back with each call of the swap, in that user's project."""
    disk = used_by_mary(world)
    cloud, nova = world.cloud, world.cloud.nova
    old = disk.attachment
    direct = world.tenant.request("DELETE", f"/attachments/{old}")
    assert (direct[0], "through the compute service" in str(direct[1])) == (409, True)
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    until(lambda: disk.attachment != old, "the compute service has its answer")
    swapped = nova.tokens[disk.volume]
    assert nova.project_of(swapped) == world.keystone.project_id("service") != world.tenant.project
    calls = [call for volume, call, _ in nova.calls if volume == disk.volume]
    assert calls[calls.index("attach_done") + 1 :] == [call for call in SWAP if call != "copy"]
    cloud.moved(disk)
    (shown,) = world.tenant.volume(disk.volume)["attachments"]
    assert shown["attachment_id"] == disk.attachment
    nova.detach(disk, user=world.mary)
    assert world.tenant.volume(disk.volume)["status"] == "available"


@pytest.mark.parametrize("world", ["almost"], indirect=True)
def test_without_the_role_service_nova_refuses_and_nothing_has_changed(world: World) -> None:
    disk = used_by_mary(world)
    world.cloud.migrate(disk)
    ended = world.cloud.rest.wait_migration(disk.volume)
    assert (ended["status"], ended["error"]["code"]) == ("error", "ComputeRefused")
    assert "403: os_compute_api:os-volumes-attachments:swap" in ended["error"]["message"]
    world.cloud.stayed(disk)
