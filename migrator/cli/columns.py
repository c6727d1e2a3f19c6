"""What is shown of each kind of thing: tables of columns, and how quantities read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cliff.columns import FormattableColumn

Json = dict[str, Any]
#: Takes what the API gave of one thing, and returns what stands in the column.
Cell = Callable[[Json], Any]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_text(count: float) -> str:
    """Return a number of bytes as people read it: 1.5 GiB."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def seconds_text(seconds: float) -> str:
    """Return a duration as people read it: 3.2 s, 4:05 min, 2:00:09 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def percent(migration: Json) -> float | None:
    """Return how much of a migration's bytes is done; None while that is not known."""
    total, done = migration.get("bytes_total"), migration.get("bytes_done")
    if migration.get("status") == "success":
        return 100.0
    if not total or done is None:
        return None
    return min(100.0, 100.0 * float(done) / float(total))


class Quantity(FormattableColumn[Any]):
    """A number which tables show with its unit, and machines get as it is."""

    text: Callable[[float], str]

    def human_readable(self) -> str:
        return type(self).text(self._value)


class Bytes(Quantity):
    text = staticmethod(bytes_text)


class Rate(Quantity):
    text = staticmethod(lambda rate: f"{bytes_text(rate)}/s")


class Seconds(Quantity):
    text = staticmethod(seconds_text)


class Percent(Quantity):
    text = staticmethod(lambda share: f"{share:.0f} %")


class Nothing(FormattableColumn[None]):
    """No value: an empty cell in a table, null for machines; sorts before any value."""

    def human_readable(self) -> str:
        return ""

    def __lt__(self, other: object) -> bool:
        return not isinstance(other, Nothing)

    def __gt__(self, other: object) -> bool:
        return False


class Nested(FormattableColumn[Any]):
    """A mapping or list: ``a=1, b=2`` or compact JSON in a table, itself for machines."""

    def human_readable(self) -> str:
        if isinstance(self._value, dict) and not any(isinstance(v, (dict, list)) for v in self._value.values()):
            return ", ".join(f"{key}={value}" for key, value in sorted(self._value.items()))
        return json.dumps(self._value) if self._value else ""


def field(*keys: str) -> Cell:
    """Return a cell with the first of ``keys`` that has a value."""

    def cell(thing: Json) -> Any:
        found = next((thing[key] for key in keys if thing.get(key) is not None), None)
        return dressed(found)

    return cell


def quantity(kind: type[Quantity], of: Cell | str) -> Cell:
    """Return a cell which shows a number as a ``kind``."""
    value = of if callable(of) else lambda thing: thing.get(of)
    return lambda thing: measured(kind, value(thing))


def measured(kind: type[Quantity], value: float | None) -> FormattableColumn[Any]:
    """Return ``value`` as a ``kind``, or as nothing."""
    return Nothing(None) if value is None else kind(value)


def dressed(value: Any) -> Any:
    """Return ``value`` so that tables show it well and machines get it unchanged."""
    if value is None:
        return Nothing(None)
    return Nested(value) if isinstance(value, (dict, list)) else value


def table(columns: Mapping[str, Cell], rows: Iterable[Json]) -> tuple[Sequence[str], list[list[Any]]]:
    """Return names and cells of a list, as Cliff wants them."""
    return tuple(columns), [[cell(row) for cell in columns.values()] for row in rows]


def fields(thing: Json) -> tuple[Sequence[str], list[Any]]:
    """Return names and cells of one thing, as Cliff wants them; the links to itself are left out."""
    shown = {key: value for key, value in sorted(thing.items()) if key != "links"}
    return tuple(shown), [dressed(value) for value in shown.values()]


VOLUMES: dict[str, Cell] = {
    "ID": field("id"),
    "Status": field("status"),
    "Name": field("name"),
    "Size": field("size"),
    "Type": field("volume_type"),
    "Host": field("os-vol-host-attr:host"),
    "Migration Status": field("os-vol-mig-status-attr:migstat", "migration_status"),
}

MIGRATIONS: dict[str, Cell] = {
    "ID": field("id"),
    "Volume": field("volume_id"),
    "Status": field("status"),
    "Plan": field("plan"),
    "Step": field("step"),
    "Source": field("source_host"),
    "Destination": field("destination_host"),
    "Progress": quantity(Percent, percent),
    "Rate": quantity(Rate, "rate_bytes_per_second"),
    "ETA": quantity(Seconds, "eta_seconds"),
    "Created At": field("created_at"),
}

#: Fields of one migration that are numbers with a unit.
MIGRATION_QUANTITIES: dict[str, type[Quantity]] = {
    "bytes_total": Bytes,
    "bytes_done": Bytes,
    "bytes_verified": Bytes,
    "bytes_allocated": Bytes,
    "bytes_per_second": Rate,
    "rate_bytes_per_second": Rate,
    "rate_overall_bytes_per_second": Rate,
    "eta_seconds": Seconds,
    "heartbeat_age_seconds": Seconds,
    "stalled_seconds": Seconds,
    "keep_source_seconds": Seconds,
}

STEPS: dict[str, Cell] = {
    "Step": field("step"),
    "Direction": field("direction"),
    "Attempt": field("attempt"),
    "Result": field("result"),
    "Bytes": quantity(Bytes, "bytes"),
    "Message": field("message"),
    "Started At": field("started_at"),
    "Finished At": field("finished_at"),
}

VERDICTS: dict[str, Cell] = {
    "Pool": field("pool"),
    "Filter": field("filter"),
    "Passed": field("passed"),
    "Reason": field("reason"),
}

POOLS: dict[str, Cell] = {"Name": field("name")}


def _capability(key: str) -> Cell:
    return lambda pool: dressed(pool.get("capabilities", {}).get(key))


POOLS_DETAIL: dict[str, Cell] = {
    "Name": field("name"),
    "Backend": _capability("volume_backend_name"),
    "Total GiB": _capability("total_capacity_gb"),
    "Free GiB": _capability("free_capacity_gb"),
    "Allocated GiB": _capability("allocated_capacity_gb"),
    "Provisioned GiB": _capability("provisioned_capacity_gb"),
    "Reserved %": _capability("reserved_percentage"),
    "Thin": _capability("thin_provisioning_support"),
    "Protocol": _capability("storage_protocol"),
    "State": _capability("backend_state"),
}

SERVICES: dict[str, Cell] = {
    "Binary": field("binary"),
    "Host": field("host"),
    "Zone": field("zone"),
    "Status": field("status"),
    "State": field("state"),
    "Updated At": field("updated_at"),
    "Cluster": field("cluster"),
    "Disabled Reason": field("disabled_reason"),
    "Backend State": field("backend_state"),
}

TYPES: dict[str, Cell] = {
    "ID": field("id"),
    "Name": field("name"),
    "Is Public": field("is_public", "os-volume-type-access:is_public"),
    "Description": field("description"),
    "Properties": field("extra_specs"),
}

SNAPSHOTS: dict[str, Cell] = {
    "ID": field("id"),
    "Volume": field("volume_id"),
    "Status": field("status"),
    "Name": field("name"),
    "Size": field("size"),
    "Created At": field("created_at"),
}

MESSAGES: dict[str, Cell] = {
    "ID": field("id"),
    "Resource Type": field("resource_type"),
    "Resource ID": field("resource_uuid"),
    "Level": field("message_level"),
    "Event": field("event_id"),
    "Message": field("user_message"),
    "Created At": field("created_at"),
}
