"""The scheduler with a real database and a real bus: places, picks, reservations and what no message brought."""

from __future__ import annotations

import datetime
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import oslo_messaging as messaging
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import conf as config
from migrator import errors, rpc
from migrator.context import RequestContext, service_context
from migrator.db import api, history, migrations, services, types, usage, volumes
from migrator.db.api import Database
from migrator.db.models import Message, Migration, utcnow
from migrator.scheduler.manager import AT_ONCE, ReservationLost, SchedulerManager
from tests.support import rows
from tests.support.pools import make_report
from tests.support.waiting import until

T = TypeVar("T")
SERVICES = {"hosta@file1": "pool1", "hostb@file2": "pool2"}


class Backend:
    """The endpoint of a volume service that remembers what it was asked for."""

    target = messaging.Target(version=rpc.VERSION)

    def __init__(self, told: list[tuple[str, str, str]], host: str) -> None:
        self._told, self._host = told, host

    @messaging.expose
    def create_volume(self, context: RequestContext, volume_id: str) -> None:
        self._told.append((self._host, "create_volume", volume_id))

    @messaging.expose
    def run_migration(self, context: RequestContext, migration_id: str) -> None:
        self._told.append((self._host, "run_migration", migration_id))


class World:
    """A bus with two volume services and any number of schedulers on one database."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.conf = config.load("tests", [], [])
        messaging.TransportURL(self.conf)
        self.conf.set_override("transport_url", f"local://{uuid.uuid4().hex}")
        self.conf.set_override("report_interval", 1)
        self.bus = rpc.transport(self.conf)
        self.told: list[tuple[str, str, str]] = []
        self._servers: list[Any] = []
        self._databases: list[Database] = []
        for host in SERVICES:
            self.serve(rpc.VOLUME_TOPIC, host, Backend(self.told, host))
        rows.add_services(db)

    def serve(self, topic: str, name: str, endpoint: object) -> None:
        server = rpc.server(self.bus, topic, name, [endpoint])
        server.start()
        self._servers.append(server)

    def scheduler(self, db: Database | None = None, **pool: Any) -> SchedulerManager:
        """A scheduler that both backends reported their pool to; ``pool`` changes that of hostb@file2."""
        manager = SchedulerManager(self.conf, db or self.db, rpc.VolumeClient(self.bus, self.conf))
        for host, name in SERVICES.items():
            values = pool if host == "hostb@file2" else {}
            report = make_report(host, self.db.now(), pool=name, **{"location": {"place": host}, **values})
            manager.update_pools(service_context(), report=report)
        return manager

    def another_database(self) -> Database:
        """The same database as another process sees it."""
        conf = config.load("tests", [], [])
        conf.set_override("connection", self.db.engine.url.render_as_string(hide_password=False), "database")
        self._databases.append(api.connect(conf))
        return self._databases[-1]

    def end(self) -> None:
        for server in self._servers:
            server.stop()
        for database in self._databases:
            database.dispose()

    # --- what there is ---

    def new_volume(self, **values: Any) -> str:
        """A volume that waits for a pool, as the API leaves it."""
        row = {"status": "creating", "host": None, "availability_zone": "zone1", **values}
        return rows.add_volume(self.db, **row)

    def new_migration(self, **values: Any) -> Migration:
        return rows.add_migration(self.db, rows.add_volume(self.db), **values)

    def type_with(self, **specs: str) -> str:
        values: dict[str, Any] = {"name": uuid.uuid4().hex, "description": None, "is_public": True}
        return self.db.run(lambda session: types.create(session, specs, **values).id)

    def messages(self, resource: str) -> list[tuple[str, str]]:
        query = sa.select(Message.event_id, Message.user_message).where(Message.resource_uuid == resource)
        return [(event, text) for event, text in self.db.read(lambda session: session.execute(query).all())]

    def steps(self, migration: Migration) -> list[tuple[str, str, str | None]]:
        found = self.db.read(lambda session: history.steps(session, migration.id))
        return [(step.step, step.direction, step.result) for step in found]

    def wait_told(self, *expected: tuple[str, str, str]) -> None:
        """Wait until the volume services were told exactly this, in any order."""
        until(lambda: len(self.told) >= len(expected), f"{len(expected)} messages, there are {self.told}", 10)
        assert Counter(self.told) == Counter(expected)


@pytest.fixture
def world(db: Database) -> Iterator[World]:
    world = World(db)
    yield world
    world.end()


@pytest.fixture
def any_world(any_db: Database) -> Iterator[World]:
    world = World(any_db)
    yield world
    world.end()


CONTEXT = service_context()


# --- volumes ---------------------------------------------------------------------------------------------------------


def test_a_new_volume_gets_the_best_pool_and_its_service_is_told(any_world: World) -> None:
    manager = any_world.scheduler(total_gib=500.0, free_gib=500.0)
    volume_id = any_world.new_volume(availability_zone="zone1")
    manager.create_volume(CONTEXT, volume_id=volume_id)
    volume = rows.volume(any_world.db, volume_id)
    assert (volume.host, volume.status) == ("hostb@file2#pool2", "creating")
    assert volume.availability_zone == "zone2", "of the service that has it"
    state = any_world.db.read(lambda session: services.volume_state(session, "hostb@file2", 60))
    assert state is not None
    assert volume.service_uuid == state.service.uuid
    assert volume.placed_at is not None
    any_world.wait_told(("hostb@file2", "create_volume", volume_id))


def test_a_message_that_comes_twice_places_a_volume_once(world: World) -> None:
    first, second = world.scheduler(), world.scheduler(free_gib=1000.0, total_gib=1000.0)
    volume_id = world.new_volume()
    first.create_volume(CONTEXT, volume_id=volume_id)
    placed = rows.volume(world.db, volume_id)
    second.create_volume(CONTEXT, volume_id=volume_id)
    again = rows.volume(world.db, volume_id)
    assert (again.host, again.placed_at) == (placed.host, placed.placed_at)
    world.wait_told((str(placed.host).partition("#")[0], "create_volume", volume_id))


def test_a_volume_that_was_deleted_meanwhile_is_not_placed(world: World) -> None:
    volume_id = world.new_volume()
    world.db.run(lambda session: volumes.bury(session, volume_id))
    world.scheduler().create_volume(CONTEXT, volume_id=volume_id)
    assert rows.volume(world.db, volume_id).host is None
    assert world.told == []


def test_a_volume_that_fits_nowhere_is_in_error_and_its_users_are_told_why(any_world: World) -> None:
    """field.md pain 6: the reason was only in a log."""
    manager = any_world.scheduler(free_gib=2.0)
    volume_id = any_world.new_volume(size=3, volume_type_id=any_world.type_with(pool_name="pool2"))
    manager.create_volume(CONTEXT, volume_id=volume_id)
    volume = rows.volume(any_world.db, volume_id)
    assert (volume.status, volume.host) == ("error", None)
    [(event, text)] = any_world.messages(volume_id)
    assert event == "VOLUME_CREATE_ERROR"
    assert "hosta@file1#pool1: capabilities: pool_name: wanted 'pool2', found 'pool1'" in text
    assert "hostb@file2#pool2: capacity: needs 3 GiB, 2.0 GiB free of 100.0" in text
    assert any_world.told == []


def test_a_volume_in_a_zone_is_placed_there_and_nowhere_else(world: World) -> None:
    manager = world.scheduler()
    volume_id = world.new_volume(availability_zone="zone9")
    manager.create_volume(CONTEXT, volume_id=volume_id)
    assert rows.volume(world.db, volume_id).status == "error"
    assert "lies in zone1, wanted zone9" in world.messages(volume_id)[0][1]


def test_volumes_that_are_being_created_take_their_space_before_any_report_shows_it(world: World) -> None:
    manager = world.scheduler(free_gib=3.0)
    kind = world.type_with(pool_name="pool2")
    ids = [world.new_volume(volume_type_id=kind) for _ in range(5)]
    for volume_id in ids:
        manager.create_volume(CONTEXT, volume_id=volume_id)
    statuses = [rows.volume(world.db, volume_id).status for volume_id in ids]
    assert statuses == ["creating"] * 3 + ["error"] * 2
    assert "3 GiB reserved by work under way" in world.messages(ids[-1])[0][1]


# --- migrations ------------------------------------------------------------------------------------------------------


def test_a_migration_gets_its_pool_the_space_is_reserved_and_the_sources_service_goes_on(any_world: World) -> None:
    manager = any_world.scheduler()
    asked = any_world.new_migration()
    before = any_world.db.read(usage.pool_generations)
    manager.migrate(CONTEXT, migration_id=asked.id)
    row = rows.migration(any_world.db, asked.id)
    assert (row.destination_host, row.destination_location) == (rows.DESTINATION, {"place": "hostb@file2"})
    assert (row.step, row.owner, row.attempts, row.end) == ("create_destination", None, 0, None)
    assert any_world.db.read(usage.pool_generations) == {rows.DESTINATION: before.get(rows.DESTINATION, 0) + 1}
    used = any_world.db.read(lambda session: usage.usage(session, {rows.DESTINATION: any_world.db.now()}))
    assert (used[rows.DESTINATION].reserved_gib, used[rows.DESTINATION].provisioned_gib) == (1.0, 1.0)
    assert any_world.steps(asked) == [("pick_destination", "forward", "done")]
    any_world.wait_told(("hosta@file1", "run_migration", asked.id))


def test_every_verdict_is_kept_with_the_migration(world: World) -> None:
    asked = world.new_migration(requested_host="hostb@file2")
    world.scheduler(free_gib=5.0).migrate(CONTEXT, migration_id=asked.id)
    verdicts = rows.migration(world.db, asked.id).verdicts
    assert [verdict["filter"] for verdict in verdicts] == world.conf.scheduler_default_filters
    assert {verdict["pool"] for verdict in verdicts} == {rows.DESTINATION}
    assert verdicts[-1] == {
        "pool": rows.DESTINATION,
        "filter": "capacity",
        "passed": True,
        "reason": "needs 1 GiB, 5.0 GiB free of 100.0, 0.0 GiB kept back (0 %), 0 GiB reserved by work under way",
    }


def test_a_migration_that_fits_nowhere_ends_in_error_with_the_reason(any_world: World) -> None:
    """field.md pain 6 (LP1605673): 202, then error, and nobody ever learned why."""
    asked = any_world.new_migration()
    any_world.scheduler(free_gib=0.5).migrate(CONTEXT, migration_id=asked.id)
    row = rows.migration(any_world.db, asked.id)
    assert (row.end, row.error_step, row.error_code) == ("error", "pick_destination", "NoValidBackend")
    reason = (
        "No valid backend: hostb@file2#pool2: capacity: needs 1 GiB, 0.5 GiB free of 100.0, 0.0 GiB kept back (0 %), "
        "0 GiB reserved by work under way"
    )
    assert row.error_message == reason
    assert [verdict["passed"] for verdict in row.verdicts] == [True, True, True, True, False]
    volume = rows.volume(any_world.db, row.volume_id)
    assert (volume.status, volume.migration_status, volume.host) == ("available", "error", rows.SOURCE)
    [(event, text)] = any_world.messages(row.volume_id)
    assert (event, text) == (
        "VOLUME_MIGRATE_ERROR",
        f"Migration to hostb@file2#pool2 failed at pick_destination: {reason}",
    )
    assert any_world.told == []


def test_a_volume_is_never_sent_to_where_it_lies_under_another_name(world: World) -> None:
    """field.md bugs 4 (LP1404013) and 5 (LP1871524): two backends on one store."""
    asked = world.new_migration()
    world.scheduler(location={"place": "hosta@file1"}).migrate(CONTEXT, migration_id=asked.id)
    row = rows.migration(world.db, asked.id)
    assert row.end == "error"
    assert "is the same place as hosta@file1#pool1 under another name" in str(row.error_message)


@pytest.mark.parametrize(("spec", "end"), [("pool1", "error"), ("pool2", None)])
def test_a_retype_is_picked_by_the_new_type(world: World, spec: str, end: str | None) -> None:
    """field.md bug 10 (LP1652802): a retype that needs a move must be judged by the type that is to come."""
    new_type = world.type_with(pool_name=spec)
    asked = world.new_migration(new_type_id=new_type, requested_host=None)
    world.scheduler().migrate(CONTEXT, migration_id=asked.id)
    assert rows.migration(world.db, asked.id).end == end


def test_a_cancel_that_came_before_the_pick_ends_it_with_nothing_reserved(world: World) -> None:
    asked = world.new_migration()
    assert world.db.run(lambda session: migrations.request_cancel(session, asked.id))
    world.scheduler().migrate(CONTEXT, migration_id=asked.id)
    row = rows.migration(world.db, asked.id)
    assert (row.end, row.step) == ("cancelled", "pick_destination")
    assert rows.volume(world.db, row.volume_id).migration_status == "error"
    assert world.told == []
    used = world.db.read(lambda session: usage.usage(session, {rows.DESTINATION: world.db.now()}))
    assert used.get(rows.DESTINATION, usage.PoolUsage()).reserved_gib == 0


def test_a_message_that_comes_twice_picks_once(world: World) -> None:
    manager = world.scheduler()
    asked = world.new_migration()
    for _ in range(2):
        manager.migrate(CONTEXT, migration_id=asked.id)
    assert world.steps(asked) == [("pick_destination", "forward", "done")]
    assert world.db.read(usage.pool_generations) == {rows.DESTINATION: 1}
    assert rows.migration(world.db, asked.id).owner is None, "the source's service must be able to claim it at once"


def test_parallel_migrations_of_two_schedulers_never_over_fill_a_pool(any_world: World) -> None:
    """field.md pain 11: datastores were over-provisioned when ten volumes moved at once. Invariant 7."""
    wanted, room = 30, 10
    managers = [
        any_world.scheduler(db, total_gib=float(room), free_gib=float(room))
        for db in (any_world.db, any_world.another_database())
    ]
    asked = [any_world.new_migration() for _ in range(wanted)]

    def pick(number: int) -> None:
        managers[number % 2].migrate(CONTEXT, migration_id=asked[number].id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(pick, range(wanted)))
    ended = [rows.migration(any_world.db, each.id) for each in asked]
    picked = [row for row in ended if row.end is None]
    refused = [row for row in ended if row.end == "error"]
    assert (len(picked), len(refused)) == (room, wanted - room)
    assert {row.destination_host for row in picked} == {rows.DESTINATION}
    assert {row.error_code for row in refused} == {"NoValidBackend"}
    assert all("10 GiB reserved by work under way" in str(row.error_message) for row in refused)
    assert any_world.db.read(usage.pool_generations) == {rows.DESTINATION: room}
    any_world.wait_told(*(("hosta@file1", "run_migration", row.id) for row in picked))


class Counting(Database):
    """A database that knows how many wait for it or write to it at once."""

    def __init__(self, db: Database) -> None:
        super().__init__(db.engine)
        self._lock, self._now, self.most = threading.Lock(), 0, 0

    def run(self, work: Callable[[Session], T], *, if_unanswered: bool = True) -> T:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return super().run(work, if_unanswered=if_unanswered)
        finally:
            with self._lock:
                self._now -= 1


def test_a_burst_of_requests_takes_few_connections(world: World) -> None:
    """Each of fifty threads took one, and waited with it for the choices of the others."""
    db = Counting(world.db)
    manager = world.scheduler(db)
    asked = [world.new_migration() for _ in range(3 * AT_ONCE)]
    together = threading.Barrier(len(asked))

    def pick(row: Migration) -> None:
        together.wait(30)
        manager.migrate(CONTEXT, migration_id=row.id)

    with ThreadPoolExecutor(len(asked)) as pool:
        list(pool.map(pick, asked))
    assert 1 <= db.most <= AT_ONCE
    world.wait_told(*(("hosta@file1", "run_migration", row.id) for row in asked))


# --- what no message brought -----------------------------------------------------------------------------------------


def test_a_sweep_picks_up_a_migration_whose_message_was_lost(world: World) -> None:
    manager = world.scheduler()
    asked = world.new_migration()
    manager.sweep(datetime.timedelta())
    assert rows.migration(world.db, asked.id).destination_host == rows.DESTINATION
    world.wait_told(("hosta@file1", "run_migration", asked.id))


def test_a_sweep_leaves_alone_what_another_scheduler_works_on(world: World) -> None:
    asked = world.new_migration()
    owner = "another-machine:1:1:nonce"
    assert world.db.run(lambda session: migrations.claim(session, asked, owner, 30, owner_is_dead=False))
    world.scheduler().sweep(datetime.timedelta())
    row = rows.migration(world.db, asked.id)
    assert (row.owner, row.destination_host) == (owner, None)


def test_a_sweep_takes_over_from_a_scheduler_whose_lease_ended(world: World) -> None:
    asked = world.new_migration()
    owner = "another-machine:1:1:nonce"
    assert world.db.run(lambda session: migrations.claim(session, asked, owner, -1, owner_is_dead=False))
    world.scheduler().sweep(datetime.timedelta())
    assert rows.migration(world.db, asked.id).destination_host == rows.DESTINATION
    assert world.steps(asked) == [("pick_destination", "forward", "lost"), ("pick_destination", "forward", "done")]


def test_a_sweep_places_a_volume_whose_message_was_lost_but_not_one_that_just_came(world: World) -> None:
    manager = world.scheduler()
    old, young = world.new_volume(), world.new_volume()
    an_hour_ago = utcnow() - datetime.timedelta(hours=1)
    world.db.run(lambda session: volumes.update_where(session, old, created_at=an_hour_ago))
    manager.sweep(datetime.timedelta())
    assert rows.volume(world.db, old).host is not None
    assert rows.volume(world.db, young).host is None


# --- over the bus ----------------------------------------------------------------------------------------------------


def test_pools_are_listed_over_the_bus_with_what_is_placed_on_them(world: World) -> None:
    world.serve(rpc.SCHEDULER_TOPIC, "scheduler", world.scheduler())
    rows.add_volume(world.db, size=7)
    client = rpc.SchedulerClient(world.bus, world.conf)
    plain = client.get_pools(CONTEXT, detail=False)
    assert plain == [{"name": rows.SOURCE}, {"name": rows.DESTINATION}]
    source = client.get_pools(CONTEXT, detail=True)[0]["capabilities"]
    assert (source["provisioned_capacity_gb"], source["total_volumes"]) == (7.0, 1)


def test_reports_and_requests_come_over_the_bus(world: World) -> None:
    manager = SchedulerManager(world.conf, world.db, rpc.VolumeClient(world.bus, world.conf))
    world.serve(rpc.SCHEDULER_TOPIC, "scheduler", manager)
    client = rpc.SchedulerClient(world.bus, world.conf)
    client.update_pools(make_report("hostb@file2", world.db.now(), pool="pool2"))
    until(lambda: client.get_pools(CONTEXT, detail=False) == [{"name": rows.DESTINATION}], "the report has come", 10)
    asked = world.new_migration()
    client.migrate(CONTEXT, asked.id)
    world.wait_told(("hosta@file1", "run_migration", asked.id))


def test_choices_that_are_always_overtaken_end_in_an_answer(world: World) -> None:
    manager = world.scheduler()

    def overtaken(session: Session) -> str:
        assert usage.reserve(session, rows.DESTINATION, None)
        raise ReservationLost

    with pytest.raises(errors.ServiceUnavailable, match="20 choices were overtaken"):
        manager._deciding(overtaken)
