"""What answers look like: JSON schemas of the resources.

They describe every microversion at once: what only some of them have is not required.  Nothing is checked against them
when a request is served; the OpenAPI document shows them, and the tests hold the views to them.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def object_(required: Json, optional: Json | None = None) -> Json:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


STRING: Json = {"type": "string"}
STRING_OR_NULL: Json = {"type": ["string", "null"]}
BOOLEAN: Json = {"type": "boolean"}
NUMBER: Json = {"type": "number"}
NUMBER_OR_NULL: Json = {"type": ["number", "null"]}
INTEGER: Json = {"type": "integer"}
INTEGER_OR_NULL: Json = {"type": ["integer", "null"]}
COUNT: Json = {"type": "integer", "minimum": 0}
UUID: Json = {"type": "string", "format": "uuid"}
UUID_OR_NULL: Json = {"type": ["string", "null"], "format": "uuid"}
#: UTC without a zone, which "date-time" does not allow.
TIME: Json = {"type": "string", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}$"}
TIME_OR_NULL: Json = {**TIME, "type": ["string", "null"]}
STRINGS: Json = {"type": "object", "additionalProperties": {"type": "string"}}
SPECS: Json = {"type": "object", "additionalProperties": STRING_OR_NULL}
ANY_OBJECT: Json = {"type": "object"}
DOCUMENT: Json = {"type": "object", "required": ["openapi", "info", "paths"]}

_LINK: Json = {"type": "object", "properties": {"rel": STRING, "href": STRING}, "required": ["rel", "href"]}

# --- volumes and what hangs on them ----------------------------------------------------------------------------------

_VOLUME_SUMMARY: Json = {"id": UUID, "name": STRING_OR_NULL, "links": ref("Links")}
_ATTACHED: Json = object_(
    {
        "id": UUID,
        "attachment_id": UUID,
        "volume_id": UUID,
        "server_id": UUID_OR_NULL,
        "host_name": STRING_OR_NULL,
        "device": STRING_OR_NULL,
        "attached_at": TIME_OR_NULL,
    }
)
_VOLUME: Json = object_(
    {
        **_VOLUME_SUMMARY,
        "status": STRING,
        "size": COUNT,
        "availability_zone": STRING_OR_NULL,
        "created_at": TIME,
        "updated_at": TIME_OR_NULL,
        "description": STRING_OR_NULL,
        "volume_type": STRING_OR_NULL,
        "snapshot_id": UUID_OR_NULL,
        "source_volid": UUID_OR_NULL,
        "metadata": STRINGS,
        "user_id": STRING_OR_NULL,
        "bootable": {"enum": ["true", "false"]},
        "encrypted": BOOLEAN,
        "replication_status": STRING_OR_NULL,
        "consistencygroup_id": UUID_OR_NULL,
        "multiattach": BOOLEAN,
        "attachments": {"type": "array", "items": _ATTACHED},
    },
    {
        "migration_status": STRING_OR_NULL,
        "group_id": UUID_OR_NULL,
        "provider_id": STRING_OR_NULL,
        "shared_targets": BOOLEAN,
        "service_uuid": UUID_OR_NULL,
        "cluster_name": STRING_OR_NULL,
        "volume_type_id": UUID_OR_NULL,
        "encryption_key_id": UUID_OR_NULL,
        "consumes_quota": BOOLEAN,
        "os-vol-host-attr:host": STRING_OR_NULL,
        "os-vol-mig-status-attr:migstat": STRING_OR_NULL,
        "os-vol-mig-status-attr:name_id": UUID_OR_NULL,
        "os-vol-tenant-attr:tenant_id": STRING_OR_NULL,
        "volume_image_metadata": STRINGS,
    },
)
_SNAPSHOT: Json = object_(
    {
        "id": UUID,
        "created_at": TIME,
        "updated_at": TIME_OR_NULL,
        "name": STRING_OR_NULL,
        "description": STRING_OR_NULL,
        "volume_id": UUID,
        "status": STRING,
        "size": COUNT,
        "metadata": STRINGS,
    },
    {
        "group_snapshot_id": UUID_OR_NULL,
        "user_id": STRING_OR_NULL,
        "consumes_quota": BOOLEAN,
        "os-extended-snapshot-attributes:project_id": STRING,
        "os-extended-snapshot-attributes:progress": STRING_OR_NULL,
    },
)
_ATTACHMENT: Json = object_(
    {"id": UUID, "status": STRING, "instance": UUID_OR_NULL, "volume_id": UUID},
    {
        "attached_at": {"anyOf": [TIME, {"const": ""}]},
        "detached_at": {"anyOf": [TIME, {"const": ""}]},
        "attach_mode": STRING_OR_NULL,
        "connection_info": ANY_OBJECT,
    },
)
_MANAGEABLE: Json = object_(
    {"reference": STRINGS, "size": COUNT, "safe_to_manage": BOOLEAN},
    {"reason_not_safe": STRING_OR_NULL, "cinder_id": UUID_OR_NULL, "extra_info": STRING_OR_NULL},
)
_MANAGEABLE_SNAPSHOT: Json = object_(
    {
        "reference": STRINGS,
        "size": COUNT,
        "safe_to_manage": BOOLEAN,
        "source_reference": {"anyOf": [STRINGS, {"type": "null"}]},
    },
    {"reason_not_safe": STRING_OR_NULL, "cinder_id": UUID_OR_NULL, "extra_info": STRING_OR_NULL},
)
_VOLUME_TYPE: Json = object_(
    {
        "id": UUID,
        "name": STRING,
        "is_public": BOOLEAN,
        "description": STRING_OR_NULL,
        "os-volume-type-access:is_public": BOOLEAN,
    },
    {"extra_specs": SPECS, "qos_specs_id": UUID_OR_NULL},
)
_MESSAGE: Json = object_(
    {
        "id": UUID,
        "event_id": STRING,
        "user_message": STRING,
        "message_level": STRING,
        "created_at": TIME,
        "guaranteed_until": TIME_OR_NULL,
        "request_id": STRING_OR_NULL,
        "resource_type": STRING_OR_NULL,
        "resource_uuid": UUID_OR_NULL,
        "links": ref("Links"),
    }
)

# --- services and pools ----------------------------------------------------------------------------------------------

_UP: Json = {"enum": ["up", "down"]}
_ENABLED: Json = {"enum": ["enabled", "disabled"]}
_SERVICE: Json = object_(
    {
        "binary": STRING,
        "host": STRING,
        "zone": STRING,
        "status": _ENABLED,
        "state": _UP,
        "updated_at": TIME,
        "disabled_reason": STRING_OR_NULL,
    },
    {
        "cluster": STRING_OR_NULL,
        "replication_status": STRING_OR_NULL,
        "active_backend_id": STRING_OR_NULL,
        "frozen": BOOLEAN,
        "backend_state": _UP,
    },
)
_SERVICE_CHANGE: Json = object_(
    {"host": STRING, "service": STRING, "binary": STRING, "disabled": BOOLEAN, "status": _ENABLED},
    {"disabled_reason": STRING_OR_NULL},
)
_CLUSTER: Json = object_(
    {"name": STRING, "binary": STRING, "state": _UP, "status": _ENABLED},
    {
        "num_hosts": COUNT,
        "num_down_hosts": COUNT,
        "last_heartbeat": TIME_OR_NULL,
        "created_at": TIME_OR_NULL,
        "updated_at": TIME_OR_NULL,
        "disabled_reason": STRING_OR_NULL,
        "replication_status": STRING_OR_NULL,
        "frozen": BOOLEAN,
        "active_backend_id": STRING_OR_NULL,
    },
)
_POOL: Json = object_({"name": STRING}, {"capabilities": ANY_OBJECT})
_LEFT_BY: Json = object_({"id": INTEGER, "host": STRING, "binary": STRING, "cluster_name": STRING_OR_NULL})
_HOST: Json = object_(
    {
        "host_name": STRING,
        "service": STRING,
        "zone": STRING,
        "service-status": {"enum": ["available", "unavailable"]},
        "service-state": _ENABLED,
        "last-update": TIME,
    }
)
_HOST_TOTALS: Json = object_(
    {
        "resource": object_(
            {
                "host": STRING,
                "project": STRING,
                "volume_count": STRING,
                "total_volume_gb": STRING,
                "snapshot_count": STRING,
                "total_snapshot_gb": STRING,
            }
        )
    }
)
_CAPABILITIES: Json = object_(
    {
        "namespace": STRING,
        "vendor_name": STRING_OR_NULL,
        "volume_backend_name": STRING_OR_NULL,
        "pool_name": STRING_OR_NULL,
        "driver_version": STRING_OR_NULL,
        "storage_protocol": STRING_OR_NULL,
        "display_name": STRING,
        "description": STRING,
        "visibility": STRING,
        "replication_targets": {"type": "array"},
        "properties": {"type": "object", "additionalProperties": ANY_OBJECT},
    }
)
_EXTENSION: Json = object_(
    {"alias": STRING, "name": STRING, "description": STRING, "updated": STRING, "links": {"type": "array"}}
)
QUOTA_SET: Json = {"type": "object", "properties": {"id": STRING}, "required": ["id"]}

# --- migrations ------------------------------------------------------------------------------------------------------

_MIGRATION_FIELDS: Json = {
    "id": UUID,
    "volume_id": UUID,
    "destination_volume_id": UUID,
    "status": {"enum": ["queued", "running", "paused", "success", "error", "cancelled", "stuck"]},
    "plan": STRING,
    "step": STRING,
    "direction": {"enum": ["forward", "back"]},
    "attempts": COUNT,
    "source_host": STRING,
    "destination_host": STRING_OR_NULL,
    "force_host_copy": BOOLEAN,
    "lock_volume": BOOLEAN,
    "new_type_id": UUID_OR_NULL,
    "verify": STRING,
    "bytes_per_second": INTEGER_OR_NULL,
    "bytes_total": COUNT,
    "bytes_done": COUNT,
    "bytes_verified": INTEGER_OR_NULL,
    "bytes_allocated": INTEGER_OR_NULL,
    "rate_bytes_per_second": NUMBER_OR_NULL,
    "rate_overall_bytes_per_second": NUMBER_OR_NULL,
    "eta_seconds": NUMBER_OR_NULL,
    "heartbeat_age_seconds": NUMBER_OR_NULL,
    "stalled_seconds": NUMBER_OR_NULL,
    "checksum": STRING_OR_NULL,
    "keep_source_seconds": COUNT,
    "source_kept_until": TIME_OR_NULL,
    "undone_at": TIME_OR_NULL,
    "error": _or_null(object_({"step": STRING_OR_NULL, "code": STRING, "message": STRING_OR_NULL})),
    "requested_by": object_({"user_id": STRING, "project_id": STRING, "request_id": STRING_OR_NULL}),
    "created_at": TIME,
    "updated_at": TIME_OR_NULL,
    "finished_at": TIME_OR_NULL,
}
_STEP: Json = object_(
    {
        "step": STRING,
        "direction": {"enum": ["forward", "back"]},
        "attempt": COUNT,
        "started_at": TIME,
        "finished_at": TIME_OR_NULL,
        "result": STRING_OR_NULL,
        "bytes": INTEGER_OR_NULL,
        "message": STRING_OR_NULL,
    }
)
_MIGRATION: Json = object_(
    _MIGRATION_FIELDS,
    {"verdicts": {"type": "array", "items": ANY_OBJECT}, "steps": {"type": "array", "items": ref("Step")}},
)

_PLAN_VERDICT: Json = object_({"filter": STRING, "passed": BOOLEAN, "reason": STRING, "remedy": STRING_OR_NULL})
_WEIGHED: Json = object_({"weigher": STRING, "measure": NUMBER, "multiplier": NUMBER, "score": NUMBER})
_PLAN_POOL: Json = object_(
    {
        "pool": STRING,
        "needed_gib": COUNT,
        **{f"{name}_gib": NUMBER_OR_NULL for name in ("total", "free", "kept", "reserved", "provisioned", "room")},
        "volumes": INTEGER_OR_NULL,
        "fits": BOOLEAN,
        "rank": INTEGER_OR_NULL,
        "score": NUMBER_OR_NULL,
        "weighers": {"type": "array", "items": _WEIGHED},
        "filters": {"type": "array", "items": _PLAN_VERDICT},
    }
)
_MEASURED: Json = object_(
    {
        "of": STRING,
        "migrations": COUNT,
        "copy_bytes_per_second": COUNT,
        "verify_bytes_per_second": INTEGER_OR_NULL,
    }
)
_PLAN: Json = object_(
    {
        "volume_id": UUID,
        "possible": BOOLEAN,
        "blockers": {"type": "array", "items": object_({"code": STRING, "reason": STRING, "remedy": STRING})},
        "source_host": STRING_OR_NULL,
        "requested_host": STRING_OR_NULL,
        "destination_host": STRING_OR_NULL,
        "plan": STRING_OR_NULL,
        "plans": {"type": "array", "items": object_({"plan": STRING, "chosen": BOOLEAN, "reason": STRING})},
        "force_host_copy": BOOLEAN,
        "lock_volume": BOOLEAN,
        "verify": STRING,
        "bytes_per_second": INTEGER_OR_NULL,
        "keep_source_seconds": COUNT,
        "bytes_total": COUNT,
        "bytes_allocated": INTEGER_OR_NULL,
        "bytes_to_copy": INTEGER_OR_NULL,
        "seconds_expected": NUMBER_OR_NULL,
        "copy_seconds": NUMBER_OR_NULL,
        "verify_seconds": NUMBER_OR_NULL,
        "measured": _or_null(_MEASURED),
        "unmeasured": STRING_OR_NULL,
        "pools": {"type": "array", "items": _PLAN_POOL},
    }
)

#: Of every answer that is no success: its only key names the kind.
_FAULT: Json = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": object_({"code": INTEGER, "message": STRING}),
}

COMPONENTS: dict[str, Json] = {
    "Attachment": _ATTACHMENT,
    "Capabilities": _CAPABILITIES,
    "Cluster": _CLUSTER,
    "Extension": _EXTENSION,
    "Fault": _FAULT,
    "Host": _HOST,
    "HostTotals": _HOST_TOTALS,
    "LeftBy": _LEFT_BY,
    "Links": {"type": "array", "items": _LINK},
    "Manageable": _MANAGEABLE,
    "ManageableSnapshot": _MANAGEABLE_SNAPSHOT,
    "Message": _MESSAGE,
    "Migration": _MIGRATION,
    "Plan": _PLAN,
    "Pool": _POOL,
    "Service": _SERVICE,
    "ServiceChange": _SERVICE_CHANGE,
    "Snapshot": _SNAPSHOT,
    "Step": _STEP,
    "Volume": _VOLUME,
    "VolumeSummary": object_(_VOLUME_SUMMARY),
    "VolumeType": _VOLUME_TYPE,
}
