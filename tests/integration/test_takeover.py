"""One volume service goes on with what another one was doing: paused, killed, just down, or for ever off."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from migrator import machine
from migrator.db.models import Migration
from tests.conftest import require
from tests.integration.test_programs import run
from tests.support.data import GIB, digest, write_pattern
from tests.support.deployment import SERVERS, database
from tests.support.processes import AllInOne
from tests.support.rest import Rest
from tests.support.shared import OWNERS, RATE, THERE, SharedStorage
from tests.support.waiting import until


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path, broker: str) -> Iterator[SharedStorage]:
    """Two services of one cluster, or as the test's parameter has it."""
    require("mariadb", SERVERS["mariadb"])
    with database("mariadb") as url:
        running = SharedStorage(tmp_path, url, broker, cluster=getattr(request, "param", True))
        try:
            yield running
        finally:
            running.end()


def fill(storage: SharedStorage, volume_id: str, share: float) -> str:
    """Give a volume on the shared pool content; return its digest."""
    path = storage.path("file1", "pool1", volume_id)
    write_pattern(path, GIB, seed=11, data_share=share)
    return digest(path)


def copying(rest: Rest, volume_id: str) -> dict[str, Any]:
    """Wait until some of the volume is copied and recorded."""

    def under_way() -> dict[str, Any] | None:
        migration = rest.migration_of(volume_id)
        assert migration["status"] in ("queued", "running"), migration
        return migration if migration["step"] == "copy_data" and migration["bytes_done"] > 0 else None

    return until(under_way, "the copy is under way", 30, pause=0.02) or {}


@contextlib.contextmanager
def connection(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url)
    try:
        with engine.begin() as opened:
            yield opened
    finally:
        engine.dispose()


def row(storage: SharedStorage, migration_id: str) -> dict[str, Any]:
    """The migration's row as the database has it."""
    with connection(storage.database_url) as opened:
        found = opened.execute(sa.select(Migration.__table__).where(Migration.id == migration_id))
        return dict(found.mappings().one())


def test_a_service_that_was_stopped_in_a_copy_wakes_up_when_another_has_done_all_of_it(storage: SharedStorage) -> None:
    """Invariants 4 and 5 with real processes: the service and its copier are paused past lease, switch and removal."""
    rest = storage.rest()
    (volume_id,) = storage.create(rest, 1)
    content = fill(storage, volume_id, share=0.3)
    assert rest.migrate(volume_id, THERE, force_host_copy=True)[0] == 202
    migration_id = copying(rest, volume_id)["id"]
    worker = row(storage, migration_id)["worker"]
    owner = storage.processes["hosta"]
    os.killpg(owner.pid, signal.SIGSTOP)
    try:
        assert machine.is_alive(worker["pid"], worker["started"]), "the copier is stopped in the middle of its work"
        ended = rest.wait_migration(volume_id, 30)
        assert not machine.is_alive(worker["pid"], worker["started"]), "whoever took over has ended it"
    finally:
        os.killpg(owner.pid, signal.SIGCONT)
    assert ended["status"] == "success", ended
    attempts = [step["result"] for step in ended["steps"] if step["step"] == "copy_data"]
    assert attempts == ["lost", "done"]
    moved = storage.path("file2", "pool2", ended["destination_volume_id"])
    settled = row(storage, migration_id)

    until(lambda: f"Migration {migration_id} is no longer ours" in owner.text(), "the old one gives up", 20)
    storage.wait_up(rest, "hosta@file1")
    assert digest(moved) == content
    assert row(storage, migration_id) == settled, "the old one has written something"
    assert not storage.path("file1", "pool1", volume_id).exists()
    rest.moved(volume_id, OWNERS)


@pytest.mark.parametrize("storage", [False], indirect=True, ids=["shared_access"])
def test_a_service_that_is_down_is_stood_in_for(storage: SharedStorage) -> None:
    """A migration that was under way, one that is asked for meanwhile, and the refusal where nobody can.

    field.md pain 12: a backend whose service was down could not be left.
    """
    rest = storage.rest()
    first, second, third = storage.create(rest, 3)
    content = fill(storage, first, share=0.15)
    assert rest.migrate(first, THERE, force_host_copy=True)[0] == 202
    copying(rest, first)
    storage.processes["hosta"].kill_all()

    storage.wait_down(rest, "hosta@file1")
    ended = rest.wait_migration(first, 30)
    assert ended["status"] == "success", ended
    assert digest(storage.path("file2", "pool2", ended["destination_volume_id"])) == content
    rest.moved(second, THERE, 30)

    storage.processes["hostc"].kill_all()
    storage.wait_down(rest, "hostc@file1")
    status, answer = rest.migrate(third, THERE)
    assert status == 400
    assert "volume service hosta@file1 is down" in answer["badRequest"]["message"]
    assert "no other service reaches its storage" in answer["badRequest"]["message"]


def test_a_copy_of_a_machine_that_is_off_waits_for_the_administrators_word(tmp_path: Path) -> None:
    """The machine that had been copying never comes back: nothing is written beside it until somebody knows that."""
    backends = "enabled_backends = one,two\nmigration_sweep_interval = 1\ncopy_checkpoint_seconds = 0.2\n" + "".join(
        f"[{name}]\nvolume_driver = file\nfile_pools = p:{tmp_path}/{name}\nvolume_copy_bps_limit = {RATE}\n"
        for name in ("one", "two")
    )
    service = AllInOne(tmp_path, backends)
    try:
        rest = service.rest()
        volume_id = rest.create(1)["id"]
        path = tmp_path / "one" / f"volume-{volume_id}"
        write_pattern(path, GIB, seed=12, data_share=0.1)
        content = digest(path)
        assert rest.migrate(volume_id, "node@two#p", force_host_copy=True)[0] == 202
        migration_id = copying(rest, volume_id)["id"]
        service.process.kill_all()
        database_url = f"sqlite:///{service.state}/migrator.sqlite"
        far = {"machine": "f" * 32, "boot_id": "of no machine here", "host": "far", "pid": 4711, "started": 7}
        with connection(database_url) as opened:
            opened.execute(sa.update(Migration).where(Migration.id == migration_id).values(worker=far))
        service.process.start()
        service.process.wait_ready()

        def waits() -> bool:
            steps = rest.migration_of(volume_id)["steps"]
            return steps[-1]["result"] == "interrupted" and "on far may still write" in steps[-1]["message"]

        until(waits, "the migration waits, and says for what", 20, pause=0.1)
        config = tmp_path / "manage.conf"
        config.write_text(f"[DEFAULT]\nstate_path = {service.state}\n")
        fence = ["--config-file", str(config), "migration", "fence", "--machine", "far"]
        listed = run("manage", *fence)
        assert listed.returncode == 1
        assert f"migration {migration_id} at copy_data: process 4711 on far" in listed.stdout
        assert "Nothing is done without" in listed.stdout
        assert run("manage", *fence, "--i-know-the-machine-is-off").returncode == 0
        ended = rest.wait_migration(volume_id, 30)
        assert ended["status"] == "success", ended
        assert digest(tmp_path / "two" / f"volume-{ended['destination_volume_id']}") == content
        assert "fenced" in [step["result"] for step in ended["steps"]]
    finally:
        service.process.end()
