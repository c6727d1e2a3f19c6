"""Metadata of volumes and of snapshots: all of it, and key by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import guard, schemas, snapshots
from migrator.api.wsgi import Answer, Request
from migrator.db import metadata
from migrator.db.metadata import Metadata

Visible = Callable[[Request, Session, str], Any]


@dataclass(frozen=True)
class Resource:
    """The handlers for one kind of thing that has metadata; ``variable`` names its id in paths."""

    kind: str
    variable: str
    visible: Visible
    #: Raises what forbids a change.
    changeable: Visible
    read: Callable[[Session, str], Metadata]
    lock: Callable[[Session, str], None]
    write: Callable[[Session, str, Mapping[str, str]], None]

    def index(self, request: Request, **where: str) -> Answer:
        return Answer(200, {"metadata": self._read(request, where)})

    def show(self, request: Request, key: str, **where: str) -> Answer:
        found = self._read(request, where)
        return Answer(200, {"meta": {key: self._value(found, key, where)}})

    def merge(self, request: Request, **where: str) -> Answer:
        """Add or replace what the body holds; the rest stays."""
        wanted = request.body["metadata"]
        return Answer(200, {"metadata": self._change(request, where, lambda before: {**before, **wanted})})

    def replace(self, request: Request, **where: str) -> Answer:
        wanted = request.body["metadata"]
        return Answer(200, {"metadata": self._change(request, where, lambda before: wanted)})

    def put(self, request: Request, key: str, **where: str) -> Answer:
        """Add or replace one key, which path and body must agree on."""
        wanted = request.body["meta"]
        if list(wanted) != [key]:
            raise errors.InvalidInput(field="meta", reason=f"it must have the key of its URL, {key!r}, and no other")
        self._change(request, where, lambda before: {**before, **wanted})
        return Answer(200, {"meta": wanted})

    def delete(self, request: Request, key: str, **where: str) -> Answer:
        def without(before: Metadata) -> Metadata:
            self._value(before, key, where)
            return {name: value for name, value in before.items() if name != key}

        self._change(request, where, without)
        return Answer(200)

    def _value(self, found: Metadata, key: str, where: Mapping[str, str]) -> str:
        if key not in found:
            raise errors.NotFound(kind=f"Metadata of {self.kind} {where[self.variable]} with key", id=key)
        return found[key]

    def _read(self, request: Request, where: Mapping[str, str]) -> Metadata:
        def work(session: Session) -> Metadata:
            self.visible(request, session, where[self.variable])
            return self.read(session, where[self.variable])

        return request.read(work)

    def _change(self, request: Request, where: Mapping[str, str], change: Callable[[Metadata], Metadata]) -> Metadata:
        id_ = where[self.variable]

        def work(session: Session) -> Metadata:
            self.lock(session, id_)
            self.changeable(request, session, id_)
            after = change(self.read(session, id_))
            if len(after) > schemas.MAX_METADATA:
                raise errors.InvalidInput(field="metadata", reason=f"there can be {schemas.MAX_METADATA} keys at most")
            self.write(session, id_, after)
            return after

        return request.run(work)


def _changeable_volume(request: Request, session: Session, volume_id: str) -> None:
    guard.refuse_locked(guard.usable(request, session, volume_id))


VOLUMES = Resource(
    kind="volume",
    variable="volume_id",
    visible=guard.visible,
    changeable=_changeable_volume,
    read=metadata.of_volume,
    lock=metadata.lock_volume,
    write=metadata.set_of_volume,
)
SNAPSHOTS = Resource(
    kind="snapshot",
    variable="snapshot_id",
    visible=snapshots.visible,
    changeable=snapshots.visible,
    read=metadata.of_snapshot,
    lock=metadata.lock_snapshot,
    write=metadata.set_of_snapshot,
)
