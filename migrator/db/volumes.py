"""Volumes: reading one, and each change of state as one guarded UPDATE.

Every function takes a Session; callers decide what belongs into one transaction.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.sql import roles

from migrator import errors
from migrator.db.api import changed, execute, now_seconds
from migrator.db.models import Attachment, Snapshot, Volume, VolumeMetadata, VolumeType, utcnow

_VOLUMES: sa.Table = Volume.__table__  # type: ignore[assignment]

#: ``migration_status`` of a volume that nothing moves at present.
AT_REST = ("success", "error")


def get(session: Session, volume_id: str, *, deleted: bool = False) -> Volume:
    """Return the volume or twin; raises NotFound."""
    volume = session.scalar(_ANY if deleted else _LIVING, {"the_id": volume_id})
    if volume is None:
        raise errors.NotFound(kind="Volume", id=volume_id)
    return volume


_ANY = sa.select(Volume).where(Volume.id == sa.bindparam("the_id")).execution_options(populate_existing=True)
_LIVING = _ANY.where(Volume.deleted_at.is_(None))


def lies_at(session: Session, volume_id: str) -> tuple[str | None, str]:
    """Host and id of the object that a volume is, also of one that is deleted; raises NotFound."""
    found = execute(session, _LIES_AT, the_id=volume_id).one_or_none()
    if found is None:
        raise errors.NotFound(kind="Volume", id=volume_id)
    return found.host, found.name_id or found.id


_LIES_AT = sa.select(_VOLUMES.c.host, _VOLUMES.c.name_id, _VOLUMES.c.id).where(_VOLUMES.c.id == sa.bindparam("the_id"))


def find(session: Session, volume_id: str) -> Volume | None:
    """Return the living volume or twin, or None."""
    return session.scalar(sa.select(Volume).where(Volume.id == volume_id, Volume.deleted_at.is_(None)))


def is_at_rest() -> sa.ColumnElement[bool]:
    """SQL: no migration is under way on the volume."""
    return sa.or_(Volume.migration_status.is_(None), Volume.migration_status.in_(AT_REST))


def has_snapshots() -> sa.ColumnElement[bool]:
    """SQL: the volume has living snapshots."""
    return (
        sa.select(Snapshot.id)
        .where(Snapshot.volume_id == Volume.id, Snapshot.deleted_at.is_(None))
        .correlate(Volume)
        .exists()
    )


def update_where(session: Session, volume_id: str, *expected: sa.ColumnElement[bool], **values: Any) -> bool:
    """Change the living volume if every expectation holds; tell whether it did."""
    plain, by_sql = _kinds({**values, "updated_at": utcnow()})
    statement = _update(tuple(plain)).where(*expected)
    if by_sql:
        statement = statement.values(by_sql)
    given = {f"new_{name}": value for name, value in plain.items()}
    return changed(execute(session, statement, the_id=volume_id, **given)) == 1


def _kinds(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain values, and those that the database works out."""
    by_sql = {name: value for name, value in values.items() if isinstance(value, roles.SQLRole)}
    return {name: value for name, value in values.items() if name not in by_sql}, by_sql


@functools.lru_cache(maxsize=200)
def _update(names: tuple[str, ...]) -> sa.Update:
    """An UPDATE of these columns of the living volume: a migration makes many, of few kinds (see db/api.execute)."""
    values = {name: sa.bindparam(f"new_{name}", type_=_VOLUMES.c[name].type) for name in names}
    return (
        sa.update(_VOLUMES)
        .where(_VOLUMES.c.id == sa.bindparam("the_id"), _VOLUMES.c.deleted_at.is_(None))
        .values(values)
    )


def insert(session: Session, metadata: dict[str, str] | None = None, **values: Any) -> None:
    """Add a volume's row with its metadata."""
    plain, by_sql = _kinds({"created_at": utcnow(), **values})
    execute(session, sa.insert(_VOLUMES).values(by_sql) if by_sql else sa.insert(_VOLUMES), **plain)
    if metadata:
        rows = [{"volume_id": values["id"], "key": key, "value": value} for key, value in metadata.items()]
        session.execute(sa.insert(VolumeMetadata), rows)


def place(session: Session, volume_id: str, where: dict[str, Any]) -> bool:
    """Give a volume that is being created its host (services.place); False when somebody else did or it is gone."""
    return update_where(
        session,
        volume_id,
        Volume.status == "creating",
        Volume.host.is_(None),
        **where,
        placed_at=now_seconds(),
    )


def bury(session: Session, volume_id: str) -> None:
    """Mark a volume's row dead, once its object is gone."""
    update_where(session, volume_id, status="deleted", deleted_at=utcnow())


def remove(session: Session, volume_id: str) -> None:
    """Remove a twin's row for good: no tenant ever knew it."""
    execute(session, _REMOVE, the_id=volume_id)


_REMOVE = sa.delete(_VOLUMES).where(_VOLUMES.c.id == sa.bindparam("the_id"), _VOLUMES.c.twin_of.is_not(None))


def living(session: Session, service: str, *expected: sa.ColumnElement[bool]) -> list[Volume]:
    """Volumes and twins on the backend ``host@backend`` for which every expectation holds, oldest first."""
    return list(session.scalars(_living(sa.select(Volume), service, *expected)))


def living_ids(session: Session, service: str, *expected: sa.ColumnElement[bool]) -> list[str]:
    """Ids of the same: after an outage there may be very many (LP1681374)."""
    return list(session.scalars(_living(sa.select(Volume.id), service, *expected)))


def _living(query: sa.Select[Any], service: str, *expected: sa.ColumnElement[bool]) -> sa.Select[Any]:
    on_backend = sa.or_(Volume.host == service, Volume.host.startswith(service + "#", autoescape=True))
    return query.where(on_backend, Volume.deleted_at.is_(None), *expected).order_by(Volume.created_at)


def has_attachments() -> sa.ColumnElement[bool]:
    """SQL: a server uses the volume, or has reserved it."""
    return (
        sa.select(Attachment.id)
        .where(Attachment.volume_id == Volume.id, Attachment.deleted_at.is_(None))
        .correlate(Volume)
        .exists()
    )


def unchanged(volume: Volume) -> sa.ColumnElement[bool]:
    """SQL: nothing was written to the volume's row since it was read."""
    return Volume.updated_at.is_not_distinct_from(volume.updated_at)


def set_metadata(session: Session, volume_id: str, metadata: dict[str, str]) -> None:
    """Replace the volume's metadata."""
    session.execute(sa.delete(VolumeMetadata).where(VolumeMetadata.volume_id == volume_id))
    if metadata:
        rows = [{"volume_id": volume_id, "key": key, "value": value} for key, value in metadata.items()]
        session.execute(sa.insert(VolumeMetadata), rows)


def detach_all(session: Session, volume_id: str) -> None:
    """Mark every attachment of the volume as gone, without telling anybody: what a reset means."""
    now = utcnow()
    session.execute(
        sa.update(Attachment)
        .where(Attachment.volume_id == volume_id, Attachment.deleted_at.is_(None))
        .values(attach_status="detached", detach_time=now, deleted_at=now)
        .execution_options(synchronize_session=False)
    )


#: Columns that no answer shows: of a page of a thousand volumes each column costs a millisecond.
_INTERNAL = (
    *("migration_id", "previous_status", "attach_status", "readonly", "provider_location", "launched_at"),
    *("wanted_size", "placed_at", "writable_at", "adoption", "deleted_at"),
)
#: The columns of a volume that it is shown with.
SHOWN = tuple(column for column in _VOLUMES.c if column.name not in _INTERNAL)
_GET_SHOWN = sa.select(*SHOWN).where(_VOLUMES.c.id == sa.bindparam("the_id"), _VOLUMES.c.deleted_at.is_(None))


class Whole(NamedTuple):
    """A volume as plain values, with all that hangs on it; cheap enough to be made a thousand times per request."""

    #: The columns of ``Volume``, by name.
    row: Any
    type_name: str | None
    metadata: dict[str, str]
    attachments: list[Any]


def whole(session: Session, rows: Sequence[Any]) -> list[Whole]:
    """Return the volumes whose columns ``rows`` are, with what hangs on them."""
    ids = [row.id for row in rows]
    metadata: dict[str, dict[str, str]] = {}
    query = sa.select(VolumeMetadata.volume_id, VolumeMetadata.key, VolumeMetadata.value)
    for volume_id, key, value in session.execute(query.where(VolumeMetadata.volume_id.in_(ids))):
        metadata.setdefault(volume_id, {})[key] = value
    attachments: dict[str, list[Any]] = {}
    of_them = sa.select(Attachment.__table__).where(Attachment.volume_id.in_(ids), Attachment.deleted_at.is_(None))
    for attachment in session.execute(of_them):
        attachments.setdefault(attachment.volume_id, []).append(attachment)
    type_ids = {row.volume_type_id for row in rows} - {None}
    named = sa.select(VolumeType.id, VolumeType.name).where(VolumeType.id.in_(type_ids))
    names = {type_id: name for type_id, name in session.execute(named)} if type_ids else {}  # noqa: C416 (typed)
    return [
        Whole(row, names.get(row.volume_type_id), metadata.get(row.id, {}), attachments.get(row.id, [])) for row in rows
    ]


def get_whole(session: Session, volume_id: str) -> Whole:
    """Return the living volume or twin as plain values; raises NotFound."""
    row = execute(session, _GET_SHOWN, the_id=volume_id).first()
    if row is None:
        raise errors.NotFound(kind="Volume", id=volume_id)
    return whole(session, [row])[0]
