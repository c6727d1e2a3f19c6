"""What stands before the application: cross-origin requests, the proxy's word, and a line for every request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.conftest import Api

PAGE = "https://horizon.example"


def _preflight(api: Api, origin: str) -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "X-Auth-Token,OpenStack-API-Version",
    }
    return api("OPTIONS", "/volumes", token=None, headers=headers)


def test_pages_of_a_named_origin_may_ask(make_api: Callable[..., Api]) -> None:
    api = make_api(f"[cors]\nallowed_origin = {PAGE}\n")
    answer = _preflight(api, PAGE)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-headers" in answer.headers
    assert "access-control-allow-origin" not in _preflight(api, "https://elsewhere.example").headers
    shown = api("GET", "/volumes", headers={"Origin": PAGE})
    assert (shown.status, shown.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "OpenStack-API-Version" in shown.headers["access-control-expose-headers"]
    refused = api("GET", "/volumes", token=None, headers={"Origin": PAGE})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, PAGE)


def test_without_an_origin_nobody_may(api: Api) -> None:
    answer = _preflight(api, PAGE)
    assert answer.status == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_links_are_those_of_the_proxy_when_its_word_is_taken(make_api: Callable[..., Api]) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "cloud.example"}

    def link(api: Api) -> str:
        api.make_volume()
        return str(api("GET", "/volumes", headers=headers).json["volumes"][0]["links"][0]["href"])

    assert link(make_api()).startswith("http://api.test:8776/")
    assert link(make_api("[oslo_middleware]\nenable_proxy_headers_parsing = true\n")).startswith(
        "https://cloud.example/v3/"
    )


@pytest.mark.parametrize(
    ("token", "path", "expected"),
    [
        ("joe", "/volumes?name=secret", ('"GET /v3/demo/volumes" status: 200', "user: joe project: demo")),
        ("", "/volumes", ('"GET /v3/demo/volumes" status: 401', "user: - project: -")),
        ("joe", "/moon", ('"GET /v3/demo/moon" status: 404', "user: - project: -")),
    ],
)
def test_each_request_is_a_line_with_who_asked(
    api: Api, caplog: pytest.LogCaptureFixture, token: str | None, path: str, expected: tuple[str, str]
) -> None:
    with caplog.at_level(logging.INFO, "migrator.api.access"):
        answer = api("GET", path, token=token)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "migrator.api.access"]
    assert expected[0] in line
    assert expected[1] in line
    assert answer.headers["x-openstack-request-id"] in line
    assert "secret" not in line


def test_a_request_cannot_forge_a_line(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "migrator.api.access"):
        api("GET", "/volumes%0Aforged%1b[2J", token="joe")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "migrator.api.access"]
    assert line.isprintable()
    assert "volumes?forged" in line


def test_a_callers_own_request_id_is_kept_beside_ours(api: Api) -> None:
    theirs = "req-5c1f2cf6-0000-4000-8000-000000000000"
    migration = {"os-migrate_volume": {"host": "b@file2#pool2"}}
    volume_id = api.make_volume()
    answer = api("POST", f"/volumes/{volume_id}/action", migration, headers={"X-OpenStack-Request-ID": theirs})
    assert answer.status == 202
    ours = answer.headers["x-openstack-request-id"]
    assert ours != theirs
    row = api("GET", f"/migrations?volume_id={volume_id}").json["migrations"][0]
    assert row["requested_by"]["request_id"] == ours
