"""What the audit finds, whose it says that it is, and what it never removes."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path
from typing import Any

import oslo_messaging as messaging
import pytest
import sqlalchemy as sa
from oslo_messaging.rpc.dispatcher import ExpectedException

from migrator import conf as config
from migrator import errors
from migrator.context import service_context
from migrator.db import audit, services
from migrator.db.api import Database
from migrator.db.audit import Finding, Kind, Names, Stock
from migrator.db.models import Attachment, CopiedRange, Migration, MigrationStep, Snapshot, Volume, utcnow
from migrator.drivers.file import FileDriver
from migrator.drivers.memory import MemoryDriver
from migrator.volume import inventory
from migrator.volume.manager import VolumeManager
from tests.support import rows
from tests.support.rows import DESTINATION, SOURCE

NAMES = Names("volume-%s", "snapshot-%s")
REMOVES = "--repair removes it"


def stocks(source: list[str] = (), destination: list[str] = (), **values: Any) -> dict[str, Stock]:  # type: ignore[assignment]
    """What lies in both pools."""
    return {SOURCE: Stock(frozenset(source), **values), DESTINATION: Stock(frozenset(destination))}


def look(db: Database, found: dict[str, Stock]) -> list[Finding]:
    return db.read(lambda session: audit.look(session, NAMES, found))


def kinds(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.kind, finding.place, finding.name) for finding in findings]


def set_row(db: Database, table: Any, id_: str, **values: Any) -> None:
    db.run(lambda session: session.execute(sa.update(table).where(table.id == id_).values(**values)))


def migrated(db: Database, end: str = "success", **values: Any) -> Migration:
    """A volume whose migration from SOURCE to DESTINATION is over; where it lives is as that end has it."""
    volume_id = rows.add_volume(db)
    row = rows.add_migration(db, volume_id)
    moved = {"host": DESTINATION, "name_id": row.destination_volume_id} if end == "success" else {}
    set_row(db, Volume, volume_id, migration_status=end if end == "success" else "error", **moved)
    set_row(db, Migration, row.id, end=end, destination_host=DESTINATION, **values)
    return rows.migration(db, row.id)


def name(object_id: str) -> str:
    return f"volume-{object_id}"


# --- objects without rows --------------------------------------------------------------------------------------------


def test_what_rows_name_is_no_orphan(any_db: Database) -> None:
    """Volumes, their snapshots, and both ends of a migration under way, assisted ones included."""
    at_rest, moving = rows.add_volume(any_db), rows.add_volume(any_db)
    row = rows.add_migration(any_db, moving)
    set_row(any_db, Migration, row.id, destination_host=DESTINATION)
    snapshot = {"id": str(uuid.uuid4()), "volume_id": at_rest, "project_id": "p", "user_id": "u", "volume_size": 1}
    values = {"status": "available", "meta": {}, "created_at": utcnow(), **snapshot}
    any_db.run(lambda session: session.execute(sa.insert(Snapshot).values(**values)))
    here = [name(at_rest), name(moving), f"snapshot-{snapshot['id']}"]
    assert look(any_db, stocks(here, [name(row.destination_volume_id)])) == []
    assert kinds(look(any_db, stocks(here[:2]))) == [(Kind.ROW_WITHOUT_OBJECT, SOURCE, here[2])]


def test_what_a_finished_migration_left_is_named_as_its_own(db: Database) -> None:
    done, failed = migrated(db), migrated(db, "error")
    source, twin = name(done.source_object_id), name(failed.destination_volume_id)
    living = {"source": name(failed.source_object_id), "destination": name(done.destination_volume_id)}
    findings = look(db, stocks([source, living["source"]], [twin, living["destination"]]))
    assert kinds(findings) == [
        (Kind.OBJECT_WITHOUT_ROW, SOURCE, source),
        (Kind.OBJECT_WITHOUT_ROW, DESTINATION, twin),
    ]
    assert [finding.migration_id for finding in findings] == [done.id, failed.id]
    assert {finding.advice for finding in findings} == {REMOVES}


def test_what_nobody_knows_is_only_reported(db: Database) -> None:
    """Strange names, an id of no migration, and an object in a pool where its migration has never been."""
    done = migrated(db)
    elsewhere = "hostc@file3#pool3"
    found = {**stocks(["strange", name(str(uuid.uuid4()))]), elsewhere: Stock(frozenset({name(done.source_object_id)}))}
    findings = [finding for finding in look(db, found) if finding.kind is Kind.OBJECT_WITHOUT_ROW]
    assert len(findings) == 3
    assert {finding.migration_id for finding in findings} == {None}


@pytest.mark.parametrize("end", ["stuck", None])
def test_what_a_migration_may_still_come_back_to_is_not_removed(db: Database, end: str | None) -> None:
    row = migrated(db, "error")
    set_row(db, Migration, row.id, end=end)
    twin = name(row.destination_volume_id)
    findings = [one for one in look(db, stocks([], [twin])) if one.kind is Kind.OBJECT_WITHOUT_ROW]
    assert [finding.migration_id for finding in findings] == ([None] if end else [])
    reason = db.read(lambda session: audit.why_not_removable(session, NAMES, row.id, DESTINATION, twin))
    assert reason == f"migration {row.id} is {end or 'not over'}"


def test_a_name_that_a_living_row_has_elsewhere_is_not_removed(db: Database) -> None:
    """An assisted move keeps the name; both backends might reach one and the same thing."""
    done = migrated(db)
    set_row(db, Volume, done.volume_id, name_id=None)
    both = [name(done.volume_id)]
    (finding,) = look(db, stocks(both, both))
    assert (finding.place, finding.migration_id) == (SOURCE, None)
    assert f"volume {done.volume_id} on {DESTINATION} has an object of that name" in finding.advice


def test_a_kept_source_is_no_orphan_and_must_be_there(db: Database) -> None:
    done = migrated(db)
    source = name(done.source_object_id)
    twin = {"id": done.destination_volume_id, "name_id": done.source_object_id, "status": "maintenance"}
    rows.add_volume(db, twin_of=done.volume_id, migration_id=done.id, **twin)
    here = [name(done.destination_volume_id)]
    assert look(db, stocks([source], here)) == []
    assert kinds(look(db, stocks([], here))) == [(Kind.ROW_WITHOUT_OBJECT, SOURCE, source)]
    reason = db.read(lambda session: audit.why_not_removable(session, NAMES, done.id, SOURCE, source))
    assert f"twin {done.destination_volume_id} on" in str(reason)


def test_a_volume_that_went_round_and_came_home_is_not_taken_for_its_own_leftover(db: Database) -> None:
    """A→B→C→A by host copies: each stay has a name of its own, and only the last one's is alive."""
    places = [SOURCE, DESTINATION, "hostc@file3#pool3", SOURCE]
    volume_id = rows.add_volume(db)
    names = [name(volume_id)]
    for here, there in itertools.pairwise(places):
        row = rows.add_migration(db, volume_id, source_host=here)
        set_row(db, Migration, row.id, end="success", destination_host=there)
        set_row(db, Volume, volume_id, migration_status="success", host=there, name_id=row.destination_volume_id)
        names.append(name(row.destination_volume_id))
    found = {SOURCE: [names[0], names[3]], DESTINATION: [names[1]], places[2]: [names[2]]}
    findings = look(db, {place: Stock(frozenset(objects)) for place, objects in found.items()})
    assert {(finding.place, finding.name) for finding in findings} == set(zip(places, names[:3], strict=False))
    assert {finding.advice for finding in findings} == {REMOVES}


def test_one_storage_by_two_names_is_looked_at_once(db: Database) -> None:
    """Of two services of a cluster each lists what the other one's rows name."""
    for host in ("hosta@file1", "hostz@file1"):
        services.beat(db, host, services.VOLUME, "zone", "vault")
    services.beat(db, "hosty@file9", services.VOLUME, "zone")
    volume_id, orphan = rows.add_volume(db), name(str(uuid.uuid4()))
    objects = frozenset({name(volume_id), orphan})
    by_cluster = {SOURCE: Stock(objects), "hostz@file1#pool1": Stock(objects)}
    assert kinds(look(db, by_cluster)) == [(Kind.OBJECT_WITHOUT_ROW, SOURCE, orphan)]
    by_place = {SOURCE: Stock(objects, place="p"), "hosty@file9#any": Stock(objects, place="p")}
    assert kinds(look(db, by_place)) == [(Kind.OBJECT_WITHOUT_ROW, SOURCE, orphan)]
    apart = {SOURCE: Stock(objects, place="p"), "hosty@file9#any": Stock(objects, place="q")}
    assert len(look(db, apart)) == 3


# --- rows without objects, and the rest ------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "missed"), [("available", True), ("in-use", True), ("creating", False)])
def test_only_a_volume_that_is_whole_is_missed(db: Database, status: str, missed: bool) -> None:
    volume_id = rows.add_volume(db, status=status)
    wanted = [(Kind.ROW_WITHOUT_OBJECT, SOURCE, name(volume_id))] if missed else []
    assert kinds(look(db, stocks())) == wanted
    assert look(db, {}) == [], "nothing is said of a pool that was not asked"


def test_an_export_is_needed_by_an_attachment_or_a_migration_under_way(db: Database) -> None:
    used, moving, idle = (rows.add_volume(db) for _ in range(3))
    rows.add_migration(db, moving)
    attachment = {"id": str(uuid.uuid4()), "volume_id": used, "attach_status": "attached", "created_at": utcnow()}
    db.run(lambda session: session.execute(sa.insert(Attachment).values(**attachment)))
    objects = [name(id_) for id_ in (used, moving, idle)]
    findings = look(db, stocks(objects, exports=frozenset(objects)))
    assert kinds(findings) == [(Kind.NEEDLESS_EXPORT, SOURCE, name(idle))]


def test_marks_of_migrations_that_are_over_are_found(db: Database) -> None:
    done, lasting = migrated(db), rows.add_migration(db, rows.add_volume(db))
    set_row(db, Volume, done.volume_id, migration_status="completing")
    twin = {"id": str(uuid.uuid4()), "host": DESTINATION, "status": "deleting"}
    rows.add_volume(db, twin_of=done.volume_id, migration_id=done.id, **twin)
    for row in (done, lasting):
        values = {"migration_id": row.id, "start": 0, "length": 4096}
        db.run(lambda session, values=values: session.execute(sa.insert(CopiedRange).values(**values)))  # type: ignore[misc]
    findings = look(db, {})
    assert kinds(findings) == [
        (Kind.TWIN_LEFT, DESTINATION, name(twin["id"])),
        (Kind.STILL_MOVING, DESTINATION, done.volume_id),
        (Kind.RANGES_LEFT, "", done.id),
    ]
    assert f"reset-state --reset-migration-status {done.volume_id}" in findings[1].advice
    assert not db.run(lambda session: audit.forget_ranges(session, lasting.id))
    assert db.run(lambda session: audit.forget_ranges(session, done.id))
    assert db.read(lambda session: session.scalars(sa.select(CopiedRange.migration_id)).all()) == [lasting.id]


# --- the service's part ----------------------------------------------------------------------------------------------


class Service:
    """The endpoint of hosta@file1, with its file driver."""

    def __init__(self, db: Database, directory: Path) -> None:
        conf = config.load("tests", [], [])
        messaging.TransportURL(conf)
        options = config.backend(conf, "file1")
        conf.set_override("file_pools", {"pool1": str(directory / "pool1")}, "file1")
        self.driver = FileDriver("hosta@file1", options)
        self.driver.start()
        self.manager = VolumeManager(conf, db, self.driver, lambda migration_id: None, lambda: None)

    def lay(self, object_id: str) -> str:
        self.driver.create("pool1", name(object_id), 4096)
        return name(object_id)

    def remove(self, migration_id: str, object_name: str, pool: str = "pool1") -> None:
        values = {"migration_id": migration_id, "pool": pool, "name": object_name}
        try:
            self.manager.remove_orphan(service_context(), **values)
        except ExpectedException as expected:  # what the bus would carry to the caller
            raise expected.exc_info[1] from None


@pytest.fixture
def service(db: Database, tmp_path: Path) -> Service:
    return Service(db, tmp_path)


def test_a_service_removes_what_a_migration_left_once_and_again(db: Database, service: Service) -> None:
    done = migrated(db)
    left = service.lay(done.source_object_id)
    service.remove(done.id, left)
    assert not service.driver.exists("pool1", left)
    service.remove(done.id, left)


def test_a_service_looks_for_itself_before_it_removes_anything(db: Database, service: Service) -> None:
    """Whatever the one who asks has seen: a living volume, a stranger's object, another pool, another migration."""
    failed, done = migrated(db, "error"), migrated(db)
    living, stranger = service.lay(failed.source_object_id), service.lay(str(uuid.uuid4()))
    elsewhere = service.lay(failed.destination_volume_id)
    left = service.lay(done.source_object_id)
    for migration_id, object_name, pool in (
        (failed.id, living, "pool1"),
        (failed.id, stranger, "pool1"),
        (failed.id, left, "pool1"),
        (failed.id, elsewhere, "pool1"),
        (str(uuid.uuid4()), left, "pool1"),
        (done.id, left, "pool9"),
        (done.id, "../" + left, "pool1"),
    ):
        with pytest.raises(errors.Conflict, match="is not removed"):
            service.remove(migration_id, object_name, pool)
    assert service.driver.objects("pool1") == sorted([living, stranger, elsewhere, left])


def test_a_service_does_not_remove_what_it_works_on(db: Database, service: Service) -> None:
    done = migrated(db)
    left = service.lay(done.source_object_id)
    with service.manager._locks.hold(left), pytest.raises(errors.Conflict, match="it is being worked on"):
        service.remove(done.id, left)
    assert service.driver.exists("pool1", left)


def test_an_inventory_tells_objects_exports_and_places_and_which_pool_is_away(tmp_path: Path, db: Database) -> None:
    conf = config.load("tests", [], [])
    memory = MemoryDriver("hosta@mem", config.backend(conf, "mem"))
    memory.start()
    for each in ("one", "two"):
        memory.create("pool1", each, 4096)
    memory.export("pool1", "two", writable=False)
    told = inventory.take(memory)["pool1"]
    assert (told["objects"], told["exports"]) == (["one", "two"], ["two"])
    assert told["place"]
    service = Service(db, tmp_path)
    (tmp_path / "pool1").rename(tmp_path / "gone")
    assert "is gone" in service.manager.inventory(service_context())["pool1"]["error"]


def test_nothing_of_the_history_is_touched_by_looking(db: Database) -> None:
    migrated(db)
    before = db.read(lambda session: session.scalar(sa.select(sa.func.count()).select_from(MigrationStep)))
    look(db, stocks(["x"]))
    assert db.read(lambda session: session.scalar(sa.select(sa.func.count()).select_from(MigrationStep))) == before
