"""The OpenAPI document is a valid one, names whatever is served, and the answers keep to it."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest

from migrator import errors
from migrator.api import answers, openapi, queries, resource_filters, schemas, versions
from migrator.api.routes import DISCOVERY, ROUTES, Actions, Call
from tests.api.conftest import Api, Peers
from tests.api.test_policed import calls


def document() -> Any:
    """As clients read it."""
    return json.loads(json.dumps(openapi.document()))


def test_everybody_reads_it_and_it_is_valid(api: Api) -> None:
    answer = api("GET", "/openapi.json", token="", project=None, headers={"Origin": "https://elsewhere.example"})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json["openapi"] == "3.1.0"
    assert api("GET", "/openapi.json").status == 404, "it belongs to no project"
    openapi_spec_validator.validate(answer.json)


def test_it_names_every_path_and_method_and_nothing_besides() -> None:
    told = {path: {method.upper() for method in entry if method != "parameters"} for path, entry in _paths().items()}
    served = {f"/v3{path}": set(methods) for path, methods in ROUTES.items()}
    assert told == served | {path: set(methods) for path, methods in DISCOVERY.items()}


def _paths() -> dict[str, Any]:
    return dict(document()["paths"])


def test_it_says_of_every_call_who_may_and_since_when() -> None:
    paths = _paths()
    for path, method, action, call in calls():
        operation = paths[f"/v3{path}"][method.lower()]
        said = operation["x-actions"][action] if action else operation
        assert (said["x-policy"], said["x-since-microversion"]) == (call.rule, str(call.since))
        assert ("requestBody" in operation) == (call.schema is not None)
        variables = {parameter["name"] for parameter in paths[f"/v3{path}"].get("parameters", [])}
        assert variables == set(re.findall(r"{(\w+)}", path))


def test_every_route_says_what_it_answers_and_every_entry_is_a_route() -> None:
    tables = {**ROUTES, **DISCOVERY}
    routed = {
        f"{m} {path}" for path, methods in tables.items() for m, call in methods.items() if isinstance(call, Call)
    }
    assert set(answers.ANSWERS) == routed
    assert set(queries.QUERIES) <= routed
    actions = {(path, a) for path, ms in ROUTES.items() for c in ms.values() if isinstance(c, Actions) for a in c.table}
    assert set(answers.ACTION_ANSWERS) <= actions


@pytest.mark.parametrize("resource", resource_filters.FILTERS)
def test_every_filter_is_a_parameter(resource: str) -> None:
    for parameter in resource_filters.FILTERS[resource]:
        assert parameter in queries.of(f"GET /{resource}s")


def test_every_microversion_fits_its_pattern() -> None:
    pattern = document()["components"]["parameters"]["microversion"]["schema"]["pattern"]
    for minor in range(versions.MAX.minor + 1):
        assert re.search(pattern, f"volume 3.{minor}")
    assert not re.search(pattern, "volume 3.071")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (schemas.EXTEND, [1, "20"], [0, "0", "x", -1, 2**31, None]),
        (schemas.SET_BOOTABLE, [True, "true", "off"], ["maybe", 1, None]),
        (schemas.UNSET_IMAGE_METADATA, ["k"], ["", "  ", None, "k" * 256]),
    ],
)
def test_a_schema_told_refuses_what_the_one_that_is_asked_refuses(
    schema: schemas.Schema, good: list[Any], bad: list[Any]
) -> None:
    (action,) = schema.newest["required"]
    (key,) = schema.newest["properties"][action]["required"]
    told = jsonschema.Draft202012Validator(openapi.portable(schema.newest))
    for value, fits in [(value, True) for value in good] + [(value, False) for value in bad]:
        assert told.is_valid({action: {key: value}}) is fits, value
        assert _is_taken(schema, {action: {key: value}}) is fits, value


def _is_taken(schema: schemas.Schema, body: dict[str, Any]) -> bool:
    try:
        schema.check(body, versions.MAX)
    except errors.InvalidInput:
        return False
    return True


def _shown(api: Api, path: str, version: str, token: str) -> Any:
    answer = api("GET", path, version=version, token=token)
    assert answer.status == 200, answer.text
    return answer.json


def _check(route: str, body: Any) -> None:
    schema = {**answers.ANSWERS[route].schema, "components": document()["components"]}  # type: ignore[dict-item]
    jsonschema.Draft202012Validator(schema).validate(body)


@pytest.mark.parametrize("version", ["3.0", "3.27", "3.71"])
@pytest.mark.parametrize("token", ["admin", "joe:demo"])
def test_what_has_every_field_keeps_to_it(api: Api, peers: Peers, version: str, token: str) -> None:
    peers.pools = [{"name": "a@file1#pool1", "capabilities": {"total_capacity_gb": 1.0}}]
    volume_id = api.make_volume({"k": "v"}, display_name="v", image_metadata={"os": "debian"})
    snapshot_id, attachment_id = api.make_snapshot(volume_id), api.attach(volume_id)
    api.make_migration(volume_id)
    api("POST", "/types", {"volume_type": {"name": "gold", "extra_specs": {"a": "b"}}})
    paths = {
        "GET /volumes": "/volumes?limit=1",
        "GET /volumes/detail": "/volumes/detail",
        "GET /volumes/{volume_id}": f"/volumes/{volume_id}",
        "GET /snapshots/detail": "/snapshots/detail",
        "GET /snapshots/{snapshot_id}": f"/snapshots/{snapshot_id}",
        "GET /types": "/types",
    }
    if version != "3.0":
        paths["GET /attachments/{attachment_id}"] = f"/attachments/{attachment_id}"
    if token == "admin":
        paths |= {
            "GET /os-services": "/os-services",
            "GET /scheduler-stats/get_pools": "/scheduler-stats/get_pools?detail=true",
            "GET /migrations": "/migrations",
        }
    for route, path in paths.items():
        body = _shown(api, path, version, token)
        assert any(body.values()), path
        _check(route, body)


def test_an_answer_that_is_not_as_told_is_noticed(api: Api) -> None:
    volume_id = api.make_volume()
    body = _shown(api, f"/volumes/{volume_id}", "3.71", "admin")
    body["volume"]["bootable"] = True
    with pytest.raises(jsonschema.ValidationError):
        _check("GET /volumes/{volume_id}", body)
