"""Which projects may use a volume type that is not public."""

from __future__ import annotations

import sqlalchemy as sa
from oslo_db import exception as db_exc
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db.api import changed
from migrator.db.models import TypeAccess, VolumeType


def projects(session: Session, type_id: str) -> list[str]:
    """The projects that were given access to a type, by name."""
    query = sa.select(TypeAccess.project_id).where(TypeAccess.type_id == type_id)
    return list(session.scalars(query.order_by(TypeAccess.project_id)))


def given(project_id: str | None) -> sa.ColumnElement[bool]:
    """SQL: the project was given access to the type."""
    return (
        sa.select(TypeAccess.type_id)
        .where(TypeAccess.type_id == VolumeType.id, TypeAccess.project_id == (project_id or ""))
        .correlate(VolumeType)
        .exists()
    )


def may_use(session: Session, kind: VolumeType, project_id: str | None) -> bool:
    """Tell whether a project may use a type: because it is public, or because access was given."""
    return kind.is_public or session.get(TypeAccess, (kind.id, project_id or "")) is not None


def add(session: Session, type_id: str, project_id: str) -> None:
    """Give a project access to a type; raises Conflict when it has it."""
    try:
        session.execute(sa.insert(TypeAccess).values(type_id=type_id, project_id=project_id))
    except db_exc.DBDuplicateEntry as error:
        raise errors.Conflict(reason=f"Project {project_id} has access to volume type {type_id} already.") from error


def remove(session: Session, type_id: str, project_id: str) -> None:
    """Take a project's access to a type away; raises NotFound."""
    result = session.execute(
        sa.delete(TypeAccess).where(TypeAccess.type_id == type_id, TypeAccess.project_id == project_id)
    )
    if changed(result) != 1:
        raise errors.NotFound(kind=f"Access to volume type {type_id} of project", id=project_id)
