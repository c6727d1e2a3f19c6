"""``/snapshots``: list, show, create, update, delete, and the actions of administrators."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import guard, lists, schemas, versions, views
from migrator.api.lists import Filter
from migrator.api.volumes import names
from migrator.api.wsgi import Answer, Request
from migrator.db import listing, snapshots, volumes
from migrator.db.models import Snapshot, Volume

#: What os-reset_status may write.  Not creating or deleting: to the volume service these words are orders.
RESET_WORDS = ("available", "error", "error_deleting")
#: Statuses in which the volume service is at it, and what it finds decides about somebody's data.
_UNDECIDED = ("creating", "managing", "unmanaging")


def _is_in_zone(zone: str) -> listing.Condition:
    """SQL: the snapshot is where its volume is, in that zone."""
    there = sa.select(Volume.id).where(Volume.id == Snapshot.volume_id, Volume.availability_zone == zone)
    return there.correlate(Snapshot).exists()


FILTERS: dict[str, Filter] = {
    "name": lists.equals(Snapshot.display_name),
    "display_name": lists.equals(Snapshot.display_name),
    "name~": Filter(lambda text: listing.contains(Snapshot.display_name, text), versions.LIKE_FILTERS),
    "description~": Filter(lambda text: listing.contains(Snapshot.display_description, text), versions.LIKE_FILTERS),
    "status": lists.equals(Snapshot.status),
    "status~": Filter(lambda text: listing.contains(Snapshot.status, text), versions.LIKE_FILTERS),
    "volume_id": lists.equals(Snapshot.volume_id),
    "metadata": lists.json_pairs(Snapshot.meta, "metadata"),
    "availability_zone": Filter(_is_in_zone),
    # Every snapshot is a tenant's own.
    "consumes_quota": Filter(
        lambda text: sa.true() if lists.truth("consumes_quota")(text) else sa.false(), versions.CONSUMES_QUOTA
    ),
    "id": lists.admin_equals(Snapshot.id),
    "project_id": lists.admin_equals(Snapshot.project_id),
    "user_id": lists.admin_equals(Snapshot.user_id),
}


def index(request: Request) -> Answer:
    return _list(request, detail=False)


def detail(request: Request) -> Answer:
    return _list(request, detail=True)


def _list(request: Request, detail: bool) -> Answer:
    page, rest = lists.split(request)
    everybody = lists.all_tenants(request, rest)
    with_count = request.version >= versions.COUNT and lists.flag(rest, "with_count")
    filters = lists.conditions(request, FILTERS, rest)
    scope: listing.Condition = Snapshot.deleted_at.is_(None)
    if not everybody:
        scope = sa.and_(scope, Snapshot.project_id == request.context.project_id)

    def work(session: Session) -> tuple[list[Snapshot], int | None]:
        found = listing.SNAPSHOTS.fetch(session, scope, filters, page)
        return found, listing.SNAPSHOTS.count(session, scope, filters) if with_count else None

    rows, count = request.read(work)
    shown = [views.snapshot(request, row, detail=detail) for row in rows]
    body = views.page(request, "snapshots", shown, "snapshots/detail" if detail else "snapshots", page.limit)
    return Answer(200, body if count is None else {**body, "count": count})


def visible(request: Request, session: Session, snapshot_id: str) -> Snapshot:
    """Return a snapshot that the caller may see; raises NotFound or Forbidden."""
    snapshot = snapshots.get(session, snapshot_id)
    request.authorize_owner("Snapshot", snapshot_id, snapshot.project_id, snapshot.user_id)
    return snapshot


def show(request: Request, snapshot_id: str) -> Answer:
    snapshot = request.read(lambda session: visible(request, session, snapshot_id))
    return Answer(200, {"snapshot": views.snapshot(request, snapshot, detail=True)})


def create(request: Request) -> Answer:
    """Take a snapshot; a migration under way gives way, since a volume with snapshots stays where it is."""
    wanted = request.body["snapshot"]
    in_use_too = request.version >= versions.SNAPSHOT_IN_USE or schemas.as_bool(wanted.get("force"))
    if request.version >= versions.SNAPSHOT_IN_USE and "force" in wanted and not schemas.as_bool(wanted["force"]):
        raise errors.InvalidInput(field="force", reason="since microversion 3.66 it can only be true")
    snapshot_id = str(uuid.uuid4())

    def work(session: Session) -> tuple[Snapshot, str, Any]:
        volume = guard.usable(request, session, wanted["volume_id"])
        guard.refuse_locked(volume)
        fitting = ("available", "in-use") if in_use_too else ("available",)
        if volume.status not in fitting:
            raise errors.InvalidVolume(
                volume_id=volume.id, reason=f"status must be {' or '.join(fitting)}; it is {volume.status}"
            )
        if volume.host is None:
            raise errors.InvalidVolume(volume_id=volume.id, reason="it is on no backend")
        migration = guard.take(session, volume)
        snapshots.insert(
            session,
            id=snapshot_id,
            volume_id=volume.id,
            project_id=volume.project_id,
            user_id=request.context.user_id,
            status="creating",
            volume_size=volume.size,
            volume_type_id=volume.volume_type_id,
            meta=wanted.get("metadata") or {},
            **names(wanted),
        )
        return snapshots.get(session, snapshot_id), volume.host, migration

    snapshot, host, migration = guard.run(request, wanted["volume_id"], work)
    guard.nudge(request, migration)
    request.backing.volume.create_snapshot(request.context, host, snapshot_id)
    return Answer(202, {"snapshot": views.snapshot(request, snapshot, detail=True)})


def update(request: Request, snapshot_id: str) -> Answer:
    values = names(request.body["snapshot"])

    def work(session: Session) -> Snapshot:
        visible(request, session, snapshot_id)
        snapshots.update_where(session, snapshot_id, **values)
        return snapshots.get(session, snapshot_id)

    return Answer(200, {"snapshot": views.snapshot(request, request.run(work), detail=True)})


def delete(request: Request, snapshot_id: str) -> Answer:
    return _delete(request, snapshot_id, sa.or_(Snapshot.status == "available", Snapshot.status.startswith("error")))


def force_delete(request: Request, snapshot_id: str) -> Answer:
    """Delete a snapshot whatever is recorded of it, unless it is being made or given up: its end then decides."""
    return _delete(request, snapshot_id, Snapshot.status.not_in(_UNDECIDED))


def _delete(request: Request, snapshot_id: str, deletable: listing.Condition) -> Answer:
    def work(session: Session) -> str | None:
        snapshot = visible(request, session, snapshot_id)
        if not snapshots.update_where(session, snapshot_id, deletable, status="deleting"):
            raise errors.InvalidSnapshot(
                snapshot_id=snapshot_id, reason=f"it cannot be deleted while it is {snapshot.status}"
            )
        volume = volumes.find(session, snapshot.volume_id)
        if volume is None or volume.host is None:  # nothing of it can lie anywhere
            snapshots.bury(session, snapshot_id)
            return None
        return volume.host

    host = request.run(work)
    if host is not None:
        request.backing.volume.delete_snapshot(request.context, host, snapshot_id)
    return Answer(202)


def reset_status(request: Request, snapshot_id: str) -> Answer:
    """Write a status, and do nothing to the snapshot."""
    wanted = request.body["os-reset_status"]["status"].lower()
    if wanted not in RESET_WORDS:
        raise errors.InvalidInput(field="status", reason=f"{wanted[:40]!r} is not one of: {', '.join(RESET_WORDS)}")

    def work(session: Session) -> None:
        visible(request, session, snapshot_id)
        snapshots.update_where(session, snapshot_id, status=wanted)

    request.run(work)
    return Answer(202)
