"""The two ways to run migrator, as the soak sees them: something to ask, to look at and to strike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from tests.conftest import require
from tests.support.audit import Auditor
from tests.support.bed import KILLS, Bed, bed, processes
from tests.support.deployment import BROKER, SERVERS
from tests.support.processes import AllInOne, Process
from tests.support.proxy import Proxy
from tests.support.rest import Rest
from tests.support.vhost import own_broker
from tests.support.waiting import until

LONGER_THAN_LEASE = 4.0
#: What is asked of the copies: so slow a lease that a takeover happens, and records often enough to resume from.
OPTIONS = """copy_checkpoint_seconds = 0.1
migration_retry_seconds = 0.1
migration_lease_seconds = 5
migration_sweep_interval = 1
"""


class Plant(Protocol):
    """What the soak needs of a running migrator."""

    audit: Auditor
    hosts: list[str]
    #: What can go wrong, by name; each leaves everything running again, though perhaps not ready.
    blows: Mapping[str, Callable[[], None]]

    def rest(self) -> Rest: ...

    def wait_ready(self) -> None:
        """Wait until every service that was struck says that it is ready."""

    def left_behind(self) -> list[str]:
        """Processes of a generation that was killed and replaced."""


class Embedded:
    """migrator-all on SQLite."""

    def __init__(self, directory: Path) -> None:
        self._service = AllInOne(directory, OPTIONS)
        self._sessions = {self._service.process.pid}
        state = self._service.state
        engine = sa.create_engine(f"sqlite:///{state}/migrator.sqlite", connect_args={"timeout": 60})
        pools = {f"node@file{n}#pool{n}": state / "backends" / f"file{n}" / f"pool{n}" for n in (1, 2)}
        self.audit = Auditor(engine, pools)
        self.hosts = list(pools)
        self.blows: Mapping[str, Callable[[], None]] = {
            "kill the service": lambda: self._kill("master"),
            "kill it with its copiers": lambda: self._kill("all"),
        }

    def rest(self) -> Rest:
        return self._service.rest()

    def _kill(self, how: str) -> None:
        process = self._service.process
        KILLS[how](process.pid)
        assert process.popen is not None
        process.popen.wait()
        process.start()
        self._sessions.add(process.pid)

    def wait_ready(self) -> None:
        self._service.process.wait_ready(60)

    def left_behind(self) -> list[str]:
        return [f"{pid}: {command}" for pid, command in processes(self._sessions - {self._service.process.pid})]

    def close(self) -> None:
        self._service.process.end()
        self.audit.engine.dispose()


class Separate:
    """Separate processes on RabbitMQ and MariaDB, both behind proxies."""

    def __init__(self, running: Bed) -> None:
        self._bed = running
        self.audit = running.audit
        self.hosts = list(running.pools)
        kills: dict[str, Callable[[], None]] = {
            f"kill {name} ({how})": lambda name=name, how=how: self._kill(name, how)  # type: ignore[misc]
            for name in running.deployment.processes
            for how in (("all",) if name == "api" else tuple(KILLS))
        }
        self.blows: Mapping[str, Callable[[], None]] = kills | {
            "cut every connection to the broker": running.broker.cut,
            "cut every connection to the database": running.database.cut,
            "hosta stands still": lambda: self._stand_still("hosta"),
            "hostb stands still": lambda: self._stand_still("hostb"),
            "the broker refuses": lambda: self._away(running.broker, Proxy.down),
            "the broker is silent": lambda: self._away(running.broker, Proxy.stall),
            "the database refuses": lambda: self._away(running.database, Proxy.down),
            "the database is silent": lambda: self._away(running.database, Proxy.stall),
        }

    def rest(self) -> Rest:
        return self._bed.deployment.rest()

    def _kill(self, name: str, how: str) -> None:
        self._bed.kill(name, how)
        self._bed.start(name)

    def _stand_still(self, name: str) -> None:
        with self._bed.stopped(name):
            _pass_time()

    def _away(self, proxy: Proxy, leave: Callable[[Proxy], None]) -> None:
        leave(proxy)
        _pass_time()
        proxy.up()

    def wait_ready(self) -> None:
        for process in self._processes():
            process.wait_ready(60)

    def _processes(self) -> list[Process]:
        return list(self._bed.deployment.processes.values())

    def left_behind(self) -> list[str]:
        return self._bed.left_behind()


def _pass_time() -> None:
    """Let longer pass than a lease lasts, of those that tests.support.bed gives."""
    over = time.monotonic() + LONGER_THAN_LEASE
    until(lambda: time.monotonic() >= over, "the time is over", 2 * LONGER_THAN_LEASE, pause=0.1)


@contextlib.contextmanager
def embedded(directory: Path) -> Iterator[Plant]:
    plant = Embedded(directory)
    try:
        yield plant
    finally:
        plant.close()


@contextlib.contextmanager
def separate(directory: Path) -> Iterator[Plant]:
    require("rabbitmq", BROKER)
    require("mariadb", SERVERS["mariadb"])
    with own_broker() as broker, bed(directory, broker) as running:
        yield Separate(running)


PLANTS: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Plant]]] = {
    "embedded": embedded,
    "separate": separate,
}
