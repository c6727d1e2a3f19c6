"""``os-retype``: give a volume another type, where it lies or, if that pool does not do, by a migration."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors, policy
from migrator.api import guard, volume_actions
from migrator.api.faults import RETRY_AFTER
from migrator.api.volumes import find_type
from migrator.api.wsgi import Answer, Json, Request
from migrator.db import attachments, migrations, snapshots, types, volumes
from migrator.db.models import Migration, Volume, VolumeType

ON_DEMAND = "on-demand"
#: Statuses from which a volume can be retyped.
_STATUSES = ("available", "in-use")
#: An extra spec that says in which zones volumes of the type may lie, separated by commas.
_ZONES = "RESKEY:availability_zones"


@dataclass(frozen=True)
class Wish:
    """What was found possible: the volume as it was seen, and the type that it shall have."""

    volume: Volume
    type_id: str
    multiattach: bool


def retype(request: Request, volume_id: str) -> Answer:
    """Change the type at once if the volume's pool does for it; else move the volume, if the caller allows that."""
    wanted = request.body["os-retype"]
    wish = request.read(lambda session: _wish(request, session, volume_id, wanted["new_type"]))
    against = request.backing.scheduler.check_pool(request.context, volume_id, wish.type_id)
    if against is None:
        _change_in_place(request, wish)
    elif wanted.get("migration_policy") == ON_DEMAND:
        _migrate(request, wish)
    else:
        raise errors.InvalidVolume(
            volume_id=volume_id,
            reason=f"it cannot stay where it is with that type, and migration_policy is never: {against}",
        )
    return Answer(202)


def _wish(request: Request, session: Session, volume_id: str, new_type: str) -> Wish:
    """Return what is asked for; raises InvalidVolume, InvalidInput or Forbidden with the one reason against it."""
    volume = guard.usable(request, session, volume_id)
    guard.refuse_locked(volume)
    kind = find_type(request, session, new_type)
    multiattach = types.is_multiattach(session, kind.id)
    if multiattach and not volume.multiattach:
        request.authorize(policy.MULTIATTACH, volume.project_id, volume.user_id)
    reasons = {
        f"status must be {' or '.join(_STATUSES)}; it is {volume.status}": volume.status not in _STATUSES,
        f"it belongs to group {volume.group_id}": volume.group_id is not None,
        f"it is of type {kind.name} already": volume.volume_type_id == kind.id,
        "it is encrypted, and encrypted volumes cannot be retyped here": volume.encryption_key_id is not None,
        "a type with another multiattach needs an available volume; it is in-use": volume.status != "available"
        and multiattach != volume.multiattach,
        _wrong_zone(volume, kind): bool(_wrong_zone(volume, kind)),
        "it is on no backend": volume.host is None,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise errors.InvalidVolume(volume_id=volume.id, reason=reason)
    return Wish(volume, kind.id, multiattach)


def _wrong_zone(volume: Volume, kind: VolumeType) -> str:
    """Say that the type is for other zones; empty if it is not.  A retype never leaves the zone (LP1883928)."""
    zones = next((spec.value for spec in kind.extra_specs if spec.key == _ZONES and spec.value), None)
    if zones is None or volume.availability_zone in [zone.strip() for zone in zones.split(",")]:
        return ""
    return f"type {kind.name} is for zones {zones}, and the volume is in {volume.availability_zone}"


def _change_in_place(request: Request, wish: Wish) -> None:
    """Write the new type, to the volume and to its snapshots (LP1877164); a migration under way gives way."""
    seen = wish.volume

    def work(session: Session) -> Migration | None:
        volume = guard.usable(request, session, seen.id)
        types.get(session, wish.type_id)  # it may be gone by now
        if (volume.host, volume.status, volume.volume_type_id) != (seen.host, seen.status, seen.volume_type_id):
            raise errors.Conflict(
                reason=f"Volume {seen.id} was changed by somebody else at the same time; try again.", retry_after=1
            )
        values = {"volume_type_id": wish.type_id, "multiattach": wish.multiattach}
        migration = guard.take(session, volume, **values)
        snapshots.update_of_volume(session, seen.id, volume_type_id=wish.type_id)
        return migration

    guard.nudge(request, guard.run(request, seen.id, work))
    request.backing.news.send_of("volume.retype", request.backing.db, seen.id)


def _migrate(request: Request, wish: Wish) -> None:
    """Let the scheduler find a pool for the type and the volume go there; its status is ``retyping`` meanwhile."""
    volume = wish.volume
    request.read(lambda session: volume_actions.refuse_place(request, session, volume, None))
    row: Json = {
        "user_id": request.context.user_id,
        "project_id": request.context.project_id or volume.project_id,
        "request_id": request.context.request_id,
        "requested_host": None,
        "plan": "assisted",
        "force_host_copy": False,
        "lock_volume": False,
        "verify": request.conf.verify,
        "new_type_id": wish.type_id,
    }
    instead = _start_instead(request, wish, row)
    if instead is not None:  # the scheduler comes for it behind the end of what gave way
        guard.nudge(request, instead)
        return
    migration_id = volume_actions.start(request, volume, row)
    request.backing.scheduler.migrate(request.context, migration_id)


def _start_instead(request: Request, wish: Wish, row: Json) -> Migration | None:
    """Cancel the migration under way and start this one, in one transaction; None where none gives way.

    Raises Conflict for one that is past its point of no return.
    """
    seen = wish.volume

    def work(session: Session) -> Migration | None:
        volume = guard.usable(request, session, seen.id)
        old = _giving_way(session, volume)
        if old is None or (volume.host, volume.volume_type_id) != (seen.host, seen.volume_type_id):
            return None
        if not migrations.request_cancel(session, old.id):
            raise errors.Conflict(
                reason=f"Migration {old.id} of volume {volume.id} can no longer be cancelled and is about to complete; "
                "try again when it has.",
                retry_after=RETRY_AFTER,
            )
        expected = volume_actions.movable(volume)
        if not migrations.start(session, volume, *expected, instead_of=old.id, source_host=volume.host, **row):
            raise guard.Overtaken
        return migrations.get(session, old.id)

    return guard.run(request, seen.id, work)


def _giving_way(session: Session, volume: Volume) -> Migration | None:
    """The migration under way of a volume that is there for its owner; a server in the middle of a swap stays in it."""
    if not guard.is_moving(volume) or volume.migration_id is None or volume.status != "available":
        return None
    if session.scalar(sa.select(volumes.has_snapshots()).where(Volume.id == volume.id)):
        return None
    row = migrations.get(session, volume.migration_id)
    return row if row.end is None and row.plan != attachments.PLAN else None
