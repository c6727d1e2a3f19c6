"""What each route answers when all goes well: its status, and the schema of its body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from migrator.api.responses import (
    ANY_OBJECT,
    BOOLEAN,
    COUNT,
    DOCUMENT,
    QUOTA_SET,
    SPECS,
    STRING,
    STRINGS,
    UUID,
    Json,
    object_,
    ref,
)


class Answered(NamedTuple):
    """The status of a success, and the schema of its body; None: there is no body."""

    status: int
    schema: Json | None = None


def _list(key: str, item: str, links: str | None = None) -> Json:
    """A list with the link to its next page and, where it was asked for, the count of all pages."""
    return object_(
        {key: {"type": "array", "items": ref(item)}},
        {links or f"{key}_links": ref("Links"), "count": COUNT},
    )


def _one(key: str, name: str, status: int = 200) -> Answered:
    return Answered(status, object_({key: ref(name)}))


def _many(key: str, name: str, links: str | None = None) -> Answered:
    return Answered(200, _list(key, name, links))


def _plain(key: str, schema: Json) -> Answered:
    return Answered(200, object_({key: schema}))


def _array(key: str, schema: Json) -> Answered:
    return _plain(key, {"type": "array", "items": schema})


OK = Answered(200)
ACCEPTED = Answered(202)
GONE = Answered(204)
_METADATA, _META, _SPECS = _plain("metadata", STRINGS), _plain("meta", STRINGS), _plain("extra_specs", SPECS)
_VERSIONS = _plain("versions", {"type": "array", "items": ANY_OBJECT})

#: By the method and the path as in the table of routes.
ANSWERS: dict[str, Answered] = {
    "GET /": _VERSIONS._replace(status=300),
    "GET /v3": _VERSIONS,
    "GET /v3/{project_id}": _VERSIONS,
    "GET /openapi.json": Answered(200, DOCUMENT),
    "GET /volumes": _many("volumes", "VolumeSummary"),
    "POST /volumes": _one("volume", "Volume", 202),
    "GET /volumes/detail": _many("volumes", "Volume"),
    "GET /volumes/summary": _plain(
        "volume-summary", object_({"total_size": COUNT, "total_count": COUNT}, {"metadata": ANY_OBJECT})
    ),
    "GET /volumes/{volume_id}": _one("volume", "Volume"),
    "PUT /volumes/{volume_id}": _one("volume", "Volume"),
    "DELETE /volumes/{volume_id}": ACCEPTED,
    "GET /manageable_volumes": _array("manageable-volumes", ref("Manageable")),
    "POST /manageable_volumes": _one("volume", "Volume", 202),
    "GET /manageable_volumes/detail": _array("manageable-volumes", ref("Manageable")),
    "GET /os-volume-manage": _array("manageable-volumes", ref("Manageable")),
    "POST /os-volume-manage": _one("volume", "Volume", 202),
    "GET /os-volume-manage/detail": _array("manageable-volumes", ref("Manageable")),
    "GET /attachments": _many("attachments", "Attachment"),
    "POST /attachments": _one("attachment", "Attachment"),
    "GET /attachments/detail": _many("attachments", "Attachment"),
    "GET /attachments/{attachment_id}": _one("attachment", "Attachment"),
    "PUT /attachments/{attachment_id}": _one("attachment", "Attachment"),
    "DELETE /attachments/{attachment_id}": _array("attachments", ref("Attachment")),
    "GET /snapshots": _many("snapshots", "Snapshot"),
    "POST /snapshots": _one("snapshot", "Snapshot", 202),
    "GET /snapshots/detail": _many("snapshots", "Snapshot"),
    "GET /snapshots/{snapshot_id}": _one("snapshot", "Snapshot"),
    "PUT /snapshots/{snapshot_id}": _one("snapshot", "Snapshot"),
    "DELETE /snapshots/{snapshot_id}": ACCEPTED,
    **{
        f"{method} /{what}/metadata{below}": answered
        for what in ("volumes/{volume_id}", "snapshots/{snapshot_id}")
        for method, below, answered in (
            ("GET", "", _METADATA),
            ("POST", "", _METADATA),
            ("PUT", "", _METADATA),
            ("GET", "/{key}", _META),
            ("PUT", "/{key}", _META),
            ("DELETE", "/{key}", OK),
        )
    },
    "GET /manageable_snapshots": _array("manageable-snapshots", ref("ManageableSnapshot")),
    "POST /manageable_snapshots": _one("snapshot", "Snapshot", 202),
    "GET /manageable_snapshots/detail": _array("manageable-snapshots", ref("ManageableSnapshot")),
    "GET /os-snapshot-manage": _array("manageable-snapshots", ref("ManageableSnapshot")),
    "POST /os-snapshot-manage": _one("snapshot", "Snapshot", 202),
    "GET /os-snapshot-manage/detail": _array("manageable-snapshots", ref("ManageableSnapshot")),
    "GET /types": _many("volume_types", "VolumeType", "volume_type_links"),
    "POST /types": _one("volume_type", "VolumeType"),
    "GET /types/default": _one("volume_type", "VolumeType"),
    "GET /types/{type_id}": _one("volume_type", "VolumeType"),
    "PUT /types/{type_id}": _one("volume_type", "VolumeType"),
    "DELETE /types/{type_id}": ACCEPTED,
    "GET /types/{type_id}/os-volume-type-access": _array(
        "volume_type_access", object_({"volume_type_id": UUID, "project_id": STRING})
    ),
    "GET /types/{type_id}/encryption": Answered(200, ANY_OBJECT),
    "GET /types/{type_id}/encryption/{key}": Answered(200, ANY_OBJECT),
    "GET /types/{type_id}/extra_specs": _SPECS,
    "POST /types/{type_id}/extra_specs": _SPECS,
    "GET /types/{type_id}/extra_specs/{key}": Answered(200, SPECS),
    "PUT /types/{type_id}/extra_specs/{key}": Answered(200, SPECS),
    "DELETE /types/{type_id}/extra_specs/{key}": ACCEPTED,
    "GET /os-services": _array("services", ref("Service")),
    **{
        f"PUT /os-services/{verb}": Answered(200, ref("ServiceChange"))
        for verb in ("enable", "disable", "disable-log-reason")
    },
    "PUT /os-services/freeze": OK,
    "PUT /os-services/thaw": OK,
    "GET /clusters": _array("clusters", ref("Cluster")),
    "GET /clusters/detail": _array("clusters", ref("Cluster")),
    "PUT /clusters/enable": _one("cluster", "Cluster"),
    "PUT /clusters/disable": _one("cluster", "Cluster"),
    "GET /clusters/{name}": _one("cluster", "Cluster"),
    "POST /workers/cleanup": Answered(
        202, object_({key: {"type": "array", "items": ref("LeftBy")} for key in ("cleaning", "unavailable")})
    ),
    "GET /os-hosts": _array("hosts", ref("Host")),
    "GET /os-hosts/{host}": _array("host", ref("HostTotals")),
    "GET /capabilities/{host}": Answered(200, ref("Capabilities")),
    "GET /os-availability-zone": _array(
        "availabilityZoneInfo", object_({"zoneName": STRING, "zoneState": object_({"available": BOOLEAN})})
    ),
    "GET /extensions": _array("extensions", ref("Extension")),
    "GET /extensions/{alias}": _one("extension", "Extension"),
    "GET /resource_filters": _array(
        "resource_filters", object_({"resource": STRING, "filters": {"type": "array", "items": STRING}})
    ),
    "GET /limits": _plain("limits", object_({"rate": {"type": "array"}, "absolute": ANY_OBJECT})),
    "GET /os-quota-sets/{quota_of}": _plain("quota_set", QUOTA_SET),
    "GET /os-quota-sets/{quota_of}/defaults": _plain("quota_set", QUOTA_SET),
    "GET /scheduler-stats/get_pools": _array("pools", ref("Pool")),
    "GET /messages": _many("messages", "Message"),
    "GET /messages/{message_id}": _one("message", "Message"),
    "DELETE /messages/{message_id}": GONE,
    "POST /migrations": _one("migration", "Migration", 202),
    "GET /migrations/plan": _one("plan", "Plan"),
    "GET /migrations": _many("migrations", "Migration"),
    "GET /migrations/{migration_id}": _one("migration", "Migration"),
}

#: What a route answers besides.
BESIDES: dict[str, Answered] = {"POST /migrations": _one("plan", "Plan")}

#: By the path of the action and its name; all others are ACCEPTED.
ACTION_ANSWERS: Mapping[tuple[str, str], Answered] = {
    ("/volumes/{volume_id}/action", "os-migrate_volume_completion"): _plain("save_volume_id", UUID),
    ("/volumes/{volume_id}/action", "os-initialize_connection"): _plain("connection_info", ANY_OBJECT),
    ("/volumes/{volume_id}/action", "os-set_bootable"): OK,
    ("/volumes/{volume_id}/action", "os-show_image_metadata"): _METADATA,
    ("/volumes/{volume_id}/action", "os-set_image_metadata"): _METADATA,
    ("/volumes/{volume_id}/action", "os-unset_image_metadata"): OK,
    ("/attachments/{attachment_id}/action", "os-complete"): GONE,
}


def besides(route: str) -> list[Answered]:
    """Return what else a route may answer when all goes well."""
    return [BESIDES[route]] if route in BESIDES else []


def of_action(path: str, name: str) -> Answered:
    """Return what a successful action answers."""
    return ACTION_ANSWERS.get((path, name), ACCEPTED)
