"""Tokens checked by a real middleware against an identity service on a socket (a double, at the process's edge)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from migrator.db import services
from tests.api.conftest import Api

#: Tokens that it knows: user, project, roles.
TOKENS = {
    "operator-token": ("olga", "p-admin", ["admin", "member", "reader"]),
    "tenant-token": ("tom", "p-tenant", ["member", "reader"]),
    "service-token": ("migrator", "p-service", ["service"]),
}
EXPIRES = "2099-01-01T00:00:00.000000Z"


class Identity(BaseHTTPRequestHandler):
    """The few calls of the Identity API v3 that the middleware makes."""

    server: IdentityServer

    def do_GET(self) -> None:
        if self.path.rstrip("/").endswith("/auth/tokens") or "/auth/tokens?" in self.path:
            self.server.asked.append(self.headers["X-Subject-Token"])
            known = TOKENS.get(self.headers["X-Subject-Token"])
            self._answer(200, self._token(*known)) if known else self._answer(404, {"error": {"code": 404}})
        else:
            version = {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": f"{self.server.url}/v3/"}]}
            whole = {"version": version} if "v3" in self.path else {"versions": {"values": [version]}}
            self._answer(200, whole)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201, self._token(*TOKENS["service-token"]), {"X-Subject-Token": "service-token"})

    def _token(self, user: str, project: str, roles: list[str]) -> dict[str, Any]:
        domain = {"id": "default", "name": "Default"}
        endpoints = [
            {"id": face, "interface": face, "region": "r", "region_id": "r", "url": f"{self.server.url}/v3"}
            for face in ("public", "internal", "admin")
        ]
        return {
            "token": {
                "methods": ["password"],
                "user": {"id": user, "name": user, "domain": domain},
                "project": {"id": project, "name": project, "domain": domain},
                "roles": [{"id": role, "name": role} for role in roles],
                "catalog": [{"id": "i", "type": "identity", "name": "keystone", "endpoints": endpoints}],
                "expires_at": EXPIRES,
                "issued_at": "2026-01-01T00:00:00.000000Z",
                "audit_ids": ["audit"],
            }
        }

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""


class IdentityServer(ThreadingHTTPServer):
    """Listens on loopback; ``asked`` are the tokens it was asked about."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Identity)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def identity() -> Iterator[IdentityServer]:
    server = IdentityServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(identity: IdentityServer, make_api: Callable[..., Api]) -> Api:
    """The application behind Keystone, with two volume services that are up."""
    section = (
        f"[keystone_authtoken]\nwww_authenticate_uri = {identity.url}\nauth_url = {identity.url}\n"
        "auth_type = password\nusername = migrator\npassword = secret\nuser_domain_id = default\n"
        "project_name = service\nproject_domain_id = default\n"
    )
    made = make_api(section, auth_strategy="keystone")
    made.beat("a@file1")
    made.beat("b@file2")
    made.beat("s", services.SCHEDULER)
    return made


def test_a_valid_token_is_accepted_with_its_roles(api: Api, identity: IdentityServer) -> None:
    answer = api("GET", "/os-services", token="operator-token", project="p-admin")
    assert answer.status == 200
    assert len(answer.json["services"]) == 3
    assert "operator-token" in identity.asked


def test_a_tenant_is_no_administrator(api: Api) -> None:
    assert api("GET", "/volumes", token="tenant-token", project="p-tenant").status == 200
    assert api("GET", "/os-services", token="tenant-token", project="p-tenant").status == 403


def test_a_token_is_good_for_its_own_project_alone(api: Api) -> None:
    answer = api("GET", "/volumes", token="tenant-token", project="p-admin")
    assert answer.status == 400
    assert "Malformed request url" in answer.json["badRequest"]["message"]


@pytest.mark.parametrize("token", ["forged", None])
def test_an_unknown_token_is_refused(api: Api, token: str | None) -> None:
    assert api("GET", "/volumes", token=token, project="p-tenant").status == 401


def test_who_asked_is_kept_in_the_migration(api: Api) -> None:
    volume_id = api.make_volume(project_id="p-tenant")
    body = {"os-migrate_volume": {"host": "b@file2#p"}}
    answer = api("POST", f"/volumes/{volume_id}/action", body, token="operator-token", project="p-admin")
    assert answer.status == 202, answer.json
    shown = api("GET", f"/migrations?volume_id={volume_id}", token="operator-token", project="p-admin").json
    asked_by = shown["migrations"][0]["requested_by"]
    assert (asked_by["user_id"], asked_by["project_id"]) == ("olga", "p-admin")


def test_a_server_keeps_what_it_has_connected_until_the_compute_service_lets_go(api: Api) -> None:
    """LP2004555: a user's own detach left the device with the server, where another volume may come to lie."""
    server = "5c1f2cf6-0000-4000-8000-000000000001"
    volume_id = api.make_volume(project_id="p-tenant", status="in-use", attach_status="attached", multiattach=True)
    used = api.attach(volume_id, instance_uuid=server, connection_info={"device_path": "/srv/v"})
    tenant: dict[str, Any] = {"token": "tenant-token", "project": "p-tenant", "version": "3.44"}
    action = f"/volumes/{volume_id}/action"
    for answer in (
        api("DELETE", f"/attachments/{used}", **tenant),
        api("POST", action, {"os-detach": {"attachment_id": used}}, **tenant),
        api("POST", action, {"os-terminate_connection": {"connector": {"host": "h"}}}, **tenant),
    ):
        assert answer.status == 409
        assert f"Attachment {used} is used by server {server}" in answer.fault
    for columns in ({"instance_uuid": None, "connection_info": {"a": 1}}, {"connection_info": None}):
        assert api("DELETE", f"/attachments/{api.attach(volume_id, **columns)}", **tenant).status == 200
    by_tenant = api("DELETE", f"/attachments/{used}", headers={"X-Service-Token": "tenant-token"}, **tenant)
    assert by_tenant.status == 409
    by_compute = api("DELETE", f"/attachments/{used}", headers={"X-Service-Token": "service-token"}, **tenant)
    assert (by_compute.status, by_compute.json) == (200, {"attachments": []})


def test_an_identity_service_that_is_away_makes_no_one_an_administrator(api: Api, identity: IdentityServer) -> None:
    identity.shutdown()
    identity.server_close()
    assert api("GET", "/os-services", token="operator-token", project="p-admin").status in (401, 503)
