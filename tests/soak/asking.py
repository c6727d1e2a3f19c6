"""How users ask: one request, its answer in one word, and what is a violation in itself."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.soak.model import User, Volume
from tests.soak.plants import Plant
from tests.support.rest import Rest

#: Answers that say why not; 500 and whatever else is a violation.
REFUSALS = (400, 404, 409, 503)


class Violation(AssertionError):
    """Something that must not be."""


@dataclass(frozen=True)
class Bench:
    """What an operation works with."""

    plant: Plant
    rest: Rest
    user: User


Act = Callable[[Bench, Volume], str]
"""Does it and says what came of it."""


def ask(bench: Bench, method: str, path: str, body: Any = None) -> tuple[int | None, Any]:
    """Return status and answer; no status where the connection broke and nobody knows what came of it."""
    try:
        status, answer = bench.rest.request(method, path, body)
    except (OSError, http.client.HTTPException, ValueError):
        return None, None
    if status >= 300 and status not in REFUSALS:
        raise Violation(f"{method} {path} {body}: {status} {answer}")
    return status, answer


def word(status: int | None) -> str:
    return "not answered" if status is None else "accepted" if status < 300 else f"refused {status}"


def is_accepted(status: int | None) -> bool:
    return status is not None and status < 300


def is_uncertain(status: int | None) -> bool:
    """Tell whether the request may have been done all the same: a database that went away says nothing certain."""
    return status in (None, 503)
