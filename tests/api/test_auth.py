"""Who the caller is: by Keystone's word, or by its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import webob

from migrator import errors
from migrator.api import auth
from migrator.context import RequestContext
from migrator.policy import Policy
from tests.api.conftest import Api, Peers

CONFIRMED = {
    "HTTP_X_IDENTITY_STATUS": "Confirmed",
    "HTTP_X_USER_ID": "u1",
    "HTTP_X_PROJECT_ID": "p1",
    "HTTP_X_ROLES": "member,reader",
}


def _who(api: Api, url_project: str | None = None, **environ: str) -> RequestContext:
    authenticate = auth.authenticator(api.conf, Policy(api.conf))
    return authenticate(webob.Request.blank("/", environ=environ), url_project)


@pytest.mark.parametrize(
    ("token", "url_project", "expected"),
    [
        ("joe:x", None, ("joe", "x", False)),
        ("joe", None, ("joe", "joe", False)),
        ("joe:x", "demo", ("joe", "demo", False)),
        ("admin:x", "demo", ("admin", "demo", True)),
        ("admin", "demo", ("admin", "demo", True)),
        ("administrator", "demo", ("administrator", "demo", False)),
    ],
)
def test_noauth_believes_the_token(
    api: Api, token: str, url_project: str | None, expected: tuple[str, str, bool]
) -> None:
    who = _who(api, url_project, HTTP_X_AUTH_TOKEN=token)
    assert (who.user_id, who.project_id, who.is_admin) == expected
    assert ("admin" in who.roles) == expected[2]


@pytest.mark.parametrize("token", [None, "notused", "admin:admin"])
@pytest.mark.parametrize(("url_project", "project"), [(None, "admin"), ("demo", "demo")])
def test_without_a_token_it_is_the_administrator(
    api: Api, token: str | None, url_project: str | None, project: str
) -> None:
    """Of the project ``admin``, or of the URL's; what clients send that have no token to send counts as none."""
    who = _who(api, url_project, **({} if token is None else {"HTTP_X_AUTH_TOKEN": token}))
    assert (who.user_id, who.project_id, who.is_admin) == ("admin", project, True)


def test_what_is_made_without_a_token_belongs_to_the_default_project(api: Api, peers: Peers) -> None:
    made = api("POST", "/v3/volumes", {"volume": {"size": 1}}, token=None, project=None)
    assert made.status == 202, made.text
    volume = api.get_volume(made.json["volume"]["id"])
    assert (volume.project_id, volume.user_id) == ("admin", "admin")
    listed = api("GET", "/v3/volumes", token=None, project=None)
    assert [each["id"] for each in listed.json["volumes"]] == [volume.id]
    assert api("GET", "/v3/os-services", token=None, project=None).status == 200, "it is an administrator"


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", ""])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_in_a_browser_is_nobody_without_a_token(api: Api, origin: str, method: str) -> None:
    """Any page on the web may have a browser send a request to loopback; none can put a header of ours to it."""
    before = api.contents()
    body = {"volume": {"size": 1}} if method == "POST" else None
    refused = api(method, "/volumes", body, token=None, headers={"Origin": origin})
    assert (refused.status, api.contents()) == (401, before)
    assert "X-Auth-Token" in refused.fault
    assert api("GET", "/volumes", token="joe", headers={"Origin": origin}).status == 200, "who says who it is may ask"


@pytest.mark.parametrize("token", ["", ":", ":demo"])
def test_a_token_without_a_user_is_refused(api: Api, token: str) -> None:
    assert api("GET", "/volumes", token=token).status == 401


#: Nobody listens at port 1: no test here needs Keystone's answer.
SETTINGS = """
[keystone_authtoken]
www_authenticate_uri = http://identity.test:5000
auth_type = password
auth_url = http://127.0.0.1:1
username = volume
password = secret
"""


@pytest.fixture
def keystone(make_api: Callable[..., Api]) -> Api:
    return make_api(SETTINGS, auth_strategy="keystone")


def test_keystones_headers_make_the_context(keystone: Api) -> None:
    who = _who(keystone, "p1", **CONFIRMED)
    assert (who.user_id, who.project_id, who.roles, who.is_admin) == ("u1", "p1", ["member", "reader"], False)
    assert _who(keystone, None, **{**CONFIRMED, "HTTP_X_ROLES": "admin"}).is_admin


@pytest.mark.parametrize("status", ["Invalid", ""])
def test_what_keystone_did_not_confirm_is_nobody(keystone: Api, status: str) -> None:
    with pytest.raises(errors.NotAuthenticated):
        _who(keystone, "p1", **{**CONFIRMED, "HTTP_X_IDENTITY_STATUS": status})


def test_the_project_of_the_url_is_that_of_the_token(keystone: Api) -> None:
    with pytest.raises(errors.BadRequest, match="Malformed request url"):
        _who(keystone, "p2", **CONFIRMED)


def test_without_a_token_there_is_discovery_alone(keystone: Api) -> None:
    """Headers that only the middleware may set do not come in from outside."""
    assert keystone("GET", "/", token=None, project=None).status == 300
    forged: dict[str, Any] = {name[5:].replace("_", "-"): value for name, value in CONFIRMED.items()}
    answer = keystone("GET", "/volumes", token=None, project="p1", headers=forged)
    assert answer.status == 401
    assert answer.json["unauthorized"]["code"] == 401
    assert answer.headers["www-authenticate"] == 'Keystone uri="http://identity.test:5000"'


def test_options_of_keystone_that_cannot_work_are_a_fault_too(
    make_api: Callable[..., Api], caplog: pytest.LogCaptureFixture
) -> None:
    answer = make_api(auth_strategy="keystone")("GET", "/volumes", token=None)
    assert answer.status == 500
    assert answer.json["computeFault"]["code"] == 500
    assert "x-openstack-request-id" in answer.headers
    assert "auth plugin is required" in caplog.text
