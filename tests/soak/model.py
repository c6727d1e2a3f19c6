"""What must be there: every volume and snapshot that users made, with its content."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import xxhash

from tests.support.data import GIB

NOTHING = xxhash.xxh3_128().hexdigest()


@dataclass
class Snapshot:
    """``id`` is None while nobody knows whether its creation was accepted."""

    name: str
    content: str
    id: str | None = None
    #: ``gone`` is being deleted; ``unknown``: a request was not answered.
    is_gone: bool = False
    is_unknown: bool = False


@dataclass
class Volume:
    """One volume; its user works on it alone, so what it must be like is always known, or known to be unknown."""

    name: str
    size: int = 1
    id: str | None = None
    #: Of the data alone, without the size, as audit.content has it behind the colon; a new volume holds zeros.
    data: str = NOTHING
    #: A size asked for without an answer: it is this or the other one.
    perhaps_size: int | None = None
    is_gone: bool = False
    is_unknown: bool = False
    #: An attachment was asked for, and is not known to be gone.
    is_perhaps_attached: bool = False
    snapshots: list[Snapshot] = field(default_factory=list)

    @property
    def content(self) -> str:
        return f"{self.size * GIB}:{self.data}"


class Tally:
    """How often each thing came out how; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def note(self, what: str, outcome: str, times: int = 1) -> None:
        with self._lock:
            self._counts[what, outcome] += times

    def count(self, what: str) -> int:
        with self._lock:
            return sum(count for (key, _), count in self._counts.items() if key == what)

    def table(self) -> str:
        with self._lock:
            rows: dict[str, list[str]] = {}
            for (what, outcome), count in sorted(self._counts.items()):
                rows.setdefault(what, []).append(f"{outcome} {count}")
        width = max(map(len, rows), default=0)
        return "\n".join(f"  {what:<{width}}  {', '.join(outcomes)}" for what, outcomes in rows.items())


@dataclass
class User:
    """Who works on some volumes, one request at a time."""

    name: str
    chance: random.Random
    volumes: list[Volume] = field(default_factory=list)
    made: int = 0

    def new_name(self) -> str:
        self.made += 1
        return f"{self.name}-{self.made}"


def reconcile(volumes: list[Volume], rows: Iterable[dict[str, Any]], snapshot_rows: Iterable[dict[str, Any]]) -> None:
    """Settle at a quiet point what was not answered, by what is there; forget what is gone.

    Only what is unknown is taken from the rows: all else they are compared with.
    """
    by_name = {row["display_name"]: row for row in rows}
    snapshots = {row["display_name"]: row for row in snapshot_rows}
    for volume in list(volumes):
        row = by_name.get(volume.name)
        if volume.is_unknown:
            volume.is_gone, volume.is_unknown = row is None, False
        if row is not None:
            volume.id = row["id"]
            if volume.perhaps_size == row["size"]:
                volume.size = row["size"]
        volume.perhaps_size = None
        for snapshot in volume.snapshots:
            found = snapshots.get(snapshot.name)
            if snapshot.is_unknown:
                snapshot.is_gone, snapshot.is_unknown = found is None, False
            snapshot.id = found["id"] if found is not None else snapshot.id
        volume.snapshots = [each for each in volume.snapshots if not each.is_gone]
        if volume.is_gone:
            volumes.remove(volume)
