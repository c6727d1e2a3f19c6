"""What goes wrong in life, through the whole of migrator-all: the volume stays usable and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.data import GIB, MIB, digest, write_pattern
from tests.support.needs import missing
from tests.support.processes import AllInOne
from tests.support.rest import Rest
from tests.support.waiting import until

A, B = "node@one#a", "node@two#b"


def config(directory: Path, extra: str = "") -> str:
    """Two file backends; ``extra`` are options of the second."""
    return (
        "enabled_backends = one,two\ncopy_checkpoint_seconds = 0.1\nmigration_retry_seconds = 0.1\n"
        f"[one]\nvolume_driver = file\nfile_pools = a:{directory}/one\nio_timeout_seconds = 1\n"
        f"[two]\nvolume_driver = file\nfile_pools = b:{directory}/two\n{extra}"
    )


class Bed:
    """A service with a volume of known content on the first backend."""

    def __init__(self, directory: Path, extra: str = "") -> None:
        self.directory = directory
        self.service = AllInOne(directory, config(directory, extra))
        self.rest: Rest = self.service.rest()
        self.volume_id = self.rest.create(1, name="mine")["id"]
        assert self.rest.volume(self.volume_id)["os-vol-host-attr:host"] == A
        self.source = directory / "one" / f"volume-{self.volume_id}"
        write_pattern(self.source, GIB, seed=3, data_share=0.15)
        self.content = digest(self.source)

    def left_at_destination(self) -> list[Path]:
        return list((self.directory / "two").glob("volume-*"))

    def is_rolled_back(self, migration: dict[str, Any]) -> None:
        """Fail unless the source is as it was, usable, and nothing else is left."""
        assert migration["status"] == "error", migration
        volume = self.rest.volume(self.volume_id)
        assert (volume["status"], volume["migration_status"]) == ("available", "error")
        assert volume["os-vol-host-attr:host"] == A
        assert digest(self.source) == self.content
        until(lambda: self.left_at_destination() == [], "nothing is left at the destination", 20)
        told = self.rest.ok("GET", f"/messages?resource_uuid={self.volume_id}")["messages"]
        assert any(migration["error"]["message"] in message["user_message"] for message in told), told

    def copying(self, done: int = 1) -> dict[str, Any]:
        """Start a host copy that takes some seconds, and wait until ``done`` bytes of it are recorded."""
        wanted = {"volume_id": self.volume_id, "host": B, "force_host_copy": True, "bytes_per_second": 48 * MIB}
        self.rest.ok("POST", "/migrations", {"migration": wanted})

        def under_way() -> dict[str, Any] | None:
            migration = self.rest.migration_of(self.volume_id)
            assert migration["status"] in ("running", "queued"), migration
            return migration if migration["step"] == "copy_data" and migration["bytes_done"] >= done else None

        return until(under_way, "the copy is under way", 60, pause=0.002) or {}


@pytest.fixture
def beds(tmp_path: Path) -> Iterator[list[Bed]]:
    opened: list[Bed] = []
    yield opened
    for bed in opened:
        bed.service.process.end()
    subprocess.run(["umount", "-l", str(tmp_path / "two")], check=False, capture_output=True)


def test_a_destination_over_its_quota(tmp_path: Path, beds: list[Bed]) -> None:
    """field.md part 5: with a full destination the reason stood only in a log."""
    bed = Bed(tmp_path, "file_pool_quota_gib = 0.1\n")
    beds.append(bed)
    assert bed.rest.migrate(bed.volume_id, B, force_host_copy=True)[0] == 202
    migration = bed.rest.wait_migration(bed.volume_id)
    assert migration["error"]["code"] == "NoSpace"
    assert migration["error"]["step"] == "copy_data"
    bed.is_rolled_back(migration)


def test_a_full_file_system(tmp_path: Path, beds: list[Bed]) -> None:
    if os.geteuid() != 0:
        missing("mounting a small tmpfs needs root; the quota stands in for it above")
    (tmp_path / "two").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(tmp_path / "two")], check=True)
    bed = Bed(tmp_path)
    beds.append(bed)
    assert bed.rest.migrate(bed.volume_id, B, force_host_copy=True)[0] == 202
    migration = bed.rest.wait_migration(bed.volume_id)
    assert migration["error"]["code"] == "NoSpace"
    bed.is_rolled_back(migration)


def test_a_destination_that_vanishes_in_the_middle(tmp_path: Path, beds: list[Bed]) -> None:
    bed = Bed(tmp_path)
    beds.append(bed)
    bed.copying()
    shutil.rmtree(tmp_path / "two")
    migration = bed.rest.wait_migration(bed.volume_id)
    bed.is_rolled_back(migration)


def test_a_source_that_ends_early(tmp_path: Path, beds: list[Bed]) -> None:
    """field.md part 2 (style 2): an early end of the source was taken for success."""
    bed = Bed(tmp_path)
    beds.append(bed)
    os.truncate(bed.source, GIB - 100 * MIB)
    bed.content = digest(bed.source)
    assert bed.rest.migrate(bed.volume_id, B, force_host_copy=True)[0] == 202
    migration = bed.rest.wait_migration(bed.volume_id)
    assert migration["error"]["code"] == "SizeMismatch", migration
    bed.is_rolled_back(migration)


def test_kill_9_of_the_whole_service_in_the_middle_of_a_copy(tmp_path: Path, beds: list[Bed]) -> None:
    """field.md pain 1, bug 38 (LP1278035): the migration goes on from its last flushed range, by itself."""
    bed = Bed(tmp_path)
    beds.append(bed)
    recorded = bed.copying(done=256 * MIB)["bytes_done"]
    bed.service.process.kill()
    bed.service.process.start()
    bed.service.process.wait_ready()
    migration = bed.rest.wait_migration(bed.volume_id)
    assert migration["status"] == "success", migration
    attempts = [step for step in migration["steps"] if step["step"] == "copy_data"]
    assert [step["result"] for step in attempts] == ["lost", "done"]
    assert recorded > 0
    assert attempts[-1]["bytes"] < migration["bytes_allocated"], "only the rest was written again"
    moved = tmp_path / "two" / f"volume-{migration['destination_volume_id']}"
    assert digest(moved) == bed.content
    assert not bed.source.exists()


def test_the_owner_deletes_the_volume_in_the_middle_of_its_copy(tmp_path: Path, beds: list[Bed]) -> None:
    """field.md part 5: every attempt to abort a running copy was refused."""
    bed = Bed(tmp_path)
    beds.append(bed)
    bed.copying()
    bed.rest.delete(bed.volume_id)
    until(lambda: bed.left_at_destination() == [], "nothing is left at the destination", 20)
    assert not bed.source.exists()


def test_a_cancel_in_the_middle_leaves_the_volume_as_it_was(tmp_path: Path, beds: list[Bed]) -> None:
    """field.md pain 3: there was no real abort."""
    bed = Bed(tmp_path)
    beds.append(bed)
    migration = bed.copying()
    bed.rest.ok("POST", f"/migrations/{migration['id']}/action", {"cancel": {}})
    ended = bed.rest.wait_migration(bed.volume_id)
    assert ended["status"] == "cancelled"
    assert bed.rest.volume(bed.volume_id)["migration_status"] == "error"
    assert digest(bed.source) == bed.content
    assert bed.left_at_destination() == []
    bed.rest.moved(bed.volume_id, B, force_host_copy=True)


def test_a_copy_that_hangs_is_shown_as_stalled_and_can_be_cancelled(tmp_path: Path, beds: list[Bed]) -> None:
    """What waits for a device says nothing; here the copying processes are stopped, which looks the same."""
    bed = Bed(tmp_path)
    beds.append(bed)
    migration = bed.copying()
    children = psutil.Process(bed.service.process.pid).children(recursive=True)
    workers = [child for child in children if "migrator.volume.worker" in child.cmdline()]
    assert workers
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)

    def shown() -> Any:
        return bed.rest.ok("GET", f"/migrations/{migration['id']}")["migration"]

    stalled = until(lambda: (row := shown())["stalled_seconds"] and row, "it is shown as stalled")
    assert stalled["status"] == "running"
    assert stalled["heartbeat_age_seconds"] < 20, "whoever works on it is well"
    other = bed.rest.create(1)["id"]  # nobody else is held up
    bed.rest.delete(other)
    bed.rest.ok("POST", f"/migrations/{migration['id']}/action", {"cancel": {}})
    assert bed.rest.wait_migration(bed.volume_id)["status"] == "cancelled"
    assert digest(bed.source) == bed.content
    assert bed.left_at_destination() == []
