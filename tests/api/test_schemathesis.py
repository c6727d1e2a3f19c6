"""What the OpenAPI document lets clients send, and what it does not, is answered as it says; nothing breaks.

In one process, without a network, in front of a real scheduler and real volume services, so that there is no excuse:
no answer may be 5xx.  Ids are mostly those of things that exist, in every state that decides something.
"""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from migrator.api import openapi
from migrator.api.routes import DISCOVERY
from tests.api.conftest import DESTINATION, SOURCE, Api
from tests.api.plant import Plant

#: Requests to each operation that fit the document, and as many that do not.
EXAMPLES = 4
_SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
#: They take nothing that could be wrong.
_OPEN = {f"GET {path}" for path in DISCOVERY}
_FAR = "5c1f2cf6-0000-4000-8000-000000000000"


def _operations() -> dict[str, Any]:
    """Every operation, and in the place of one with many actions, one for each."""
    document = json.loads(json.dumps(openapi.document()))
    found = {}
    for path, methods in document["paths"].items():
        shared = {"parameters": methods.pop("parameters", [])}
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            alone = _actions(name, operation) if "x-actions" in operation else {name: operation}
            for title in alone.keys() - _OPEN:
                found[title] = _load({**document, "paths": {path: {method: alone[title], **shared}}})
    return {title: found[title] for title in sorted(found)}


def _actions(name: str, operation: Any) -> dict[str, Any]:
    found = {}
    for body in operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"]:
        action = body["required"][0]
        told = operation["x-actions"][action]
        content = {"content": {"application/json": {"schema": told["answer"]}}} if "answer" in told else {}
        faults = {status: response for status, response in operation["responses"].items() if int(status) >= 400}
        found[f"{name} {action}"] = {
            **operation,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {str(told["status"]): {"description": "Success", **content}, **faults},
        }
    return found


def _load(document: dict[str, Any]) -> Any:
    (found,) = (
        each.ok() for each in schemathesis.openapi.from_dict(document).get_all_operations() if isinstance(each, Ok)
    )
    return found


OPERATIONS = _operations()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_document_is_kept_to(api: Api, plant: Plant, operation: str) -> None:
    things = _things(api, plant)
    for mode in GenerationMode:
        try:
            cases = OPERATIONS[operation].as_strategy(generation_mode=mode)
        except Exception as error:
            pytest.fail(f"no requests can be made for {operation}: {error}")
        _send(cases, api, things)


def _things(api: Api, plant: Plant) -> dict[str, list[str]]:
    """What there is by the names under which paths, queries and bodies speak of it; what is named first is there."""
    idle, used, kept, moving = (plant.volume(volume_type_id=None) for _ in range(4))
    api("POST", "/types", {"volume_type": {"name": "gold", "extra_specs": {"a": "b"}}})
    types = api("POST", "/types", {"volume_type": {"name": "open", "os-volume-type-access:is_public": False}})
    connected = api("POST", "/attachments", {"attachment": _attachment(used)}, version="3.71").json["attachment"]["id"]
    reserved = api.attach(plant.volume(status="reserved"), attach_status="reserved", attached_host=None)
    snapshot_id = api.make_snapshot(kept)
    migration_id = api.make_migration(moving)
    ended = api.make_migration(plant.volume(), end="error", step="copy_data")
    twin = api.make_twin(moving, migration_id)
    error = api.make_volume(status="error", host=None)
    volume_ids = [idle, used, kept, moving, twin, error, _FAR]
    return {
        **dict.fromkeys(("volume_id", "volume_uuid", "source_volid", "new_volume"), volume_ids),
        "resource_id": volume_ids,
        "snapshot_id": [snapshot_id, _FAR],
        "attachment_id": [connected, reserved, _FAR],
        "migration_id": [migration_id, ended, _FAR],
        "type_id": [types.json["volume_type"]["id"], _FAR],
        **{name: ["gold", "open", "none"] for name in ("volume_type", "new_type")},
        "host": [SOURCE, DESTINATION, "a@file1", "b@file2", "c@file3"],
        "binary": ["migrator-volume", "migrator-scheduler"],
        "key": ["a", "b"],
        "alias": ["os-volume-manage"],
    }


def _attachment(volume_id: str) -> dict[str, Any]:
    return {"volume_uuid": volume_id, "instance_uuid": _FAR, "connector": {"host": "compute1", "initiator": "iqn.a"}}


def _send(cases: Any, api: Api, things: dict[str, list[str]]) -> None:
    named = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in things.items()})

    @_SETTINGS
    @hypothesis.given(cases, named, st.integers(0, 4))
    def send(case: Any, chosen: dict[str, str], chance: int) -> None:
        case.path_parameters.update({name: chosen[name] for name in case.path_parameters if name in chosen})
        if chance and isinstance(case.body, dict):
            case.body = _named(case.body, chosen)
        if chance and isinstance(case.query, dict):
            case.query.update({name: chosen[name] for name in case.query if name in chosen})
        case.headers = {**(case.headers or {}), "X-Auth-Token": "admin:demo"}
        response = case.call(app=api.app, base_url="http://api.test")
        assert response.status_code < 500, response.text
        case.validate_response(response, checks=[status_code_conformance, response_schema_conformance])

    send()


def _named(body: Any, chosen: dict[str, str]) -> Any:
    """Return the body with what exists in the place of what is named."""
    if not isinstance(body, dict):
        return body
    return {
        key: chosen[key] if key in chosen and isinstance(value, str) else _named(value, chosen)
        for key, value in body.items()
    }
