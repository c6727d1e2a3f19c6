"""``/attachments`` (3.27): reserve a volume for a server, connect it to the server's host, complete, detach."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors, policy
from migrator.api import guard, lists, views
from migrator.api.lists import Filter
from migrator.api.wsgi import NO_CONTENT, Answer, Json, Request
from migrator.db import attachments, listing, migrations, volumes
from migrator.db.models import Attachment, Migration, Volume, utcnow

LOG = logging.getLogger(__name__)

FILTERS: dict[str, Filter] = {
    "volume_id": lists.equals(Attachment.volume_id),
    "status": lists.equals(Attachment.attach_status),
    "attach_status": lists.equals(Attachment.attach_status),
    "instance_id": lists.equals(Attachment.instance_uuid),
}

#: ``attach_mode`` of an attachment whose creator left it to the connector.
UNSAID = "null"


# --- read ------------------------------------------------------------------------------------------------------------


def index(request: Request) -> Answer:
    return _list(request, detail=False)


def detail(request: Request) -> Answer:
    return _list(request, detail=True)


def _list(request: Request, detail: bool) -> Answer:
    page, rest = lists.split(request)
    everybody = lists.all_tenants(request, rest)
    filters = lists.conditions(request, FILTERS, rest)
    scope: listing.Condition = attachments.is_living()
    if not everybody:
        of_project = sa.select(Volume.id).where(
            Volume.id == Attachment.volume_id,
            Volume.project_id == request.context.project_id,
            Volume.twin_of.is_(None),
        )
        scope = sa.and_(scope, of_project.correlate(Attachment).exists())
    rows = request.read(lambda session: listing.ATTACHMENTS.fetch(session, scope, filters, page))
    shown = [views.attachment(request, row, detail=detail) for row in rows]
    return Answer(
        200, views.page(request, "attachments", shown, "attachments/detail" if detail else "attachments", page.limit)
    )


def show(request: Request, attachment_id: str) -> Answer:
    row, _ = request.read(lambda session: visible(request, session, attachment_id))
    return Answer(200, {"attachment": views.attachment(request, row, detail=True)})


def visible(request: Request, session: Session, attachment_id: str) -> tuple[Attachment, Volume]:
    """Return an attachment that the caller may see, with its volume; raises NotFound or Forbidden."""
    row = attachments.get(session, attachment_id)
    volume = volumes.get(session, row.volume_id)
    if volume.twin_of is not None and not request.is_admin:
        raise errors.NotFound(kind="Volume attachment", id=attachment_id)
    request.authorize_owner("Volume attachment", attachment_id, volume.project_id, volume.user_id)
    return row, volume


# --- create ----------------------------------------------------------------------------------------------------------


def create(request: Request) -> Answer:
    """Reserve the volume; with a connector, connect it as well, or leave nothing behind."""
    wanted = request.body["attachment"]
    attachment_id = str(uuid.uuid4())

    def work(session: Session) -> tuple[Migration | None, Attachment]:
        volume = guard.attachable(request, session, wanted["volume_uuid"])
        migration = _reserve(request, session, volume, wanted.get("instance_uuid"))
        attachments.insert(
            session,
            id=attachment_id,
            volume_id=volume.id,
            instance_uuid=wanted.get("instance_uuid"),
            attach_status=attachments.RESERVED,
            attach_mode=_mode_of_new(session, volume, wanted),
        )
        return migration, attachments.get(session, attachment_id)

    migration, row = guard.run(request, wanted["volume_uuid"], work)
    guard.nudge(request, migration)
    if wanted.get("connector"):
        try:
            row = _connect(request, attachment_id, wanted["connector"])
        except errors.MigratorError:
            request.run(lambda session: attachments.detach(session, row))
            raise
    return Answer(200, {"attachment": views.attachment(request, row, detail=True, whole=True)})


def _reserve(request: Request, session: Session, volume: Volume, server: str | None) -> Migration | None:
    """Take the volume for a server; raises InvalidVolume with the one reason against it.

    A server that has the volume already may have it a second time: so it is moved to another host.
    """
    guard.refuse_locked(volume)
    if volume.multiattach and volume.status == "in-use" and volume.bootable:
        request.authorize(policy.MULTIATTACH_BOOTABLE, volume.project_id, volume.user_id)
    free = ("available", "in-use") if volume.multiattach else ("available",)
    if volume.status in free:
        return guard.take_for_server(session, volume, status="reserved")
    again = server is not None and volume.status in ("in-use", "reserved")
    if again and attachments.of_volume(session, volume.id, Attachment.instance_uuid == server):
        return guard.take_for_server(session, volume)
    raise errors.InvalidVolume(
        volume_id=volume.id, reason=f"status must be {' or '.join(free)} to reserve; it is {volume.status}"
    )


def _mode_of_new(session: Session, volume: Volume, wanted: Json) -> str:
    """The mode of a new attachment; a swap keeps a read-only attachment read-only (LP1802155)."""
    if volume.readonly:
        return "ro"
    swapped = attachments.of_swapped(session, volume, wanted.get("instance_uuid")) if volume.twin_of else None
    if swapped is not None and swapped.attach_mode == "ro":
        return "ro"
    return str(wanted.get("mode") or UNSAID)


# --- connect ---------------------------------------------------------------------------------------------------------


def update(request: Request, attachment_id: str) -> Answer:
    row = _connect(request, attachment_id, request.body["attachment"]["connector"])
    return Answer(200, {"attachment": views.attachment(request, row, detail=True, whole=True)})


def _connect(request: Request, attachment_id: str, connector: Json) -> Attachment:
    """Have the volume's service offer it to the connector's host, and record what that needs to know."""
    volume, host, mode = _take(request, attachment_id, connector)
    connector = {**connector, "mode": mode}
    offered = request.backing.volume.initialize_connection(
        request.context, host, volume.id, connector, writable=mode != "ro"
    )
    values = {
        "attached_host": _text(connector.get("host")),
        "mountpoint": _text(connector.get("mountpoint")) or "na",
        "attach_time": utcnow(),
        "attach_mode": mode,
        "connector": connector,
        "connection_info": connection_info(offered, connector, attachment_id),
    }

    def record(session: Session) -> Attachment | None:
        there = attachments.connected(session, attachment_id, volume.id, attachments.ATTACHING, **values)
        return attachments.get(session, attachment_id) if there else None

    row = request.run(record)
    if row is None:  # detached while it was connected
        request.backing.volume.terminate_connection(request.context, host, volume.id, connector)
        raise errors.NotFound(kind="Volume attachment", id=attachment_id)
    return row


def _take(request: Request, attachment_id: str, connector: Json) -> tuple[Volume, str, str]:
    """Take the volume for the connection; return it with its host and the mode in which it may be used."""
    volume_id = request.read(lambda session: visible(request, session, attachment_id)[1].id)

    def work(session: Session) -> tuple[Migration | None, Volume, str]:
        row, _ = visible(request, session, attachment_id)
        volume = guard.attachable(request, session, row.volume_id)
        _refuse_connection(session, volume, row, connector)
        return guard.take_for_server(session, volume), volume, _mode(volume, row, connector)

    migration, volume, mode = guard.run(request, volume_id, work)
    guard.nudge(request, migration)
    assert volume.host is not None, "_refuse_connection saw to it"
    return volume, volume.host, mode


def _refuse_connection(session: Session, volume: Volume, row: Attachment, connector: Json) -> None:
    """Raise Conflict or InvalidVolume with the reason why the attachment cannot be connected."""
    guard.refuse_locked(volume)
    if "error" in volume.status:
        raise errors.Conflict(reason=f"Volume {volume.id} cannot be attached: its status is {volume.status}.")
    if volume.host is None or volume.status in ("creating", "deleting"):
        raise errors.InvalidVolume(volume_id=volume.id, reason=f"status is {volume.status}, it is on no backend")
    others = attachments.of_volume(session, volume.id, Attachment.id != row.id)
    if not volume.multiattach and any(not _is_on_its_way(row, connector, o) for o in others if o.connection_info):
        raise errors.Conflict(
            reason=f"Volume {volume.id} is connected by another attachment already, and its type is not multiattach."
        )


def _is_on_its_way(row: Attachment, connector: Json, other: Attachment) -> bool:
    """Tell whether a server that has the volume goes to another host, while both have it (LP1694530)."""
    same_server = row.instance_uuid is not None and other.instance_uuid == row.instance_uuid
    return same_server and (other.connector or {}).get("host") != connector.get("host")


def _mode(volume: Volume, row: Attachment, connector: Json) -> str:
    """How the host may use the volume: as it was created, else as the connector says; a read-only volume never rw."""
    if volume.readonly:
        return "ro"
    said = row.attach_mode if row.attach_mode not in (None, UNSAID) else connector.get("mode")
    return "ro" if said == "ro" else "rw"


def _text(value: Any) -> str | None:
    return value[:255] if isinstance(value, str) else None


def connection_info(offered: Json, connector: Json, attachment_id: str) -> Json:
    """Return what the driver said in the flat form of this API, with the keys that every client expects."""
    return {
        "qos_specs": None,
        "access_mode": connector["mode"],
        "encrypted": False,
        "cacheable": False,
        **offered["data"],
        "driver_volume_type": offered["driver_volume_type"],
        "attachment_id": attachment_id,
        "enforce_multipath": bool(connector.get("enforce_multipath", False)),
    }


def complete(request: Request, attachment_id: str) -> Answer:
    def work(session: Session) -> str:
        row, volume = visible(request, session, attachment_id)
        attachments.connected(session, row.id, volume.id, attachments.ATTACHED)
        return volume.id

    request.backing.news.send_of("volume.attach.end", request.backing.db, request.run(work))
    return Answer(NO_CONTENT)


# --- detach ----------------------------------------------------------------------------------------------------------


def delete(request: Request, attachment_id: str) -> Answer:
    row, volume = request.read(lambda session: visible(request, session, attachment_id))
    refuse_stranger(request, row)
    left = detach(request, row, volume)
    return Answer(200, {"attachments": [views.attachment(request, other, detail=False) for other in left]})


def refuse_stranger(request: Request, row: Attachment) -> None:
    """Raise Conflict for a user's request to detach what a server has connected (LP2004555).

    The server would go on using the device, which may become another volume's: only the compute service knows when.
    """
    if row.instance_uuid and row.connection_info and not guard.is_service(request):
        raise errors.Conflict(
            reason=f"Attachment {row.id} is used by server {row.instance_uuid}: detach the volume from the server, "
            "through the compute service."
        )


def detach(request: Request, row: Attachment, volume: Volume) -> list[Attachment]:
    """End an attachment, its connection first; return those that are left.

    A migration that waits for the compute service gives way if this is not the swap's own detach.  Raises Conflict for
    the twin's attachment of a server that lives there: the compute service removes it when an answer of ours was lost.
    """
    if volume.twin_of is not None and row.attach_status == attachments.ATTACHED:
        raise errors.Conflict(
            reason=f"Server {row.instance_uuid} uses volume {volume.id}, which volume {volume.twin_of} is becoming."
        )
    if not _disconnect(request, row, volume):
        return request.read(lambda session: attachments.of_volume(session, volume.id, Attachment.id != row.id))

    def work(session: Session) -> tuple[Migration | None, list[Attachment]]:
        attachments.detach(session, row)
        return _give_way(session, row.volume_id), attachments.of_volume(session, row.volume_id)

    migration, left = request.run(work)
    guard.nudge(request, migration)
    if row.attach_status == attachments.ATTACHED:
        request.backing.news.send_of("volume.detach.end", request.backing.db, row.volume_id)
    return left


def _disconnect(request: Request, row: Attachment, volume: Volume) -> bool:
    """End the connection of an attachment; False where that is left to the migration that replaces the attachment.

    The server of a swap lives at the new place by now, so nothing speaks for refusing: the compute service would not
    report, and go on with an attachment that is gone.  The switch replaces it, and the old place is not given up
    before its connections are ended.
    """
    if not row.connector or volume.host is None or request.read(lambda session: _shares(session, row)):
        return True
    try:
        request.backing.volume.terminate_connection(request.context, volume.host, volume.id, row.connector)
    except errors.MigratorError as error:
        if not request.read(lambda session: attachments.is_swapped(session, row)):
            raise
        LOG.warning("Attachment %s of volume %s ends with its migration: %s", row.id, volume.id, error)
        return False
    return True


def _shares(session: Session, row: Attachment) -> bool:
    """Tell whether another attachment of the volume is through the same host, which must go on seeing it."""
    others = attachments.of_volume(session, row.volume_id, Attachment.id != row.id)
    return any(other.connector and other.attached_host == row.attached_host for other in others)


def _give_way(session: Session, volume_id: str) -> Migration | None:
    """Cancel the migration by the compute service of a volume that nobody uses any more; return it."""
    query = (
        sa.select(Migration)
        .join(Volume, Volume.migration_id == Migration.id)
        .where(
            Volume.id == volume_id,
            Volume.twin_of.is_(None),
            sa.not_(volumes.has_attachments()),
            Migration.plan == attachments.PLAN,
            Migration.end.is_(None),
        )
    )
    row = session.scalar(query)
    return row if row is not None and migrations.request_cancel(session, row.id) else None
