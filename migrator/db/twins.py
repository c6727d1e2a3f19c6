"""The twin: the row in ``volumes`` that names what lies at the destination, and after the switch at the old place.

Written only inside the transaction that advances its migration, so that no reader ever sees a mixture.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import volumes
from migrator.db.models import Migration, Service, Volume
from migrator.volume import states
from migrator.volume.states import Direction, Position


def enter(session: Session, migration: Migration, at: Position, to: Position, *, deferred: bool) -> None:
    """Do to the twin's row what the move of its migration from ``at`` to ``to`` asks for."""
    creating = states.CREATE_DESTINATION.name
    if to.step == creating and to.direction is Direction.FORWARD and at.step != creating:
        _insert(session, migration)
    elif at.step == creating and at.direction is Direction.FORWARD and to.step != creating:
        volumes.update_where(session, migration.destination_volume_id, status="available")
    elif to.end is states.End.STUCK and at.plan == states.HOST_COPY.name:
        # Its object may still be there: the row goes on naming it for the destination's service to remove.
        _let_go(session, migration, deferred=True)
    elif at.step == creating and at.direction is Direction.BACK and to != at:
        _let_go(session, migration, deferred)
    elif at.step == states.DELETE_SOURCE.name and to.end is states.End.SUCCESS:
        volumes.remove(session, migration.destination_volume_id)


def _insert(session: Session, migration: Migration) -> None:
    volume = volumes.get(session, migration.volume_id)
    place = _place(session, migration)
    volumes.insert(
        session,
        id=migration.destination_volume_id,
        twin_of=volume.id,
        migration_id=migration.id,
        project_id=volume.project_id,
        user_id=volume.user_id,
        size=volume.size,
        status="creating",
        attach_status="detached",
        migration_status=f"target:{volume.id}",
        display_name=volume.display_name,
        display_description=volume.display_description,
        volume_type_id=migration.new_type_id or volume.volume_type_id,
        bootable=volume.bootable,
        multiattach=volume.multiattach,
        readonly=volume.readonly,
        **place,
    )


def _place(session: Session, migration: Migration) -> dict[str, Any]:
    """Columns that say where the destination is: host, availability_zone, service_uuid, cluster_name (LP1747949)."""
    assert migration.destination_host is not None
    host = migration.destination_host
    service = session.scalar(
        sa.select(Service).where(Service.host == host.rpartition("#")[0], Service.binary == "migrator-volume")
    )
    if service is None:
        raise errors.NotFound(kind="Service", id=host)
    return {
        "host": host,
        "availability_zone": service.availability_zone,
        "service_uuid": service.uuid,
        "cluster_name": service.cluster_name,
    }


def _let_go(session: Session, migration: Migration, deferred: bool) -> None:
    """The object is gone, or (``deferred``) will be removed by the destination's service: then the row names it."""
    if deferred:
        volumes.update_where(session, migration.destination_volume_id, status="deleting", migration_status="deleting")
    else:
        volumes.remove(session, migration.destination_volume_id)


def apply(session: Session, migration: Migration) -> None:
    """The point of no return: make the volume live at its new place, if the step that was done is the switch.

    Raises VolumeChanged when the volume is not in the state that the switch expects; the caller's generation guards
    the migration's row in the same transaction.
    """
    if migration.step == states.RECORD_MOVE.name:
        _switch(session, migration, {})
    elif migration.step == states.SWITCH_VOLUME.name:
        twin = volumes.get(session, migration.destination_volume_id)
        volume = volumes.get(session, migration.volume_id)
        _switch(session, migration, {"name_id": twin.object_id, "volume_type_id": twin.volume_type_id})
        volumes.update_where(
            session,
            twin.id,
            status="deleting",
            migration_status="deleting",
            host=volume.host,
            availability_zone=volume.availability_zone,
            service_uuid=volume.service_uuid,
            cluster_name=volume.cluster_name,
            name_id=volume.object_id,
            provider_id=volume.provider_id,
            provider_location=volume.provider_location,
        )


def _switch(session: Session, migration: Migration, values: dict[str, Any]) -> None:
    won = volumes.update_where(
        session,
        migration.volume_id,
        Volume.migration_id == migration.id,
        Volume.host == migration.source_host,
        Volume.status.in_([migration.previous_status, "maintenance"]),
        **_place(session, migration),
        **values,
    )
    if not won:
        raise errors.VolumeChanged(volume_id=migration.volume_id)
