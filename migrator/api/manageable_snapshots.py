"""``/manageable_snapshots``, ``/os-snapshot-manage`` and os-unmanage: snapshots that lie on a backend already.

No backend knows whose snapshot something is: whoever manages it says so.
"""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import guard, manageable, views
from migrator.api.snapshots import visible
from migrator.api.volumes import names
from migrator.api.wsgi import Answer, Json, Request
from migrator.db import snapshots, volumes
from migrator.db.models import Migration, Snapshot, Volume

#: Statuses of a volume that a snapshot can be added to.
_STATUSES = ("available", "in-use")

# --- list ------------------------------------------------------------------------------------------------------------


def index(request: Request) -> Answer:
    return _list(request, detail=False)


def detail(request: Request) -> Answer:
    return _list(request, detail=True)


def _list(request: Request, detail: bool) -> Answer:
    found = manageable.listed(request, keep=lambda entry: entry["volume_id"] is None)
    return Answer(200, {"manageable-snapshots": [_view(entry, detail) for entry in found]})


def _view(entry: Json, detail: bool) -> Json:
    view = manageable.view(entry, detail=detail, whose="snapshot_id")
    return {**view, "source_reference": entry["source_reference"]}


# --- manage ----------------------------------------------------------------------------------------------------------


def create(request: Request) -> Answer:
    """Make a snapshot of what lies in the pool of its volume; a migration under way gives way, as to a new snapshot."""
    wanted = request.body["snapshot"]
    volume_id = wanted["volume_id"]
    volume = request.read(lambda session: _volume(request, session, volume_id))
    host = str(volume.host)
    manageable.taking(request, manageable.find_place(request, host, None))
    found = manageable.look_at(request, host, wanted["ref"])
    _refuse(volume, found)
    snapshot_id = str(uuid.uuid4())

    def work(session: Session) -> tuple[Snapshot, Migration | None]:
        now = _volume(request, session, volume_id)
        if now.host != host:
            raise errors.Conflict(reason=f"Volume {volume_id} has moved meanwhile; try again.", retry_after=1)
        migration = guard.take(session, now)
        snapshots.insert(
            session,
            id=snapshot_id,
            volume_id=volume_id,
            project_id=now.project_id,
            user_id=request.context.user_id,
            status="managing",
            volume_size=found["size"],
            volume_type_id=now.volume_type_id,
            meta=wanted.get("metadata") or {},
            adoption=found["reference"],
            **names(wanted),
        )
        return snapshots.get(session, snapshot_id), migration

    snapshot, migration = guard.run(request, volume_id, work)
    guard.nudge(request, migration)
    request.backing.volume.manage_snapshot(request.context, host, snapshot_id)
    return Answer(202, {"snapshot": views.snapshot(request, snapshot, detail=True)})


def _volume(request: Request, session: Session, volume_id: str) -> Volume:
    """Return the volume whose snapshot it shall be; raises InvalidVolume."""
    volume = guard.usable(request, session, volume_id)
    guard.refuse_locked(volume)
    if volume.host is None:
        raise errors.InvalidVolume(volume_id=volume.id, reason="it is on no backend")
    if volume.status not in _STATUSES:
        raise errors.InvalidVolume(
            volume_id=volume.id, reason=f"status must be {' or '.join(_STATUSES)}; it is {volume.status}"
        )
    return volume


def _refuse(volume: Volume, found: Json) -> None:
    """Raise InvalidInput for what can be no snapshot of the volume, InvalidHost where there are none."""
    if not found["snapshots"]:
        raise errors.InvalidHost(host=str(volume.host), reason="its driver knows no snapshots")
    if found["size"] > volume.size:
        raise errors.InvalidInput(
            field="ref", reason=f"it is {found['size']} GiB large, and volume {volume.id} only {volume.size} GiB"
        )


# --- unmanage --------------------------------------------------------------------------------------------------------


def unmanage(request: Request, snapshot_id: str) -> Answer:
    """Forget a snapshot; what it is on the storage stays there, under its name."""
    ready: Any = sa.or_(Snapshot.status == "available", Snapshot.status.startswith("error"))

    def work(session: Session) -> str:
        snapshot = visible(request, session, snapshot_id)
        volume = volumes.find(session, snapshot.volume_id)
        if volume is None or volume.host is None or snapshot.adoption is not None:
            raise errors.InvalidSnapshot(snapshot_id=snapshot_id, reason="nothing on a backend is known to be it")
        if not snapshots.update_where(session, snapshot_id, ready, status="unmanaging"):
            raise errors.InvalidSnapshot(
                snapshot_id=snapshot_id, reason=f"status must be available or error; it is {snapshot.status}"
            )
        return volume.host

    host = request.run(work)
    request.backing.volume.unmanage_snapshot(request.context, host, snapshot_id)
    return Answer(202)
