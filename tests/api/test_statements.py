"""A request asks the database a fixed number of times, however many rows there are."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from migrator.api.routes import ROUTES, Call
from migrator.db import messages
from migrator.db.models import ExtraSpec, Migration, MigrationStep, TypeAccess, VolumeType, utcnow
from tests.api.conftest import SOURCE, Api
from tests.api.plant import Plant

#: Statements of a GET; one that needs more says so below.
CEILING = 2
CEILINGS = {
    "/volumes/detail": 5,
    "/volumes/{volume_id}": 3,
    "/types/default": 3,
    "/types/{type_id}": 3,
    "/types/{type_id}/extra_specs": 3,
    "/types/{type_id}/extra_specs/{key}": 3,
    "/types/{type_id}/os-volume-type-access": 3,
    "/os-hosts/{host}": 3,
    "/migrations/plan": 5,
    "/migrations/{migration_id}": 3,
}
#: Of how many things a list is asked.
SIZES = (1, 10, 100)
READS = [path for path, methods in ROUTES.items() if isinstance(methods.get("GET"), Call)]


@contextlib.contextmanager
def counted(api: Api) -> Iterator[list[str]]:
    """Gather the statements that this thread sends: those of the request, and not those of the services."""
    sent: list[str] = []
    thread = threading.get_ident()

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if threading.get_ident() == thread and not statement.startswith("BEGIN"):
            sent.append(statement)

    sa.event.listen(api.db.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(api.db.engine, "before_cursor_execute", note)


class Stock:
    """As many things of every kind as wanted, and one of each that is asked for by its id."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.volume_id = api.make_volume({"k0": "v"}, image_metadata={"k0": "v"})
        self._size = 0

    def grow(self, size: int) -> None:
        for number in range(self._size, size):
            self._add(number)
        self._size = size

    def _add(self, number: int) -> None:
        api = self._api
        moving = api.make_volume({"k": str(number)}, display_name=f"v{number}", volume_type_id=self._kind(number))
        self.migration_id = api.make_migration(moving)
        self.attachment_id = api.attach(self.volume_id)
        api.attach(api.make_volume(status="in-use", attach_status="attached", multiattach=True))
        self.snapshot_id = api.make_snapshot(self.volume_id, meta={"k0": "v"})
        api.beat(f"host{number}@backend", cluster=f"cluster{number % 7}@backend")
        self._rows(number)

    def _kind(self, number: int) -> str:
        self.type_id = str(uuid.uuid4())
        row = {"id": self.type_id, "name": f"type{number}", "is_public": False, "created_at": utcnow()}
        self._api.db.run(lambda s: s.execute(sa.insert(VolumeType).values(**row)))
        return self.type_id

    def _rows(self, number: int) -> None:
        """What belongs to another row: steps, extra specs, access, metadata, messages."""
        step = {"step": f"step{number}", "direction": "forward", "attempt": 1, "started_at": utcnow(), "result": "done"}

        def work(session: Any) -> None:
            migration_id = session.scalar(sa.select(Migration.id).order_by(Migration.created_at).limit(1))
            session.execute(sa.insert(MigrationStep).values(migration_id=migration_id, **step))
            for key in ("k0", f"k{number + 1}"):
                session.execute(sa.insert(ExtraSpec).values(type_id=self.type_id, key=key, value="v"))
            for project_id in ("demo", f"p{number}"):
                session.execute(sa.insert(TypeAccess).values(type_id=self.type_id, project_id=project_id))
            told = {"project_id": "demo", "request_id": "req-1", "resource_uuid": self.volume_id, "event": "migrate"}
            messages.add(session, **told, text=f"message {number}")

        self._api.db.run(work)

    def filled(self, path: str) -> str:
        """Return the path with what there is in the place of its variables, and with what its query must have."""
        message_id = self._api("GET", "/messages?limit=1", version="3.71").json["messages"][0]["id"]
        values = {
            "volume_id": self.volume_id,
            "snapshot_id": self.snapshot_id,
            "attachment_id": self.attachment_id,
            "migration_id": self.migration_id,
            "type_id": self.type_id,
            "message_id": message_id,
            "key": "provider" if "encryption" in path else "k0",
            "host": "a@file1" if "capabilities" in path or "os-hosts" in path else "",
            "name": "cluster0@backend",
            "alias": "os-volume-manage",
            "quota_of": "demo",
        }
        return path.format(**values) + _QUERIES.get(path, "").format(**values)


_QUERIES = {
    "/migrations/plan": "?volume_id={volume_id}",
    **dict.fromkeys(("/volumes", "/volumes/detail", "/snapshots", "/snapshots/detail"), "?all_tenants=1&with_count=1"),
    **dict.fromkeys(("/attachments", "/attachments/detail"), "?all_tenants=1"),
    **{path: f"?host={SOURCE}" for path in READS if "manage" in path},
    "/scheduler-stats/get_pools": "?detail=true",
}  # fmt: skip
#: Nothing to show: no type encrypts.
ABSENT = {"/types/{type_id}/encryption/{key}": (403, 404)}


def test_the_number_of_statements_does_not_grow_with_the_rows(api: Api, plant: Plant) -> None:
    """Of lists and of single things, for an administrator and for a tenant."""
    api.conf.set_override("default_volume_type", "type0")
    stock = Stock(api)
    told: dict[tuple[str, str], list[int]] = {(path, token): [] for path in READS for token in ("admin", "joe:demo")}
    for size in SIZES:
        stock.grow(size)
        for path, token in told:
            where = stock.filled(path)
            with counted(api) as sent:
                answer = api("GET", where, version="3.71", token=token)
            usual = (200,) if token == "admin" else (200, 403, 404)
            assert answer.status in (ABSENT.get(path, ()) or usual), (path, answer.text)
            told[path, token].append(len(sent))
    assert {asked: counts for asked, counts in told.items() if len(set(counts)) > 1} == {}, "more for more rows"
    most = {path: max(max(told[path, token]) for token in ("admin", "joe:demo")) for path in READS}
    assert {path: count for path, count in most.items() if count > CEILINGS.get(path, CEILING)} == {}
    assert {path: CEILINGS[path] for path in CEILINGS if most[path] < CEILINGS[path]} == {}, "lower the ceiling"
