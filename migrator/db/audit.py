"""What the rows say should lie on the backends, compared with what does; what became of each thing that differs.

Pure questions: nothing here changes a row, but ``forget_ranges``.  Intent is recorded before the effect, and rows go
after their objects, so an inventory that is taken *before* the rows are read shows an object without a row only where
it was removed in between.  Whoever asks twice, and keeps what was found both times, sees what really is left over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator.backend_name import BackendName
from migrator.db import services, twins
from migrator.db.api import changed
from migrator.db.models import Attachment, CopiedRange, Migration, Service, Snapshot, Volume
from migrator.volume.states import End, Shown

if TYPE_CHECKING:
    from migrator.conf import Conf

#: Statuses of a volume whose object must be there; in the others it is being made or removed, or either failed.
WHOLE = (
    *("available", "in-use", "attaching", "detaching", "reserved", "maintenance", "retyping", "extending"),
    *("error_extending", "awaiting-transfer", "backing-up", "restoring-backup", "error_restoring", "error_backing-up"),
)
#: How a migration ended that can have left nothing which it may still come back to.
FINISHED = (End.SUCCESS.value, End.ERROR.value, End.CANCELLED.value)
_MOVING = (Shown.STARTING.value, Shown.MIGRATING.value, Shown.COMPLETING.value)


class Kind(StrEnum):
    """What can be wrong."""

    OBJECT_WITHOUT_ROW = "object without a row"
    ROW_WITHOUT_OBJECT = "row without its object"
    NEEDLESS_EXPORT = "export that nobody needs"
    TWIN_LEFT = "twin of a migration that is over"
    STILL_MOVING = "volume marked as moving"
    RANGES_LEFT = "record of a copy that is over"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what, where, what is known of it and what to do.

    ``migration_id``: the migration that is over and owned it, so that it may be removed; None: for a person to decide.
    """

    kind: Kind
    place: str
    name: str
    detail: str = field(compare=False)
    advice: str = field(compare=False)
    migration_id: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Stock:
    """What lies in one pool: the names of its objects and of those that are exported, and where it really lies."""

    objects: frozenset[str]
    exports: frozenset[str] = frozenset()
    place: str | None = None


@dataclass(frozen=True)
class Names:
    """How objects are named."""

    volume: str
    snapshot: str

    @classmethod
    def of(cls, conf: Conf) -> Names:
        return cls(conf.volume_name_template, conf.snapshot_name_template)

    def object_id(self, name: str) -> str | None:
        """Return the id in the name of a volume's object; None for any other name."""
        head, _, tail = self.volume.partition("%s")
        inner = name.removeprefix(head).removesuffix(tail)
        return inner if self.volume % inner == name else None


class Pools:
    """Which pool names mean the same pool: of services that can stand in for one another, or at one place."""

    def __init__(self, known: Iterable[Service], stocks: Mapping[str, Stock]) -> None:
        self._other: dict[str, str] = {}
        known = list(known)
        for pool in stocks:
            name = BackendName.parse(pool)
            ours = next((service for service in known if service.host == name.service), None)
            for other in known:
                if ours is not None and (services.can_stand_in(ours, other) or services.can_stand_in(other, ours)):
                    self._join(pool, f"{other.host}#{name.pool}")
        at: dict[str, str] = {}
        for pool, stock in stocks.items():
            if stock.place is not None:
                self._join(pool, at.setdefault(stock.place, pool))

    def _join(self, one: str, other: str) -> None:
        first, second = sorted((self(one), self(other)))
        if first != second:
            self._other[second] = first

    def __call__(self, pool: str | None) -> str:
        """Return the name that stands for all names of a pool."""
        name = pool or ""
        while name in self._other:
            name = self._other[name]
        return name


def look(session: Session, names: Names, stocks: Mapping[str, Stock]) -> list[Finding]:
    """Return all that is wrong; ``stocks``, by host@backend#pool, must be older than the session's transaction."""
    return list(_Look(session, names, stocks).findings())


_VOLUMES = sa.select(
    Volume.id,
    Volume.twin_of,
    Volume.host,
    Volume.status,
    Volume.migration_id,
    Volume.migration_status,
    sa.func.coalesce(Volume.name_id, Volume.id).label("object_id"),
).where(Volume.deleted_at.is_(None))
_SNAPSHOTS = (
    sa.select(Snapshot.id, Snapshot.status, Volume.host)
    .join(Volume, Volume.id == Snapshot.volume_id)
    .where(Snapshot.deleted_at.is_(None), Volume.host.is_not(None))
)
_UNDER_WAY = sa.select(
    Migration.id,
    Migration.source_host,
    Migration.source_object_id,
    Migration.destination_host,
    Migration.destination_volume_id,
).where(Migration.end.is_(None))


class _Look:
    """One look at all rows."""

    def __init__(self, session: Session, names: Names, stocks: Mapping[str, Stock]) -> None:
        self._session = session
        self._names = names
        self._stocks = stocks
        known = session.scalars(sa.select(Service).where(Service.binary == services.VOLUME))
        self._pool = Pools(known, stocks)
        self._volumes: list[Any] = list(session.execute(_VOLUMES))
        self._snapshots: list[Any] = list(session.execute(_SNAPSHOTS))
        self._under_way: list[Any] = list(session.execute(_UNDER_WAY))
        self._there: dict[str, set[str]] = {}
        for pool, stock in stocks.items():
            self._there.setdefault(self._pool(pool), set()).update(stock.objects)

    def findings(self) -> Iterator[Finding]:
        yield from self._objects_without_rows()
        yield from self._rows_without_objects()
        yield from self._needless_exports()
        yield from self._twins_left()
        yield from self._still_moving()
        yield from self._ranges_left()

    def _volume(self, object_id: str) -> str:
        return str(self._names.volume % object_id)

    def _snapshot(self, snapshot_id: str) -> str:
        return str(self._names.snapshot % snapshot_id)

    # --- both ways ---

    def _named(self) -> Iterator[tuple[str, str]]:
        """Pool and name of everything that a living row names, or a migration under way may have made."""
        for row in self._volumes:
            yield self._pool(row.host), self._volume(row.object_id)
        for row in self._snapshots:
            yield self._pool(row.host), self._snapshot(row.id)
        for row in self._under_way:
            yield self._pool(row.source_host), self._volume(row.source_object_id)
            yield self._pool(row.destination_host), self._volume(row.destination_volume_id)

    def _objects_without_rows(self) -> Iterator[Finding]:
        named = set(self._named())
        seen: set[tuple[str, str]] = set()
        for pool, stock in sorted(self._stocks.items()):
            for name in sorted(stock.objects):
                key = (self._pool(pool), name)
                if key not in named and key not in seen:
                    seen.add(key)
                    yield self._orphan(pool, name)

    def _orphan(self, pool: str, name: str) -> Finding:
        """Say whose the object is that no row names."""
        kind, object_id = Kind.OBJECT_WITHOUT_ROW, self._names.object_id(name)
        owners = _owners(self._session, object_id) if object_id else []
        for row in owners:
            ends = [end for end in _ends(row, object_id) if self._pool(end) == self._pool(pool)]
            if ends:
                return self._owned(ends[0], name, row)
        detail = "no migration is known to have made it"
        return Finding(kind, pool, name, detail, "find out what it is; the audit removes nothing of the kind")

    def _owned(self, place: str, name: str, row: Any) -> Finding:
        detail = f"left by migration {row.id}, which ended {row.end}"
        reason = why_not_removable(self._session, self._names, row.id, place, name)
        if row.end == End.STUCK.value:
            advice = f"migrator migration-retry {row.id} takes it back"
        elif reason is not None:
            advice = f"{reason}; compare both before one of them is removed by hand"
        else:
            return Finding(Kind.OBJECT_WITHOUT_ROW, place, name, detail, "--repair removes it", row.id)
        return Finding(Kind.OBJECT_WITHOUT_ROW, place, name, detail, advice)

    def _rows_without_objects(self) -> Iterator[Finding]:
        for what, row, name in self._expected():
            there = self._there.get(self._pool(row.host))
            if there is not None and name not in there:
                advice = "look for it on the backend and in backups; the row is not touched"
                yield Finding(Kind.ROW_WITHOUT_OBJECT, row.host, name, f"{what} {row.id} is {row.status}", advice)

    def _expected(self) -> Iterator[tuple[str, Any, str]]:
        """Rows whose object must be there."""
        for row in self._volumes:
            whole = row.status == twins.KEPT if row.twin_of else row.status in WHOLE
            if row.host and whole:
                yield "twin" if row.twin_of else "volume", row, self._volume(row.object_id)
        for row in self._snapshots:
            if row.status == "available":
                yield "snapshot", row, self._snapshot(row.id)

    # --- the rest ---

    def _needless_exports(self) -> Iterator[Finding]:
        query = sa.select(Attachment.volume_id).where(Attachment.deleted_at.is_(None))
        attached = set(self._session.scalars(query))
        needed = {row.object_id for row in self._volumes if row.id in attached}
        needed |= {id_ for row in self._under_way for id_ in (row.source_object_id, row.destination_volume_id)}
        names = {self._volume(object_id) for object_id in needed}
        for pool, stock in sorted(self._stocks.items()):
            for name in sorted((stock.exports & stock.objects) - names):
                detail = "no attachment and no migration under way uses it"
                yield Finding(Kind.NEEDLESS_EXPORT, pool, name, detail, "end it on the backend")

    def _twins_left(self) -> Iterator[Finding]:
        lasting = {row.destination_volume_id for row in self._under_way}
        for row in self._volumes:
            if row.twin_of is None or row.status == twins.KEPT or row.id in lasting:
                continue
            if row.status == "deleting":
                advice = "its service removes it and tries again and again: see that service's log"
            else:
                advice = "have a developer look at it; the volume itself is not concerned"
            detail = f"twin {row.id} of volume {row.twin_of} is {row.status}; migration {row.migration_id} is over"
            yield Finding(Kind.TWIN_LEFT, row.host or "", self._volume(row.object_id), detail, advice)

    def _still_moving(self) -> Iterator[Finding]:
        lasting = {row.id for row in self._under_way}
        for row in self._volumes:
            if row.twin_of is None and row.migration_status in _MOVING and row.migration_id not in lasting:
                detail = f"migration_status is {row.migration_status}, and no migration is under way"
                advice = f"migrator reset-state --reset-migration-status {row.id}"
                yield Finding(Kind.STILL_MOVING, row.host or "", row.id, detail, advice)

    def _ranges_left(self) -> Iterator[Finding]:
        query = sa.select(CopiedRange.migration_id, sa.func.count()).group_by(CopiedRange.migration_id)
        lasting = {row.id for row in self._under_way}
        for migration_id, count in self._session.execute(query):
            if migration_id not in lasting:
                detail = f"{count} ranges of a copy are recorded; they do no harm"
                yield Finding(Kind.RANGES_LEFT, "", migration_id, detail, "--repair forgets them", migration_id)


# --- what may be removed ---------------------------------------------------------------------------------------------


def _owners(session: Session, object_id: str) -> list[Migration]:
    """Migrations that made or moved the object of that id, newest first."""
    either = sa.or_(Migration.destination_volume_id == object_id, Migration.source_object_id == object_id)
    return list(session.scalars(sa.select(Migration).where(either).order_by(Migration.created_at.desc())))


def _ends(row: Migration, object_id: str | None) -> list[str]:
    """Pools where the migration may have left the object of that id."""
    ends = [row.destination_host, row.source_host if row.source_object_id == object_id else None]
    return [end for end in ends if end is not None]


def why_not_removable(session: Session, names: Names, migration_id: str, place: str, name: str) -> str | None:
    """Return the one reason why an object is not what a finished migration left at a place, or None: it is.

    Stricter than need be: an object whose id any living row names, wherever, is never removed.  What is called alike
    on two backends may be one and the same thing that is reached in two ways.
    """
    object_id = names.object_id(name)
    row = session.get(Migration, migration_id, populate_existing=True)
    if object_id is None or row is None or object_id not in (row.destination_volume_id, row.source_object_id):
        return f"migration {migration_id} did not make it"
    if place not in _ends(row, object_id):
        return f"migration {migration_id} did not put it there"
    if row.end not in FINISHED:
        return f"migration {migration_id} is {row.end or 'not over'}"
    return _still_named(session, object_id)


def _still_named(session: Session, object_id: str) -> str | None:
    living = sa.select(Volume.id, Volume.host, Volume.twin_of).where(
        Volume.deleted_at.is_(None), sa.func.coalesce(Volume.name_id, Volume.id) == object_id
    )
    for row in session.execute(living):
        return f"the {'twin' if row.twin_of else 'volume'} {row.id} on {row.host} has an object of that name"
    either = sa.or_(Migration.destination_volume_id == object_id, Migration.source_object_id == object_id)
    under_way = session.scalar(sa.select(Migration.id).where(Migration.end.is_(None), either))
    return f"migration {under_way} is under way with it" if under_way is not None else None


def forget_ranges(session: Session, migration_id: str) -> bool:
    """Forget what was recorded of the copy of a migration that is over; False when it is not, or nothing is."""
    over = sa.select(Migration.id).where(Migration.id == migration_id, Migration.end.is_not(None))
    statement = sa.delete(CopiedRange).where(CopiedRange.migration_id.in_(over))
    return changed(session.execute(statement.execution_options(synchronize_session=False))) > 0
