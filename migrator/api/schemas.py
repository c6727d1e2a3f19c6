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
METADATA: Json = {
    "type": ["object", "null"],
    "propertyNames": {"minLength": 1, "maxLength": 255},
    "additionalProperties": {"type": "string", "maxLength": 255},
    "maxProperties": 128,
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
        self._validators = [(since, _validator(schema)) for since, schema in by_version]

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
EXTRA_SPECS_CREATE = Schema((MIN, _wrapped("extra_specs", {**EXTRA_SPECS, "type": "object"})))
EXTRA_SPEC_UPDATE = Schema((MIN, {**EXTRA_SPECS, "type": "object", "minProperties": 1, "maxProperties": 1}))

# --- services and migrations -----------------------------------------------------------------------------------------

_SERVICE: Json = {"host": NAME, "binary": NAME, "service": NAME, "cluster": STRING_OR_NULL}
_NAMED = {"anyOf": [{"required": ["binary"]}, {"required": ["service"]}]}
SERVICE = Schema((MIN, _object(_SERVICE, ("host",), **_NAMED)))
SERVICE_REASON = Schema(
    (MIN, _object({**_SERVICE, "disabled_reason": NAME}, ("host", "disabled_reason"), **_NAMED)),
)
MIGRATION_CANCEL = Schema((MIN, _wrapped("cancel", _object({}) | {"type": ["object", "null"]})))
