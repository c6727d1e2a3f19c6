"""The whole API on one screen: each path with its methods, each action with its body.

Paths stand below ``/v3`` and below ``/v3/{project_id}``.  An entry says what serves it, which rule polices it, what
its body must be and from which microversion on it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from migrator.api import (
    attach_actions,
    attachments,
    availability_zones,
    capabilities,
    clusters,
    extensions,
    hosts,
    image_metadata,
    limits,
    manageable,
    manageable_snapshots,
    messages,
    metadata,
    migration_actions,
    migrations,
    openapi,
    plan,
    resource_filters,
    retype,
    scheduler_stats,
    schemas,
    services,
    snapshots,
    summary,
    types,
    types_access,
    types_encryption,
    versions,
    volume_actions,
    volumes,
    workers,
)
from migrator.api.schemas import Schema
from migrator.api.versions import ATTACHMENT_COMPLETE, ATTACHMENTS, CLUSTERS, MANAGEABLE, MESSAGES, MIN, Version
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
_ACTION = "volume_extension:volume_actions:"
_IMAGE = "volume_extension:volume_image_metadata:"

VOLUME_ACTIONS: dict[str, Call] = {
    "os-migrate_volume": Call(volume_actions.migrate, f"{_ADMIN_ACTION}migrate_volume", schemas.MIGRATE),
    "os-migrate_volume_completion": Call(
        volume_actions.migrate_completion, f"{_ADMIN_ACTION}migrate_volume_completion", schemas.MIGRATE_COMPLETION
    ),
    "os-reset_status": Call(volume_actions.reset_status, f"{_ADMIN_ACTION}reset_status", schemas.RESET_STATUS),
    "os-extend": Call(volume_actions.extend, "volume:extend", schemas.EXTEND),
    "os-retype": Call(retype.retype, "volume:retype", schemas.RETYPE),
    "os-set_bootable": Call(volume_actions.set_bootable, "volume:update", schemas.SET_BOOTABLE),
    "os-update_readonly_flag": Call(
        volume_actions.update_readonly_flag, "volume:update_readonly_flag", schemas.READONLY
    ),
    "os-force_delete": Call(volumes.force_delete, f"{_ADMIN_ACTION}force_delete", schemas.FORCE_DELETE),
    "os-force_detach": Call(attach_actions.force_detach, f"{_ADMIN_ACTION}force_detach", schemas.FORCE_DETACH),
    "os-reserve": Call(attach_actions.reserve, f"{_ACTION}reserve", schemas.RESERVE),
    "os-unreserve": Call(attach_actions.unreserve, f"{_ACTION}unreserve", schemas.UNRESERVE),
    "os-begin_detaching": Call(attach_actions.begin_detaching, f"{_ACTION}begin_detaching", schemas.BEGIN_DETACHING),
    "os-roll_detaching": Call(attach_actions.roll_detaching, f"{_ACTION}roll_detaching", schemas.ROLL_DETACHING),
    "os-attach": Call(attach_actions.attach, f"{_ACTION}attach", schemas.ATTACH),
    "os-detach": Call(attach_actions.detach, f"{_ACTION}detach", schemas.DETACH),
    "os-initialize_connection": Call(
        attach_actions.initialize_connection, f"{_ACTION}initialize_connection", schemas.INITIALIZE_CONNECTION
    ),
    "os-terminate_connection": Call(
        attach_actions.terminate_connection, f"{_ACTION}terminate_connection", schemas.TERMINATE_CONNECTION
    ),
    "os-show_image_metadata": Call(image_metadata.show, f"{_IMAGE}show", schemas.SHOW_IMAGE_METADATA),
    "os-set_image_metadata": Call(image_metadata.set_, f"{_IMAGE}set", schemas.SET_IMAGE_METADATA),
    "os-unset_image_metadata": Call(image_metadata.unset, f"{_IMAGE}remove", schemas.UNSET_IMAGE_METADATA),
    "os-unmanage": Call(manageable.unmanage, "volume_extension:volume_unmanage", schemas.UNMANAGE),
}

_SNAPSHOT_ACTION = "volume_extension:snapshot_admin_actions:"

SNAPSHOT_ACTIONS: dict[str, Call] = {
    "os-reset_status": Call(snapshots.reset_status, f"{_SNAPSHOT_ACTION}reset_status", schemas.SNAPSHOT_RESET_STATUS),
    "os-force_delete": Call(snapshots.force_delete, f"{_SNAPSHOT_ACTION}force_delete", schemas.SNAPSHOT_FORCE_DELETE),
    "os-unmanage": Call(
        manageable_snapshots.unmanage, "snapshot_extension:snapshot_unmanage", schemas.SNAPSHOT_UNMANAGE
    ),
}

_ACCESS = "volume_extension:volume_type_access:"

TYPE_ACTIONS: dict[str, Call] = {
    "addProjectAccess": Call(types_access.add, f"{_ACCESS}addProjectAccess", schemas.ADD_PROJECT_ACCESS),
    "removeProjectAccess": Call(types_access.remove, f"{_ACCESS}removeProjectAccess", schemas.REMOVE_PROJECT_ACCESS),
}

ATTACHMENT_ACTIONS: dict[str, Call] = {
    "os-complete": Call(
        attachments.complete, "volume:attachment_complete", schemas.ATTACHMENT_COMPLETE, ATTACHMENT_COMPLETE
    ),
}

MIGRATION_ACTIONS: dict[str, Call] = {
    "cancel": Call(migration_actions.cancel, "migrations:cancel", schemas.MIGRATION_CANCEL),
    "pause": Call(migration_actions.pause, "migrations:pause", schemas.MIGRATION_PAUSE),
    "resume": Call(migration_actions.resume, "migrations:resume", schemas.MIGRATION_RESUME),
    "retry": Call(migration_actions.retry, "migrations:retry", schemas.MIGRATION_RETRY),
    "set_rate": Call(migration_actions.set_rate, "migrations:set_rate", schemas.MIGRATION_SET_RATE),
    "undo": Call(migration_actions.undo, "migrations:undo", schemas.MIGRATION_UNDO),
}

_TYPE = "volume_extension:type_"
_SPECS = "volume_extension:types_extra_specs:"
_SERVICES = "volume_extension:services:"
_ENCRYPTION = "volume_extension:volume_type_encryption:get"
_MANAGE = "volume_extension:volume_manage"
_MANAGEABLE = "volume_extension:list_manageable"
_MANAGE_SNAPSHOT = "snapshot_extension:snapshot_manage"
_MANAGEABLE_SNAPSHOTS = "snapshot_extension:list_manageable"
_QUOTAS = "volume_extension:quotas:show"
_POOLS = "scheduler_extension:scheduler_stats:get_pools"

ROUTES: dict[str, Methods] = {
    "/volumes": {
        "GET": Call(volumes.index, "volume:get_all"),
        "POST": Call(volumes.create, "volume:create", schemas.VOLUME_CREATE),
    },
    "/volumes/detail": {"GET": Call(volumes.detail, "volume:get_all")},
    "/volumes/summary": {"GET": Call(summary.show, "volume:get_all", since=versions.SUMMARY)},
    "/volumes/{volume_id}": {
        "GET": Call(volumes.show, "volume:get"),
        "PUT": Call(volumes.update, "volume:update", schemas.VOLUME_UPDATE),
        "DELETE": Call(volumes.delete, "volume:delete"),
    },
    "/volumes/{volume_id}/action": {"POST": Actions(VOLUME_ACTIONS)},
    "/volumes/{volume_id}/metadata": {
        "GET": Call(metadata.VOLUMES.index, "volume:get_volume_metadata"),
        "POST": Call(metadata.VOLUMES.merge, "volume:create_volume_metadata", schemas.METADATA_OF),
        "PUT": Call(metadata.VOLUMES.replace, "volume:update_volume_metadata", schemas.METADATA_OF),
    },
    "/volumes/{volume_id}/metadata/{key}": {
        "GET": Call(metadata.VOLUMES.show, "volume:get_volume_metadata"),
        "PUT": Call(metadata.VOLUMES.put, "volume:update_volume_metadata", schemas.METADATA_ITEM),
        "DELETE": Call(metadata.VOLUMES.delete, "volume:delete_volume_metadata"),
    },
    "/manageable_volumes": {
        "GET": Call(manageable.index, _MANAGEABLE, since=MANAGEABLE),
        "POST": Call(manageable.create, _MANAGE, schemas.MANAGE, MANAGEABLE),
    },
    "/manageable_volumes/detail": {"GET": Call(manageable.detail, _MANAGEABLE, since=MANAGEABLE)},
    "/os-volume-manage": {
        "GET": Call(manageable.index, _MANAGEABLE, since=MANAGEABLE),
        "POST": Call(manageable.create, _MANAGE, schemas.MANAGE),
    },
    "/os-volume-manage/detail": {"GET": Call(manageable.detail, _MANAGEABLE, since=MANAGEABLE)},
    "/attachments": {
        "GET": Call(attachments.index, "volume:attachment_get_all", since=ATTACHMENTS),
        "POST": Call(attachments.create, "volume:attachment_create", schemas.ATTACHMENT_CREATE, ATTACHMENTS),
    },
    "/attachments/detail": {"GET": Call(attachments.detail, "volume:attachment_get_all", since=ATTACHMENTS)},
    "/attachments/{attachment_id}": {
        "GET": Call(attachments.show, "volume:attachment_get", since=ATTACHMENTS),
        "PUT": Call(attachments.update, "volume:attachment_update", schemas.ATTACHMENT_UPDATE, ATTACHMENTS),
        "DELETE": Call(attachments.delete, "volume:attachment_delete", since=ATTACHMENTS),
    },
    "/attachments/{attachment_id}/action": {"POST": Actions(ATTACHMENT_ACTIONS)},
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
    "/snapshots/{snapshot_id}/action": {"POST": Actions(SNAPSHOT_ACTIONS)},
    "/snapshots/{snapshot_id}/metadata": {
        "GET": Call(metadata.SNAPSHOTS.index, "volume:get_snapshot_metadata"),
        "POST": Call(metadata.SNAPSHOTS.merge, "volume:update_snapshot_metadata", schemas.METADATA_OF),
        "PUT": Call(metadata.SNAPSHOTS.replace, "volume:update_snapshot_metadata", schemas.METADATA_OF),
    },
    "/snapshots/{snapshot_id}/metadata/{key}": {
        "GET": Call(metadata.SNAPSHOTS.show, "volume:get_snapshot_metadata"),
        "PUT": Call(metadata.SNAPSHOTS.put, "volume:update_snapshot_metadata", schemas.METADATA_ITEM),
        "DELETE": Call(metadata.SNAPSHOTS.delete, "volume:delete_snapshot_metadata"),
    },
    "/manageable_snapshots": {
        "GET": Call(manageable_snapshots.index, _MANAGEABLE_SNAPSHOTS, since=MANAGEABLE),
        "POST": Call(manageable_snapshots.create, _MANAGE_SNAPSHOT, schemas.SNAPSHOT_MANAGE, MANAGEABLE),
    },
    "/manageable_snapshots/detail": {"GET": Call(manageable_snapshots.detail, _MANAGEABLE_SNAPSHOTS, since=MANAGEABLE)},
    "/os-snapshot-manage": {
        "GET": Call(manageable_snapshots.index, _MANAGEABLE_SNAPSHOTS, since=MANAGEABLE),
        "POST": Call(manageable_snapshots.create, _MANAGE_SNAPSHOT, schemas.SNAPSHOT_MANAGE),
    },
    "/os-snapshot-manage/detail": {"GET": Call(manageable_snapshots.detail, _MANAGEABLE_SNAPSHOTS, since=MANAGEABLE)},
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
    "/types/{type_id}/action": {"POST": Actions(TYPE_ACTIONS)},
    "/types/{type_id}/os-volume-type-access": {"GET": Call(types_access.index, f"{_ACCESS}get_all_for_type")},
    "/types/{type_id}/encryption": {"GET": Call(types_encryption.index, _ENCRYPTION)},
    "/types/{type_id}/encryption/{key}": {"GET": Call(types_encryption.show, _ENCRYPTION)},
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
    "/os-services/freeze": {"PUT": Call(services.freeze, "volume:freeze_host", schemas.FREEZE)},
    "/os-services/thaw": {"PUT": Call(services.thaw, "volume:thaw_host", schemas.FREEZE)},
    "/clusters": {"GET": Call(clusters.index, "clusters:get_all", since=CLUSTERS)},
    "/clusters/detail": {"GET": Call(clusters.detail, "clusters:get_all", since=CLUSTERS)},
    "/clusters/enable": {"PUT": Call(clusters.enable, "clusters:update", schemas.CLUSTER, CLUSTERS)},
    "/clusters/disable": {"PUT": Call(clusters.disable, "clusters:update", schemas.CLUSTER, CLUSTERS)},
    "/clusters/{name}": {"GET": Call(clusters.show, "clusters:get", since=CLUSTERS)},
    "/workers/cleanup": {"POST": Call(workers.cleanup, "workers:cleanup", schemas.CLEANUP, versions.WORKERS_CLEANUP)},
    "/os-hosts": {"GET": Call(hosts.index, "volume_extension:hosts")},
    "/os-hosts/{host}": {"GET": Call(hosts.show, "volume_extension:hosts")},
    "/capabilities/{host}": {"GET": Call(capabilities.show, "volume_extension:capabilities")},
    "/os-availability-zone": {"GET": Call(availability_zones.index, "volume_extension:availability_zones")},
    "/extensions": {"GET": Call(extensions.index, "volume_extension:extensions")},
    "/extensions/{alias}": {"GET": Call(extensions.show, "volume_extension:extensions")},
    "/resource_filters": {
        "GET": Call(resource_filters.index, "volume_extension:resource_filters", since=versions.RESOURCE_FILTERS)
    },
    "/limits": {"GET": Call(limits.show, "limits_extension:used_limits")},
    "/os-quota-sets/{quota_of}": {"GET": Call(limits.quota_set, _QUOTAS)},
    "/os-quota-sets/{quota_of}/defaults": {"GET": Call(limits.quota_defaults, _QUOTAS)},
    "/scheduler-stats/get_pools": {"GET": Call(scheduler_stats.get_pools, _POOLS)},
    "/messages": {"GET": Call(messages.index, "message:get_all", since=MESSAGES)},
    "/messages/{message_id}": {
        "GET": Call(messages.show, "message:get", since=MESSAGES),
        "DELETE": Call(messages.delete, "message:delete", since=MESSAGES),
    },
    "/migrations": {
        "GET": Call(migrations.index, "migrations:get_all"),
        "POST": Call(plan.create, "migrations:create", schemas.MIGRATION_CREATE),
    },
    "/migrations/plan": {"GET": Call(plan.show, "migrations:plan")},
    "/migrations/{migration_id}": {"GET": Call(migrations.show, "migrations:get")},
    "/migrations/{migration_id}/action": {"POST": Actions(MIGRATION_ACTIONS)},
}

#: Open to everybody, and outside of ``/v3/{project_id}``.
DISCOVERY: dict[str, Methods] = {
    "/": {"GET": Call(versions.choices, None)},
    "/openapi.json": {"GET": Call(openapi.show, None)},
    "/v3": {"GET": Call(versions.show, None)},
    "/v3/{project_id}": {"GET": Call(versions.show, None)},
}

#: Collections of the public API that are not served (yet); they are no projects, and have no versions to show.
_ELSEWHERE = (
    "backups|capabilities|cgsnapshots|consistencygroups|default-types|group_snapshots|group_types|groups"
    "|os-quota-class-sets|os-quota-sets|os-volume-transfer|qos-specs"
    "|scheduler-stats|volume-transfers|workers"
)
REQUIREMENTS: dict[str, dict[str, str]] = {"/v3/{project_id}": {"project_id": rf"(?!(?:{_ELSEWHERE})$)[^/]+"}}
