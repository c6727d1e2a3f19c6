"""What stands against migrating a volume: each reason with its remedy, those that an operator removes first in front.

A request is refused with the first; a plan tells them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import guard
from migrator.api.wsgi import Request
from migrator.backend_name import BackendName
from migrator.db import migrations, services, swaps, volumes
from migrator.db.models import Migration, Snapshot, Volume
from migrator.db.services import ServiceState

#: ``replication_status`` of a volume that is not replicated (LP1727248: not-capable is one of them).
NOT_REPLICATED = ("disabled", "not-capable")


@dataclass(frozen=True)
class Blocker:
    """One reason: what a request is refused with, and what to do about it."""

    error: errors.MigratorError
    remedy: str

    @property
    def reason(self) -> str:
        """Without the words that name the volume or the host."""
        return str(self.error.kwargs["reason"])


class _Check(NamedTuple):
    holds: bool
    reason: str
    remedy: str


# --- the places ------------------------------------------------------------------------------------------------------


def of_place(request: Request, session: Session, volume: Volume, place: BackendName | None) -> list[Blocker]:
    """What speaks against both ends; ``place`` None: the scheduler is to choose the destination."""
    source = BackendName.parse(volume.host).service if volume.host is not None else ""
    named = [place.service, source] if place is not None else [source]
    states = services.volume_states(session, named, request.conf.service_down_time)
    found = _of_destination(volume, place, states.get(place.service)) if place is not None else []
    if volume.host is None:
        error = errors.InvalidVolume(volume_id=volume.id, reason=f"it is on no backend yet; status is {volume.status}")
        return [*found, Blocker(error, "wait until it is available")]
    state = states.get(source)
    down_after = request.conf.service_down_time
    if state is None or not (state.up or services.stand_ins(session, source, down_after)):
        # The row would wait for ever: nobody else can read the volume.
        why = _silence(source, state) if state is not None else f"there is no volume service {source}"
        error = errors.InvalidVolume(
            volume_id=volume.id, reason=f"its backend cannot be read: {why}, and no other service reaches its storage"
        )
        found.append(Blocker(error, f"start volume service {source}, or one that reaches its storage"))
    return found


def _of_destination(volume: Volume, place: BackendName, destination: ServiceState | None) -> list[Blocker]:
    service = place.service
    if destination is None:
        checks = [_Check(True, f"there is no volume service {service}", "name a host that migrator get-pools lists")]
    else:
        why = destination.service.disabled_reason
        checks = [
            _Check(
                destination.service.disabled,
                f"volume service {service} is disabled" + (f": {why}" if why else ""),
                f"enable it (migrator service-enable {service}), or name another host",
            ),
            _Check(
                not destination.up, _silence(service, destination), "start that volume service, or name another host"
            ),
            _Check(str(place) == volume.host, f"volume {volume.id} is there already", "name another pool"),
        ]
    return [
        Blocker(errors.InvalidHost(host=place, reason=check.reason), check.remedy) for check in checks if check.holds
    ]


def _silence(service: str, state: ServiceState) -> str:
    return f"volume service {service} is down, its last sign of life was {state.seconds_since_heartbeat:.0f} s ago"


def reader(request: Request, session: Session, volume: Volume) -> str | None:
    """The volume service that would work on the volume's migration: its own or, while that is down, another one."""
    if volume.host is None:
        return None
    source, down_after = BackendName.parse(volume.host).service, request.conf.service_down_time
    state = services.volume_states(session, [source], down_after).get(source)
    if state is not None and state.up:
        return source
    return next(iter(services.stand_ins(session, source, down_after)), None)


# --- the volume ------------------------------------------------------------------------------------------------------


def movable_statuses(request: Request) -> tuple[str, ...]:
    return ("available", "in-use") if request.conf.compute_service else ("available",)


def of_volume(request: Request, session: Session, volume: Volume) -> list[Blocker]:
    """What speaks against migrating the volume, wherever to."""
    query = sa.select(volumes.has_attachments(), volumes.has_snapshots()).where(Volume.id == volume.id)
    attached, has_snapshots = session.execute(query).one()
    checks = [
        *_of_its_state(request, session, volume),
        _Check(has_snapshots, "it has snapshots; delete them first", _snapshots(session, volume)),
        _Check(
            attached and volume.status != "in-use",
            "it is attached or reserved for a server",
            "detach it, or end the reservation: DELETE /attachments/{attachment_id}",
        ),
        _Check(
            volume.group_id is not None, f"it belongs to group {volume.group_id}", "take the volume out of its group"
        ),
        _Check(
            volume.replication_status not in (None, *NOT_REPLICATED),
            f"it is replicated; replication_status is {volume.replication_status}",
            "end its replication, by a type without it",
        ),
    ]
    if volume.status == "in-use" and request.conf.compute_service:
        against = swaps.obstacle(session, volume)
        checks.append(_Check(against is not None, against or "", "leave it one complete attachment, or detach it"))
    return [
        Blocker(errors.InvalidVolume(volume_id=volume.id, reason=check.reason), check.remedy)
        for check in checks
        if check.holds
    ]


def _of_its_state(request: Request, session: Session, volume: Volume) -> list[_Check]:
    """A migration under way, or a status; the former explains the latter."""
    if guard.is_moving(volume):
        return [_already(session, volume)]
    if volume.status == "in-use" and not request.conf.compute_service:
        return [
            _Check(
                True,
                "status must be available; it is in-use: migrating attached volumes needs the compute service, which "
                "this deployment doesn't configure",
                "detach it, or set compute_service in the configuration of the API and of every volume service",
            )
        ]
    expected = " or ".join(movable_statuses(request))
    return [
        _Check(
            volume.status not in ("available", "in-use"),
            f"status must be {expected}; it is {volume.status}",
            f"wait until it is {expected}; if nothing is under way any more: migrator reset-state {volume.id}",
        )
    ]


def _already(session: Session, volume: Volume) -> _Check:
    row = session.get(Migration, volume.migration_id) if volume.migration_id else None
    if row is None:
        remedy = 'end that by os-reset_status {"migration_status": "none"}'
        return _Check(True, f"its migration_status is {volume.migration_status}", remedy)
    return _Check(
        True,
        f"it is being migrated already: migration {row.id} to {row.destination_host or row.requested_host} is "
        f"{migrations.status(row)} at {row.step}",
        f"wait for its end (migrator migration-watch {row.id}), or cancel it (migrator migration-cancel {row.id})",
    )


def _snapshots(session: Session, volume: Volume) -> str:
    query = sa.select(sa.func.count()).where(Snapshot.volume_id == volume.id, Snapshot.deleted_at.is_(None))
    return f"delete its snapshots, {session.scalar(query)} in all (migrator snapshot-list --volume {volume.id})"
