"""``/openapi.json``: the API for machines, made of the tables that it is served by.

Paths are shown below ``/v3``; each also stands below ``/v3/{project_id}``.  Bodies are those of the newest
microversion, answers those of every one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from migrator.api import answers, queries, responses, schemas, versions
from migrator.api.faults import NAMES
from migrator.api.wsgi import Answer, Json, Request

if TYPE_CHECKING:
    from migrator.api.routes import Actions, Call, Methods

#: Statuses that any route may answer instead of its own; 406 has a name in the dialect that says nothing.
_FAULTS = sorted({*NAMES, 406, 500})
_PATH_VARIABLE = re.compile(r"{(\w+)}")


def show(request: Request) -> Answer:
    """``GET /openapi.json``: the document; made once."""
    return Answer(200, document())


@functools.cache
def document() -> Json:
    """Return the OpenAPI 3.1 document of all routes."""
    from migrator.api.routes import DISCOVERY, ROUTES

    paths = {path: _path(path, methods) for path, methods in DISCOVERY.items()}
    paths |= {f"/v3{path}": _path(path, methods) for path, methods in ROUTES.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "migrator",
            "version": str(versions.MAX),
            "summary": "Block storage that moves",
            "description": "Every path below /v3 is also served below /v3/{project_id}. Bodies of requests are those "
            f"of microversion {versions.MAX}; what only some microversions answer with is not required.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": responses.COMPONENTS,
            "parameters": {"microversion": _microversion()},
            "headers": {"microversion": {"schema": {"type": "string"}, "description": "the microversion used"}},
            "responses": {str(status): _fault(status) for status in _FAULTS},
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
        },
    }


def _microversion() -> Json:
    pattern = r"^(volume|block-storage) (latest|3\.(0|[1-9][0-9]?))$"
    return {
        "name": versions.HEADER,
        "in": "header",
        "description": f"The microversion, {versions.MIN} to {versions.MAX} or latest; without it {versions.MIN}.",
        "schema": {"type": "string", "pattern": pattern},
        "example": f"volume {versions.MAX}",
    }


def _fault(status: int) -> Json:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Fault"}}}
    return {"description": NAMES.get(status, "computeFault"), "content": content}


# --- operations ------------------------------------------------------------------------------------------------------


def _path(path: str, methods: Methods) -> Json:
    shown: Json = {method.lower(): _operation(path, method, call) for method, call in methods.items()}
    variables = _PATH_VARIABLE.findall(path)
    if variables:
        shown["parameters"] = [_variable(name) for name in variables]
    return shown


def _variable(name: str) -> Json:
    schema: Json = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _operation(path: str, method: str, call: Call | Actions) -> Json:
    from migrator.api.routes import Call

    if not isinstance(call, Call):
        return _operation_of_actions(path, call.table)
    answered = answers.ANSWERS[f"{method} {path}"]
    shown: Json = {
        "operationId": _identifier(method, path),
        "tags": [_tag(path)],
        **_said(call),
        "responses": _responses(call.rule is None, answered, *answers.besides(f"{method} {path}")),
    }
    if call.rule is None:
        return {**shown, "security": []}
    shown["parameters"] = _parameters(f"{method} {path}")
    if call.schema is not None:
        shown["requestBody"] = _body(portable(call.schema.newest))
    return shown


def _operation_of_actions(path: str, table: Mapping[str, Call]) -> Json:
    answered = {name: answers.of_action(path, name) for name in table}
    bodies = [portable(call.schema.newest) for call in table.values() if call.schema is not None]
    return {
        "operationId": _identifier("POST", path),
        "tags": [_tag(path)],
        "x-actions": {name: {**_said(call), **_of_action(answered[name])} for name, call in table.items()},
        "parameters": _parameters(f"POST {path}"),
        "requestBody": _body({"oneOf": bodies}),
        "responses": _responses(False, *answered.values()),
    }


def _of_action(answered: answers.Answered) -> Json:
    """The success of one action; the operation's own responses are those of all actions together."""
    return {"status": answered.status} | ({"answer": answered.schema} if answered.schema is not None else {})


def _said(call: Call) -> Json:
    """What the dialect has no words for: who may, and from which microversion on."""
    if call.rule is None:
        return {}
    return {"x-policy": call.rule, "x-since-microversion": str(call.since)}


def _identifier(method: str, path: str) -> str:
    return "_".join([method.lower(), *re.findall(r"\w+", path)])


def _tag(path: str) -> str:
    return path.split("/")[1] or "versions"


def _parameters(route: str) -> list[Json]:
    shown: list[Json] = [{"$ref": "#/components/parameters/microversion"}]
    for name, query in queries.of(route).items():
        parameter = {"name": name, "in": "query", "schema": query.schema, "x-since-microversion": str(query.since)}
        shown.append({**parameter, "x-admin": True} if query.admin else parameter)
    return shown


def _body(schema: Json) -> Json:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _responses(is_open: bool, *answered: answers.Answered) -> Json:
    """Successes, those of one status together, and the faults that every route may answer."""
    shown: Json = {}
    for status in sorted({each.status for each in answered}):
        bodies: list[Json] = []
        for each in answered:
            if each.status == status and each.schema is not None and each.schema not in bodies:
                bodies.append(each.schema)
        shown[str(status)] = {"description": "Success", "headers": _HEADERS}
        if bodies:
            schema = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
            shown[str(status)]["content"] = {"application/json": {"schema": schema}}
    faults = [] if is_open else _FAULTS
    return shown | {str(status): {"$ref": f"#/components/responses/{status}"} for status in faults}


_HEADERS: Json = {versions.HEADER: {"$ref": "#/components/headers/microversion"}}

# --- schemas ---------------------------------------------------------------------------------------------------------

_WORDS = "|".join(schemas.TRUE + schemas.FALSE)
#: Our formats in the words that every reader of JSON schemas knows.
_FORMATS: dict[str, Json] = {
    "boolean": {"pattern": f"^({_WORDS})$"},
    "UUID": {"format": "uuid"},
    "size in GiB": {"minimum": 1, "maximum": schemas.MAX_SIZE, "pattern": "^0*[1-9][0-9]{0,8}$"},
    "name that is not blank": {"pattern": r"\S"},
}


def portable(schema: Any) -> Any:
    """Return a schema of ``schemas`` without formats and expressions of our own; it refuses the same bodies."""
    if isinstance(schema, list | tuple):
        return [portable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    shown = {key: portable(value) for key, value in schema.items()}
    known = _FORMATS.get(str(shown.get("format")))
    if known is not None:
        del shown["format"]
        shown |= known
    if isinstance(shown.get("pattern"), str):
        shown["pattern"] = shown["pattern"].replace(r"\Z", "$")
    return shown
