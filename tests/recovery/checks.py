"""The invariants of a migration (migrator/volume/states.py, doc: invariants 1 to 4 and 8), looked at from outside.

The database is read by SQL of its own and the storage behind the drivers' backs, so that a fault of the code under
test cannot hide itself.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from migrator.drivers.file import FileDriver
from migrator.drivers.memory import MemoryDriver
from migrator.drivers.sparse import Sparse
from migrator.volume import states
from migrator.volume.states import Direction, End


class Broken(AssertionError):
    """An invariant does not hold."""


# --- storage -----------------------------------------------------------------------------------------------------


class Content(Protocol):
    """Bytes that can be looked at."""

    size: int

    def extents(self, start: int, length: int, /) -> Iterable[tuple[int, int, bool]]: ...

    def read(self, offset: int, buffer: bytearray, /) -> int: ...


class Storage(Protocol):
    """What the backends of one kind really hold, by host (``host@backend#pool``) and object name."""

    def objects(self) -> set[tuple[str, str]]: ...

    def durable(self, host: str, name: str) -> Content | None:
        """What would be there after a power cut."""

    def is_writable(self, host: str, name: str) -> bool:
        """Tell whether somebody could write to it now."""

    def power_cut(self) -> None: ...


class MemoryStorage:
    """Two backends of the memory driver."""

    def __init__(self, drivers: Iterable[MemoryDriver]) -> None:
        self._drivers = {f"{driver.backend}#{pool}": (driver, pool) for driver in drivers for pool in driver.pools()}

    def objects(self) -> set[tuple[str, str]]:
        return {(host, name) for host, (driver, pool) in self._drivers.items() for name in driver.objects(pool)}

    def durable(self, host: str, name: str) -> Content | None:
        driver, pool = self._drivers[host]
        return driver.durable(pool, name)

    def is_writable(self, host: str, name: str) -> bool:
        driver, pool = self._drivers[host]
        return driver.is_writable(pool, name)

    def power_cut(self) -> None:
        for driver, _ in self._drivers.values():
            driver.power_cut()


class FileStorage:
    """Two backends of the file driver.  What is cached cannot be told from what is stored, nor who has a file open."""

    def __init__(self, drivers: Iterable[FileDriver]) -> None:
        self._pools = {
            f"{driver.backend}#{pool}": Path(driver.options.file_pools[pool])
            for driver in drivers
            for pool in driver.pools()
        }

    def objects(self) -> set[tuple[str, str]]:
        return {(host, path.name) for host, pool in self._pools.items() for path in pool.glob("volume-*")}

    def durable(self, host: str, name: str) -> Content | None:
        path = self._pools[host] / name
        return StoredFile(path) if path.exists() else None

    def is_writable(self, host: str, name: str) -> bool:
        return False

    def power_cut(self) -> None:
        """Cannot be done to real files."""


class StoredFile:
    """A file as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int, bool]]:
        end, at = start + length, start
        with self._path.open("rb") as file:
            while at < end:
                try:
                    data = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:  # nothing but a hole
                    return
                at = os.lseek(file.fileno(), data, os.SEEK_HOLE)
                if data < end:
                    yield data, min(at, end) - data, True

    def read(self, offset: int, buffer: bytearray) -> int:
        with self._path.open("rb") as file:
            return os.preadv(file.fileno(), [buffer], offset)


class Wanted:
    """The content that a volume must have; remembers what it was asked for, since it never changes."""

    def __init__(self, content: Sparse) -> None:
        self._content = content
        self._read: dict[tuple[int, int], bytes] = {}
        self._extents: dict[tuple[int, int], list[tuple[int, int]]] = {}

    @property
    def size(self) -> int:
        return self._content.size

    def difference(self, found: Content, ranges: Iterable[Sequence[int]]) -> int | None:
        """First offset inside the ranges ([start, length]) where the content found is another; None: nowhere."""
        if self.size != found.size:
            return min(self.size, found.size)
        for start, length in ranges:
            data = {(begin, count) for begin, count, is_data in found.extents(start, length) if is_data}
            for begin, count in sorted(data.union(self._data(start, length))):
                buffer, wanted = bytearray(count), self._bytes(begin, count)
                found.read(begin, buffer)
                if buffer != wanted:
                    return begin + next(i for i in range(count) if buffer[i] != wanted[i])
        return None

    def _data(self, start: int, length: int) -> list[tuple[int, int]]:
        if (start, length) not in self._extents:
            extents = self._content.extents(start, length)
            self._extents[start, length] = [(begin, count) for begin, count, is_data in extents if is_data]
        return self._extents[start, length]

    def _bytes(self, start: int, length: int) -> bytes:
        if (start, length) not in self._read:
            buffer = bytearray(length)
            self._content.read(start, buffer)
            self._read[start, length] = bytes(buffer)
        return self._read[start, length]


# --- rows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """What the database says at one instant."""

    volumes: list[dict[str, Any]]
    migrations: list[dict[str, Any]]
    ranges: dict[str, list[list[int]]]

    def named(self) -> set[tuple[str, str]]:
        """Every (host, object) that a row names: volumes, twins, and both places of an assisted move."""
        names = {(volume["host"], object_name(volume)) for volume in self.volumes}
        by_id = {volume["id"]: volume for volume in self.volumes}
        for migration in self.migrations:
            assisted = migration["plan"] == states.ASSISTED.name and migration["end"] in (None, End.STUCK)
            if assisted and migration["volume_id"] in by_id:
                ends = (("source_host", "source_object_id"), ("destination_host", "destination_volume_id"))
                names |= {(migration[host], f"volume-{migration[name]}") for host, name in ends}
        return names


def object_name(volume: dict[str, Any]) -> str:
    return f"volume-{volume['name_id'] or volume['id']}"


_VOLUMES = "SELECT * FROM volumes WHERE deleted_at IS NULL AND host IS NOT NULL"
_MIGRATIONS = "SELECT * FROM migrations ORDER BY created_at"
_RANGES = "SELECT migration_id, start, length FROM copied_ranges ORDER BY start"
_OPEN_ATTEMPTS = "SELECT step FROM migration_steps WHERE finished_at IS NULL AND migration_id = ?"


class Checker:
    """Looks at rows and storage, from any thread; raises Broken."""

    def __init__(self, database: Path, storage: Storage) -> None:
        self.storage = storage
        #: The content that each volume must have at every instant, by its id.
        self.wanted: dict[str, Wanted] = {}
        self._places: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row

    def close(self) -> None:
        self._connection.close()

    def forget(self) -> None:
        """Expect nothing any more."""
        self.wanted.clear()
        self._places.clear()

    def rows(self) -> Rows:
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                volumes = [dict(row) for row in self._connection.execute(_VOLUMES)]
                migrations = [dict(row) for row in self._connection.execute(_MIGRATIONS)]
                ranges: dict[str, list[list[int]]] = {}
                for migration_id, start, length in self._connection.execute(_RANGES):
                    ranges.setdefault(migration_id, []).append([start, length])
            finally:
                self._connection.execute("COMMIT")
        return Rows(volumes, migrations, ranges)

    def migration(self, migration_id: str) -> dict[str, Any]:
        return next(row for row in self.rows().migrations if row["id"] == migration_id)

    # --- at every instant ---

    def look(self, instant: str) -> None:
        """Check all that must hold at any time; ``instant`` says when, for the message."""
        rows = self.rows()
        try:
            for volume in rows.volumes:
                if volume["id"] in self.wanted:
                    self._check_volume(volume)
            stray = self.storage.objects() - rows.named()
            if stray:
                raise Broken(f"2: no row names {sorted(stray)}")
            for migration in rows.migrations:
                self._check_ranges(migration, rows)
                self._check_kept(migration, rows)
        except Broken as error:
            raise Broken(f"{error}, at {instant}") from None

    def _check_volume(self, volume: dict[str, Any]) -> None:
        place = (volume["host"], object_name(volume))
        found = self.storage.durable(*place)
        if found is None:
            raise Broken(f"1: the volume is not at {place}")
        wanted = self.wanted[volume["id"]]
        offset = wanted.difference(found, [[0, wanted.size]])
        if offset is not None:
            raise Broken(f"1: the volume at {place} has lost its byte {offset}")
        if volume["status"] not in ("available", "maintenance", "in-use", "extending"):
            raise Broken(f"1: the volume is {volume['status']}")
        if self._places.setdefault(volume["id"], place) != place:
            self._places[volume["id"]] = place
            if self.storage.is_writable(*place):
                raise Broken(f"4: a copier could still write to {place} when the volume was switched there")

    def _check_ranges(self, migration: dict[str, Any], rows: Rows) -> None:
        """What is recorded as copied must be at the destination for good, as long as a copy would go on from there."""
        ranges = rows.ranges.get(migration["id"])
        plan, step = states.PLANS[migration["plan"]], migration["step"]
        forward = migration["direction"] == Direction.FORWARD and migration["end"] is None
        if migration["cancel_requested"]:  # its owner may write to the volume, and no copy goes on
            return
        if not ranges or not forward or plan.behind_line(step) or migration["volume_id"] not in self.wanted:
            return
        name = f"volume-{migration['destination_volume_id']}"
        found = self.storage.durable(migration["destination_host"], name)
        if found is None:
            raise Broken(f"3: {ranges} are recorded as copied to {name}, which is not there")
        offset = self.wanted[migration["volume_id"]].difference(found, ranges)
        if offset is not None:
            raise Broken(f"3: byte {offset} is recorded as copied and would not survive a power cut")

    def _check_kept(self, migration: dict[str, Any], rows: Rows) -> None:
        """A source that an undo would go back to must be what the volume is, unless that was written to since."""
        twin = next((row for row in rows.volumes if row["id"] == migration["destination_volume_id"]), None)
        volume = next((row for row in rows.volumes if row["id"] == migration["volume_id"]), None)
        if twin is None or volume is None or twin["status"] != "maintenance" or migration["undone_at"] is not None:
            return
        place = (twin["host"], object_name(twin))
        found = self.storage.durable(*place)
        if found is None:
            raise Broken(f"1: the source that was kept is not at {place}")
        written = volume["writable_at"] is not None
        wanted = self.wanted.get(volume["id"])
        if wanted is not None and not written and wanted.difference(found, [[0, wanted.size]]) is not None:
            raise Broken(f"1: the source that was kept at {place} is not what the volume was")

    # --- at the end ---

    def ended(self, migration_id: str, *ends: End, left: bool = False, status: str = "available") -> None:
        """Check that the migration ended in one of these ways, and left what it must (8).

        ``left``: what the destination's service is to remove later may still be there.  ``status``: of the volume.
        """
        self.look("the end")
        rows = self.rows()
        migration = next(row for row in rows.migrations if row["id"] == migration_id)
        said = {key: migration[key] for key in ("end", "step", "direction", "error_code", "error_message")}
        if migration["end"] not in ends:
            raise Broken(f"8: expected {ends}: {said}")
        volume = next(row for row in rows.volumes if row["id"] == migration["volume_id"])
        end = End(migration["end"])
        moved = end is End.SUCCESS and migration["undone_at"] is None
        wanted = {
            "status": status,
            "migration_status": states.SHOWN_AT_END[end].value,
            "previous_status": None,
            "host": migration["destination_host" if moved else "source_host"],
        }
        shown = {key: volume[key] for key in wanted}
        if shown != wanted:
            raise Broken(f"8: the volume is {shown}, not {wanted}: {said}")
        if migration["paused"]:
            raise Broken(f"8: it is over and paused: {said}")
        if migration["worker"] not in (None, "null") or migration["owner"] is not None:
            raise Broken(f"8: {migration['worker']} and {migration['owner']} are still recorded")
        with self._lock:
            running = [step for (step,) in self._connection.execute(_OPEN_ATTEMPTS, [migration_id])]
        if running:
            raise Broken(f"8: the history says that {running} still run")
        if end is not End.STUCK and not left:
            self.nothing_left()

    def nothing_left(self) -> None:
        """Check that there is one row and one object for each volume."""
        rows = self.rows()
        twins = [row for row in rows.volumes if row["twin_of"] is not None]
        if twins:
            raise Broken(f"8: left over: {[(twin['host'], twin['status']) for twin in twins]}")
        objects = self.storage.objects()
        if objects != rows.named():
            raise Broken(f"8: left over: {sorted(objects - rows.named())}")
        if len(objects) != len(rows.volumes):
            raise Broken(f"8: {len(objects)} objects for {len(rows.volumes)} volumes")
