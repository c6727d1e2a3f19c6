"""``POST /volumes/{id}/action``: the older way to attach, in which the caller leads the volume from status to status.

reserve, initialize_connection, attach; begin_detaching, terminate_connection, detach.  The attachments resource does
the same in fewer calls; both may be used on one volume, one after the other.
"""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import attachments as resource
from migrator.api import guard
from migrator.api.wsgi import Answer, Json, Request
from migrator.db import attachments, swaps, volumes
from migrator.db.models import Attachment, Migration, Volume, utcnow

#: Statuses of a volume that os-attach may find; ``in-use`` moreover where several servers may have it.
_ATTACHABLE = ("available", "attaching")
#: Statuses in which there is nothing on a backend to be connected.
_NOWHERE = ("creating", "deleting")


# --- reserve ---------------------------------------------------------------------------------------------------------


def reserve(request: Request, volume_id: str) -> Answer:
    def work(session: Session) -> Migration | None:
        volume = guard.attachable(request, session, volume_id)
        guard.refuse_locked(volume)
        free = ("available", "in-use") if volume.multiattach else ("available",)
        if volume.status not in free:
            raise errors.InvalidVolume(
                volume_id=volume.id, reason=f"status must be {' or '.join(free)} to reserve; it is {volume.status}"
            )
        return guard.take_for_server(session, volume, status="attaching")

    guard.nudge(request, guard.run(request, volume_id, work))
    return Answer(202)


def unreserve(request: Request, volume_id: str) -> Answer:
    """Give up a reservation; where there is none, nothing is to be done and that is no mistake."""

    def work(session: Session) -> None:
        guard.attachable(request, session, volume_id)
        _unreserve(session, volume_id)

    request.run(work)
    return Answer(202)


def _unreserve(session: Session, volume_id: str, *expected: sa.ColumnElement[bool]) -> None:
    back = sa.case((volumes.has_attachments(), "in-use"), else_="available")
    volumes.update_where(session, volume_id, Volume.status == "attaching", *expected, status=back)


# --- connections -----------------------------------------------------------------------------------------------------


def initialize_connection(request: Request, volume_id: str) -> Answer:
    """Have the volume offered to a host, which may write to it from now on: so it is reserved, if it was not before."""
    connector = request.body["os-initialize_connection"]["connector"]

    def work(session: Session) -> tuple[Migration | None, Volume, bool]:
        volume = guard.attachable(request, session, volume_id)
        guard.refuse_locked(volume)
        if volume.host is None or volume.status in _NOWHERE:
            raise errors.InvalidVolume(volume_id=volume.id, reason=f"status is {volume.status}, it is on no backend")
        # Nothing else would tell of such a host, and a migration copy what it goes on writing to.
        free = volume.status == "available"
        migration = guard.take_for_server(session, volume, **({"status": "attaching"} if free else {}))
        return migration, volumes.get(session, volume_id), free

    migration, volume, free = guard.run(request, volume_id, work)
    guard.nudge(request, migration)
    mode = "ro" if volume.readonly or connector.get("mode") == "ro" else "rw"
    assert volume.host is not None, "work saw to it"
    try:
        offered = request.backing.volume.initialize_connection(
            request.context, volume.host, volume.id, {**connector, "mode": mode}, writable=mode != "ro"
        )
    except errors.MigratorError:
        if free:  # nobody was told how to reach it, unless somebody else has come since
            request.run(lambda session: _unreserve(session, volume_id, volumes.unchanged(volume)))
        raise
    return Answer(200, {"connection_info": _nested(offered, mode, connector)})


def _nested(offered: Json, mode: str, connector: Json) -> Json:
    """Return what the driver said in the form of this call: all but its kind inside ``data``."""
    told = {"qos_specs": None, "access_mode": mode, "encrypted": False, "cacheable": False, **offered["data"]}
    return {
        "driver_volume_type": offered["driver_volume_type"],
        "data": told,
        "enforce_multipath": bool(connector.get("enforce_multipath", False)),
    }


def terminate_connection(request: Request, volume_id: str) -> Answer:
    _terminate(request, volume_id, request.body["os-terminate_connection"]["connector"])
    return Answer(202)


def _terminate(request: Request, volume_id: str, connector: Any) -> None:
    """Take the volume back from a host, and give up the reservation that came before, if no attachment followed."""

    def look(session: Session) -> Volume:
        volume = guard.visible(request, session, volume_id)
        _refuse_stranger(request, session, volume, None)
        return volume

    volume = request.read(look)
    if volume.host is not None and isinstance(connector, dict):
        request.backing.volume.terminate_connection(request.context, volume.host, volume.id, connector)
    request.run(lambda session: _unreserve(session, volume_id))


# --- attach ----------------------------------------------------------------------------------------------------------


def attach(request: Request, volume_id: str) -> Answer:
    """Record that a server uses the volume; repeated for the same server or host it is recorded once."""
    wanted = request.body["os-attach"]

    def work(session: Session) -> Migration | None:
        volume = guard.attachable(request, session, volume_id)
        guard.refuse_locked(volume)
        if volume.readonly and wanted.get("mode", "rw") != "ro":
            raise errors.InvalidVolume(volume_id=volume.id, reason="it is read-only and cannot be attached rw")
        known = _same_user(session, volume, wanted)
        if known is None:
            _refuse_attach(volume)
            attachments.insert(session, **_row(volume, wanted))
        elif volume.status in attachments.DECIDED:
            attachments.update(session, known.id, attach_status=attachments.ATTACHED)
        else:
            _refuse_attach(volume)
        return guard.take_for_server(session, volume, status="in-use", attach_status=attachments.ATTACHED)

    guard.nudge(request, guard.run(request, volume_id, work))
    request.backing.news.send_of("volume.attach.end", request.backing.db, volume_id)
    return Answer(202)


def _refuse_attach(volume: Volume) -> None:
    attachable = (*_ATTACHABLE, "in-use") if volume.multiattach else _ATTACHABLE
    if volume.status not in attachable:
        raise errors.InvalidVolume(
            volume_id=volume.id, reason=f"status must be {' or '.join(attachable)} to attach; it is {volume.status}"
        )


def _same_user(session: Session, volume: Volume, wanted: Json) -> Attachment | None:
    """The volume's attachment to the same server, or, where none is named, to the same host."""
    server = wanted.get("instance_uuid")
    same = (
        Attachment.instance_uuid == server
        if server is not None
        else sa.and_(Attachment.instance_uuid.is_(None), Attachment.attached_host == wanted.get("host_name"))
    )
    return next(iter(attachments.of_volume(session, volume.id, same)), None)


def _row(volume: Volume, wanted: Json) -> Json:
    return {
        "id": str(uuid.uuid4()),
        "volume_id": volume.id,
        "instance_uuid": wanted.get("instance_uuid"),
        "attached_host": wanted.get("host_name"),
        "mountpoint": wanted["mountpoint"],
        "attach_mode": wanted.get("mode", "rw"),
        "attach_status": attachments.ATTACHED,
        "attach_time": utcnow(),
    }


# --- detach ----------------------------------------------------------------------------------------------------------


def begin_detaching(request: Request, volume_id: str) -> Answer:
    """Announce a detach.  A volume that is being migrated does not show it: the swap by compute begins like this.

    It is refused while the server lives at the new place and the switch is still to come: the compute service would
    take the disk from the server, and then be refused to end the attachment.
    """

    def work(session: Session) -> None:
        volume = guard.attachable(request, session, volume_id)
        if swaps.has_arrived(session, volume):
            raise errors.InvalidVolume(
                volume_id=volume.id,
                reason=f"its server was moved just now, and migration {volume.migration_id} is about to complete; try "
                "again when it has",
            )
        if guard.is_moving(volume):
            return
        ready = (Volume.status == "in-use", Volume.attach_status == attachments.ATTACHED, volumes.is_at_rest())
        if not volumes.update_where(session, volume_id, *ready, status="detaching"):
            raise errors.InvalidVolume(
                volume_id=volume.id,
                reason=f"status must be in-use and attach_status attached to detach; they are {volume.status} and "
                f"{volume.attach_status}",
            )

    request.run(work)
    return Answer(202)


def roll_detaching(request: Request, volume_id: str) -> Answer:
    """Take the announcement back; where there was none, nothing is to be done and that is no mistake."""

    def work(session: Session) -> None:
        guard.attachable(request, session, volume_id)
        volumes.update_where(session, volume_id, Volume.status == "detaching", status="in-use")

    request.run(work)
    return Answer(202)


def detach(request: Request, volume_id: str) -> Answer:
    _detach(request, volume_id, (request.body["os-detach"] or {}).get("attachment_id"))
    return Answer(202)


def force_detach(request: Request, volume_id: str) -> Answer:
    """Take the volume back from its host and forget the attachment, whatever its status."""
    wanted = request.body["os-force_detach"]
    if wanted.get("connector"):
        _terminate(request, volume_id, wanted["connector"])
    _detach(request, volume_id, wanted.get("attachment_id"))
    return Answer(202)


def _detach(request: Request, volume_id: str, attachment_id: str | None) -> None:
    """End one attachment; where there is none, the volume's status is put right."""

    def look(session: Session) -> tuple[Volume, Attachment | None]:
        volume = guard.attachable(request, session, volume_id)
        guard.refuse_locked(volume)
        row = _named(session, volume, attachment_id)
        _refuse_stranger(request, session, volume, row)
        return volume, row

    volume, row = request.read(look)
    if row is not None:
        resource.detach(request, row, volume)
    else:
        request.run(lambda session: attachments.settle(session, volume_id))


def _named(session: Session, volume: Volume, attachment_id: str | None) -> Attachment | None:
    """The attachment with that id, by default the only one; None where it is gone already."""
    if attachment_id is not None:
        row = attachments.find(session, attachment_id)
        if row is not None and row.volume_id != volume.id:
            raise errors.InvalidInput(field="attachment_id", reason=f"it is not an attachment of volume {volume.id}")
        return row
    rows = attachments.of_volume(session, volume.id)
    if len(rows) > 1:
        raise errors.InvalidVolume(
            volume_id=volume.id, reason=f"it has {len(rows)} attachments; say which by its attachment_id"
        )
    return rows[0] if rows else None


def _refuse_stranger(request: Request, session: Session, volume: Volume, row: Attachment | None) -> None:
    """Raise Conflict for a user's request to take from a server what it has connected (LP2004555)."""
    for used in [row] if row is not None else attachments.of_volume(session, volume.id):
        resource.refuse_stranger(request, used)
