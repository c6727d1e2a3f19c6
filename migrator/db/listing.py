"""Lists: what they can be filtered and sorted by, and how one pages through them.

Paging goes by the marker's values, not by position, so that a page costs the same wherever it is and rows that come
or go meanwhile shift nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db.models import Attachment, Message, Migration, Snapshot, Volume, VolumeMetadata, VolumeType
from migrator.volume import states

T = TypeVar("T")

Expression = sa.SQLColumnExpression[Any]
Condition = sa.ColumnElement[bool]
Filters = Mapping[str, Callable[[str], Condition]]


@dataclass(frozen=True)
class Page:
    """Which part of a list is wanted, and in which order: names of sort keys, True for descending."""

    limit: int
    marker: str | None = None
    offset: int = 0
    sort: Sequence[tuple[str, bool]] = (("created_at", True),)


@dataclass(frozen=True)
class Listing:
    """What a model's lists can be sorted by.  Expressions are never NULL, so that every row has its place."""

    model: Any
    kind: str
    sort: Mapping[str, Expression]

    def fetch(
        self, session: Session, scope: Condition, filters: Sequence[Condition], page: Page, *columns: Any
    ) -> list[Any]:
        """Return one page of what is in ``scope`` and passes every filter: objects, or rows of these ``columns``.

        Raises InvalidInput for an unknown sort key, or a marker that names nothing in scope.
        """
        keys = [(self._key(name), descending) for name, descending in page.sort]
        keys.append((self.model.id, keys[-1][1]))
        query = sa.select(*(columns or (self.model,))).where(scope, *filters)
        if page.marker is not None:
            query = query.where(self._after(session, scope, keys, page.marker))
        query = query.order_by(*(key.desc() if descending else key.asc() for key, descending in keys))
        found = session.execute(query.offset(page.offset or None).limit(page.limit))
        return list(found if columns else found.scalars())

    def count(self, session: Session, scope: Condition, filters: Sequence[Condition]) -> int:
        """Return how many rows the pages hold together."""
        return session.scalar(sa.select(sa.func.count()).select_from(self.model).where(scope, *filters)) or 0

    def _key(self, name: str) -> Expression:
        if name not in self.sort:
            known = ", ".join(sorted(self.sort))
            raise errors.InvalidInput(field="sort", reason=f"{name[:40]!r} is not one of: {known}")
        return self.sort[name]

    def _after(self, session: Session, scope: Condition, keys: list[tuple[Expression, bool]], marker: str) -> Condition:
        row = session.execute(sa.select(*(key for key, _ in keys)).where(self.model.id == marker, scope)).first()
        if row is None:
            raise errors.InvalidInput(field="marker", reason=f"{self.kind} {marker[:40]!r} could not be found")
        # Bound, since SQLAlchemy takes True and False for keywords that nothing can be less than.
        values: list[Expression] = [sa.bindparam(None, value) for value in row]
        ways = []
        for index, (key, descending) in enumerate(keys):
            equal = [earlier == value for (earlier, _), value in zip(keys[:index], values, strict=False)]
            ways.append(sa.and_(*equal, key < values[index] if descending else key > values[index]))
        return sa.or_(*ways)


def _text(column: Any) -> Expression:
    return sa.func.coalesce(column, "")


VOLUMES = Listing(
    Volume,
    "volume",
    {
        "id": Volume.id,
        "name": _text(Volume.display_name),
        "display_name": _text(Volume.display_name),
        "status": Volume.status,
        "size": Volume.size,
        "host": _text(Volume.host),
        "availability_zone": Volume.availability_zone,
        "bootable": Volume.bootable,
        "volume_type_id": _text(Volume.volume_type_id),
        "user_id": Volume.user_id,
        "project_id": Volume.project_id,
        "created_at": Volume.created_at,
        "updated_at": sa.func.coalesce(Volume.updated_at, Volume.created_at),
    },
)

SNAPSHOTS = Listing(
    Snapshot,
    "snapshot",
    {
        "id": Snapshot.id,
        "name": _text(Snapshot.display_name),
        "display_name": _text(Snapshot.display_name),
        "status": Snapshot.status,
        "volume_id": Snapshot.volume_id,
        "volume_size": Snapshot.volume_size,
        "created_at": Snapshot.created_at,
        "updated_at": sa.func.coalesce(Snapshot.updated_at, Snapshot.created_at),
    },
)

TYPES = Listing(
    VolumeType,
    "volume type",
    {
        "id": VolumeType.id,
        "name": VolumeType.name,
        "created_at": VolumeType.created_at,
        "updated_at": sa.func.coalesce(VolumeType.updated_at, VolumeType.created_at),
    },
)

MESSAGES = Listing(
    Message,
    "message",
    {
        "id": Message.id,
        "event_id": Message.event_id,
        "resource_uuid": Message.resource_uuid,
        "resource_type": Message.resource_type,
        "request_id": _text(Message.request_id),
        "message_level": Message.message_level,
        "created_at": Message.created_at,
    },
)

ATTACHMENTS = Listing(
    Attachment,
    "attachment",
    {
        "id": Attachment.id,
        "volume_id": Attachment.volume_id,
        "attach_status": Attachment.attach_status,
        "status": Attachment.attach_status,
        "created_at": Attachment.created_at,
    },
)

MIGRATIONS = Listing(Migration, "migration", {"id": Migration.id, "created_at": Migration.created_at})


# --- conditions ------------------------------------------------------------------------------------------------------


def contains(column: Any, text: str) -> Condition:
    """SQL: the text occurs in the column."""
    return column.contains(text, autoescape=True)  # type: ignore[no-any-return]


def place(column: Any, name: str) -> Condition:
    """SQL: the column names this host, backend or pool, or a part of it."""
    inside = [column.startswith(f"{name}{separator}", autoescape=True) for separator in "@#"]
    return sa.or_(column == name, *inside)


def volume_metadata(key: str, value: str) -> Condition:
    """SQL: the volume has this pair in its metadata."""
    return (
        sa.select(VolumeMetadata.volume_id)
        .where(VolumeMetadata.volume_id == Volume.id, VolumeMetadata.key == key, VolumeMetadata.value == value)
        .correlate(Volume)
        .exists()
    )


def type_is(text: str) -> Condition:
    """SQL: the volume is of the type with this id or name."""
    named = sa.select(VolumeType.id).where(VolumeType.name == text, VolumeType.deleted_id == "")
    return sa.or_(Volume.volume_type_id == text, Volume.volume_type_id.in_(named))


_QUEUED = sa.and_(Migration.owner.is_(None), Migration.step == states.FIRST_STEP)
_GOING_ON = sa.and_(Migration.end.is_(None), Migration.paused.is_(False))

#: SQL for each word of states.status.
MIGRATION_STATUS: dict[str, Condition] = {
    **{end.value: Migration.end == end.value for end in states.End},
    "paused": sa.and_(Migration.end.is_(None), Migration.paused.is_(True)),
    "queued": sa.and_(_GOING_ON, _QUEUED),
    "running": sa.and_(_GOING_ON, sa.not_(_QUEUED)),
}
