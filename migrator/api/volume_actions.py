"""``POST /volumes/{id}/action``: migrate, complete a migration, extend, reset."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import guard, schemas
from migrator.api.wsgi import Answer, Json, Request
from migrator.backend_name import BackendName, MalformedBackendName
from migrator.db import migrations, services, volumes
from migrator.db.models import Migration, Service, Volume
from migrator.db.services import ServiceState

#: ``replication_status`` of a volume that is not replicated (LP1727248: not-capable is one of them).
NOT_REPLICATED = ("disabled", "not-capable")

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
    named = _parse(host or cluster)

    def check(session: Session) -> tuple[Volume, str]:
        volume = guard.usable(request, session, volume_id)
        place = named if cluster is None else _serving(request, session, named)
        _refuse_place(request, session, volume, place)
        return volume, str(place)

    volume, place = request.read(check)
    force = schemas.as_bool(wanted.get("force_host_copy"))
    row = {
        "user_id": request.context.user_id,
        # A token of the whole system has no project.
        "project_id": request.context.project_id or volume.project_id,
        "request_id": request.context.request_id,
        "requested_host": place,
        # An assisted move that turns out not to be possible becomes a host copy.
        "plan": "host_copy" if force else "assisted",
        "force_host_copy": force,
        "lock_volume": schemas.as_bool(wanted.get("lock_volume")),
    }
    migration_id = _start(request, volume, row)
    request.backing.scheduler.migrate(request.context, migration_id)
    return Answer(202)


def _parse(text: str | None) -> BackendName:
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


def _refuse_place(request: Request, session: Session, volume: Volume, place: BackendName) -> None:
    """Raise InvalidHost or InvalidVolume unless both services can work and the destination is another place."""
    source = BackendName.parse(volume.host).service if volume.host is not None else ""
    states = services.volume_states(session, [place.service, source], request.conf.service_down_time)
    destination = states.get(place.service)
    if destination is None:
        raise errors.InvalidHost(host=place, reason=f"there is no volume service {place.service}")
    if destination.service.disabled:
        why = destination.service.disabled_reason
        raise errors.InvalidHost(
            host=place, reason=f"volume service {place.service} is disabled" + (f": {why}" if why else "")
        )
    if not destination.up:
        raise errors.InvalidHost(host=place, reason=_silence(place.service, destination))
    if volume.host is None:
        raise errors.InvalidVolume(volume_id=volume.id, reason=f"it is on no backend yet; status is {volume.status}")
    if str(place) == volume.host:
        raise errors.InvalidHost(host=place, reason=f"volume {volume.id} is there already")
    state = states.get(source)
    if state is None or not state.up:
        # The row would wait for ever: nobody else can read the volume.
        why = _silence(source, state) if state is not None else f"there is no volume service {source}"
        raise errors.InvalidVolume(volume_id=volume.id, reason=f"its backend cannot be read: {why}")


def _silence(service: str, state: ServiceState) -> str:
    return f"volume service {service} is down, its last sign of life was {state.seconds_since_heartbeat:.0f} s ago"


def _start(request: Request, volume: Volume, row: Json) -> str:
    """Mark the volume and write the row; return the migration's id, or raise InvalidVolume with the one reason."""
    for _ in range(guard.TRIES):
        seen = volume

        def work(session: Session, seen: Volume = seen) -> tuple[str | None, Volume]:
            if seen.status != "available":
                return None, seen
            expected = (
                sa.not_(volumes.has_attachments()),
                sa.not_(volumes.has_snapshots()),
                Volume.group_id.is_(None),
                sa.or_(Volume.replication_status.is_(None), Volume.replication_status.in_(NOT_REPLICATED)),
                # A snapshot or an attachment that is being made at this instant has touched the volume's row.
                volumes.unchanged(seen),
            )
            started = migrations.start(session, seen, *expected, source_host=seen.host, **row)
            return started, seen if started else volumes.get(session, seen.id)

        migration_id, volume = request.run(work)
        if migration_id is not None:
            return migration_id
        reason = request.read(lambda session, now=volume: _obstacle(session, now))  # type: ignore[misc]
        if reason is not None:
            raise errors.InvalidVolume(volume_id=volume.id, reason=reason)
        if volume.host != seen.host:
            break
    raise errors.InvalidVolume(volume_id=volume.id, reason="it was changed at the same time; try again")


def _obstacle(session: Session, volume: Volume) -> str | None:
    """Return the one reason against migrating the volume, the first that an operator would have to remove."""
    if guard.is_moving(volume):
        return _already(session, volume)
    query = sa.select(volumes.has_attachments(), volumes.has_snapshots()).where(Volume.id == volume.id)
    attached, has_snapshots = session.execute(query).one()
    if volume.status == "in-use":
        return (
            "status must be available; it is in-use: migrating attached volumes needs the compute service, which this "
            "deployment doesn't configure"
        )
    reasons = {
        f"status must be available; it is {volume.status}": volume.status != "available",
        "it has snapshots; delete them first": has_snapshots,
        "it is attached or reserved for a server": attached,
        f"it belongs to group {volume.group_id}": volume.group_id is not None,
        f"it is replicated; replication_status is {volume.replication_status}": volume.replication_status
        not in (None, *NOT_REPLICATED),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _already(session: Session, volume: Volume) -> str:
    row = session.get(Migration, volume.migration_id) if volume.migration_id else None
    if row is None:
        return f"its migration_status is {volume.migration_status}"
    return (
        f"it is being migrated already: migration {row.id} to {row.destination_host or row.requested_host} is "
        f"{migrations.status(row)} at {row.step}"
    )


# --- os-migrate_volume_completion ------------------------------------------------------------------------------------


def migrate_completion(request: Request, volume_id: str) -> Answer:
    """Answer the compute service; the same call twice gives the same answer, since it repeats a call it lost."""
    wanted = request.body["os-migrate_volume_completion"]
    failed = schemas.as_bool(wanted.get("error"))

    def work(session: Session) -> str:
        volume = guard.visible(request, session, volume_id)
        row = migrations.find_pair(session, volume.id, wanted["new_volume"])
        if row is None:
            raise errors.InvalidInput(
                field="new_volume",
                reason=f"volume {wanted['new_volume']} is not the destination of a migration of volume {volume.id}",
            )
        return _completed(row, failed)

    return Answer(200, {"save_volume_id": request.read(work)})


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
    new_size = int(request.body["os-extend"]["new_size"])

    def work(session: Session) -> tuple[str, Any]:
        volume = guard.usable(request, session, volume_id)
        guard.refuse_locked(volume)
        reason = None
        if volume.status == "in-use":
            reason = "status must be available; it is in-use, and attached volumes cannot be extended here"
        elif volume.status != "available":
            reason = f"status must be available; it is {volume.status}"
        elif new_size <= volume.size:
            reason = f"the new size must be more than {volume.size} GiB; it is {new_size} GiB"
        if reason is not None or volume.host is None:
            raise errors.InvalidVolume(volume_id=volume.id, reason=reason or "it is on no backend")
        taken = {"status": "extending", "wanted_size": new_size}
        migration = guard.take(session, volume, sa.not_(volumes.has_attachments()), **taken)
        return volume.host, migration

    host, migration = guard.run(request, volume_id, work)
    guard.nudge(request, migration)
    request.backing.volume.extend_volume(request.context, host, volume_id)
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
