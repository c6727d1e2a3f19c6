"""Rows as the JSON that clients know.  Which fields there are depends on the microversion and on policy alone."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from oslo_utils.strutils import mask_dict_password

from migrator import policy
from migrator.api import versions
from migrator.api.wsgi import Json, Request
from migrator.db import migrations
from migrator.db.models import Attachment, Message, Migration, MigrationStep, Snapshot, VolumeType
from migrator.db.services import VOLUME as VOLUME_BINARY
from migrator.db.services import ServiceState
from migrator.db.volumes import Whole

#: Extra specs that every tenant may know; the others describe the deployment.
PUBLIC_EXTRA_SPECS = ("RESKEY:availability_zones", "multiattach", "replication_enabled")


def time(value: datetime.datetime | None) -> str | None:
    """Return a naive UTC time as clients parse it, without zone."""
    return None if value is None else value.isoformat(timespec="microseconds")


def links(request: Request, collection: str, id: str) -> list[Json]:  # noqa: A002 - the API's word
    return [
        {"rel": "self", "href": f"{request.base_url}/v3{request.scope}/{collection}/{id}"},
        {"rel": "bookmark", "href": f"{request.base_url}{request.scope}/{collection}/{id}"},
    ]


def page(
    request: Request, key: str, items: Sequence[Json], path: str, limit: int, key_links: str | None = None
) -> Json:
    """Return a list as clients page through it; a full page has a link to the next."""
    body: Json = {key: items}
    if items and len(items) >= limit:
        # The offset counts from the marker on, and what it was to skip is skipped.
        kept = {key: value for key, value in request.query.items() if key != "offset"}
        parameters = urlencode({**kept, "marker": items[-1]["id"]})
        href = f"{request.base_url}/v3{request.scope}/{path}?{parameters}"
        body[key_links or f"{key}_links"] = [{"rel": "next", "href": href}]
    return body


# --- volumes ---------------------------------------------------------------------------------------------------------


def volume_summary(request: Request, volume: Any) -> Json:
    """A volume with its id and name; ``volume`` has those two columns."""
    return {"id": volume.id, "name": volume.display_name, "links": links(request, "volumes", volume.id)}


def volume_detail(request: Request, whole: Whole, *, attributes: bool) -> Json:
    """A volume with every field of the microversion.

    ``attributes`` adds what the public API shows in GET only: os-vol-host-attr and its like, each by its policy.
    """
    volume = whole.row
    view: Json = {
        "id": volume.id,
        "status": volume.status,
        "size": volume.size,
        "availability_zone": volume.availability_zone,
        "created_at": time(volume.created_at),
        "updated_at": time(volume.updated_at),
        "name": volume.display_name,
        "description": volume.display_description,
        "volume_type": whole.type_name,
        "snapshot_id": volume.snapshot_id,
        "source_volid": volume.source_volid,
        "metadata": whole.metadata,
        "links": links(request, "volumes", volume.id),
        "user_id": volume.user_id,
        "bootable": "true" if volume.bootable else "false",
        "encrypted": volume.encryption_key_id is not None,
        "replication_status": volume.replication_status,
        "consistencygroup_id": None,
        "multiattach": volume.multiattach,
        "attachments": [_attachment(request, a) for a in whole.attachments if a.attach_status == "attached"],
    }
    if request.is_admin:
        view["migration_status"] = volume.migration_status
    for since, key, value in _VERSIONED:
        if since <= request.version:
            view[key] = value(volume)
    if request.is_admin:
        for since, key, value in _ADMIN_VERSIONED:
            if since <= request.version:
                view[key] = value(volume)
    if volume.encryption_key_id is not None and request.version >= versions.ENCRYPTION_KEY:
        view["encryption_key_id"] = volume.encryption_key_id
    if attributes:
        view |= _attributes(request, volume)
        if volume.image_metadata and request.allows(policy.IMAGE_METADATA, volume.project_id):
            view["volume_image_metadata"] = volume.image_metadata
    return view


_Field = tuple[versions.Version, str, Callable[[Any], Any]]

_VERSIONED: tuple[_Field, ...] = (
    (versions.GROUP_ID, "group_id", lambda volume: volume.group_id),
    (versions.SHARED_TARGETS, "shared_targets", lambda volume: False),
    (versions.SHARED_TARGETS, "service_uuid", lambda volume: volume.service_uuid),
    (versions.TYPE_ID, "volume_type_id", lambda volume: volume.volume_type_id),
    # A twin is never counted (LP1917450).
    (versions.CONSUMES_QUOTA, "consumes_quota", lambda volume: volume.twin_of is None),
)
_ADMIN_VERSIONED: tuple[_Field, ...] = (
    (versions.PROVIDER_ID, "provider_id", lambda volume: volume.provider_id),
    (versions.CLUSTER_NAME, "cluster_name", lambda volume: volume.cluster_name),
)


def _attributes(request: Request, volume: Any) -> Json:
    shown: Json = {}
    project = volume.project_id
    if request.allows(policy.HOST_ATTRIBUTE, project):
        shown["os-vol-host-attr:host"] = volume.host
    if request.allows(policy.MIGRATION_ATTRIBUTE, project):
        shown["os-vol-mig-status-attr:migstat"] = volume.migration_status
        shown["os-vol-mig-status-attr:name_id"] = volume.name_id
    if request.allows(policy.TENANT_ATTRIBUTE, project):
        shown["os-vol-tenant-attr:tenant_id"] = project
    return shown


def attachment(request: Request, row: Attachment, *, detail: bool, whole: bool = False) -> Json:
    """An attachment of its own resource.

    ``detail`` adds its times, mode and connection; ``whole`` is for who has just made the connection and needs its
    secrets.  Others that are no service see them masked.
    """
    view: Json = {
        "id": row.id,
        "status": row.attach_status,
        "instance": row.instance_uuid,
        "volume_id": row.volume_id,
    }
    if not detail:
        return view
    info = row.connection_info or {}
    whole = whole or _is_trusted(request)
    return {
        **view,
        "attached_at": time(row.attach_time) or "",
        "detached_at": time(row.detach_time) or "",
        "attach_mode": row.attach_mode,
        "connection_info": info if whole else mask_dict_password(info),
    }


def _is_trusted(request: Request) -> bool:
    """Tell whether an administrator or a service asks, who see hosts and secrets."""
    return request.is_admin or "service" in {*request.context.roles, *request.context.service_roles}


def _attachment(request: Request, attachment: Any) -> Json:
    sees_host = _is_trusted(request)
    return {
        "id": attachment.volume_id,
        "attachment_id": attachment.id,
        "volume_id": attachment.volume_id,
        "server_id": attachment.instance_uuid,
        "host_name": attachment.attached_host if sees_host else None,
        "device": attachment.mountpoint,
        "attached_at": time(attachment.attach_time),
    }


# --- snapshots, types ------------------------------------------------------------------------------------------------


def snapshot(request: Request, row: Snapshot, *, detail: bool) -> Json:
    """A snapshot; ``detail`` adds what GET of one and the detailed list show beside the summary."""
    view: Json = {
        "id": row.id,
        "created_at": time(row.created_at),
        "updated_at": time(row.updated_at),
        "name": row.display_name,
        "description": row.display_description,
        "volume_id": row.volume_id,
        "status": row.status,
        "size": row.volume_size,
        "metadata": row.meta,
    }
    if not detail:
        return view
    if request.version >= versions.GROUP_SNAPSHOT_ID:
        view["group_snapshot_id"] = None
    if request.version >= versions.SNAPSHOT_USER_ID:
        view["user_id"] = row.user_id
    if request.version >= versions.CONSUMES_QUOTA:
        view["consumes_quota"] = True
    if request.allows(policy.SNAPSHOT_ATTRIBUTES, row.project_id):
        view["os-extended-snapshot-attributes:project_id"] = row.project_id
        view["os-extended-snapshot-attributes:progress"] = row.progress
    return view


def volume_type(request: Request, row: VolumeType) -> Json:
    view: Json = {
        "id": row.id,
        "name": row.name,
        "is_public": row.is_public,
        "description": row.description,
        "os-volume-type-access:is_public": row.is_public,
    }
    own = request.context.project_id
    if request.allows(policy.SEE_EXTRA_SPECS, own):
        view["extra_specs"] = extra_specs(request, row)
    if request.allows(policy.SEE_QOS, own):
        view["qos_specs_id"] = None
    return view


def extra_specs(request: Request, row: VolumeType) -> dict[str, str | None]:
    """The extra specs that the caller may see."""
    all_of_them = request.allows(policy.SEE_SENSITIVE_SPECS, request.context.project_id)
    return {s.key: s.value for s in row.extra_specs if all_of_them or s.key in PUBLIC_EXTRA_SPECS}


# --- services, messages ----------------------------------------------------------------------------------------------


def service(request: Request, state: ServiceState) -> Json:
    row = state.service
    heard = datetime.datetime.fromtimestamp(row.heartbeat_at, datetime.UTC).replace(tzinfo=None)
    view: Json = {
        "binary": row.binary,
        "host": row.host,
        "zone": row.availability_zone,
        "status": "disabled" if row.disabled else "enabled",
        "state": "up" if state.up else "down",
        "updated_at": time(heard),
        "disabled_reason": row.disabled_reason,
    }
    if request.version >= versions.CLUSTERS:
        view["cluster"] = row.cluster_name
    if row.binary == VOLUME_BINARY:
        view |= {"replication_status": "disabled", "active_backend_id": None, "frozen": row.frozen}
        if request.version >= versions.BACKEND_STATE:
            view["backend_state"] = "up" if state.up else "down"
    return view


def message(request: Request, row: Message) -> Json:
    return {
        "id": row.id,
        "event_id": row.event_id,
        "user_message": row.user_message,
        "message_level": row.message_level,
        "created_at": time(row.created_at),
        "guaranteed_until": time(row.guaranteed_until),
        "request_id": row.request_id,
        "resource_type": row.resource_type,
        "resource_uuid": row.resource_uuid,
        "links": links(request, "messages", row.id),
    }


# --- migrations ------------------------------------------------------------------------------------------------------


def migration(row: Migration, now: float) -> Json:
    """A migration as lists show it; ``now`` is the database's clock."""
    running = row.end is None
    kept = row.keep_source_until is not None and row.undone_at is None
    return {
        "id": row.id,
        "volume_id": row.volume_id,
        "destination_volume_id": row.destination_volume_id,
        "status": migrations.status(row),
        "plan": row.plan,
        "step": row.step,
        "direction": row.direction,
        "attempts": row.attempts,
        "source_host": row.source_host,
        # What was asked for, until the scheduler has picked the pool.
        "destination_host": row.destination_host or row.requested_host,
        "force_host_copy": row.force_host_copy,
        "lock_volume": row.lock_volume,
        "new_type_id": row.new_type_id,
        "verify": row.verify,
        "bytes_per_second": row.bytes_per_second,
        "bytes_total": row.bytes_total,
        "bytes_done": row.bytes_done,
        "bytes_verified": row.bytes_verified,
        "bytes_allocated": row.bytes_allocated,
        "rate_bytes_per_second": row.rate,
        "rate_overall_bytes_per_second": _rate_overall(row),
        "eta_seconds": _left(row) / row.rate if running and row.rate else None,
        "heartbeat_age_seconds": _age(row.heartbeat_at, now) if running and row.owner else None,
        "stalled_seconds": _age(row.stalled_since, now) if running and row.owner else None,
        "checksum": row.checksum,
        "keep_source_seconds": row.keep_source_seconds,
        "source_kept_until": _moment(row.keep_source_until) if kept else None,
        "undone_at": _moment(row.undone_at),
        "error": _error(row),
        "requested_by": {"user_id": row.user_id, "project_id": row.project_id, "request_id": row.request_id},
        "created_at": time(row.created_at),
        "updated_at": time(row.updated_at),
        "finished_at": time(row.finished_at),
    }


def _left(row: Migration) -> int:
    """Bytes that the present step still has to copy, or to compare."""
    done = row.bytes_done if row.bytes_done < row.bytes_total else row.bytes_verified or 0
    return max(0, row.bytes_total - done)


def _rate_overall(row: Migration) -> float | None:
    return row.bytes_moved / row.moved_seconds if row.bytes_moved is not None and row.moved_seconds else None


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else max(0.0, now - since)


def _moment(seconds: float | None) -> str | None:
    """Return a moment of the database's clock as clients parse it."""
    if seconds is None:
        return None
    return time(datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(tzinfo=None))


def _error(row: Migration) -> Json | None:
    if row.error_code is None:
        return None
    return {"step": row.error_step, "code": row.error_code, "message": row.error_message}


def migration_detail(row: Migration, steps: Sequence[MigrationStep], now: float) -> Json:
    """A migration with the scheduler's verdicts and the history of its steps."""
    return {**migration(row, now), "verdicts": row.verdicts, "steps": [_step(step) for step in steps]}


def _step(step: MigrationStep) -> Json:
    return {
        "step": step.step,
        "direction": step.direction,
        "attempt": step.attempt,
        "started_at": time(step.started_at),
        "finished_at": time(step.finished_at),
        "result": step.result,
        "bytes": step.bytes,
        "message": step.message,
    }
