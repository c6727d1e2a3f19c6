"""What doc/source/admin/nova.rst says of the service user's roles, and of mending Nova's record, against the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from migrator.db import volumes
from tests.api import test_keystone as keystone
from tests.api.conftest import Api, Peers
from tests.api.conftest import peers as peers_of_api
from tests.api.test_attachments import CONNECTOR, SERVER

ROLES = {"both": ["admin", "service"], "admin": ["admin"], "service": ["service"]}
PROJECT = "p-service"
CALLS = ("see the volume", "see the twin", "begin", "reserve", "connect", "complete", "detach", "report")


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Iterator[Api]:
    """The application behind Keystone, which knows a user with each of those roles."""
    server = keystone.IdentityServer()
    tokens = {f"{name}-token": ("migrator", PROJECT, roles) for name, roles in ROLES.items()}
    others = dict(keystone.TOKENS)
    keystone.TOKENS.update(tokens)
    yield keystone.api.__wrapped__(server, make_api)  # type: ignore[attr-defined]
    keystone.TOKENS.clear()
    keystone.TOKENS.update(others)
    server.shutdown()
    server.server_close()


@pytest.fixture
def peers(api: Api) -> Iterator[Peers]:
    yield from peers_of_api.__wrapped__(api)  # type: ignore[attr-defined]


def swap(api: Api, roles: str) -> dict[str, int]:
    """Make every call of a swap of a tenant's volume as a user with these roles; return the status of each answer."""
    volume_id = api.make_volume(project_id="p-tenant", status="in-use", attach_status="attached")
    old = api.attach(volume_id, instance_uuid=SERVER, connector=CONNECTOR, connection_info={"device_path": "/srv/v"})
    migration_id = api.make_migration(volume_id, plan="attached", step="swap_by_compute")
    api.db.run(lambda session: volumes.update_where(session, volume_id, migration_status="migrating"))
    twin_id = api.make_twin(volume_id, migration_id)
    caller: dict[str, Any] = {"token": f"{roles}-token", "project": PROJECT}
    newer = {**caller, "version": "3.44"}
    made = {"attachment": {"volume_uuid": twin_id, "connector": None, "instance_uuid": SERVER}}
    reserve = api("POST", "/attachments", made, **newer)
    new = reserve.json["attachment"]["id"] if reserve.status == 200 else api.attach(twin_id, instance_uuid=SERVER)
    report = {"os-migrate_volume_completion": {"new_volume": twin_id, "error": True}}
    action = f"/volumes/{volume_id}/action"
    answers = (
        api("GET", f"/volumes/{volume_id}", **caller),
        api("GET", f"/volumes/{twin_id}", **caller),
        api("POST", action, {"os-begin_detaching": None}, **caller),
        reserve,
        api("PUT", f"/attachments/{new}", {"attachment": {"connector": CONNECTOR}}, **newer),
        api("POST", f"/attachments/{new}/action", {"os-complete": None}, **newer),
        api("DELETE", f"/attachments/{old}", **newer),
        api("POST", action, report, **caller),
    )
    return dict(zip(CALLS, (answer.status for answer in answers), strict=True))


@pytest.mark.parametrize(
    ("roles", "refused"),
    [
        ("both", {}),
        ("admin", {"detach": 409}),
        ("service", dict.fromkeys(CALLS, 403)),
    ],
)
def test_the_roles_that_the_service_user_needs(api: Api, peers: Peers, roles: str, refused: dict[str, int]) -> None:
    """Nova calls back with the token that asked it to swap, in that token's project."""
    answers = swap(api, roles)
    assert {call: status for call, status in answers.items() if status >= 400} == refused


def test_novas_record_is_mended_by_a_new_attachment(api: Api, peers: Peers) -> None:
    """The calls of ``nova-manage volume_attachment refresh``: reserve, delete what is recorded, connect, complete."""
    volume_id = api.make_volume(project_id="p-tenant", status="in-use", attach_status="attached")
    shown = api.attach(volume_id, instance_uuid=SERVER, connector=CONNECTOR, connection_info={"device_path": "/srv/v"})
    lost = "5c1f2cf6-0000-4000-8000-00000000dead"
    caller: dict[str, Any] = {"token": "both-token", "project": PROJECT, "version": "3.44"}
    body = {"attachment": {"volume_uuid": volume_id, "connector": None, "instance_uuid": SERVER}}

    def refresh() -> int:
        made = api("POST", "/attachments", body, **caller).json["attachment"]["id"]
        assert api("DELETE", f"/attachments/{lost}", **caller).status == 404, "which Nova takes for success"
        connected = api("PUT", f"/attachments/{made}", {"attachment": {"connector": CONNECTOR}}, **caller)
        if connected.status != 200:
            assert api("DELETE", f"/attachments/{made}", **caller).status == 200
            return connected.status
        return api("POST", f"/attachments/{made}/action", {"os-complete": None}, **caller).status

    assert refresh() == 409, "while the one that is shown is connected"
    assert api("DELETE", f"/attachments/{shown}", **caller).status == 200
    assert refresh() == 204
    volume = api.get_volume(volume_id)
    assert (volume.status, volume.attach_status) == ("in-use", "attached")


def test_an_attachment_that_a_server_lives_by_is_not_given_up(api: Api, peers: Peers) -> None:
    """os-complete was followed and its answer lost: Nova removes the attachment, though its server writes there."""
    volume_id = api.make_volume(status="in-use", attach_status="attached")
    migration_id = api.make_migration(volume_id, plan="attached", step="swap_by_compute")
    twin_id = api.make_twin(volume_id, migration_id)
    new = api.attach(twin_id, instance_uuid=SERVER, connection_info={"device_path": "/srv/v"})
    caller: dict[str, Any] = {"token": "both-token", "project": PROJECT}
    before = api.contents()
    detach = {"os-detach": {"attachment_id": new}}
    for answer in (
        api("DELETE", f"/attachments/{new}", version="3.44", **caller),
        api("POST", f"/volumes/{twin_id}/action", detach, **caller),
    ):
        assert (answer.status, f"which volume {volume_id} is becoming" in answer.fault) == (409, True), answer.text
    assert api.contents() == before
