"""A deployment to be maltreated: killed, stopped, cut off from broker and database, and looked at from outside."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from tests.support.audit import Auditor, content, told
from tests.support.data import GIB, MIB
from tests.support.deployment import Deployment, database
from tests.support.proxy import Proxy
from tests.support.rest import Rest
from tests.support.waiting import until

A, B = "hosta@file1#pool1", "hostb@file2#pool2"
#: Short, so that what takes minutes in life takes seconds here; their relations are those of the defaults.
OPTIONS = """copy_checkpoint_seconds = 0.1
migration_retry_seconds = 0.1
migration_lease_seconds = 3
rpc_step_timeout_seconds = 4
rpc_call_monitor_seconds = 2
scheduler_rpc_timeout_seconds = 2
"""
SHORT_DATABASE = {"mariadb": "?read_timeout=4", "postgresql": "?read_timeout=4"}
SHORT_BROKER = "?heartbeat_timeout_threshold=4"
#: A copier of a service: killed with it, or left behind to notice by itself.
_COPIER = "migrator.volume.worker"


class Bed:
    """Separate processes behind proxies, a few volumes of known content."""

    def __init__(
        self, directory: Path, database_url: str, broker: str, options: str = "", kind: str = "mariadb"
    ) -> None:
        self._ends = contextlib.ExitStack()
        self.broker = self._ends.enter_context(Proxy(broker))
        self.database = self._ends.enter_context(Proxy(database_url))
        self.deployment = Deployment(
            directory, self.database.url + SHORT_DATABASE[kind], OPTIONS + options, self.broker.url + SHORT_BROKER
        )
        self._ends.callback(self.deployment.end)
        engine = sa.create_engine(database_url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self._ends.callback(engine.dispose)
        self.pools = {A: self.deployment.pool("file1", "pool1"), B: self.deployment.pool("file2", "pool2")}
        self.audit = Auditor(engine, self.pools)
        self.rest: Rest = self.deployment.rest()
        #: What each volume and snapshot must hold, by id.
        self.wanted: dict[str, str | None] = {}
        self._sessions = {process.pid for process in self.deployment.processes.values()}

    def close(self) -> None:
        """End all of it, the generations that were killed included."""
        with self._ends:
            for pid, _ in processes(self._sessions):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # --- volumes ---

    def volume(self, chance: random.Random, mib: int, size: int = 1, on: str = A) -> str:
        """Make a volume with so many MiB of data on that backend; return its id."""
        volume_id = str(self.rest.create(size)["id"])
        path = self.audit.path(volume_id)
        fill(path, chance, mib, size)
        self.wanted[volume_id] = content(path)
        if self.audit.volume(volume_id)["host"] != on:
            self.rest.moved(volume_id, on)
        return volume_id

    def other(self, volume_id: str) -> str:
        """The backend where the volume is not."""
        return B if self.audit.volume(volume_id)["host"] == A else A

    def copying(self, volume_id: str, step: str = "copy_data", done: int = 0) -> dict[str, Any]:
        """Start a host copy and wait until it is at that step with that many bytes recorded."""
        status, answer = self.rest.migrate(volume_id, self.other(volume_id), force_host_copy=True)
        assert status == 202, answer
        return self.reaches(volume_id, step, done)

    def reaches(self, volume_id: str, step: str, done: int = 0) -> dict[str, Any]:
        """Wait until the volume's newest migration is at that step; it must not end before."""

        def there() -> dict[str, Any] | None:
            row = self.audit.newest(volume_id)
            assert row["end"] is None, f"it ended before {step}: {row}"
            return row if row["step"] == step and row["bytes_done"] >= done else None

        return until(there, f"{volume_id} is at {step}", 60, pause=0.001) or {}

    # --- processes ---

    def kill(self, name: str, how: str = "all") -> None:
        KILLS[how](self.deployment.processes[name].pid)
        process = self.deployment.processes[name].popen
        assert process is not None
        process.wait()

    def start(self, name: str) -> None:
        process = self.deployment.processes[name]
        process.start()
        self._sessions.add(process.pid)

    def ready(self, name: str) -> None:
        self.deployment.processes[name].wait_ready(60)

    @contextlib.contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Stop a service with its copiers for the time of the block."""
        pid = self.deployment.processes[name].pid
        os.killpg(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(pid, signal.SIGCONT)

    def left_behind(self) -> list[str]:
        """Processes of a generation that was killed and replaced."""
        alive = {process.pid for process in self.deployment.processes.values()}
        return [f"{pid}: {command}" for pid, command in processes(self._sessions - alive)]

    # --- at rest ---

    def settle(self, seconds: float = 60.0) -> None:
        """Wait until nothing is under way, then fail with all that is wrong."""
        restless: list[str] = []

        def quiet() -> bool:
            restless[:] = self.restless()
            return not restless

        try:
            until(quiet, "everything is at rest", seconds, pause=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}:{told(restless)}") from None
        wrong = self.audit.violations(self.wanted)
        assert not wrong, told(wrong)

    def restless(self) -> list[str]:
        return self.audit.restless() + self.left_behind()


def fill(path: Path, chance: random.Random, mib: int, size: int) -> None:
    """Write so many MiB at random offsets, odd ones, and the last bytes, where tails get lost."""
    with path.open("r+b") as file:
        for _ in range(mib):
            file.seek(chance.randrange(0, size * GIB - MIB))
            file.write(chance.randbytes(MIB))
        file.seek(size * GIB - 513)
        file.write(chance.randbytes(513))
        file.flush()
        os.fsync(file.fileno())


def processes(sessions: set[int]) -> list[tuple[int, str]]:
    """Living processes of these sessions, with their commands."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process.pid, " ".join(process.cmdline())))
    return found


def _kill_all(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)


def _kill_master(pid: int) -> None:
    """Kill the first process alone: its children must notice, beside the ones that replace them."""
    os.kill(pid, signal.SIGKILL)


def _kill_services(pid: int) -> None:
    """Kill all but the copiers, which go on writing until they notice."""
    for each, command in processes({pid}):
        if _COPIER not in command:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


KILLS: Mapping[str, Callable[[int], None]] = {
    "all": _kill_all,
    "master": _kill_master,
    "services": _kill_services,
}


@contextlib.contextmanager
def bed(directory: Path, broker: str, options: str = "", kind: str = "mariadb") -> Iterator[Bed]:
    """Open one on a database server of that kind."""
    with database(kind) as url:
        opened = Bed(directory, url, broker, options, kind)
        try:
            yield opened
        finally:
            opened.close()


__all__ = ["KILLS", "A", "B", "Bed", "bed", "fill", "processes"]
