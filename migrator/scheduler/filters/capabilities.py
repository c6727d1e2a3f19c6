"""Does the pool offer what the volume type's extra specs ask for."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from migrator.conf import Conf
from migrator.scheduler.filters import Filter, Request
from migrator.scheduler.pools import Pool, Usage

_SCOPE = "capabilities"

_NUMBERS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    "=": operator.ge,  # operators of the dialect read "= 5" as "at least 5"
}
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "s==": operator.eq,
    "s!=": operator.ne,
    "s>=": operator.ge,
    "s>": operator.gt,
    "s<=": operator.le,
    "s<": operator.lt,
}
_TRUE = {"true", "1", "yes", "on", "y", "t"}

#: What is known of every pool, whatever its driver reports.
_KNOWN: dict[str, Callable[[Pool], Any]] = {
    "volume_backend_name": lambda pool: pool.backend_name,
    "pool_name": lambda pool: pool.name.pool,
    "thin_provisioning_support": lambda pool: pool.thin,
    "thick_provisioning_support": lambda pool: not pool.thin,
    "total_capacity_gb": lambda pool: pool.total_gib,
    "free_capacity_gb": lambda pool: pool.free_gib,
    "reserved_percentage": lambda pool: pool.reserved_percentage,
    "storage_protocol": lambda pool: pool.driver,
}


class Spec(NamedTuple):
    """An extra spec as it is asked of every pool: what to look at, and when that satisfies it."""

    name: str
    wanted: str
    reported: Callable[[Pool], Any]
    holds: Callable[[Any], bool]


class CapabilitiesFilter(Filter):
    """Compares each spec with what the pool reports; specs of other scopes than ``capabilities:`` are not for it."""

    name = "capabilities"

    def __init__(self, conf: Conf) -> None:
        super().__init__(conf)
        #: The extra specs read last, so that those of one request are read once and not for each pool.
        self._last: tuple[Mapping[str, str], list[Spec]] = ({}, [])

    def against(self, pool: Pool, usage: Usage, request: Request) -> str | None:
        for name, wanted, reported, holds in self._specs(request.extra_specs):
            found = reported(pool)
            if found is None:
                return f"{name}: wanted {wanted!r}, not reported"
            if not holds(found):
                return f"{name}: wanted {wanted!r}, found {found!r}"
        return None

    def in_favour(self, pool: Pool, usage: Usage, request: Request) -> str:
        asked = len(self._specs(request.extra_specs))
        return f"offers all {asked} extra specs" if asked else "no extra specs were asked for"

    def _specs(self, extra_specs: Mapping[str, str]) -> list[Spec]:
        last, specs = self._last
        if last is not extra_specs:
            specs = read(extra_specs)
            self._last = (extra_specs, specs)
        return specs


def read(extra_specs: Mapping[str, str]) -> list[Spec]:
    """Return the specs that ask for a capability; dots and colons in a name lead into nested ones."""
    specs = []
    for key, wanted in extra_specs.items():
        scope, colon, name = key.partition(":")
        if colon and scope != _SCOPE:
            continue
        path = re.split("[.:]", name if colon else key)
        known = _KNOWN.get(path[0]) if len(path) == 1 else None
        specs.append(Spec(".".join(path), wanted, known or _nested(path), _of_any(condition(wanted))))
    return specs


def _nested(path: list[str]) -> Callable[[Pool], Any]:
    def reported(pool: Pool) -> Any:
        found: Any = pool.capabilities
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        return found

    return reported


def _of_any(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Of a list, any value may satisfy a spec."""
    return lambda found: any(map(holds, found)) if isinstance(found, (list, tuple)) else holds(found)


def condition(wanted: str) -> Callable[[Any], bool]:
    """Return what an extra spec asks of one value, operators included."""
    word, _, rest = wanted.strip().partition(" ")
    rest = rest.strip()
    if word == "<is>":
        truth = rest.lower() in _TRUE
        return lambda found: (str(found).lower() in _TRUE) == truth
    if word == "<in>":
        return lambda found: rest in str(found)
    if word == "<or>":
        choices = frozenset(each.strip() for each in rest.split("<or>"))
        return lambda found: str(found) in choices
    if word in _TEXTS and rest:
        return lambda found: _TEXTS[word](str(found), rest)
    if word in _NUMBERS and rest:
        return lambda found: _compare(_NUMBERS[word], found, rest)
    return lambda found: found == wanted or _equal(found, wanted)


def _compare(compare: Callable[[float, float], bool], found: Any, wanted: str) -> bool:
    try:
        return compare(float(found), float(wanted))
    except (TypeError, ValueError):
        return False


def _equal(found: Any, wanted: str) -> bool:
    if isinstance(found, bool):
        return str(found).lower() == wanted.lower()
    return str(found) == wanted or _compare(operator.eq, found, wanted)
