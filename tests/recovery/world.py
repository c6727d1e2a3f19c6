"""A world for schedules of crashes and failures: two backends, a scheduler, a bus and a database, wired as service.py
does, but worked by the thread of the test, which decides at each instant what happens.

    Plant    what lasts: database file, bus, both backends, their RPC servers, the scheduler
    World    one schedule on a clean plant: a volume with known content, its migration, processes that die
"""

from __future__ import annotations

import datetime
import functools
import random
import subprocess
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import oslo_messaging as messaging
import sqlalchemy as sa

from migrator import conf as config
from migrator import machine, rpc
from migrator.context import service_context
from migrator.db import api, history, migrations, schema, services
from migrator.db.models import Base, Migration, MigrationStep, Service
from migrator.db.transitions import Outcome
from migrator.drivers import memory
from migrator.drivers.base import VolumeDriver
from migrator.drivers.faults import Died
from migrator.drivers.file import FileDriver
from migrator.drivers.memory import MemoryDriver
from migrator.drivers.sparse import Sparse
from migrator.scheduler.manager import SchedulerManager
from migrator.volume import copiers, runner, states
from migrator.volume.endpoints import MemoryObject
from migrator.volume.manager import VolumeManager
from migrator.volume.migration import Steps
from migrator.volume.states import Direction, End
from tests.recovery.checks import Broken, Checker, FileStorage, MemoryStorage, Wanted
from tests.recovery.instants import (
    Instants,
    Trap,
    WatchedClient,
    WatchedDatabase,
    WatchedObject,
    failure,
    raising,
    watch,
)
from tests.support import rows
from tests.support.waiting import until

BACKENDS = ("mem1", "mem2")
SOURCE, DESTINATION = (f"node@{backend}#pool1" for backend in BACKENDS)
SIZE = config.GIB
#: Offset and length of the volume's data: its first and last bytes, odd ends, blocks that begin and end inside.
DATA = (
    (0, 4096),
    (2**20 - 100, 200),
    (300 * 2**20 + 7, 100_000),
    (400 * 2**20, 9),
    (500 * 2**20, 5),
    (700 * 2**20 + 4095, 3),
    (SIZE - 513, 513),
)
PICK = states.FIRST_STEP
#: Signs of life count for a minute.
REPORT_SECONDS = 15

Key = tuple[str, Direction]


@functools.cache
def dead_owner() -> str:
    """The name of a runner whose process has certainly ended."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    owner = f"{machine.boot_id()}:{child.pid}:{machine.process_started(child.pid)}:gone"
    child.communicate()
    assert runner.is_dead(owner)
    return owner


class Plant:
    """What outlives the processes that die, and the services that do not."""

    def __init__(self, directory: Path, kind: str = "memory") -> None:
        self.kind = kind
        self.conf = config.load("tests", [], [], host="node")
        messaging.TransportURL(self.conf)
        self.conf.set_override("transport_url", f"local://{uuid.uuid4().hex}")
        self.conf.set_override("connection", f"sqlite:///{directory}/{kind}.sqlite", "database")
        self.reset_options()
        self.db = api.connect(self.conf)
        schema.sync(self.db.engine)
        if kind == "memory":
            memory.reset()
        self.drivers: list[VolumeDriver] = [self._driver(backend, directory) for backend in BACKENDS]
        if kind == "memory":
            self.checker = Checker(directory / f"{kind}.sqlite", MemoryStorage(self.drivers))  # type: ignore[arg-type]
        else:
            self.checker = Checker(directory / f"{kind}.sqlite", FileStorage(self.drivers))  # type: ignore[arg-type]
        self.instants = Instants(self.checker.look)
        self.watched_object = WatchedObject
        watch(self.drivers[0], self.instants.at)
        watch(self.drivers[1], self.instants.at_peer)
        self.copiers = copiers.CopierPool(int(kind == "file"), self._open)
        self.bus = rpc.transport(self.conf)
        self.nudged: list[str] = []
        self.managers = [
            VolumeManager(self.conf, self.db, driver, self.nudged.append, lambda: None) for driver in self.drivers
        ]
        self.scheduler_db = WatchedDatabase(self.db.engine, self._at_scheduler, "scheduler")
        self.scheduler = SchedulerManager(self.conf, self.scheduler_db, rpc.VolumeClient(self.bus, self.conf))
        self._writes = 0
        self.servers = {"scheduler": rpc.server(self.bus, rpc.SCHEDULER_TOPIC, "node", [self.scheduler])}
        self.servers["scheduler"].start()
        for number in range(len(BACKENDS)):
            self.serve(number)
        self.report()

    def serve(self, number: int) -> None:
        """Let the volume service of a backend listen to its messages, those that came while it was away included."""
        backend = self.drivers[number].backend
        self.servers[backend] = rpc.server(self.bus, rpc.VOLUME_TOPIC, backend, [self.managers[number]])
        self.servers[backend].start()

    def _driver(self, backend: str, directory: Path) -> VolumeDriver:
        options = config.backend(self.conf, backend)
        if self.kind == "file":
            self.conf.set_override("file_pools", {"pool1": str(directory / backend)}, backend)
        driver = (MemoryDriver if self.kind == "memory" else FileDriver)(f"node@{backend}", options)
        driver.start()
        return driver

    def _open(self, path: str) -> MemoryObject:
        return self.watched_object(memory.open_object(path), self.instants.at)

    def reset_options(self) -> None:
        """Short times, where they are waited for; no pause between attempts."""
        for name, value in {
            "migration_retry_seconds": 0.0,
            "migration_create_volume_timeout_secs": 30,
            "rpc_step_timeout_seconds": 30,
            "copy_checkpoint_seconds": 0.05,
        }.items():
            self.conf.set_override(name, value)

    def report(self) -> None:
        """Signs of life and pool reports, as each service sends them."""
        client = rpc.SchedulerClient(self.bus, self.conf)
        now = self._reported_at = self.db.now()
        for backend, driver in zip(BACKENDS, self.drivers, strict=True):
            services.beat(self.db, driver.backend, services.VOLUME, f"zone-{backend}")
            client.update_pools(
                {
                    "host": driver.backend,
                    "reported_at": now,
                    "availability_zone": f"zone-{backend}",
                    "volume_backend_name": backend,
                    "reserved_percentage": 0,
                    "max_over_subscription_ratio": 20.0,
                    "driver": self.kind,
                    "pools": [dict(pool.__dict__) for pool in driver.report()],
                }
            )
        context = service_context()
        until(lambda: len(client.get_pools(context, detail=False)) == len(BACKENDS), "reports of both", pause=0.001)

    # --- the scheduler's part: one transaction to claim, one to decide ---

    def schedule(self) -> None:
        """Let the scheduler look for work, as its sweep does."""
        self._writes = 0
        self.scheduler.sweep(datetime.timedelta())

    def _at_scheduler(self, label: str) -> None:
        name = f"{PICK} {Direction.FORWARD}"
        self._writes += label.endswith("before")
        self.instants.at(
            {
                (1, "scheduler before"): f"{name} before",
                (1, "scheduler after"): f"{name} inside",
                (2, "scheduler after"): f"{name} after",
            }.get((self._writes, label), label)
        )

    # --- a clean plant ---

    def clear(self) -> None:
        """Forget every volume and migration, and all that was ordered."""
        self.instants.clear()
        self.watched_object = WatchedObject
        self.checker.forget()
        self.reset_options()
        for driver in self.drivers:
            if isinstance(driver, MemoryDriver):
                driver.faults.release()
                driver.assists = True
        with self.instants.unwatched():
            for host, name in self.checker.storage.objects():
                self.driver(host).delete("pool1", name)
        with self.db.writer() as session:
            for table in reversed(Base.metadata.sorted_tables):
                if table.name != Service.__tablename__:
                    session.connection().exec_driver_sql(f"DELETE FROM {table.name}")
        if self.db.now() - self._reported_at > REPORT_SECONDS:
            self.report()
        self.instants.clear()
        self.nudged.clear()

    def driver(self, host: str) -> VolumeDriver:
        return next(driver for driver in self.drivers if host.startswith(driver.backend + "#"))

    def end(self) -> None:
        for driver in self.drivers:
            if isinstance(driver, MemoryDriver):
                driver.faults.release()
        for server in self.servers.values():
            server.stop()
        self.copiers.shut_down()
        self.checker.close()
        self.bus.cleanup()
        self.db.dispose()


class CallingRunner(runner.Runner):
    """A runner that works in the thread that calls it; everything else of it is as it is."""

    def submit(self, migration_id: str) -> None:
        self.run(migration_id)


class World:
    """One volume, one migration after the other, and the processes that work on them."""

    def __init__(self, plant: Plant, steps: type[Steps] = Steps) -> None:
        plant.clear()
        self.plant = plant
        self.instants = plant.instants
        self.die = plant.instants.die
        self.checker = plant.checker
        self.db = plant.db
        self.steps = steps
        #: Set whenever a runner has committed something.
        self.recorded = threading.Event()
        self._done: Key | None = None
        self.wanted = Sparse(SIZE)
        #: Times that the owner has written to the volume.
        self.written = 0
        self.volume_id = self._make_volume()
        self.migration_id = ""
        #: What a crash takes with it.
        self.power_cut = False
        self.allowed = plant.conf.migration_attempts
        self.lives = 0
        self.runner = self.new_runner()

    # --- what there is ---

    def _make_volume(self) -> str:
        manager, driver = self.plant.managers[0], self.plant.drivers[0]
        volume_id = rows.add_volume(self.db, host=SOURCE, status="creating", availability_zone="zone-mem1")
        manager.create_volume(service_context(), volume_id=volume_id)
        chance = random.Random(1)
        connection = driver.export("pool1", f"volume-{volume_id}", writable=True)
        for offset, length in DATA:
            data = chance.randbytes(length)
            self.wanted.write(offset, data)
            self.write(connection.kind, connection.path, offset, data)
        driver.revoke("pool1", f"volume-{volume_id}")
        self.checker.wanted[volume_id] = Wanted(self.wanted)
        self.instants.clear()
        return volume_id

    @staticmethod
    def write(kind: str, path: str, offset: int, data: bytes) -> None:
        if kind == "file":
            with open(path, "r+b") as file:
                file.seek(offset)
                file.write(data)
            return
        opened = memory.open_object(path)
        assert opened.pwrite(offset, data) == len(data)
        opened.flush()

    def ask(self, plan: str = "host_copy", **values: Any) -> str:
        """Ask for the volume's migration to the other backend, as the API does."""
        volume = rows.volume(self.db, self.volume_id)
        requested = DESTINATION if volume.host == SOURCE else SOURCE
        values = {"source_host": volume.host, "requested_host": requested, "plan": plan, **values}
        self.migration_id = rows.add_migration(self.db, self.volume_id, **values).id
        return self.migration_id

    def row(self) -> Migration:
        return rows.migration(self.db, self.migration_id)

    def history(self) -> list[tuple[str, str, str | None]]:
        """Step, direction and result of every attempt so far."""
        attempts = self.db.read(lambda session: history.steps(session, self.migration_id))
        return [(attempt.step, attempt.direction, attempt.result) for attempt in attempts]

    def attempts(self, step: str) -> list[MigrationStep]:
        """Every attempt of the step going forward."""
        attempts = self.db.read(lambda session: history.steps(session, self.migration_id))
        return [attempt for attempt in attempts if (attempt.step, attempt.direction) == (step, Direction.FORWARD)]

    @property
    def destination_name(self) -> str:
        return f"volume-{self.row().destination_volume_id}"

    # --- processes ---

    def new_runner(self, owner: str | None = None) -> CallingRunner:
        """The runner of the source's service in a new process; it looks dead to others, unless ``owner`` is given."""
        db = WatchedDatabase(self.db.engine, self._at_runner)
        client = WatchedClient(self.plant.bus, self.plant.conf, self.instants)
        steps = self.steps(self.plant.conf, db, self.plant.drivers[0], client, self.plant.copiers)
        self.functions = steps.functions()
        settings = runner.Settings(
            lease_seconds=30, sweep_seconds=5, attempts=self.allowed, retry_seconds=0.0, parallel=1
        )
        new = CallingRunner(db, self.watched(self.functions), self._mine, settings)
        new.owner = owner or dead_owner()
        steps.stopping = new.stopping
        return new

    @staticmethod
    def _mine() -> sa.ColumnElement[bool]:
        return sa.and_(Migration.source_host == SOURCE, Migration.step != PICK)

    def watched(self, functions: Mapping[Key, runner.Function]) -> dict[Key, runner.Function]:
        return {key: functools.partial(self._perform, key, function) for key, function in functions.items()}

    def _perform(self, key: Key, function: runner.Function, migration: Migration) -> Outcome:
        label = f"{key[0]} {key[1]}"
        self.instants.at(f"{label} before")
        outcome = function(migration)
        self.instants.at(f"{label} inside")
        self._done = key
        return outcome

    def _at_runner(self, label: str) -> None:
        self.instants.at(label)
        if label == "commit after":
            self.recorded.set()
            if self._done is not None:
                (step, direction), self._done = self._done, None
                self.instants.at(f"{step} {direction} after")

    def bury(self) -> None:
        """The process has died: what it did not flush is lost if the power went too, and a new one starts."""
        if self.power_cut:
            self.checker.storage.power_cut()
            self.checker.look("the power cut")
        self.lives += 1
        self.instants.died = False
        self._done = None
        self.expire_lease(states.FIRST_STEP)
        self.runner = self.new_runner()

    def expire_lease(self, step: str | None = None) -> None:
        """Let the lease time of whoever has the row pass (``step``: only at that step)."""
        if step is None or self.row().step == step:
            self.set_row(lease_until=0.0)

    # --- going on ---

    def go(self, rounds: int = 40) -> None:
        """Let both services look for work until the migration is over or paused.

        Raises Died, or Broken if it does not end.
        """
        for _ in range(rounds):
            row = self.row()
            if row.end is not None or row.paused:
                return
            self.plant.schedule()
            self.runner.sweep()
        raise Broken(f"8: no end after {rounds} rounds: {self.history()[-5:]}")

    def live(self, lives: int = 12) -> World:
        """Go on until the migration is over, in a new process whenever one died."""
        for _ in range(lives):
            try:
                self.go()
                return self
            except Died:
                self.bury()
        raise Broken(f"8: no end after {lives} processes: {self.history()[-5:]}")

    def ended(self, *ends: End, **values: Any) -> None:
        self.checker.ended(self.migration_id, *ends, **values)

    def cancel(self) -> bool:
        """Ask for a cancel; tell whether it was accepted."""
        return self.db.run(lambda session: migrations.request_cancel(session, self.migration_id))

    def wait_for_record(self) -> None:
        """Hold the calling thread until the runner has recorded something more (a checkpoint, in a copy) or died."""
        self.recorded.clear()
        lives = self.instants.deaths
        until(lambda: self.recorded.is_set() or self.instants.deaths > lives, "a record", seconds=10, pause=0.002)

    def fail(self, label: str, *, final: bool = False, **values: Any) -> Trap:
        """Let what is done at the instant of that label fail."""
        return self.on(label, raising(failure(label, final=final)), **values)

    def hold_while_recorded(self) -> None:
        """Hold the calling thread as long as the copy records its progress: until it was told to stop, that is."""
        while self.recorded.wait(0.5):
            self.recorded.clear()

    def copied(self) -> int:
        """Bytes that are recorded as copied."""
        return sum(length for _, length in self.checker.rows().ranges.get(self.migration_id, []))

    def set_row(self, **values: Any) -> None:
        """Write columns of the migration, as somebody else would."""
        statement = sa.update(Migration).where(Migration.id == self.migration_id).values(**values)
        self.db.run(lambda session: session.execute(statement))

    def expire_kept_source(self) -> None:
        """Let the time be over for which a source is kept."""
        if self.row().keep_source_until is not None:
            self.set_row(keep_source_until=self.db.now() - 0.001)

    def sweep_destination(self) -> None:
        """Let the destination's volume service look for what no message brought."""
        self.sweep(1)

    def sweep(self, number: int) -> None:
        """Let the volume service of a backend look for what no message brought."""
        self.plant.managers[number].sweep(self.plant.drivers[number].backend)

    def sweep_until_clean(self) -> None:
        """Let both services look again and again; one look may find an object busy."""

        def is_clean() -> bool:
            self.sweep(0)
            self.sweep(1)
            return all(volume["twin_of"] is None for volume in self.checker.rows().volumes)

        until(is_clean, "the twin is gone", seconds=10)

    def on(self, label: str, action: Callable[[], object], **values: Any) -> Trap:
        """Do ``action`` at the instant of that label."""
        return self.instants.trap(label, action, **values)
