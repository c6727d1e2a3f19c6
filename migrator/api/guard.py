"""What stands between a caller and a volume: ownership, twins, and migrations under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.api.faults import RETRY_AFTER
from migrator.api.wsgi import Request
from migrator.db import attachments, migrations, volumes
from migrator.db.api import T, now_seconds
from migrator.db.models import Migration, Volume

#: Times that a volume which others change at the same time is read anew before the caller is told.
TRIES = 5


def check_visible(request: Request, volume: Any) -> None:
    """Raise NotFound for what belongs to others and for a tenant's look at a twin, or Forbidden by policy."""
    if volume.twin_of is not None and not request.is_admin:
        raise errors.NotFound(kind="Volume", id=volume.id)
    request.authorize_owner("Volume", volume.id, volume.project_id, volume.user_id)


def visible(request: Request, session: Session, volume_id: str) -> Volume:
    """Return a volume that the caller may see; raises NotFound or Forbidden."""
    volume = volumes.get(session, volume_id)
    check_visible(request, volume)
    return volume


def usable(request: Request, session: Session, volume_id: str) -> Volume:
    """Return a volume that may be acted upon; raises InvalidVolume for a twin, and what ``visible`` raises."""
    volume = visible(request, session, volume_id)
    refuse_twin(volume)
    return volume


def refuse_twin(volume: Volume) -> None:
    """Raise InvalidVolume for a twin: it belongs to its migration until that ends (LP1970768)."""
    if volume.twin_of is not None:
        raise errors.InvalidVolume(
            volume_id=volume.id,
            reason=f"it is the destination of a migration of volume {volume.twin_of}, which alone may use it",
        )


def attachable(request: Request, session: Session, volume_id: str) -> Volume:
    """Return a volume that a server may use, or the twin that the compute service is to copy into.

    A twin is invisible to tenants, so that only an administrator's token, as the compute service has one, gets here.
    """
    volume = visible(request, session, volume_id)
    if not attachments.awaits_compute(session, volume):
        refuse_twin(volume)
    return volume


def is_service(request: Request) -> bool:
    """Tell whether a service calls, by its own token or beside a user's; in noauth there are no services to tell."""
    if request.conf.auth_strategy == "noauth":
        return True
    known = set(request.conf.keystone_authtoken.service_token_roles)
    return bool(known & {*request.context.service_roles, *request.context.roles})


def is_moving(volume: Volume) -> bool:
    """Tell whether a migration is under way on the volume."""
    return volume.migration_status is not None and volume.migration_status not in volumes.AT_REST


def refuse_locked(volume: Volume, *, unless_idle: bool = False) -> None:
    """Raise InvalidVolume for a volume that its migration keeps to itself.

    ``unless_idle`` lets a volume pass which is locked and that nothing moves: what an administrator may force.
    """
    if volume.status == "maintenance" and not (unless_idle and not is_moving(volume)):
        why = f"migration {volume.migration_id} has locked it until its end" if is_moving(volume) else "it is locked"
        raise errors.InvalidVolume(volume_id=volume.id, reason=f"status is maintenance: {why}")


class Overtaken(Exception):
    """The volume was changed by somebody else since this transaction read it."""


def run(request: Request, volume_id: str, work: Callable[[Session], T]) -> T:
    """Run ``work`` in a writing transaction, again where it was overtaken; raises Conflict if it always is."""
    for _ in range(TRIES):
        try:
            return request.run(work)
        except Overtaken:
            continue
    raise errors.Conflict(
        reason=f"Volume {volume_id} was changed by somebody else at the same time; try again.", retry_after=1
    )


def take_for_server(
    session: Session, volume: Volume, *expected: sa.ColumnElement[bool], **values: Any
) -> Migration | None:
    """Change what ``attachable`` gave, writable from now on; return the migration that gives way, if there is one.

    Raises what ``take`` does.  The migration of a twin goes on: it waits for just this.
    """
    values["writable_at"] = now_seconds()
    if volume.twin_of is None:
        return take(session, volume, *expected, **values)
    still = (Volume.status == volume.status, volumes.unchanged(volume))
    if not volumes.update_where(session, volume.id, *still, *expected, **values):
        raise Overtaken
    return None


def take(session: Session, volume: Volume, *expected: sa.ColumnElement[bool], **values: Any) -> Migration | None:
    """Change a volume for its owner; return the migration under way, which is cancelled in the same transaction.

    To be called in the transaction that read the volume, inside ``run``.  Raises InvalidVolume for a locked volume,
    Conflict for one whose migration is past its point of no return, and Overtaken.
    """
    refuse_locked(volume, unless_idle=True)
    moving = is_moving(volume) and volume.migration_id is not None
    if moving and not migrations.request_cancel(session, str(volume.migration_id)):
        raise errors.Conflict(
            reason=f"Migration {volume.migration_id} of volume {volume.id} can no longer be cancelled and is about to "
            "complete; try again when it has.",
            retry_after=RETRY_AFTER,
        )
    unmoved = Volume.migration_id == volume.migration_id if moving else volumes.is_at_rest()
    still = (Volume.status == volume.status, Volume.twin_of.is_(None), unmoved, volumes.unchanged(volume))
    if not volumes.update_where(session, volume.id, *still, *expected, **values):
        raise Overtaken
    return migrations.get(session, str(volume.migration_id)) if moving else None


def nudge(request: Request, migration: Migration | None) -> None:
    """Tell whoever works on a migration to look at its row, now that a cancel is in it."""
    if migration is None:
        return
    if migrations.is_at_scheduler(migration):
        request.backing.scheduler.migrate(request.context, migration.id)
    else:
        request.backing.volume.run_migration(request.context, migration.source_host, migration.id)
