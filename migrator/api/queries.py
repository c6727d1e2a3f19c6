"""Which parameters the query of each route takes: those of its filters, and those of paging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from migrator.api import attachments, clusters, messages, migrations, plan, snapshots, types, versions, volumes
from migrator.api.lists import Filter
from migrator.api.versions import MIN, Version


class Query(NamedTuple):
    """A parameter: its schema, from which microversion on, and whether only administrators have it."""

    schema: Mapping[str, Any]
    since: Version = MIN
    admin: bool = False


_TEXT = Query({"type": "string"})
_FLAG = Query({"type": "string", "enum": ["true", "false", "1", "0"]})
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}

_PAGE: dict[str, Query] = {
    "limit": Query(_COUNT),
    "offset": Query(_COUNT),
    "marker": _TEXT,
    "sort": _TEXT,
    "sort_key": _TEXT,
    "sort_dir": Query({"type": "string", "enum": ["asc", "desc"]}),
}
_ALL = {"all_tenants": _FLAG._replace(admin=True)}
_WITH_COUNT = {"with_count": _FLAG._replace(since=versions.COUNT)}


def _filters(table: Mapping[str, Filter]) -> dict[str, Query]:
    return {name: Query({"type": "string"}, each.since, each.admin) for name, each in table.items()}


_VOLUMES = _filters(volumes.FILTERS) | _ALL
_SNAPSHOTS = _filters(snapshots.FILTERS) | _ALL | _WITH_COUNT | _PAGE
_ATTACHMENTS = _filters(attachments.FILTERS) | _ALL | _PAGE
_CLUSTERS = {name: Query({"type": "string"}, since) for name, (_, _, since) in clusters.FILTERS.items()}
_MANAGEABLE = {"host": _TEXT, "cluster": _TEXT._replace(since=versions.MANAGEABLE_CLUSTER)} | _PAGE

#: By the method and the path as in the table of routes.
QUERIES: dict[str, Mapping[str, Query]] = {
    "GET /volumes": _VOLUMES | _WITH_COUNT | _PAGE,
    "GET /volumes/detail": _VOLUMES | _WITH_COUNT | _PAGE,
    "GET /volumes/summary": _VOLUMES,
    "DELETE /volumes/{volume_id}": {"cascade": _FLAG, "force": _FLAG._replace(since=versions.FORCE_DELETE)},
    "GET /snapshots": _SNAPSHOTS,
    "GET /snapshots/detail": _SNAPSHOTS,
    "GET /attachments": _ATTACHMENTS,
    "GET /attachments/detail": _ATTACHMENTS,
    "GET /types": _filters(types.FILTERS)
    | {"is_public": _TEXT, "extra_specs": _TEXT._replace(since=versions.TYPE_EXTRA_SPECS)}
    | _PAGE,
    "GET /messages": _filters(messages.FILTERS) | _PAGE,
    "GET /migrations/plan": dict.fromkeys(plan.PARAMETERS, _TEXT)
    | dict.fromkeys(("force_host_copy", "lock_volume"), _FLAG)
    | dict.fromkeys(("bytes_per_second", "keep_source_seconds"), Query(_COUNT)),
    "GET /migrations": _filters(migrations.FILTERS) | _PAGE,
    "GET /clusters": _CLUSTERS,
    "GET /clusters/detail": _CLUSTERS,
    "GET /clusters/{name}": {"binary": _TEXT},
    "GET /manageable_volumes": _MANAGEABLE,
    "GET /manageable_volumes/detail": _MANAGEABLE,
    "GET /os-volume-manage": _MANAGEABLE,
    "GET /os-volume-manage/detail": _MANAGEABLE,
    "GET /manageable_snapshots": _MANAGEABLE,
    "GET /manageable_snapshots/detail": _MANAGEABLE,
    "GET /os-snapshot-manage": _MANAGEABLE,
    "GET /os-snapshot-manage/detail": _MANAGEABLE,
    "GET /os-services": {"binary": _TEXT, "host": _TEXT},
    "GET /os-hosts": {"zone": _TEXT, "service": _TEXT},
    "GET /limits": {"project_id": _TEXT._replace(since=versions.LIMITS_OF_PROJECT, admin=True)},
    "GET /os-quota-sets/{quota_of}": {"usage": _FLAG},
    "GET /resource_filters": {"resource": _TEXT},
    "GET /scheduler-stats/get_pools": {
        "detail": _FLAG,
        "name": _TEXT._replace(since=versions.POOL_FILTERS),
        "volume_type": _TEXT._replace(since=versions.POOL_TYPE_FILTER),
    },
}


def of(route: str) -> Mapping[str, Query]:
    """Return the parameters of a route, by name; none for most."""
    return QUERIES.get(route, {})
