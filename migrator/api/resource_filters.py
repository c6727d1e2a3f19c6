"""``/resource_filters``: by what each list can be filtered."""

from __future__ import annotations

from collections.abc import Mapping

from migrator import errors
from migrator.api import attachments, messages, snapshots, versions, volumes
from migrator.api.lists import Filter
from migrator.api.versions import Version
from migrator.api.wsgi import Answer, Request

FILTERS: dict[str, Mapping[str, Filter]] = {
    "attachment": attachments.FILTERS,
    "message": messages.FILTERS,
    "snapshot": snapshots.FILTERS,
    "volume": volumes.FILTERS,
}
#: Of lists that are not read from a table.
OTHERS: dict[str, list[str]] = {"pool": ["name", "volume_type"], "volume_type": ["is_public"]}
SINCE: dict[str, tuple[Version, list[str]]] = {"volume_type": (versions.TYPE_EXTRA_SPECS, ["extra_specs"])}


def index(request: Request) -> Answer:
    """The filters that this caller has at this microversion."""
    found = {name: _open_to(request, filters) for name, filters in FILTERS.items()} | OTHERS
    for name, (since, more) in SINCE.items():
        found[name] = found[name] + (more if since <= request.version else [])
    asked = request.query.get("resource")
    if asked is not None and asked not in found:
        raise errors.InvalidInput(field="resource", reason=f"{asked[:40]!r} is not one of: {', '.join(sorted(found))}")
    names = sorted(found) if asked is None else [asked]
    return Answer(200, {"resource_filters": [{"resource": name, "filters": found[name]} for name in names]})


def _open_to(request: Request, filters: Mapping[str, Filter]) -> list[str]:
    return [
        name
        for name, known in filters.items()
        if known.since <= request.version and (request.is_admin or not known.admin)
    ]
