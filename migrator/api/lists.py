"""What the query of a list means: paging, order and filters."""

from __future__ import annotations

import ast
import datetime
import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from migrator import errors
from migrator.api import schemas, versions
from migrator.api.versions import MIN, Version
from migrator.api.wsgi import Request
from migrator.db.listing import Condition, Page

_MAX_OFFSET = 2**31 - 1

Parameters = dict[str, str]


def split(request: Request) -> tuple[Page, Parameters]:
    """Return the page that the query asks for, and its other parameters; raises InvalidInput."""
    return split_query(request, request.query)


def split_query(request: Request, rest: Parameters) -> tuple[Page, Parameters]:
    """Do so with the parameters ``rest``."""
    ceiling = request.conf.osapi_max_limit
    limit = min(_number(rest, "limit", ceiling), ceiling)
    offset = _number(rest, "offset", 0)
    return Page(limit, rest.pop("marker", None), offset, _sort(rest)), rest


def _number(rest: Parameters, name: str, default: int) -> int:
    text = rest.pop(name, None)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > _MAX_OFFSET:
        raise errors.InvalidInput(field=name, reason=f"{text[:40]!r} is not a number from 0 on")
    return int(text)


def _sort(rest: Parameters) -> list[tuple[str, bool]]:
    """Return the sort keys: ``sort=size:asc,name`` or the older ``sort_key`` and ``sort_dir``."""
    together = rest.pop("sort", None)
    key, direction = rest.pop("sort_key", None), rest.pop("sort_dir", None)
    if together is not None and (key or direction):
        raise errors.InvalidInput(field="sort", reason="it cannot be used together with sort_key and sort_dir")
    if together is None:
        together = f"{key or 'created_at'}:{direction or 'desc'}"
    return [_sort_key(part) for part in together.split(",")]


def _sort_key(part: str) -> tuple[str, bool]:
    key, _, direction = (text.strip() for text in part.partition(":"))
    if direction not in ("", "asc", "desc"):
        raise errors.InvalidInput(field="sort", reason=f"{direction[:40]!r} is neither asc nor desc")
    return key, direction != "asc"


# --- filters ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """A parameter of a list: its SQL, from which microversion on, and whether only administrators have it."""

    condition: Callable[[str], Condition]
    since: Version = MIN
    admin: bool = False


def conditions(request: Request, filters: Mapping[str, Filter], rest: Parameters) -> list[Condition]:
    """Return the SQL of every filter in the query.

    What a tenant may not filter by is ignored before 3.31 and refused from then on, as the public API does; to an
    administrator we always say that a filter is unknown: everything or nothing would be the wrong list.
    """
    wanted = []
    for name, text in rest.items():
        known = filters.get(name)
        if known is not None and known.since <= request.version and (request.is_admin or not known.admin):
            wanted.append(known.condition(text))
        elif request.is_admin or request.version >= versions.STRICT_FILTERS:
            raise errors.InvalidInput(field="query", reason=f"{name[:40]!r} is not a filter of this list")
    return wanted


def all_tenants(request: Request, rest: Parameters) -> bool:
    """Take ``all_tenants`` out of the query; only an administrator's counts."""
    asked = flag(rest, "all_tenants")
    return asked and request.is_admin


def flag(rest: Parameters, name: str, default: bool = False) -> bool:
    """Take a boolean out of the query; raises InvalidInput."""
    return truth(name)(rest.pop(name)) if name in rest else default


def truth(name: str) -> Callable[[str], bool]:
    """Return the reader of a boolean parameter."""

    def read(text: str) -> bool:
        if text.lower() not in schemas.TRUE + schemas.FALSE:
            raise errors.InvalidInput(field=name, reason=f"{text[:40]!r} is not a boolean")
        return text.lower() in schemas.TRUE

    return read


def equals(column: Any) -> Filter:
    return Filter(lambda text: column == text)


def admin_equals(column: Any) -> Filter:
    return Filter(lambda text: column == text, admin=True)


def is_true(column: Any, name: str) -> Filter:
    read = truth(name)
    return Filter(lambda text: column.is_(read(text)))


def integer(column: Any, name: str) -> Filter:
    return Filter(lambda text: column == _number({name: text}, name, 0))


def pairs(text: str, field: str) -> dict[str, str]:
    """Return the pairs of a metadata filter: JSON, or a Python dictionary as the common client sends it."""
    found: Any = None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if not isinstance(found, dict) or not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise errors.InvalidInput(field=field, reason=f"{text[:80]!r} is not a dictionary of strings")
    if not all(_is_storable(part) for pair in found.items() for part in pair):
        raise errors.InvalidInput(field=field, reason="it has a NUL character, or half a surrogate pair")
    return found


def json_pairs(column: Any, name: str, since: Version = MIN) -> Filter:
    """A filter of pairs in a JSON column; all of them must be there.

    Not every database finds, by a path into JSON, keys with characters that are escaped there.
    """
    import sqlalchemy as sa

    def condition(text: str) -> Condition:
        wanted = pairs(text, name)
        for key in wanted:
            if '"' in key or "\\" in key or not (key.isascii() and key.isprintable()):
                raise errors.InvalidInput(field=name, reason=f"nothing can be looked for by the key {key[:40]!r}")
        return sa.and_(sa.true(), *(column[key].as_string() == value for key, value in wanted.items()))

    return Filter(condition, since)


def _is_storable(text: str) -> bool:
    """Tell whether a database can compare with that: escapes may stand for what no query itself can hold."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
}


def times(column: Any, name: str) -> Filter:
    """A filter such as ``created_at=gt:2026-01-02T15:04:05,lt:2026-02-01``."""
    import sqlalchemy as sa

    def condition(text: str) -> Condition:
        parts = []
        for part in text.split(","):
            comparison, _, value = part.strip().partition(":")
            if comparison not in _COMPARISONS:
                raise errors.InvalidInput(field=name, reason=f"{comparison[:40]!r} is not one of {list(_COMPARISONS)}")
            parts.append(_COMPARISONS[comparison](column, time(value, name)))
        return sa.and_(*parts)

    return Filter(condition, versions.TIME_FILTERS)


def time(text: str, field: str) -> datetime.datetime:
    """Return a time given in ISO 8601 as naive UTC; without a zone it is UTC."""
    try:
        value = datetime.datetime.fromisoformat(text.strip())
        return value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:  # the latter where the zone leads out of the calendar
        raise errors.InvalidInput(
            field=field, reason=f"{text[:40]!r} is not a time such as 2026-01-02T15:04:05"
        ) from error
