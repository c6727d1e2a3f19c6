"""Volume types and their extra specs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from oslo_db import exception as db_exc
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db.api import changed
from migrator.db.models import ExtraSpec, Volume, VolumeType, utcnow

_LIVING = VolumeType.deleted_id == ""


def get(session: Session, type_id: str) -> VolumeType:
    """Return the living type; raises NotFound."""
    return _one(session, type_id, VolumeType.id == type_id)


def get_by_name_or_id(session: Session, text: str) -> VolumeType:
    """Return the living type with that id, or else that name; raises NotFound."""
    query = sa.select(VolumeType).where(_LIVING, sa.or_(VolumeType.id == text, VolumeType.name == text))
    found = sorted(session.scalars(query), key=lambda row: row.id != text)
    if not found:
        raise errors.NotFound(kind="Volume type", id=text)
    return found[0]


def find_by_name(session: Session, name: str) -> VolumeType | None:
    """Return the living type of that name, or None."""
    return session.scalar(sa.select(VolumeType).where(_LIVING, VolumeType.name == name))


def has_spec(key: str, value: str) -> sa.ColumnElement[bool]:
    """SQL: the type has this extra spec."""
    spec = sa.select(ExtraSpec.key).where(
        ExtraSpec.type_id == VolumeType.id, ExtraSpec.key == key, ExtraSpec.value == value
    )
    return spec.correlate(VolumeType).exists()


def create(session: Session, specs: Mapping[str, str | None], **values: Any) -> VolumeType:
    """Add a type with its extra specs; raises Conflict when the name is taken."""
    type_id = str(uuid.uuid4())
    statement = sa.insert(VolumeType).values(id=type_id, deleted_id="", created_at=utcnow(), **values)
    _execute_named(session, statement, values["name"])
    set_specs(session, type_id, specs)
    return get(session, type_id)


def update(session: Session, type_id: str, **values: Any) -> VolumeType:
    """Change a type; raises NotFound, or Conflict when the new name is taken."""
    get(session, type_id)
    statement = sa.update(VolumeType).where(VolumeType.id == type_id, _LIVING).values(updated_at=utcnow(), **values)
    _execute_named(session, statement, values.get("name", ""))
    return get(session, type_id)


def is_used(session: Session, type_id: str) -> bool:
    """Tell whether a living volume is of this type."""
    query = sa.select(Volume.id).where(Volume.volume_type_id == type_id, Volume.deleted_at.is_(None)).limit(1)
    return session.scalar(query) is not None


def is_multiattach(session: Session, type_id: str | None) -> bool:
    """Tell whether volumes of the type may be attached to several servers at once: its extra spec multiattach."""
    query = sa.select(ExtraSpec.value).where(ExtraSpec.type_id == type_id, ExtraSpec.key == "multiattach")
    return (session.scalar(query) or "").strip().lower() == "<is> true"


def delete(session: Session, type_id: str) -> None:
    """Mark a type dead, so that its name is free again; raises NotFound."""
    result = session.execute(
        sa.update(VolumeType)
        .where(VolumeType.id == type_id, _LIVING)
        .values(deleted_id=type_id, updated_at=utcnow())
        .execution_options(synchronize_session=False)
    )
    if changed(result) != 1:
        raise errors.NotFound(kind="Volume type", id=type_id)


def set_specs(session: Session, type_id: str, specs: Mapping[str, str | None]) -> None:
    """Add or replace extra specs; the others stay."""
    if specs:
        keys = list(specs)
        session.execute(sa.delete(ExtraSpec).where(ExtraSpec.type_id == type_id, ExtraSpec.key.in_(keys)))
        rows = [{"type_id": type_id, "key": key, "value": value} for key, value in specs.items()]
        session.execute(sa.insert(ExtraSpec), rows)


def delete_spec(session: Session, type_id: str, key: str) -> None:
    """Remove one extra spec; raises NotFound."""
    result = session.execute(sa.delete(ExtraSpec).where(ExtraSpec.type_id == type_id, ExtraSpec.key == key))
    if changed(result) != 1:
        raise errors.NotFound(kind=f"Extra spec of volume type {type_id}", id=key)


def _one(session: Session, text: str, condition: sa.ColumnElement[bool]) -> VolumeType:
    query = sa.select(VolumeType).where(_LIVING, condition).execution_options(populate_existing=True)
    row = session.scalar(query)
    if row is None:
        raise errors.NotFound(kind="Volume type", id=text)
    return row


def _execute_named(session: Session, statement: sa.UpdateBase, name: str) -> None:
    """Run a statement that writes a name; the unique index says whether it was free."""
    try:
        session.execute(statement)
    except db_exc.DBDuplicateEntry as error:
        raise errors.Conflict(reason=f"Volume type with name {name} already exists.") from error
