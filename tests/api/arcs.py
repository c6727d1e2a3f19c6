"""Arcs: tables of requests, each with what must come back.

A step reads ``("what happens", "POST /volumes", 202, {...})``.  ``$name`` in a path, a body or an expectation stands
for what an earlier step kept, or the test gave.  Expected values are found by path: ``volume.metadata.k``,
``volumes.0.id``, and ``volumes.#`` for a length; ``fault`` is the message of a fault, of which a part is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any

from tests.api.conftest import Answer, Api

MISSING = "(missing)"


@dataclass(frozen=True)
class Step:
    """One request of an arc."""

    title: str
    request: str
    status: int
    expect: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    token: str | None = "admin"
    version: str | None = None
    #: Names under which values of the answer are kept for later steps.
    keep: Mapping[str, str] = field(default_factory=dict)
    project: str | None = "demo"
    headers: Mapping[str, str] = field(default_factory=dict)


def run(api: Api, steps: Sequence[Step], **known: Any) -> dict[str, Any]:
    """Send every request in turn; return what was kept."""
    kept = dict(known)
    for step in steps:
        method, _, path = _filled(step.request, kept).partition(" ")
        answer = api(
            method,
            path,
            _filled(step.body, kept),
            token=step.token,
            version=step.version,
            project=step.project,
            headers=dict(step.headers),
        )
        assert answer.status == step.status, f"{step.title}: {answer.status} {answer.text[:500]!r}"
        for path, wanted in step.expect.items():
            _check(step.title, path, _filled(wanted, kept), answer)
        for name, path in step.keep.items():
            kept[name] = find(answer.json, path)
    return kept


def _check(title: str, path: str, wanted: Any, answer: Answer) -> None:
    if path == "fault":
        assert wanted in answer.fault, f"{title}: {wanted!r} is not in {answer.fault!r}"
        return
    got = answer.headers.get(path[1:], MISSING) if path.startswith("@") else find(answer.json, path)
    assert got == wanted, f"{title}: {path} is {got!r}, not {wanted!r}"


def find(body: Any, path: str) -> Any:
    """Return the value at a path, or MISSING."""
    for part in path.split("."):
        if part == "#":
            body = len(body)
        elif isinstance(body, list):
            body = body[int(part)] if int(part) < len(body) else MISSING
        elif isinstance(body, dict):
            body = body.get(part, MISSING)
        else:
            return MISSING
    return body


def _filled(thing: Any, kept: Mapping[str, Any]) -> Any:
    if isinstance(thing, str):
        return Template(thing).safe_substitute(kept)
    if isinstance(thing, dict):
        return {_filled(key, kept): _filled(value, kept) for key, value in thing.items()}
    if isinstance(thing, list):
        return [_filled(part, kept) for part in thing]
    return thing
