"""How exports to other hosts end: real servers, killed in every way, and what the service says of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oslo_messaging.rpc.dispatcher import ExpectedException

from migrator import conf as config
from migrator import errors, machine
from migrator.context import service_context
from migrator.db.api import Database
from migrator.drivers.base import Capability, Connection
from migrator.drivers.file import FileDriver
from migrator.volume import export_server
from migrator.volume.manager import VolumeManager
from tests.contract.worlds import options
from tests.support import rows
from tests.support.data import MIB, digest
from tests.support.exports import BLOCK, HELD, SERVICE, Make, change, local, maker, opened, server_of
from tests.support.needs import missing
from tests.support.processes import ROOT
from tests.support.waiting import until


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with maker(tmp_path) as made:
        yield made


# --- the end of an export --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", export_server.PROGRAMS)
def test_no_byte_is_written_after_a_revoke(make: Make, tmp_path: Path, server: str) -> None:
    exports, path = make(server, tls="off"), tmp_path / "volume"
    endpoint = opened(exports.offer("m", local(path, 8 * MIB), "another machine"))
    written, failures = [0] * 4, []

    def write(number: int) -> None:
        try:
            while True:
                written[number] += 1
                start = number * 2 * MIB + written[number] * 4096 % (2 * MIB)
                endpoint.pwrite(start, memoryview(os.urandom(4096)))
        except OSError as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(number,), daemon=True) for number in range(4)]
    for writer in writers:
        writer.start()
    until(lambda: min(written) > 20, "all are writing")
    exports.revoke("m")
    content = digest(path)
    for writer in writers:
        writer.join(10)
    assert len(failures) == 4, failures
    assert digest(path) == content
    endpoint.close()


def test_the_next_request_ends_the_export_before(make: Make, tmp_path: Path) -> None:
    exports, volume = make(), local(tmp_path / "volume")
    first = opened(exports.offer("m", volume, "another machine"))
    second = opened(exports.offer("m", volume, "a third machine"))
    with pytest.raises(OSError, match="NBD server"):
        first.pwrite(0, BLOCK)
    assert second.pwrite(0, BLOCK) == len(BLOCK)
    first.close()
    second.close()
    exports.revoke("m")
    exports.revoke("m")
    exports.revoke("never was")


#: A service that exports and then waits: kept short, it is started twice.
_SERVICE = """
import json, sys
from migrator import conf as config
from migrator.drivers.base import Connection
from migrator.volume.exports import Exports
state, path, server = sys.argv[1:]
conf = config.load("tests", [], [], state_path=state, nbd_export_address="127.0.0.1", nbd_server=server)
exports = Exports(conf, "hostb@file2")
exports.offer("m", Connection("file", path, "here", 1 << 20, writable=True), "another machine")
print(exports._servers["m"].pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("server", export_server.PROGRAMS)
def test_a_server_dies_with_its_service_and_the_next_one_clears_up(
    make: Make, db: Database, tmp_path: Path, server: str
) -> None:
    local(tmp_path / "volume", MIB)
    exports = make(server)
    arguments = [str(tmp_path / "state"), str(tmp_path / "volume"), server]
    service = subprocess.Popen(
        [sys.executable, "-c", _SERVICE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert service.stdout is not None
    pid = int(service.stdout.readline())
    started = machine.process_started(pid)
    assert started is not None
    root = tmp_path / "state" / "nbd" / SERVICE
    assert len(list(root.glob("*/keys.psk"))) == 1
    service.kill()
    service.communicate()
    until(lambda: not machine.is_alive(pid, started), "the server is gone")
    assert len(list(root.glob("*/keys.psk"))) == 1, "nobody was left to remove it"
    exports.sweep(db)
    assert list(root.iterdir()) == []


def test_a_server_that_was_left_all_the_same_is_killed_and_nobody_else(
    make: Make, db: Database, tmp_path: Path
) -> None:
    exports = make()
    root = tmp_path / "state" / "nbd" / SERVICE
    folder, foreign = root / "left", root / "foreign"
    folder.mkdir(parents=True)
    foreign.mkdir()
    spec = export_server.Spec(str(tmp_path / "v"), MIB, True, "127.0.0.1", 1, "off", "", "n", "u", "k")
    local(tmp_path / "v", MIB)
    programs = export_server.find_programs("nbdkit")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(export_server.command(programs, spec, port, folder)[3:])
    bystander = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        (foreign / "pid").write_text(str(bystander.pid), encoding="ascii")
        until(lambda: (folder / "pid").exists() and (folder / "pid").read_text(encoding="ascii"), "it serves")
        exports.revoke("that of an earlier process")
        assert server.wait(10) == -signal.SIGKILL
        assert bystander.poll() is None
        assert list(root.iterdir()) == []
    finally:
        for process in (server, bystander):
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({}, True),
        ({"step": "create_destination"}, True),
        ({"step": "verify_copy"}, True),
        ({"step": "disconnect"}, False),
        ({"direction": "back"}, False),
        ({"end": "success"}, False),
        ({"lease_until": 0.0}, False),
    ],
    ids=str,
)
def test_an_export_lives_as_long_as_its_copy(
    make: Make, db: Database, tmp_path: Path, changes: dict[str, Any], stays: bool
) -> None:
    exports = make(tls="off")
    migration = rows.add_migration(db, rows.add_volume(db))
    change(db, migration.id, HELD | changes)
    exports.offer(migration.id, local(tmp_path / "volume"), "another machine")
    server = server_of(exports, migration.id)
    exports.sweep(db)
    assert (server.ended() is None) is stays


def test_a_server_that_died_is_told_of_and_forgotten(
    make: Make, db: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exports = make(tls="off")
    migration = rows.add_migration(db, rows.add_volume(db))
    change(db, migration.id, HELD)
    exports.offer(migration.id, local(tmp_path / "volume"), "another machine")
    os.kill(server_of(exports, migration.id).pid, signal.SIGKILL)
    until(lambda: server_of(exports, migration.id).ended() is not None, "it is gone")
    exports.sweep(db)
    assert "ended by itself: -9" in caplog.text
    assert exports._servers == {}


def test_a_volume_that_outgrows_its_pool_is_cut_off_and_the_next_request_hears_why(make: Make, tmp_path: Path) -> None:
    exports, path = make(tls="off"), tmp_path / "volume"
    path.touch()
    os.truncate(path, 8 * MIB)
    volume = local(path, 8 * MIB, limit=MIB)
    endpoint = opened(exports.offer("m", volume, "another machine"))
    endpoint.pwrite(0, memoryview(b"x" * 2 * MIB))
    endpoint.flush()
    until(lambda: server_of(exports).ended() is not None, "the export ends")
    with pytest.raises(OSError, match="NBD server"):
        endpoint.pwrite(0, BLOCK)
    endpoint.close()
    with pytest.raises(errors.NoSpace, match=f"its pool holds {MIB}"):
        exports.offer("m", volume, "another machine")
    assert exports.offer("m", dataclasses.replace(volume, limit=None), "another machine").kind == "nbd"


# --- the service's part ----------------------------------------------------------------------------------------------


class Driver(FileDriver):
    """Lets something happen while it exports."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def export(self, pool: str, name: str, *, writable: bool) -> Connection:
        connection = super().export(pool, name, writable=writable)
        self.meanwhile()
        return connection


class Backend:
    """A destination's service, and a migration to it that copies."""

    def __init__(self, db: Database, directory: Path) -> None:
        self.db = db
        values = {"file_pools": {"pool2": str(directory / "pool2")}}
        self.driver = Driver(SERVICE, options(**values))
        self.driver.start()
        address = {"state_path": str(directory / "state"), "nbd_export_address": "127.0.0.1"}
        conf = config.load("tests", [], [], **address)
        self.manager = VolumeManager(conf, db, self.driver, lambda migration_id: None, lambda: None)
        self.migration_id = rows.add_migration(db, rows.add_volume(db)).id
        twin = {"host": rows.DESTINATION, "status": "creating", "migration_id": self.migration_id}
        self.twin_id = rows.add_volume(db, **twin)
        self.change(destination_volume_id=self.twin_id, destination_host=rows.DESTINATION, **HELD)
        self.driver.create("pool2", f"volume-{self.twin_id}", 1 << 30)

    def change(self, **values: Any) -> None:
        change(self.db, self.migration_id, values)

    def export(self, to: str | None = "another machine") -> Connection:
        answer = self.manager.export_destination(service_context(), migration_id=self.migration_id, machine=to)
        return Connection.from_dict(answer)

    def revoke(self) -> bool:
        return bool(self.manager.revoke_destination(service_context(), migration_id=self.migration_id))


@pytest.fixture
def backend(db: Database, tmp_path: Path) -> Iterator[Backend]:
    if shutil.which("nbdkit") is None:
        missing("nbdkit is not installed: tests/prepare does it")
    made = Backend(db, tmp_path)
    yield made
    made.manager.close()


def test_a_service_that_exports_can_shut_out_the_copiers_of_other_machines(backend: Backend) -> None:
    (pool,) = backend.manager.report()
    assert pool.capabilities[Capability.FENCED_EXPORT.value] is True
    far = {"machine": "m", "boot_id": "b", "host": "far", "pid": 1, "started": 1}
    backend.change(worker=far | {"writes_by": "nbd"})
    endpoint = opened(backend.export())
    assert backend.revoke()
    with pytest.raises(OSError, match="NBD server"):
        endpoint.pwrite(0, BLOCK)
    endpoint.close()
    backend.change(worker=far | {"writes_by": "file"})
    assert not backend.revoke(), "it may have the file itself open, wherever it is"
    copier = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    backend.change(worker=machine.identity(copier.pid) | {"writes_by": "file"})
    assert backend.revoke(), "on its own machine it is killed"
    assert copier.wait(10) == -signal.SIGKILL
    copier.communicate()


def test_nothing_is_exported_to_who_comes_too_late(backend: Backend) -> None:
    for step, direction in (("disconnect", "forward"), ("switch_volume", "forward"), ("copy_data", "back")):
        backend.change(step=step, direction=direction)
        for peer in ("another machine", None):
            with pytest.raises(ExpectedException) as refused:
                backend.export(peer)
            assert isinstance(refused.value.exc_info[1], errors.Conflict)
    assert backend.manager._exports._servers == {}


def test_a_request_that_the_end_of_the_copy_overtakes_leaves_no_export(backend: Backend) -> None:
    """Whoever ends the exports before the switch may look before the server of a late request is there."""
    backend.driver.meanwhile = lambda: backend.change(step="disconnect")
    with pytest.raises(ExpectedException) as refused:
        backend.export()
    assert isinstance(refused.value.exc_info[1], errors.Conflict)
    assert backend.manager._exports._servers == {}


def test_an_export_ends_when_its_object_is_deleted(backend: Backend) -> None:
    endpoint = opened(backend.export())
    backend.change(direction="back", step="create_destination")
    assert backend.manager.delete_destination(service_context(), migration_id=backend.migration_id)
    with pytest.raises(OSError, match="NBD server"):
        endpoint.pwrite(0, BLOCK)
    endpoint.close()
    assert list(backend.driver.objects("pool2")) == []
