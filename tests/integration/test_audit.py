"""migrator-manage migration audit and fence, with real services and things planted on their storage."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.db import services
from migrator.db.api import Database
from tests.conftest import require
from tests.integration.test_programs import run
from tests.support.deployment import SERVERS, database
from tests.support.processes import AllInOne
from tests.support.rest import Rest
from tests.support.shared import OTHERS, OWNERS, THERE, SharedStorage
from tests.support.waiting import until

CLEAN, FOUND, NOT_ASKED, EXIT_CONFIG = 0, 1, 2, 78


@pytest.fixture
def storage(tmp_path: Path, broker: str) -> Iterator[SharedStorage]:
    """Two services of one cluster over one pool, and another one; the sources of host copies are kept for an hour."""
    require("mariadb", SERVERS["mariadb"])
    with database("mariadb") as url:
        running = SharedStorage(tmp_path, url, broker, "keep_source_seconds = 3600")
        try:
            yield running
        finally:
            running.end()


class Audit:
    """One run of the audit over a deployment."""

    def __init__(self, storage: SharedStorage, *arguments: str) -> None:
        process = storage.manage("migration", "audit", "--format", "json", *arguments)
        assert process.popen is not None
        self.exit_code = process.popen.wait(60)
        text = process.text()
        told: dict[str, Any] = json.loads(text[text.index("{\n") :])
        self.findings = {(one["kind"], one["place"], one["name"]) for one in told["findings"]}
        self.removed = {(one["place"], one["name"]) for one in told["removed"]}
        self.not_asked = set(told["not_asked"])


def plant(pool: Path, name: str) -> Path:
    """Lay a file that looks as if migrator had made it."""
    (pool / ".migrator-objects").mkdir(exist_ok=True)
    (pool / ".migrator-objects" / name).touch()
    (pool / name).write_bytes(b"left over")
    return pool / name


def files(storage: SharedStorage) -> set[Path]:
    pools = [storage.pool("file1", "pool1"), storage.pool("file2", "pool2")]
    return {path for pool in pools for path in pool.iterdir() if path.is_file()}


def forgotten(storage: SharedStorage, rest: Rest, volume_id: str) -> list[Path]:
    """Move a volume and delete it, then plant again what its migration once had at both ends."""
    migration = rest.moved(volume_id, THERE, force_host_copy=True)
    source = storage.path("file1", "pool1", volume_id)
    moved = storage.path("file2", "pool2", migration["destination_volume_id"])
    assert source.exists(), "it is kept"
    rest.delete(volume_id)
    until(lambda: not source.exists(), "the kept source goes with its volume", 20)
    return [plant(source.parent, source.name), plant(moved.parent, moved.name)]


def test_it_finds_what_is_wrong_both_ways_and_removes_what_migrations_left_alone(storage: SharedStorage) -> None:
    """field.md pains 2 and 4: volumes and objects that nobody knew of stayed for ever."""
    rest = storage.rest()
    gone, kept, round_trip, missing = storage.create(rest, 4)
    left = forgotten(storage, rest, gone)
    rest.moved(kept, THERE, force_host_copy=True)
    for place in (THERE, OTHERS):  # home again, by the other service's name
        rest.moved(round_trip, place)
    foreign = storage.pool("file1", "pool1") / "backup.img"
    foreign.write_bytes(b"not ours")
    stranger = plant(storage.pool("file2", "pool2"), f"volume-{uuid.uuid4()}")
    away = storage.path("file1", "pool1", missing)
    away.rename(storage.directory / "away")
    before = files(storage)

    wrong = {
        ("row without its object", OWNERS, away.name),
        ("object without a row", THERE, stranger.name),
    }
    orphans = {(OWNERS, left[0].name), (THERE, left[1].name)}
    told = Audit(storage)
    assert (told.exit_code, told.not_asked) == (FOUND, set())
    assert told.findings == wrong | {("object without a row", *orphan) for orphan in orphans}
    assert files(storage) == before, "it only looks"

    repaired = Audit(storage, "--repair")
    assert (repaired.exit_code, repaired.findings, repaired.removed) == (FOUND, wrong, orphans)
    assert before - files(storage) == set(left)
    assert storage.path("file1", "pool1", kept).exists()
    assert storage.path("file1", "pool1", rest.volume(round_trip)["os-vol-mig-status-attr:name_id"]).exists()

    (storage.directory / "away").rename(away)
    stranger.unlink()
    assert Audit(storage, "--repair").exit_code == CLEAN
    storage.processes["hostb"].kill_all()
    storage.wait_down(rest, "hostb@file2")
    silent = Audit(storage)
    assert (silent.exit_code, silent.findings, silent.not_asked) == (NOT_ASKED, set(), {"hostb@file2"})


def test_without_a_broker_nobody_is_asked_and_nobody_waited_for(db: Database, tmp_path: Path) -> None:
    text = f"rpc_step_timeout_seconds = 1\n[database]\nconnection = sqlite:///{tmp_path}/test.sqlite\n"
    arguments = config(tmp_path, f"transport_url = rabbit://nobody@127.0.0.1:1/\n{text}")
    nobody = run("manage", *arguments, "migration", "audit")
    assert (nobody.returncode, nobody.stdout) == (CLEAN, "Nothing is wrong.\n"), "no service has ever been there"
    services.beat(db, "hosta@file1", services.VOLUME, "zone")
    done = run("manage", *arguments, "migration", "audit", seconds=20)
    assert done.returncode == NOT_ASKED
    assert done.stdout.splitlines()[0].startswith("not asked: hosta@file1: ")


def test_a_database_without_tables_is_a_wrong_configuration(tmp_path: Path) -> None:
    assert run("manage", *config(tmp_path, ""), "migration", "audit").returncode == EXIT_CONFIG


# --- all in one ------------------------------------------------------------------------------------------------------


def config(state: Path, text: str) -> list[str]:
    path = state / "manage.conf"
    path.write_text(f"[DEFAULT]\nstate_path = {state}\nhost = node\nmigration_sweep_interval = 1\n{text}")
    return ["--config-file", str(path)]


def test_all_in_one_is_read_directly_and_never_changed(all_in_one: AllInOne) -> None:
    backends = "".join(
        f"[{backend}]\nvolume_driver = file\nfile_pools = {pool}:{all_in_one.state}/backends/{backend}/{pool}\n"
        for backend, pool in (("file1", "pool1"), ("file2", "pool2"))
    )
    local = "transport_url = local://\nenabled_backends = file1,file2\n"
    arguments = [*config(all_in_one.state, local + backends), "migration", "audit"]
    rest = all_in_one.rest()
    volume = rest.create(1)
    done = run("manage", *arguments)
    assert (done.returncode, done.stdout) == (CLEAN, "Nothing is wrong.\n"), done.stderr
    left = plant(all_in_one.state / "backends" / "file2" / "pool2", f"volume-{uuid.uuid4()}")
    done = run("manage", *arguments)
    assert done.returncode == FOUND
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["WHAT", "WHERE", "NAME"]
    assert lines[1].split("  ") == ["object without a row", "node@file2#pool2", left.name]
    assert "no migration is known to have made it" in lines[2]
    refused = run("manage", *arguments, "--repair")
    assert refused.returncode == EXIT_CONFIG
    assert "transport_url" in refused.stderr
    assert left.exists()
    assert rest.volume(volume["id"])["status"] == "available"


def test_fence_lists_who_waits_and_refuses_what_waits_for_nothing(all_in_one: AllInOne) -> None:
    arguments = [*config(all_in_one.state, "transport_url = local://\n"), "migration", "fence"]
    nobody = run("manage", *arguments)
    assert (nobody.returncode, nobody.stdout) == (0, ""), nobody.stderr
    rest = all_in_one.rest()
    volume = rest.create(1)
    place = "node@file2#pool2" if volume["os-vol-host-attr:host"].startswith("node@file1") else "node@file1#pool1"
    done = rest.moved(volume["id"], place)
    refused = run("manage", *arguments, done["id"], "--i-know-the-machine-is-off")
    assert refused.returncode == 1
    assert f"Migration {done['id']} waits for no machine: it ended success." in refused.stderr
    assert "could not be found" in run("manage", *arguments, str(uuid.uuid4())).stderr
