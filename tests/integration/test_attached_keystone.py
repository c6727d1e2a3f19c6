"""A volume in use moves with tokens of a real Keystone: whose they are, what each may do, and what nobody else may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


#: How long a token lives, seconds: an hour, as usual, or less than a swap lasts.
HOUR, SHORT = 3600, 10


class User(Rest):
    """A user with a password, who asks with a fresh token each time."""

    def __init__(self, url: str, keystone: Keystone, user: str, project: str) -> None:
        super().__init__(url, project=keystone.project_id(project))
        self._session = keystone.session(user, project)

    def token(self) -> str:
        return str(self._session.get_token())

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        self._headers["X-Auth-Token"] = self.token()
        return super().request(method, path, body)


class World(NamedTuple):
    """Keystone, the services, and the tenant whose volumes they are."""

    keystone: Keystone
    cloud: Cloud
    tenant: User


def config(keystone: Keystone, user: str) -> str:
    """Both sections with credentials, as an operator writes them."""
    where = f"auth_type = password\nauth_url = {keystone.url}\nuser_domain_id = default\nproject_domain_id = default\n"
    return (
        f"auth_strategy = keystone\n{OPTIONS}swap_begin_seconds = 30\nnova_poll_seconds = 3\n"
        f"[keystone_authtoken]\nwww_authenticate_uri = {keystone.url}\n{where}"
        f"username = admin\npassword = {ADMIN_PASSWORD}\nproject_name = admin\nservice_token_roles_required = true\n"
        f"[nova]\n{where}username = {user}\npassword = {user * 2}\nproject_name = service\n"
        "valid_interfaces = internal\n"
    )


@pytest.fixture(scope="module")
def keystones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Keystone]]:
    """One for each life of tokens, with the same users."""
    running: dict[int, Keystone] = {}

    def made(seconds: int) -> Keystone:
        if seconds not in running:
            running[seconds] = keystone = Keystone(tmp_path_factory.mktemp("identity") / "keystone", seconds)
            service, tenants = keystone.add_project("service"), keystone.add_project("tenants")
            for name, roles in SERVICE_USERS.items():
                keystone.add_user(name, service, *roles)
            keystone.add_user("mary", tenants, "member", "reader")
        return running[seconds]

    yield made
    for keystone in running.values():
        keystone.end()


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
    own = keystone.session("nova", "service")
    nova.own_token = lambda: str(own.get_token())
    running = AllInOne(directory, config(keystone, user))
    nova.block_url = running.url
    cloud = Cloud(User(running.url, keystone, "admin", "admin"), nova, running.state / "backends")
    cloud.running = running
    try:
        yield World(keystone, cloud, User(running.url, keystone, "mary", "tenants"))
    finally:
        running.process.end()


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, keystones: Callable[[int], Keystone]) -> Iterator[World]:
    user, seconds = request.param
    keystone = keystones(seconds)
    nova = Nova()
    service_id = keystone.add_service("nova", "compute", nova.url)
    yield from open_world(tmp_path, keystone, nova, user)
    nova.end()
    keystone.remove_service(service_id)


def used_by_mary(world: World) -> Any:
    """A volume of the tenant, which she has attached through Nova."""
    volume = world.tenant.create(1)["id"]
    disk = world.cloud.nova.attach("5c1f2cf6-0000-4000-8000-000000000001", volume, user=world.tenant.token())
    until(lambda: len(disk.guest.acknowledged) > 5, "the guest writes")
    return disk


@pytest.mark.parametrize("world", [("migrator", HOUR)], indirect=True)
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
    nova.detach(disk, user=world.tenant.token())
    assert world.tenant.volume(disk.volume)["status"] == "available"


@pytest.mark.parametrize("world", [("migrator", SHORT)], indirect=True)
def test_a_swap_may_last_longer_than_its_token_lives(world: World) -> None:
    """Nova calls back with the token of hours ago, which its own beside it vouches for; alone it is refused."""
    disk = used_by_mary(world)
    cloud, nova = world.cloud, world.cloud.nova
    reached, go = cloud.plan(disk).hold("copy")
    cloud.migrate(disk)
    assert reached.wait(60)
    token, fresh = nova.tokens[disk.volume], nova.own_token

    def is_over() -> bool:
        nova.own_token = lambda: ""
        try:
            return nova.call("GET", f"/volumes/{disk.volume}", token=token)[0] == 401
        finally:
            nova.own_token = fresh

    until(is_over, "the token is over", pause=0.5)
    go.set()
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    assert cloud.plan(disk).over.wait(60)
    assert ("completion", 200) in {(call, status) for volume, call, status in nova.calls if volume == disk.volume}
    cloud.moved(disk)


@pytest.mark.parametrize("world", [("almost", HOUR)], indirect=True)
def test_without_the_role_service_nova_refuses_and_nothing_has_changed(world: World) -> None:
    disk = used_by_mary(world)
    world.cloud.migrate(disk)
    ended = world.cloud.rest.wait_migration(disk.volume)
    assert (ended["status"], ended["error"]["code"]) == ("error", "ComputeRefused")
    assert "403: os_compute_api:os-volumes-attachments:swap" in ended["error"]["message"]
    world.cloud.stayed(disk)
