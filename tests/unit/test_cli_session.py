"""Where the command line finds the service, and how it authenticates: options, OS_* variables, clouds.yaml, nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.cli_stand_in import Answer, StandIn, fault, run, serving, volume

VOLUMES: Answer = (200, {"volumes": [volume()]})
PASSWORD = {
    "OS_USERNAME": "operator",
    "OS_PASSWORD": "secret",
    "OS_PROJECT_NAME": "ops",
    "OS_USER_DOMAIN_ID": "default",
    "OS_PROJECT_DOMAIN_ID": "default",
}


def keystone(service: StandIn) -> StandIn:
    """Make ``service`` an identity service too, whose catalog names the service itself as block storage."""

    def endpoint(region: str, interface: str, url: str) -> dict[str, str]:
        return {"region": region, "region_id": region, "interface": interface, "url": url, "id": region + interface}

    token = {
        "methods": ["password"],
        "expires_at": "2100-01-01T00:00:00.000000Z",
        "issued_at": "2026-01-01T00:00:00.000000Z",
        "user": {"id": "u", "name": "operator", "domain": {"id": "default", "name": "Default"}},
        "project": {"id": "p1", "name": "ops", "domain": {"id": "default", "name": "Default"}},
        "catalog": [
            {
                "type": "volumev3",
                "id": "v",
                "name": "cinder",
                "endpoints": [
                    endpoint("one", "public", f"{service.url}/v3/p1"),
                    endpoint("two", "internal", f"{service.url}/two/v3/p1"),
                ],
            }
        ],
    }
    version = {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": f"{service.url}/identity/v3/"}]}
    service.answers.update(
        {
            "GET /identity/v3": (200, {"version": version}),
            "POST /identity/v3/auth/tokens": (201, {"token": token}),
            "GET /v3/p1/volumes/detail": VOLUMES,
            "GET /two/v3/p1/volumes/detail": VOLUMES,
            "GET /elsewhere/volumes/detail": VOLUMES,
        }
    )
    return service


def last(service: StandIn) -> tuple[str, str]:
    """Return path and token of the last request."""
    return service.requests[-1].path, service.requests[-1].headers["x-auth-token"]


@pytest.mark.parametrize(
    ("environment", "path", "token"),
    [
        ({}, "/v3/admin", "admin:admin"),
        ({"MIGRATOR_TOKEN": "bob:proj"}, "/v3/proj", "bob:proj"),
        ({"MIGRATOR_TOKEN": "bob"}, "/v3/bob", "bob"),
        ({"OS_ENDPOINT": "{url}/elsewhere", "OS_TOKEN": "t0"}, "/elsewhere", "t0"),
    ],
)
def test_without_a_cloud_it_is_the_service_of_this_machine(environment: dict[str, str], path: str, token: str) -> None:
    with serving({f"GET {p}/volumes/detail": VOLUMES for p in ("", "/v3/proj", "/v3/bob", "/elsewhere")}) as service:
        result = service.run("list", **{key: value.format(url=service.url) for key, value in environment.items()})
    assert (result.code, result.err) == (0, "")
    assert last(service) == (f"{path}/volumes/detail", token)


def test_the_service_of_this_machine_is_where_migrator_all_listens() -> None:
    from migrator.cli import session

    assert f"{session.LOCAL_URL}/v3/{session.LOCAL_TOKEN.split(':')[1]}" == "http://127.0.0.1:8776/v3/admin"


def test_variables_of_a_cloud_authenticate_and_the_catalog_says_where() -> None:
    with serving({}) as service:
        keystone(service)
        result = run("list", OS_AUTH_URL=f"{service.url}/identity/v3", **PASSWORD)
    assert (result.code, result.err) == (0, "")
    assert last(service) == ("/v3/p1/volumes/detail", "a-token")
    asked = next(request.body["auth"] for request in service.requests if request.method == "POST")
    assert asked["identity"]["password"]["user"]["name"] == "operator"
    assert asked["scope"]["project"]["name"] == "ops"


def test_options_beat_variables() -> None:
    with serving({}) as service:
        keystone(service)
        url = f"{service.url}/identity/v3"
        options = ["--os-username", "other", "--os-region-name", "two", "--os-interface", "internal"]
        result = run(*options, "list", OS_AUTH_URL=url, OS_REGION_NAME="one", **PASSWORD)
    assert (result.code, result.err) == (0, "")
    assert last(service)[0] == "/two/v3/p1/volumes/detail"
    asked = next(request.body["auth"] for request in service.requests if request.method == "POST")
    assert asked["identity"]["password"]["user"]["name"] == "other"


@pytest.mark.parametrize("how", ["variable", "option"])
def test_an_endpoint_stands_in_for_the_catalog(how: str) -> None:
    with serving({}) as service:
        keystone(service)
        where = f"{service.url}/elsewhere"
        environment = {"OS_AUTH_URL": f"{service.url}/identity/v3", **PASSWORD}
        result = (
            run("list", OS_ENDPOINT=where, **environment)
            if how == "variable"
            else run("--os-endpoint", where, "list", **environment)
        )
    assert (result.code, result.err) == (0, "")
    assert last(service) == ("/elsewhere/volumes/detail", "a-token")


def test_a_token_authenticates_without_a_user() -> None:
    with serving({}) as service:
        keystone(service)
        project = {key: value for key, value in PASSWORD.items() if "PROJECT" in key}
        result = run("list", OS_AUTH_URL=f"{service.url}/identity/v3", OS_TOKEN="t1", **project)
    assert (result.code, result.err) == (0, "")
    asked = next(request.body["auth"] for request in service.requests if request.method == "POST")
    assert asked["identity"]["token"] == {"id": "t1"}


def clouds(directory: Path, **entry: Any) -> str:
    """Write a clouds.yaml with one entry, its password in secure.yaml, and return its path."""
    file = directory / "clouds.yaml"
    file.write_text(yaml.safe_dump({"clouds": {"mine": entry}}))
    (directory / "secure.yaml").write_text(yaml.safe_dump({"clouds": {"mine": {"auth": {"password": "secret"}}}}))
    return str(file)


@pytest.mark.parametrize("how", ["variable", "option"])
def test_an_entry_of_clouds_yaml_says_it_all(tmp_path: Path, how: str) -> None:
    with serving({}) as service:
        keystone(service)
        auth = {
            "auth_url": f"{service.url}/identity/v3",
            "username": "operator",
            "project_name": "ops",
            "user_domain_id": "default",
            "project_domain_id": "default",
        }
        file = clouds(tmp_path, auth=auth, region_name="two", interface="internal")
        result = (
            run("list", OS_CLIENT_CONFIG_FILE=file, OS_CLOUD="mine")
            if how == "variable"
            else run("--os-cloud", "mine", "list", OS_CLIENT_CONFIG_FILE=file)
        )
    assert (result.code, result.err) == (0, "")
    assert last(service) == ("/two/v3/p1/volumes/detail", "a-token")
    asked = next(request.body["auth"] for request in service.requests if request.method == "POST")
    assert asked["identity"]["password"]["user"]["password"] == "secret"


@pytest.mark.parametrize(
    ("argv", "environment", "words"),
    [
        (["--os-cloud", "yours"], {}, "has no cloud 'yours', only: mine"),
        (["--os-cloud", "mine"], {"OS_CLIENT_CONFIG_FILE": "/nonexistent"}, "there is no clouds.yaml"),
        (["--os-auth-type", "nonsense"], {}, "there is no auth type 'nonsense'"),
        (["--os-auth-type", "password"], {}, "auth_url"),
        (["--timeout", "soon"], {}, "argument --timeout"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(
    tmp_path: Path, argv: list[str], environment: dict[str, str], words: str
) -> None:
    result = run(*argv, "list", **{"OS_CLIENT_CONFIG_FILE": clouds(tmp_path, auth={}), **environment})
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert result.err.count("\n") == 1


def test_a_wrong_password_is_refused_in_one_line() -> None:
    with serving({}) as service:
        keystone(service)
        service.answers["POST /identity/v3/auth/tokens"] = fault(401, "The password is wrong.", "error")
        result = run("list", OS_AUTH_URL=f"{service.url}/identity/v3", **PASSWORD)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("The password is wrong.")
    assert result.err.count("\n") == 1


def test_an_identity_service_that_is_away_is_named() -> None:
    with serving({}) as service:
        url = service.url
    result = run("list", OS_AUTH_URL=f"{url}/identity/v3", **PASSWORD)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"cannot reach {url}: connection refused\n"


def test_a_catalog_without_block_storage_is_said() -> None:
    with serving({}) as service:
        keystone(service)
        token: Any = service.answers["POST /identity/v3/auth/tokens"]
        token[1]["token"]["catalog"][0]["type"] = "image"
        result = run("list", OS_AUTH_URL=f"{service.url}/identity/v3", **PASSWORD)
    assert (result.code, result.out) == (2, "")
    assert "block-storage" in result.err
