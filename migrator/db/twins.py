"""The twin: the row in ``volumes`` that names what lies at the destination, and after the switch at the old place.

Written only inside the transaction that advances its migration, so that no reader ever sees a mixture.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import attachments, services, types, volumes
from migrator.db.api import execute, now_seconds
from migrator.db.models import Migration, Volume
from migrator.volume import states
from migrator.volume.states import Direction, Position

#: Statuses that a migration gives its volume while it lasts; at its end the volume has its former one back.
HELD = ("maintenance", "retyping")
#: Status of a twin's row that names a source which is kept behind the switch.
KEPT = "maintenance"
#: What tells the service of its backend to remove what a twin's row names.
_DOOMED = {"status": "deleting", "migration_status": "deleting"}
_PLACE = ("name_id", "host", "availability_zone", "service_uuid", "cluster_name", "provider_id", "provider_location")
#: Columns in which a twin is like its volume.
_LIKENESS = (
    *("project_id", "user_id", "size", "display_name", "display_description"),
    *("bootable", "readonly", "volume_type_id", "multiattach"),
)
_VOLUMES: sa.Table = Volume.__table__  # type: ignore[assignment]


def _living(*names: str) -> sa.Select[Any]:
    """Columns of a living row; a migration asks several times, so it is built once (see db/api.execute)."""
    columns = [_VOLUMES.c[name] for name in names]
    return sa.select(*columns).where(_VOLUMES.c.id == sa.bindparam("the_id"), _VOLUMES.c.deleted_at.is_(None))


_ALIKE, _WHERE = _living(*_LIKENESS), _living(*_PLACE)


def enter(session: Session, migration: Migration, at: Position, to: Position, *, deferred: bool) -> None:
    """Do to the twin's row what the move of its migration from ``at`` to ``to`` asks for."""
    creating = states.CREATE_DESTINATION.name
    if to.step == creating and to.direction is Direction.FORWARD and at.step != creating:
        _insert(session, migration)
    elif at.step == creating and at.direction is Direction.FORWARD and to.step != creating:
        volumes.update_where(session, migration.destination_volume_id, status="available")
    elif to.end is states.End.STUCK and (at.plan == states.HOST_COPY.name or at.step == creating):
        # Its object may still be there: the row goes on naming it for the destination's service to remove.
        _let_go(session, migration, deferred=True)
    elif at.step == creating and at.direction is Direction.BACK and to != at:
        _let_go(session, migration, deferred)
    elif at.step == states.DELETE_SOURCE.name and to.end is states.End.SUCCESS:
        _leave_source(session, migration)


def _insert(session: Session, migration: Migration) -> None:
    volume = _columns_of(session, migration.volume_id, _ALIKE)
    volumes.insert(
        session,
        id=migration.destination_volume_id,
        twin_of=migration.volume_id,
        migration_id=migration.id,
        status="creating",
        attach_status="detached",
        migration_status=f"target:{migration.volume_id}",
        **{**volume, **_new_type(session, migration)},
        **_place(session, migration),
    )


def _columns_of(session: Session, volume_id: str, statement: sa.Select[Any]) -> dict[str, Any]:
    """Some columns of a living volume or twin; raises NotFound."""
    found = execute(session, statement, the_id=volume_id).one_or_none()
    if found is None:
        raise errors.NotFound(kind="Volume", id=volume_id)
    return dict(found._mapping)


def _new_type(session: Session, migration: Migration) -> dict[str, Any]:
    """Columns that a retype changes, none in a plain migration (LP1597247, LP1790840)."""
    if migration.new_type_id is None:
        return {}
    multiattach = types.is_multiattach(session, migration.new_type_id)
    return {"volume_type_id": migration.new_type_id, "multiattach": multiattach}


def _place(session: Session, migration: Migration) -> dict[str, Any]:
    """Columns that say where the destination is."""
    assert migration.destination_host is not None
    return services.place(session, migration.destination_host)


def _let_go(session: Session, migration: Migration, deferred: bool) -> None:
    """The object is gone, or (``deferred``) will be removed by the destination's service: then the row names it."""
    if deferred:
        volumes.update_where(session, migration.destination_volume_id, **_DOOMED)
    else:
        volumes.remove(session, migration.destination_volume_id)


def _leave_source(session: Session, migration: Migration) -> None:
    """The old object is gone, or it is kept for a while: then the row goes on naming it, for nobody to use."""
    if migration.keep_source_until is None:
        volumes.remove(session, migration.destination_volume_id)
    else:
        values = {"status": KEPT, "migration_status": f"target:{migration.volume_id}"}
        volumes.update_where(session, migration.destination_volume_id, **values)


def apply(session: Session, migration: Migration) -> None:
    """The point of no return: make the volume live at its new place, if the step that was done is the switch.

    Raises VolumeChanged when the volume is not in the state that the switch expects; the caller's generation guards
    the migration's row in the same transaction.
    """
    if migration.step == states.RECORD_MOVE.name:
        _switch(session, migration, {"name_id": migration.destination_volume_id, **_new_type(session, migration)})
    elif migration.step == states.SWITCH_VOLUME.name:
        twin_id, volume_id = migration.destination_volume_id, migration.volume_id
        twin, volume = (_columns_of(session, each, _WHERE) for each in (twin_id, volume_id))
        place = {
            "name_id": twin["name_id"] or twin_id,
            **_new_type(session, migration),
            "provider_id": twin["provider_id"],
            "provider_location": twin["provider_location"],
        }
        _switch(session, migration, place)
        if migration.plan == states.ATTACHED.name:
            attachments.move(session, twin_id, volume_id)
        volumes.update_where(session, twin_id, **_DOOMED, **_named_by(twin_id, volume_id, volume))


def _named_by(owner_id: str, volume_id: str, columns: dict[str, Any]) -> dict[str, Any]:
    """Columns that make the row ``owner_id`` name what the row ``volume_id``, with its ``columns``, names now."""
    object_id = columns["name_id"] or volume_id
    return {**columns, "name_id": None if object_id == owner_id else object_id}


def _place_of(volume: Volume, owner_id: str) -> dict[str, Any]:
    """The same of a volume that was read."""
    return _named_by(owner_id, volume.id, {column: getattr(volume, column) for column in _PLACE})


def _switch(session: Session, migration: Migration, values: dict[str, Any]) -> None:
    swapped = migration.plan == states.ATTACHED.name
    won = volumes.update_where(
        session,
        migration.volume_id,
        Volume.migration_id == migration.id,
        Volume.host == migration.source_host,
        # A server that lives at the new place already cannot be sent back, whatever its volume is busy with.
        sa.true() if swapped else Volume.status.in_([migration.previous_status, *HELD]),
        # Whoever may write from now on writes to the new place: an undo asks for that, and for no clock.
        writable_at=None,
        **_place(session, migration),
        **values,
    )
    if not won:
        raise errors.VolumeChanged(volume_id=migration.volume_id)


# --- the kept source ---


def put_back(session: Session, migration: Migration, volume: Volume, twin: Volume) -> bool:
    """Make the volume live at its old place again, which the twin's row names, and give the new one to the twin.

    Both as they were seen; False if the volume could have been written to since the switch, or anything has changed.
    The service of the new place removes what lies there.
    """
    back = volumes.update_where(
        session,
        volume.id,
        Volume.migration_id == migration.id,
        Volume.host == migration.destination_host,
        Volume.status == "available",
        Volume.size == migration.size,
        volumes.is_at_rest(),
        volumes.unchanged(volume),
        Volume.writable_at.is_(None),
        sa.not_(volumes.has_attachments()),
        sa.not_(volumes.has_snapshots()),
        **_place_of(twin, volume.id),
    )
    kept = (Volume.status == KEPT, Volume.host == migration.source_host, volumes.unchanged(twin))
    return back and volumes.update_where(session, twin.id, *kept, **_DOOMED, **_place_of(volume, twin.id))


def expired(session: Session, service: str) -> list[str]:
    """Twins on the backend ``host@backend`` whose kept source nobody can go back to: time is over, or volume gone."""
    owner = sa.orm.aliased(Volume)
    query = (
        sa.select(Volume.id)
        .outerjoin(owner, sa.and_(owner.id == Volume.twin_of, owner.deleted_at.is_(None)))
        .outerjoin(Migration, Migration.destination_volume_id == Volume.id)
        .where(
            Volume.twin_of.is_not(None),
            Volume.status == KEPT,
            Volume.host.startswith(service + "#", autoescape=True),
            sa.or_(owner.id.is_(None), Migration.id.is_(None), Migration.keep_source_until <= now_seconds()),
        )
    )
    return list(session.scalars(query))


def give_up_kept(session: Session, twin_id: str) -> None:
    """Have a kept source removed, unless the volume was put back on it meanwhile."""
    volumes.update_where(session, twin_id, Volume.status == KEPT, **_DOOMED)
