"""``POST /volumes/{id}/action``: migrate, complete a migration, extend, set flags, reset."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors, policy
from migrator.api import blockers, guard, schemas, versions
from migrator.api.wsgi import Answer, Json, Request
from migrator.backend_name import BackendName, MalformedBackendName
from migrator.db import attachments, migrations, services, snapshots, swaps, volumes
from migrator.db.api import now_seconds
from migrator.db.models import Migration, Service, Volume

#: Longest wait of a completion for the switch that follows it, and the time between two looks, seconds.
SWITCH_SECONDS = 3.0
SWITCH_LOOK_SECONDS = 0.05

#: What os-reset_status may write.  Not creating, deleting or extending: to the volume service these words are orders;
#: nor migrating: nothing would be under way, and the volume seem busy for ever.
RESET_WORDS = {
    "status": (
        "available",
        "attaching",
        "in-use",
        "reserved",
        "maintenance",
        "error",
        "error_deleting",
        "error_extending",
        "error_restoring",
        "error_backing-up",
    ),
    "attach_status": ("attached", "detached"),
    "migration_status": ("none", "success", "error"),
}

# --- os-migrate_volume -----------------------------------------------------------------------------------------------


def migrate(request: Request, volume_id: str) -> Answer:
    """Mark the volume and write the migration's row in one transaction; the scheduler does the rest."""
    wanted = request.body["os-migrate_volume"]
    host, cluster = wanted.get("host") or None, wanted.get("cluster") or None
    if (host is None) == (cluster is None):
        raise errors.InvalidInput(field="os-migrate_volume", reason="it needs exactly one of host and cluster")
    named = parse(host or cluster)

    def check(session: Session) -> tuple[Volume, str]:
        volume = guard.usable(request, session, volume_id)
        place = named if cluster is None else _serving(request, session, named)
        refuse_place(request, session, volume, place)
        return volume, str(place)

    volume, place = request.read(check)
    migration_id = start(request, volume, ordered(request, volume, place, wanted))
    request.backing.scheduler.migrate(request.context, migration_id)
    return Answer(202)


def ordered(request: Request, volume: Volume, place: str | None, wanted: Json) -> Json:
    """Return the columns of the migration that is asked for; what the body leaves open is as configured."""
    force, verify, kept = (wanted.get(key) for key in ("force_host_copy", "verify", "keep_source_seconds"))
    force = schemas.as_bool(force)
    return {
        "user_id": request.context.user_id,
        # A token of the whole system has no project.
        "project_id": request.context.project_id or volume.project_id,
        "request_id": request.context.request_id,
        "requested_host": place,
        # An assisted move that turns out not to be possible becomes a host copy.
        "plan": "host_copy" if force else "assisted",
        "force_host_copy": force,
        "lock_volume": schemas.as_bool(wanted.get("lock_volume")),
        "verify": verify or request.conf.verify,
        "bytes_per_second": wanted.get("bytes_per_second"),
        "keep_source_seconds": request.conf.keep_source_seconds if kept is None else kept,
    }


def parse(text: str | None) -> BackendName:
    """Return the place that a host string names, at least a backend; raises InvalidHost."""
    try:
        place = BackendName.parse(text or "")
    except MalformedBackendName as error:
        raise errors.InvalidHost(
            host=repr((text or "")[:80]), reason="it is not of the form host@backend#pool"
        ) from error
    if place.backend is None:
        raise errors.InvalidHost(host=text, reason="it names no backend; write host@backend or host@backend#pool")
    return place


def _serving(request: Request, session: Session, cluster: BackendName) -> BackendName:
    """Return the backend of a service that serves ``cluster@backend`` and is up; raises InvalidInput."""
    query = sa.select(Service.host).where(
        Service.binary == services.VOLUME,
        Service.cluster_name.in_([cluster.host, cluster.service]),
        Service.host.endswith(f"@{cluster.backend}", autoescape=True),
    )
    hosts = sorted(session.scalars(query))
    if not hosts:
        raise errors.InvalidInput(field="cluster", reason=f"no service serves {cluster.service}")
    states = services.volume_states(session, hosts, request.conf.service_down_time)
    for host in hosts:
        if states[host].up and not states[host].service.disabled:
            return BackendName(BackendName.parse(host).host, cluster.backend, cluster.pool)
    raise errors.InvalidInput(field="cluster", reason=f"no service of {cluster.service} is up and enabled")


def refuse_place(request: Request, session: Session, volume: Volume, place: BackendName | None) -> None:
    """Raise InvalidHost or InvalidVolume unless both services can work and the destination is another place.

    ``place`` None: the scheduler is to choose it.
    """
    found = blockers.of_place(request, session, volume, place)
    if found:
        raise found[0].error


def start(request: Request, volume: Volume, row: Json) -> str:
    """Mark the volume and write the row; return the migration's id, or raise InvalidVolume with the one reason."""
    for _ in range(guard.TRIES):
        seen = volume

        def work(session: Session, seen: Volume = seen) -> tuple[str | None, Volume]:
            if seen.status not in blockers.movable_statuses(request):
                return None, seen
            values = {**row, "source_host": seen.host, **plan_in_use(seen)}
            started = migrations.start(session, seen, *movable(seen), **values)
            return started, seen if started else volumes.get(session, seen.id)

        migration_id, volume = request.run(work)
        if migration_id is not None:
            return migration_id
        reason = request.read(lambda session, now=volume: obstacle(request, session, now))  # type: ignore[misc]
        if reason is not None:
            raise errors.InvalidVolume(volume_id=volume.id, reason=reason)
        if volume.host != seen.host:
            break
    raise errors.InvalidVolume(volume_id=volume.id, reason="it was changed at the same time; try again")


def plan_in_use(seen: Volume) -> Json:
    """A volume in use is moved by the compute service, never by its backend or a copier (LP2019190)."""
    if seen.status != "in-use":
        return {}
    return {"plan": attachments.PLAN, "keep_source_seconds": 0}


def movable(seen: Volume) -> tuple[sa.ColumnElement[bool], ...]:
    """SQL: nothing stands against migrating the volume as it was seen; what ``obstacle`` says in words."""
    return (
        swaps.one_server() if seen.status == "in-use" else sa.not_(volumes.has_attachments()),
        sa.not_(volumes.has_snapshots()),
        Volume.group_id.is_(None),
        sa.or_(Volume.replication_status.is_(None), Volume.replication_status.in_(blockers.NOT_REPLICATED)),
        # A snapshot or an attachment that is being made at this instant has touched the volume's row.
        volumes.unchanged(seen),
    )


def obstacle(request: Request, session: Session, volume: Volume) -> str | None:
    """Return the one reason against migrating the volume, the first that an operator would have to remove."""
    found = blockers.of_volume(request, session, volume)
    return found[0].reason if found else None


# --- os-migrate_volume_completion ------------------------------------------------------------------------------------


def migrate_completion(request: Request, volume_id: str) -> Answer:
    """Answer the compute service; the same call twice gives the same answer, since it repeats a call it lost."""
    wanted = request.body["os-migrate_volume_completion"]
    failed = schemas.as_bool(wanted.get("error"))

    def work(session: Session) -> tuple[str, Migration | None]:
        volume = guard.visible(request, session, volume_id)
        row = migrations.find_pair(session, volume.id, wanted["new_volume"])
        if row is None:
            return _exchanged(session, volume, wanted["new_volume"], failed), None
        if swaps.report(session, row, failed):
            return row.volume_id, migrations.get(session, row.id)
        return _completed(row, failed), None

    kept, waiting = request.run(work)
    guard.nudge(request, waiting)
    if waiting is not None and not failed:
        _await_switch(request, waiting.id)
    return Answer(200, {"save_volume_id": kept})


def _exchanged(session: Session, volume: Volume, new_id: str, failed: bool) -> str:
    """Return the new volume's id for a swap of two volumes that no migration asked for; raises InvalidInput."""
    new = volumes.find(session, new_id)
    if new is not None and swaps.exchanged(session, volume, new, failed):
        return new_id
    raise errors.InvalidInput(
        field="new_volume",
        reason=f"volume {new_id} is not the destination of a migration of volume {volume.id}",
    )


def _await_switch(request: Request, migration_id: str) -> None:
    """Wait a moment for the switch: who is answered may at once ask for an attachment by the volume's own id.

    Not longer, and it matters little: the report is written, and the switch follows it for certain.
    """
    deadline = time.monotonic() + SWITCH_SECONDS
    while time.monotonic() < deadline:
        row = request.read(lambda session: migrations.get(session, migration_id))
        if migrations.is_behind_line(row) or row.end is not None:
            return
        time.sleep(SWITCH_LOOK_SECONDS)


def _completed(row: Migration, failed: bool) -> str:
    """Return the id that the volume keeps, if its migration is decided already; raises BadRequest."""
    if migrations.is_behind_line(row) or (failed and row.end is not None):
        return row.volume_id
    if row.end is not None:
        reason = (
            f"it ended {row.end} at {row.error_step or row.step}; volume {row.volume_id} stays on {row.source_host}"
        )
    elif row.plan != "attached":
        reason = f"its plan is {row.plan}, which doesn't wait for the compute service; it is at {row.step}"
    else:
        reason = f"it is at {row.step} and doesn't wait for the compute service"
    raise errors.BadRequest(reason=f"Migration {row.id} cannot be completed: {reason}.")


# --- os-extend -------------------------------------------------------------------------------------------------------


def extend(request: Request, volume_id: str) -> Answer:
    """Make a volume larger; from 3.42 on also one that servers use, which may need to be told by compute."""
    new_size = int(request.body["os-extend"]["new_size"])
    in_use_too = request.version >= versions.EXTEND_IN_USE
    fitting = ("available", "in-use") if in_use_too else ("available",)

    def work(session: Session) -> tuple[str, Any]:
        volume = guard.usable(request, session, volume_id)
        guard.refuse_locked(volume)
        reason = None
        if volume.status == "in-use" and not in_use_too:
            reason = f"status must be available; it is in-use, which is enough from {versions.EXTEND_IN_USE} on"
        elif volume.status not in fitting:
            reason = f"status must be {' or '.join(fitting)}; it is {volume.status}"
        elif new_size <= volume.size:
            reason = f"the new size must be more than {volume.size} GiB; it is {new_size} GiB"
        elif snapshots.is_being_made(session, volume.id):
            reason = "a snapshot of it is being made, which would get the new size"
        if reason is not None or volume.host is None:
            raise errors.InvalidVolume(volume_id=volume.id, reason=reason or "it is on no backend")
        if volume.status == "in-use":
            request.authorize(policy.EXTEND_ATTACHED, volume.project_id, volume.user_id)
        taken = {"status": "extending", "wanted_size": new_size, "writable_at": now_seconds()}
        return volume.host, guard.take(session, volume, **taken)

    host, migration = guard.run(request, volume_id, work)
    guard.nudge(request, migration)
    request.backing.volume.extend_volume(request.context, host, volume_id)
    return Answer(202)


# --- flags -----------------------------------------------------------------------------------------------------------


def set_bootable(request: Request, volume_id: str) -> Answer:
    bootable = schemas.as_bool(request.body["os-set_bootable"]["bootable"])

    def work(session: Session) -> None:
        guard.refuse_locked(guard.usable(request, session, volume_id))
        volumes.update_where(session, volume_id, bootable=bootable)

    request.run(work)
    return Answer(200)


def update_readonly_flag(request: Request, volume_id: str) -> Answer:
    """Say how the next attachment may use the volume; those there are keep the mode that they have."""
    readonly = schemas.as_bool(request.body["os-update_readonly_flag"]["readonly"])

    def work(session: Session) -> None:
        volume = guard.usable(request, session, volume_id)
        if not volumes.update_where(session, volume_id, Volume.status == "available", readonly=readonly):
            raise errors.InvalidVolume(volume_id=volume.id, reason=f"status must be available; it is {volume.status}")

    request.run(work)
    return Answer(202)


# --- os-reset_status -------------------------------------------------------------------------------------------------


def reset_status(request: Request, volume_id: str) -> Answer:
    """Write what an administrator says the volume's status is; never under a migration that runs (field.md part 5)."""
    wanted = {key: value.lower() for key, value in request.body["os-reset_status"].items() if value is not None}
    _refuse_words(wanted)

    def work(session: Session) -> None:
        volume = guard.usable(request, session, volume_id)
        if "migration_status" in wanted:
            _refuse_running(session, volume)
        if wanted.get("status") == "in-use" and not _is_attached(session, volume):
            raise errors.InvalidVolume(volume_id=volume.id, reason="it cannot be in-use: it has no attachments")
        if wanted.get("attach_status") == "detached":
            volumes.detach_all(session, volume.id)
        values: Json = dict(wanted)
        if values.get("migration_status") == "none":
            values["migration_status"] = None
        volumes.update_where(session, volume.id, **values)

    request.run(work)
    return Answer(202)


def _refuse_words(wanted: dict[str, str]) -> None:
    """Raise InvalidInput for words that no administrator can make true by saying them."""
    if not wanted:
        raise errors.InvalidInput(
            field="os-reset_status", reason="it needs a status, an attach_status or a migration_status"
        )
    for key, value in wanted.items():
        if value not in RESET_WORDS[key]:
            raise errors.InvalidInput(field=key, reason=f"{value[:40]!r} is not one of: {', '.join(RESET_WORDS[key])}")


def _is_attached(session: Session, volume: Volume) -> bool:
    return bool(session.scalar(sa.select(volumes.has_attachments()).where(Volume.id == volume.id)))


def _refuse_running(session: Session, volume: Volume) -> None:
    """Raise Conflict while a migration works on the volume: the word would change and the copy go on."""
    row = session.get(Migration, volume.migration_id) if volume.migration_id else None
    if row is not None and row.end is None:
        raise errors.Conflict(
            reason=f"Volume {volume.id} is really being migrated: migration {row.id} is {migrations.status(row)} at "
            f'{row.step}. Cancel that instead: POST /migrations/{row.id}/action {{"cancel": {{}}}}.'
        )
