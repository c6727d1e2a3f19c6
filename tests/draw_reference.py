"""Writes doc/source/rest/reference.rst from the tables that the API is served by; a test keeps the two equal.

``python -m tests.draw_reference > doc/source/rest/reference.rst``
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from migrator import policy
from migrator.api import answers, queries, responses, schemas, versions
from migrator.api.answers import Answered
from migrator.api.routes import DISCOVERY, ROUTES, Actions, Call, Methods
from migrator.api.schemas import Schema

Json = Mapping[str, Any]

_RULES = {rule.name: rule for rule in policy.list_rules()}
_WHO = {
    policy.ADMIN: "administrators",
    policy.READER: "readers of the project",
    policy.MEMBER: "members of the project",
}

_HEAD = f"""\
=============
Every request
=============

.. Written by tests/draw_reference.py from the tables that the API is served by; do not edit.

Paths stand below ``/v3`` and below ``/v3/{{project_id}}``.  *Since* is the microversion from which a request is there,
and before which it is 404; a table of a body holds from its microversion on.  Parameters marked *administrators* are
unknown to everybody else.  The same for machines is at ``/openapi.json``.

Beside what is listed, a request may be answered 400 (body, query or microversion are wrong; the message names the
field), 401 (no token), 403 (the policy), 404, 405 (the method), 406 (a microversion beyond {versions.MAX}), 409 (not
now; with ``Retry-After`` where it passes by itself), 413 (the body is too long), 500, or 503 (a service or the
database does not answer).

*a boolean* may also be one of the words {", ".join(f"``{word}``" for word in schemas.TRUE)} and
{", ".join(f"``{word}``" for word in schemas.FALSE)}.
"""


def drawn() -> str:
    """Return the page, reStructuredText."""
    parts = [_HEAD, _section("versions", DISCOVERY)]
    for resource, paths in groupby(ROUTES, key=lambda path: path.split("/")[1]):
        parts.append(_section(resource, {path: ROUTES[path] for path in paths}))
    return re.sub(r"\n{3,}", "\n\n", "\n".join([*parts, _components()]))


def _titled(title: str, under: str) -> str:
    return f"{title}\n{under * len(title)}\n"


def _section(resource: str, table: Mapping[str, Methods]) -> str:
    parts = [_titled(resource, "=")]
    for path, methods in table.items():
        for method, call in methods.items():
            parts += _operation(f"{method} {path}", call)
    return "\n".join(parts)


def _operation(route: str, call: Call | Actions) -> Iterator[str]:
    if isinstance(call, Call):
        yield _titled(route, "-")
        yield from _call(call, [answers.ANSWERS[route], *answers.besides(route)])
        yield from _query(route)
        yield from _bodies(call.schema)
        return
    path = route.partition(" ")[2]
    for name, served in call.table.items():
        yield _titled(f"{route} {name}", "-")
        yield from _call(served, [answers.of_action(path, name)])
        yield from _bodies(served.schema)


# --- what every request has ------------------------------------------------------------------------------------------


def _call(call: Call, answered: list[Answered]) -> Iterator[str]:
    if call.rule is None:
        yield "Open to everybody.\n"
    else:
        rule = _RULES[call.rule]
        said = " ".join(str(rule.description).split())
        yield f"{said}\n\n:policy: ``{rule.name}``, by default {_WHO[str(rule.check_str)]}\n:since: {call.since}"
    for each in answered:
        yield f":{each.status}: {'no body' if each.schema is None else f'``{_shape(each.schema)}``'}"
    yield ""


def _query(route: str) -> Iterator[str]:
    rows = [
        (f"``{name}``", _values(query.schema), str(query.since), "administrators" if query.admin else "all")
        for name, query in queries.of(route).items()
    ]
    if rows:
        yield _table([("in the query", "value", "since", "who"), *rows])


def _values(schema: Json) -> str:
    """What a parameter of a query, or a field of a body, may be."""
    if "enum" in schema:
        return " or ".join("null" if word is None else f"``{word}``" for word in schema["enum"])
    names = schema.get("type", "anything")
    told = [str(name) for name in ([names] if isinstance(names, str) else names)]
    if schema.get("format") == "boolean":
        told = ["a boolean", *(["null"] if "null" in told else [])]
    limits = [text.format(schema[key]) for key, text in _LIMITS.items() if key in schema]
    known = _FORMATS.get(str(schema.get("format")))
    return ", ".join([" or ".join(told), *([known] if known else []), *limits])


_FORMATS = {
    "UUID": "a UUID",
    "size in GiB": f"1 to {schemas.MAX_SIZE} GiB",
    "name that is not blank": "not blank",
}
_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "not empty",
    "maxLength": "at most {} characters",
    "minProperties": "not empty",
    "maxProperties": "at most {} keys",
    "pattern": "matches ``{}``",
}

# --- bodies ----------------------------------------------------------------------------------------------------------


def _bodies(schema: Schema | None) -> Iterator[str]:
    """A table for each microversion from which the body is another one."""
    if schema is None:
        return
    for since, body in schema.by_version:
        rows = list(_fields(body, ""))
        yield _table([(f"in the body, from {since} on", "required", "value"), *rows])


def _fields(schema: Json, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Rows of the fields of an object, and of those of the objects in it; what other keys it takes comes last."""
    properties = schema.get("properties", {})
    for name, inner in properties.items():
        path = f"{prefix}{name}"
        yield f"``{path}``", _required(name, schema), _values(inner)
        yield from _fields(inner, f"{path}.")
    others = schema.get("additionalProperties", properties != {} or "type" not in schema or {})
    if isinstance(others, dict) and others:
        named = schema.get("propertyNames", {})
        yield f"``{prefix}*``", "no", f"{_values(others)}; the key: {_values({'type': 'string', **named})}"
    elif others is True and prefix and properties:
        yield f"``{prefix}*``", "no", "ignored"


def _required(name: str, schema: Json) -> str:
    if name in schema.get("required", ()):
        return "yes"
    ways = [" and ".join(way["required"]) for way in schema.get("anyOf", ())]
    return f"one of: {', '.join(ways)}" if name in ways else "no"


def _table(rows: list[tuple[str, ...]]) -> str:
    """Return rows, the first of them the heads, as a simple table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [" ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = " ".join("=" * width for width in widths)
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])


# --- answers ---------------------------------------------------------------------------------------------------------


def _shape(schema: Json) -> str:
    """An answer in short: names with a question mark are not always there."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "const" in schema or "enum" in schema:
        return " | ".join(f'"{word}"' for word in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " | ".join(map(_shape, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"[{_shape(schema['items'])}]" if "items" in schema else "[…]"
    if schema.get("type") == "object":
        return "{" + ", ".join(_members(schema)) + "}"
    named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kind = {"uuid": "UUID"}.get(str(schema.get("format")), "time" if "pattern" in schema else None)
    return " | ".join(kind if kind and name == "string" else str(name) for name in named)


def _members(schema: Json) -> Iterator[str]:
    for name, inner in schema.get("properties", {}).items():
        yield f"{name}{'' if name in schema.get('required', ()) else '?'}: {_shape(inner)}"
    if not schema.get("properties"):
        others = schema.get("additionalProperties")
        yield f"*: {_shape(others)}" if isinstance(others, dict) else "…"


def _components() -> str:
    """What the answers are made of."""
    parts = [_titled("Shapes of answers", "=")]
    for name, schema in responses.COMPONENTS.items():
        parts.append(_titled(name, "-"))
        if "properties" not in schema:
            parts.append(f"``{_shape(schema)}``\n")
            continue
        parts.append(_table([("field", "there", "value"), *_parts(schema, "")]))
    return "\n".join(parts)


def _parts(schema: Json, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Rows of the fields of an answer, those of objects in it and in its lists below them."""
    for name, inner in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        item = inner.get("items", inner)
        below = list(_parts(item, f"{path}[]." if "items" in inner else f"{path}."))
        value = ("[{…}]" if "items" in inner else "{…}") if below else _shape(inner)
        yield f"``{path}``", "always" if name in schema["required"] else "not always", f"``{value}``"
        yield from below


if __name__ == "__main__":
    print(drawn(), end="")
