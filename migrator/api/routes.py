"""The whole API on one screen: each path with its methods, each action with its body.

Paths stand below ``/v3`` and below ``/v3/{project_id}``.  An entry says what serves it, which rule polices it, what
its body must be and from which microversion on it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from migrator.api import (
    messages,
    migrations,
    scheduler_stats,
    schemas,
    services,
    snapshots,
    types,
    versions,
    volume_actions,
    volumes,
)
from migrator.api.schemas import Schema
from migrator.api.versions import MESSAGES, MIN, Version
from migrator.api.wsgi import Handler


@dataclass(frozen=True)
class Call:
    """What serves a method of a path, or an action; ``rule`` None: open to everybody."""

    handler: Handler
    rule: str | None
    schema: Schema | None = None
    since: Version = MIN


@dataclass(frozen=True)
class Actions:
    """A POST whose body has exactly one key, which names what is to be done."""

    table: Mapping[str, Call]


Methods = Mapping[str, Call | Actions]

_ADMIN_ACTION = "volume_extension:volume_admin_actions:"

VOLUME_ACTIONS: dict[str, Call] = {
    "os-migrate_volume": Call(volume_actions.migrate, f"{_ADMIN_ACTION}migrate_volume", schemas.MIGRATE),
    "os-migrate_volume_completion": Call(
        volume_actions.migrate_completion, f"{_ADMIN_ACTION}migrate_volume_completion", schemas.MIGRATE_COMPLETION
    ),
    "os-reset_status": Call(volume_actions.reset_status, f"{_ADMIN_ACTION}reset_status", schemas.RESET_STATUS),
    "os-extend": Call(volume_actions.extend, "volume:extend", schemas.EXTEND),
}

MIGRATION_ACTIONS: dict[str, Call] = {
    "cancel": Call(migrations.cancel, "migrations:cancel", schemas.MIGRATION_CANCEL),
}

_TYPE = "volume_extension:type_"
_SPECS = "volume_extension:types_extra_specs:"
_SERVICES = "volume_extension:services:"
_POOLS = "scheduler_extension:scheduler_stats:get_pools"

ROUTES: dict[str, Methods] = {
    "/volumes": {
        "GET": Call(volumes.index, "volume:get_all"),
        "POST": Call(volumes.create, "volume:create", schemas.VOLUME_CREATE),
    },
    "/volumes/detail": {"GET": Call(volumes.detail, "volume:get_all")},
    "/volumes/{volume_id}": {
        "GET": Call(volumes.show, "volume:get"),
        "PUT": Call(volumes.update, "volume:update", schemas.VOLUME_UPDATE),
        "DELETE": Call(volumes.delete, "volume:delete"),
    },
    "/volumes/{volume_id}/action": {"POST": Actions(VOLUME_ACTIONS)},
    "/snapshots": {
        "GET": Call(snapshots.index, "volume:get_all_snapshots"),
        "POST": Call(snapshots.create, "volume:create_snapshot", schemas.SNAPSHOT_CREATE),
    },
    "/snapshots/detail": {"GET": Call(snapshots.detail, "volume:get_all_snapshots")},
    "/snapshots/{snapshot_id}": {
        "GET": Call(snapshots.show, "volume:get_snapshot"),
        "PUT": Call(snapshots.update, "volume:update_snapshot", schemas.SNAPSHOT_UPDATE),
        "DELETE": Call(snapshots.delete, "volume:delete_snapshot"),
    },
    "/types": {
        "GET": Call(types.index, f"{_TYPE}get_all"),
        "POST": Call(types.create, f"{_TYPE}create", schemas.TYPE_CREATE),
    },
    "/types/default": {"GET": Call(types.default, f"{_TYPE}get")},
    "/types/{type_id}": {
        "GET": Call(types.show, f"{_TYPE}get"),
        "PUT": Call(types.update, f"{_TYPE}update", schemas.TYPE_UPDATE),
        "DELETE": Call(types.delete, f"{_TYPE}delete"),
    },
    "/types/{type_id}/extra_specs": {
        "GET": Call(types.specs_index, f"{_SPECS}index"),
        "POST": Call(types.specs_create, f"{_SPECS}create", schemas.EXTRA_SPECS_CREATE),
    },
    "/types/{type_id}/extra_specs/{key}": {
        "GET": Call(types.specs_show, f"{_SPECS}show"),
        "PUT": Call(types.specs_update, f"{_SPECS}update", schemas.EXTRA_SPEC_UPDATE),
        "DELETE": Call(types.specs_delete, f"{_SPECS}delete"),
    },
    "/os-services": {"GET": Call(services.index, f"{_SERVICES}index")},
    "/os-services/enable": {"PUT": Call(services.enable, f"{_SERVICES}update", schemas.SERVICE)},
    "/os-services/disable": {"PUT": Call(services.disable, f"{_SERVICES}update", schemas.SERVICE)},
    "/os-services/disable-log-reason": {
        "PUT": Call(services.disable_log_reason, f"{_SERVICES}update", schemas.SERVICE_REASON)
    },
    "/scheduler-stats/get_pools": {"GET": Call(scheduler_stats.get_pools, _POOLS)},
    "/messages": {"GET": Call(messages.index, "message:get_all", since=MESSAGES)},
    "/messages/{message_id}": {
        "GET": Call(messages.show, "message:get", since=MESSAGES),
        "DELETE": Call(messages.delete, "message:delete", since=MESSAGES),
    },
    "/migrations": {"GET": Call(migrations.index, "migrations:get_all")},
    "/migrations/{migration_id}": {"GET": Call(migrations.show, "migrations:get")},
    "/migrations/{migration_id}/action": {"POST": Actions(MIGRATION_ACTIONS)},
}

#: Open to everybody, and outside of ``/v3/{project_id}``.
DISCOVERY: dict[str, Methods] = {
    "/": {"GET": Call(versions.choices, None)},
    "/v3": {"GET": Call(versions.show, None)},
    "/v3/{project_id}": {"GET": Call(versions.show, None)},
}

#: Collections of the public API that are not served (yet); they are no projects, and have no versions to show.
_ELSEWHERE = (
    "attachments|backups|capabilities|cgsnapshots|clusters|consistencygroups|default-types|extensions|group_snapshots"
    "|group_types|groups|limits|manageable_snapshots|manageable_volumes|os-availability-zone|os-hosts"
    "|os-quota-class-sets|os-quota-sets|os-snapshot-manage|os-volume-manage|os-volume-transfer|qos-specs"
    "|resource_filters|scheduler-stats|volume-transfers|workers"
)
REQUIREMENTS: dict[str, dict[str, str]] = {"/v3/{project_id}": {"project_id": rf"(?!(?:{_ELSEWHERE})$)[^/]+"}}
