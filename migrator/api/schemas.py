"""What bodies must look like: JSON schemas by resource, with the microversion from which each holds.

Every schema refuses unknown keys where the public API does.  Booleans may be words, as clients send them.
"""

from __future__ import annotations

import uuid
from typing import Any

import jsonschema

from migrator import errors
from migrator.api import versions
from migrator.api.versions import MIN, Version

Json = dict[str, Any]

#: Longest rejected value that a message repeats.
_SHOWN = 120
#: GiB; what the column holds, and more than any backend does.
MAX_SIZE = 2**31 - 1

TRUE = ("1", "t", "true", "on", "y", "yes")
FALSE = ("0", "f", "false", "off", "n", "no")


def as_bool(value: bool | str | None, default: bool = False) -> bool:
    """Return the truth of a value that the format "boolean" let pass."""
    if value is None:
        return default
    return value if isinstance(value, bool) else value.lower() in TRUE


_formats = jsonschema.FormatChecker(formats=())


@_formats.checks("boolean")
def _is_boolean(value: object) -> bool:
    return not isinstance(value, str) or value.lower() in TRUE + FALSE


@_formats.checks("UUID")
def _is_uuid(value: object) -> bool:
    if not isinstance(value, str):
        return True
    try:
        return str(uuid.UUID(value)).replace("-", "") == value.lower().replace("-", "")
    except ValueError:
        return False


@_formats.checks("size in GiB")
def _is_size(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdigit() and len(value) <= 10 and 1 <= int(value) <= MAX_SIZE
    return not isinstance(value, int) or 1 <= value <= MAX_SIZE


@_formats.checks("name that is not blank")
def _is_name(value: object) -> bool:
    return not isinstance(value, str) or bool(value.strip())


BOOLEAN: Json = {"type": ["boolean", "string"], "format": "boolean"}
UUID: Json = {"type": "string", "format": "UUID"}
UUID_OR_NULL: Json = {"type": ["string", "null"], "format": "UUID"}
STRING: Json = {"type": "string", "maxLength": 255}
STRING_OR_NULL: Json = {"type": ["string", "null"], "maxLength": 255}
NAME: Json = {"type": "string", "minLength": 1, "maxLength": 255, "format": "name that is not blank"}
TEXT_OR_NULL: Json = {"type": ["string", "null"], "maxLength": 255}
SIZE: Json = {"type": ["integer", "string"], "format": "size in GiB"}
SIZE_OR_NULL: Json = {"type": ["integer", "string", "null"], "format": "size in GiB"}
#: Keys in the metadata of one volume or snapshot.
MAX_METADATA = 128
METADATA: Json = {
    "type": ["object", "null"],
    "propertyNames": {"minLength": 1, "maxLength": 255},
    "additionalProperties": {"type": "string", "maxLength": 255},
    "maxProperties": MAX_METADATA,
}
EXTRA_SPECS: Json = {
    "type": ["object", "null"],
    "propertyNames": {"pattern": r"^[a-zA-Z0-9\-_:.]{1,255}\Z"},
    "additionalProperties": {"type": ["string", "null"], "maxLength": 255},
    "maxProperties": 128,
}


class Schema:
    """Schemas of one body, each from its microversion on; the one of the newest that the request knows counts."""

    def __init__(self, *by_version: tuple[Version, Json]) -> None:
        self.by_version = by_version
        self._validators = [(since, _validator(schema)) for since, schema in by_version]
        #: What the newest microversion takes.
        self.newest = by_version[-1][1]

    def check(self, body: Json, version: Version) -> None:
        """Raise InvalidInput that names the first field which is wrong."""
        validator = [validator for since, validator in self._validators if since <= version][-1]
        found = next(iter(sorted(validator.iter_errors(body), key=lambda error: len(error.absolute_path))), None)
        if found is not None:
            field = ".".join(str(part) for part in found.absolute_path) or "request body"
            raise errors.InvalidInput(field=field, reason=_reason(found))


def _validator(schema: Json) -> Any:
    return jsonschema.Draft202012Validator(schema, format_checker=_formats)


def _reason(error: Any) -> str:
    """Return the schema's complaint without a rejected value that may be as long as the body."""
    shown = repr(error.instance)
    message = str(error.message)
    if len(shown) <= _SHOWN:
        return message
    return f"{error.validator} {error.validator_value!r} does not hold for {shown[:_SHOWN]}…"


def _object(properties: Json, required: tuple[str, ...] = (), **more: Any) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


def _wrapped(key: str, inner: Json, beside: Json | None = None) -> Json:
    return _object({key: inner, **(beside or {})}, (key,))


# --- volumes ---------------------------------------------------------------------------------------------------------

_VOLUME: Json = {
    "name": STRING_OR_NULL,
    "description": TEXT_OR_NULL,
    "display_name": STRING_OR_NULL,
    "display_description": TEXT_OR_NULL,
    "size": SIZE_OR_NULL,
    "volume_type": STRING_OR_NULL,
    "metadata": METADATA,
    "snapshot_id": UUID_OR_NULL,
    "source_volid": UUID_OR_NULL,
    "consistencygroup_id": UUID_OR_NULL,
    "availability_zone": {"type": ["string", "null"], "minLength": 1, "maxLength": 255},
    "multiattach": {"type": ["boolean", "string", "null"], "format": "boolean"},
    "image_id": STRING_OR_NULL,
    "imageRef": STRING_OR_NULL,
    "group_id": UUID_OR_NULL,
    "backup_id": UUID_OR_NULL,
}
_HINTS: Json = {"OS-SCH-HNT:scheduler_hints": {"type": ["object", "null"]}}

VOLUME_CREATE = Schema(
    # Clients of old microversions send keys of their own (status, project_id …), which the public API ignores.
    (MIN, _wrapped("volume", {"type": "object", "properties": _VOLUME}, _HINTS)),
    (versions.STRICT_BODIES, _wrapped("volume", _object(_VOLUME), _HINTS)),
)

_VOLUME_CHANGES: Json = {
    key: _VOLUME[key] for key in ("name", "description", "display_name", "display_description", "metadata")
}
VOLUME_UPDATE = Schema(
    (MIN, _wrapped("volume", _object(_VOLUME_CHANGES))),
    (versions.STRICT_BODIES, _wrapped("volume", _object(_VOLUME_CHANGES, minProperties=1))),
)

# --- volume actions --------------------------------------------------------------------------------------------------

_MIGRATE: Json = {"force_host_copy": BOOLEAN, "lock_volume": BOOLEAN}
MIGRATE = Schema(
    (MIN, _wrapped("os-migrate_volume", _object({"host": NAME, **_MIGRATE}, ("host",)))),
    (
        versions.MIGRATE_TO_CLUSTER,
        _wrapped("os-migrate_volume", _object({"host": STRING_OR_NULL, "cluster": STRING_OR_NULL, **_MIGRATE})),
    ),
)
MIGRATE_COMPLETION = Schema(
    (
        MIN,
        _wrapped(
            "os-migrate_volume_completion",
            _object(
                {"new_volume": UUID, "error": {"type": ["boolean", "string", "null"], "format": "boolean"}},
                ("new_volume",),
            ),
        ),
    )
)

RESET_STATUS = Schema(
    (
        MIN,
        _wrapped(
            "os-reset_status",
            _object(
                {
                    "status": STRING_OR_NULL,
                    "attach_status": STRING_OR_NULL,
                    "migration_status": STRING_OR_NULL,
                },
                minProperties=1,
            ),
        ),
    )
)
EXTEND = Schema((MIN, _wrapped("os-extend", _object({"new_size": SIZE}, ("new_size",)))))
RETYPE = Schema(
    (
        MIN,
        _wrapped(
            "os-retype",
            _object({"new_type": NAME, "migration_policy": {"enum": ["on-demand", "never", None]}}, ("new_type",)),
        ),
    )
)
SET_BOOTABLE = Schema((MIN, _wrapped("os-set_bootable", _object({"bootable": BOOLEAN}, ("bootable",)))))
READONLY = Schema((MIN, _wrapped("os-update_readonly_flag", _object({"readonly": BOOLEAN}, ("readonly",)))))
SET_IMAGE_METADATA = Schema(
    (MIN, _wrapped("os-set_image_metadata", _object({"metadata": {**METADATA, "type": "object"}}, ("metadata",))))
)
UNSET_IMAGE_METADATA = Schema((MIN, _wrapped("os-unset_image_metadata", _object({"key": NAME}, ("key",)))))


def _whatever(action: str) -> Schema:
    """An action that says all by its name: clients send null, an empty object, or what they like."""
    return Schema((MIN, _wrapped(action, {})))


SHOW_IMAGE_METADATA = _whatever("os-show_image_metadata")
FORCE_DELETE = _whatever("os-force_delete")

# --- attachments and the older flow ----------------------------------------------------------------------------------

_CONNECTOR: Json = {"type": "object", "minProperties": 1, "maxProperties": 64}
_CONNECTOR_OR_NOTHING: Json = {"type": ["object", "string", "null"], "maxProperties": 64, "maxLength": 255}
_ATTACHMENT: Json = {
    "instance_uuid": UUID_OR_NULL,
    "volume_uuid": UUID,
    "connector": {"type": ["object", "null"], "maxProperties": 64},
}
_MODE: Json = {"enum": ["rw", "ro"]}
ATTACHMENT_CREATE = Schema(
    (versions.ATTACHMENTS, _wrapped("attachment", _object(_ATTACHMENT, ("volume_uuid",)))),
    (versions.ATTACHMENT_MODE, _wrapped("attachment", _object({**_ATTACHMENT, "mode": _MODE}, ("volume_uuid",)))),
)
ATTACHMENT_UPDATE = Schema(
    (versions.ATTACHMENTS, _wrapped("attachment", _object({"connector": _CONNECTOR}, ("connector",))))
)
ATTACHMENT_COMPLETE = _whatever("os-complete")
RESERVE = _whatever("os-reserve")
UNRESERVE = _whatever("os-unreserve")
BEGIN_DETACHING = _whatever("os-begin_detaching")
ROLL_DETACHING = _whatever("os-roll_detaching")
ATTACH = Schema(
    (
        MIN,
        _wrapped(
            "os-attach",
            _object(
                {"instance_uuid": UUID, "mountpoint": {**STRING, "minLength": 1}, "host_name": STRING, "mode": _MODE},
                ("mountpoint",),
                anyOf=[{"required": ["instance_uuid"]}, {"required": ["host_name"]}],
            ),
        ),
    )
)
_DETACH: Json = {"attachment_id": UUID_OR_NULL}
DETACH = Schema((MIN, _wrapped("os-detach", {**_object(_DETACH), "type": ["object", "null"]})))
FORCE_DETACH = Schema((MIN, _wrapped("os-force_detach", _object({**_DETACH, "connector": _CONNECTOR_OR_NOTHING}))))
INITIALIZE_CONNECTION = Schema(
    (MIN, _wrapped("os-initialize_connection", _object({"connector": _CONNECTOR}, ("connector",))))
)
TERMINATE_CONNECTION = Schema(
    (MIN, _wrapped("os-terminate_connection", _object({"connector": _CONNECTOR_OR_NOTHING}, ("connector",))))
)

# --- snapshots -------------------------------------------------------------------------------------------------------

_SNAPSHOT_NAMES: Json = {key: _VOLUME[key] for key in ("name", "description", "display_name", "display_description")}
SNAPSHOT_CREATE = Schema(
    (
        MIN,
        _wrapped(
            "snapshot",
            _object({**_SNAPSHOT_NAMES, "volume_id": UUID, "force": BOOLEAN, "metadata": METADATA}, ("volume_id",)),
        ),
    )
)
SNAPSHOT_UPDATE = Schema((MIN, _wrapped("snapshot", _object(_SNAPSHOT_NAMES, minProperties=1))))

SNAPSHOT_RESET_STATUS = Schema((MIN, _wrapped("os-reset_status", _object({"status": NAME}, ("status",)))))
SNAPSHOT_FORCE_DELETE = _whatever("os-force_delete")

# --- metadata --------------------------------------------------------------------------------------------------------

METADATA_OF = Schema((MIN, _wrapped("metadata", {**METADATA, "type": "object"})))
METADATA_ITEM = Schema((MIN, _wrapped("meta", {**METADATA, "type": "object", "minProperties": 1, "maxProperties": 1})))

# --- manage ----------------------------------------------------------------------------------------------------------

_MANAGED: Json = {
    "host": STRING_OR_NULL,
    "ref": {"type": "object", "minProperties": 1, "maxProperties": 8},
    **{key: _VOLUME[key] for key in ("name", "description", "volume_type", "availability_zone", "metadata")},
    "bootable": {"type": ["boolean", "string", "null"], "format": "boolean"},
}
MANAGE = Schema(
    (MIN, _wrapped("volume", _object({**_MANAGED, "host": NAME}, ("host", "ref")))),
    (versions.MIGRATE_TO_CLUSTER, _wrapped("volume", _object({**_MANAGED, "cluster": STRING_OR_NULL}, ("ref",)))),
)
UNMANAGE = _whatever("os-unmanage")
SNAPSHOT_MANAGE = Schema(
    (
        MIN,
        _wrapped(
            "snapshot",
            _object(
                {"volume_id": UUID, "metadata": METADATA}
                | {key: _MANAGED[key] for key in ("ref", "name", "description")},
                ("volume_id", "ref"),
            ),
        ),
    )
)
SNAPSHOT_UNMANAGE = _whatever("os-unmanage")

# --- volume types ----------------------------------------------------------------------------------------------------

TYPE_CREATE = Schema(
    (
        MIN,
        _wrapped(
            "volume_type",
            _object(
                {
                    "name": NAME,
                    "description": TEXT_OR_NULL,
                    "extra_specs": EXTRA_SPECS,
                    "os-volume-type-access:is_public": BOOLEAN,
                },
                ("name",),
            ),
        ),
    )
)
TYPE_UPDATE = Schema(
    (
        MIN,
        _wrapped(
            "volume_type",
            _object({"name": {**NAME, "type": ["string", "null"]}, "description": TEXT_OR_NULL, "is_public": BOOLEAN}),
        ),
    )
)
_PROJECT: Json = _object({"project": NAME}, ("project",))
ADD_PROJECT_ACCESS = Schema((MIN, _wrapped("addProjectAccess", _PROJECT)))
REMOVE_PROJECT_ACCESS = Schema((MIN, _wrapped("removeProjectAccess", _PROJECT)))
EXTRA_SPECS_CREATE = Schema((MIN, _wrapped("extra_specs", {**EXTRA_SPECS, "type": "object"})))
EXTRA_SPEC_UPDATE = Schema((MIN, {**EXTRA_SPECS, "type": "object", "minProperties": 1, "maxProperties": 1}))

# --- services and migrations -----------------------------------------------------------------------------------------

FREEZE = Schema((MIN, _object({"host": NAME, "cluster": STRING_OR_NULL}, ("host",))))
CLUSTER = Schema(
    (versions.CLUSTERS, _object({"name": NAME, "binary": STRING_OR_NULL, "disabled_reason": STRING_OR_NULL}, ("name",)))
)
CLEANUP = Schema(
    (
        versions.WORKERS_CLEANUP,
        _object(
            {
                "cluster_name": STRING_OR_NULL,
                "host": STRING_OR_NULL,
                "binary": STRING_OR_NULL,
                "is_up": BOOLEAN,
                "disabled": BOOLEAN,
                "service_id": {"type": ["integer", "string", "null"], "pattern": r"^[0-9]{1,9}\Z"},
                "resource_id": UUID_OR_NULL,
                "resource_type": {"enum": ["Volume", "volume", "Snapshot", "snapshot", None]},
            }
        ),
    )
)
_SERVICE: Json = {"host": NAME, "binary": NAME, "service": NAME, "cluster": STRING_OR_NULL}
_NAMED = {"anyOf": [{"required": ["binary"]}, {"required": ["service"]}]}
SERVICE = Schema((MIN, _object(_SERVICE, ("host",), **_NAMED)))
SERVICE_REASON = Schema(
    (MIN, _object({**_SERVICE, "disabled_reason": NAME}, ("host", "disabled_reason"), **_NAMED)),
)


def _bare(order: str, **properties: Any) -> Schema:
    return Schema((MIN, _wrapped(order, _object(properties) | {"type": ["object", "null"]})))


#: Bytes per second: at the first, a block takes a quarter of a minute; the last nothing reaches.
LEAST_RATE, MOST_RATE = 64 * 1024, 1 << 50
_RATE: Json = {"type": ["integer", "null"], "minimum": LEAST_RATE, "maximum": MOST_RATE}

#: As the option of the same name.
MAX_KEEP_SECONDS = 365 * 24 * 3600
_MIGRATION: Json = {
    "volume_id": UUID,
    "host": STRING_OR_NULL,
    "force_host_copy": BOOLEAN,
    "lock_volume": BOOLEAN,
    "verify": {"enum": ["readback", "inline", "none", None]},
    "bytes_per_second": _RATE,
    "keep_source_seconds": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_KEEP_SECONDS},
    "dry_run": BOOLEAN,
}
MIGRATION_CREATE = Schema((MIN, _wrapped("migration", _object(_MIGRATION, ("volume_id",)))))
MIGRATION_CANCEL = _bare("cancel", force=BOOLEAN)
MIGRATION_PAUSE = _bare("pause")
MIGRATION_RESUME = _bare("resume")
MIGRATION_RETRY = _bare("retry")
MIGRATION_SET_RATE = Schema((MIN, _wrapped("set_rate", _object({"bytes_per_second": _RATE}, ("bytes_per_second",)))))
MIGRATION_UNDO = _bare("undo")
