"""Rows against objects against what should be there, looked at from outside: SQL of its own, the files themselves.

Nothing of the code under test is used, so that a fault of it cannot hide itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import xxhash

from tests.support.data import data_extents

_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)
_MARKS = ".migrator-objects"

#: Words of a status that nothing waits behind.
AT_REST = ("available", "in-use", "error", "error_deleting", "error_extending", "deleted")
SHOWN_AT_REST = (None, "success", "error")

_VOLUMES = "SELECT * FROM volumes WHERE deleted_at IS NULL"
_SNAPSHOTS = "SELECT s.*, v.host FROM snapshots s LEFT JOIN volumes v ON v.id = s.volume_id WHERE s.deleted_at IS NULL"
_UNDER_WAY = "SELECT * FROM migrations WHERE {end} IS NULL"
_HELD = "SELECT * FROM migrations WHERE {end} IS NOT NULL AND (owner IS NOT NULL OR worker IS NOT NULL)"
_OPEN_STEPS = (
    "SELECT s.step, m.id FROM migration_steps s JOIN migrations m ON m.id = s.migration_id "
    "WHERE s.finished_at IS NULL AND m.{end} IS NOT NULL"
)


def content(path: Path) -> str:
    """Name what a file holds, to the byte, at the cost of its data alone: a hole is as good as zeros."""
    size = path.stat().st_size
    found = xxhash.xxh3_128()
    reached = 0
    with path.open("rb") as file:
        for start, end in data_extents(file.fileno(), size):
            for offset in range(max(reached, start // _BLOCK * _BLOCK), end, _BLOCK):
                block = os.pread(file.fileno(), _BLOCK, offset)
                reached = offset + _BLOCK
                if block != _ZEROS[: len(block)]:
                    found.update(offset.to_bytes(8, "little"))
                    found.update(block)
    return f"{size}:{found.hexdigest()}"


@dataclass
class Found:
    """What was found at one look."""

    volumes: list[dict[str, Any]]
    snapshots: list[dict[str, Any]]
    under_way: list[dict[str, Any]]
    wrong: list[str] = field(default_factory=list)


class Auditor:
    """Looks at one database and the directories of its pools, by host (``host@backend#pool``)."""

    def __init__(self, engine: sa.Engine, pools: Mapping[str, Path]) -> None:
        self.engine = engine
        self.pools = pools
        self._quote = engine.dialect.identifier_preparer.quote

    def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """Rows of one query; ``{end}`` in it stands for the column of that name, which is a word of SQL."""
        statement = sa.text(query.replace("{end}", self._quote("end")))
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement, values).mappings()]

    def migration(self, migration_id: str) -> dict[str, Any]:
        return self.rows("SELECT * FROM migrations WHERE id = :id", id=migration_id)[0]

    def newest(self, volume_id: str) -> dict[str, Any]:
        """The volume's newest migration."""
        query = "SELECT * FROM migrations WHERE volume_id = :id ORDER BY created_at DESC LIMIT 1"
        return self.rows(query, id=volume_id)[0]

    def volume(self, volume_id: str) -> dict[str, Any]:
        return self.rows("SELECT * FROM volumes WHERE id = :id", id=volume_id)[0]

    def path(self, volume_id: str) -> Path:
        """Where the row says that the volume lies."""
        row = self.volume(volume_id)
        return self.pools[row["host"]] / object_name(row)

    def under_way(self) -> list[dict[str, Any]]:
        return self.rows(_UNDER_WAY)

    # --- at rest ---

    def restless(self) -> list[str]:
        """What is not at rest yet: it will be, without a human, or something is wrong."""
        found = self._look()
        told = [f"migration {row['id']} at {row['step']} {row['direction']}" for row in found.under_way]
        for row in found.volumes:
            if row["twin_of"] is not None:
                told.append(f"twin {row['id']} {row['status']} on {row['host']}")
            elif row["status"] not in AT_REST or row["migration_status"] not in SHOWN_AT_REST:
                told.append(f"volume {row['id']} {row['status']} {row['migration_status']}")
        told += [f"snapshot {row['id']} {row['status']}" for row in found.snapshots if row["status"] not in AT_REST]
        return told

    def violations(self, wanted: Mapping[str, str | None]) -> list[str]:
        """Everything that is wrong while nothing is under way.

        ``wanted`` are the contents of volumes and snapshots by id (None: not known); what is alive and not in it is
        wrong too, and so is what is missing.
        """
        found = self._look()
        self._check_rows(found)
        self._check_objects(found)
        self._check_contents(found, wanted)
        return found.wrong

    def _look(self) -> Found:
        return Found(self.rows(_VOLUMES), self.rows(_SNAPSHOTS), self.under_way())

    def _check_rows(self, found: Found) -> None:
        for row in found.volumes:
            if row["twin_of"] is not None:
                found.wrong.append(f"twin {row['id']} of {row['twin_of']} is left, {row['status']} on {row['host']}")
            if row["previous_status"] is not None:
                found.wrong.append(f"volume {row['id']} still has a previous status, {row['previous_status']}")
        found.wrong += [f"migration {row['id']} has not ended" for row in found.under_way]
        for row in self.rows(_HELD):
            if row["owner"] is not None or row["worker"] not in (None, "null"):
                found.wrong.append(f"migration {row['id']} is over and held by {row['owner']} {row['worker']}")
        for row in self.rows(_OPEN_STEPS):
            found.wrong.append(f"the history of {row['id']} says that {row['step']} still runs")

    def _check_objects(self, found: Found) -> None:
        """No row without object, no object without row, no mark without either, nothing in the making."""
        named: dict[str, set[str]] = {host: set() for host in self.pools}
        for row in found.volumes:
            if row["host"] is not None and row["status"] != "error":
                named[row["host"]].add(object_name(row))
        for row in found.snapshots:
            if row["host"] is not None and row["status"] == "available":
                named[row["host"]].add(f"snapshot-{row['id']}")
        for host, pool in self.pools.items():
            entries = set(os.listdir(pool)) - {_MARKS, "lost+found"} if pool.is_dir() else set()
            marks = set(os.listdir(pool / _MARKS)) if (pool / _MARKS).is_dir() else set()
            for what, names in {
                "no row names": entries - named[host],
                "a row names and there is not": named[host] - entries,
                "a mark is left of": marks - entries,
                "no mark says ours of": entries - marks,
            }.items():
                found.wrong += [f"{host}: {what} {name}" for name in sorted(names)]

    def _check_contents(self, found: Found, wanted: Mapping[str, str | None]) -> None:
        places = {row["id"]: (row["host"], object_name(row)) for row in found.volumes}
        places |= {row["id"]: (row["host"], f"snapshot-{row['id']}") for row in found.snapshots}
        for id_ in set(places) ^ set(wanted):
            found.wrong.append(f"{id_} is {'not expected' if id_ in places else 'lost'}")
        for id_ in set(places) & set(wanted):
            host, name = places[id_]
            path = self.pools[host] / name if host in self.pools else None
            if wanted[id_] is None or path is None or not path.exists():
                continue  # a missing object has been told
            if (holds := content(path)) != wanted[id_]:
                found.wrong.append(f"{id_} holds {holds}, not {wanted[id_]}, on {host}")


def object_name(row: Mapping[str, Any]) -> str:
    return f"volume-{row['name_id'] or row['id']}"


def told(wrong: Iterable[str]) -> str:
    return "\n  ".join(["", *wrong])
