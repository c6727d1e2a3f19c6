"""Storage that is full, cannot be read or cannot be written, with errors of the kernel's own making."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

from tests.contract.mounts import tmpfs
from tests.support.bed import A, B, Bed, bed
from tests.support.data import MIB
from tests.support.device import Device, drop_cache, failing_device
from tests.support.waiting import until

#: A device of memory: what is written to it is all that it costs.
SIZE = 2048 * MIB
#: Behind the tables of a file system of that size, and far before the end of the data.
CUT = 100 * MIB
DATA_MIB = 160


@contextlib.contextmanager
def on_device(directory: Path, broker: str, backend: str) -> Iterator[tuple[Bed, Device]]:
    """A deployment whose one backend lies on a device that can fail."""
    with failing_device(directory / "backends" / backend, SIZE) as device, bed(directory, broker) as opened:
        yield opened, device


def test_the_source_cannot_be_read(tmp_path: Path, broker: str, chance: random.Random) -> None:
    """Rolled back with the reason; mended, the same volume moves with every byte."""
    with on_device(tmp_path, broker, "file1/pool1") as (running, device):
        volume_id = running.volume(chance, DATA_MIB)
        drop_cache(running.audit.path(volume_id))
        device.cut(CUT)
        assert running.rest.migrate(volume_id, B, force_host_copy=True)[0] == 202
        until(lambda: running.audit.newest(volume_id)["end"], "it ended", 60, pause=0.05)
        device.mend()
        running.settle()
        ended = running.audit.newest(volume_id)
        assert (ended["end"], ended["error_code"]) == ("error", "SourceUnreadable"), ended
        assert "Input/output error" in ended["error_message"]
        assert running.audit.volume(volume_id)["host"] == A
        running.rest.moved(volume_id, B, force_host_copy=True)
        running.settle()


def test_the_destination_cannot_be_written(tmp_path: Path, broker: str, chance: random.Random) -> None:
    with on_device(tmp_path, broker, "file2/pool2") as (running, device):
        volume_id = running.volume(chance, DATA_MIB)
        device.cut(CUT, for_good=True)
        assert running.rest.migrate(volume_id, B, force_host_copy=True)[0] == 202
        running.settle()
        ended = running.audit.newest(volume_id)
        assert (ended["end"], ended["error_code"]) == ("error", "DestinationUnwritable"), ended
        assert "Input/output error" in ended["error_message"]
        assert running.audit.volume(volume_id)["host"] == A


def test_the_destination_cannot_be_read_back(tmp_path: Path, broker: str, chance: random.Random) -> None:
    """What was written and cannot be read is found before the source is deleted."""
    with on_device(tmp_path, broker, "file2/pool2") as (running, device):
        volume_id = running.volume(chance, DATA_MIB)
        row = running.copying(volume_id, "verify_copy")
        running.kill("hosta")
        assert running.audit.migration(row["id"])["step"] == "verify_copy"
        copy = running.pools[B] / f"volume-{row['destination_volume_id']}"
        drop_cache(copy)
        device.cut(CUT, for_good=True)
        running.start("hosta")
        running.ready("hosta")
        running.settle()
        ended = running.audit.newest(volume_id)
        assert ended["end"] == "error", ended
        assert "Input/output error" in ended["error_message"]
        assert running.audit.volume(volume_id)["host"] == A


def test_the_destination_is_full(tmp_path: Path, broker: str, chance: random.Random) -> None:
    """field.md part 5: the reason stood only in a log."""
    with tmpfs(tmp_path / "backends/file2/pool2", "size=64m"), bed(tmp_path, broker) as running:
        volume_id = running.volume(chance, DATA_MIB)
        assert running.rest.migrate(volume_id, B, force_host_copy=True)[0] == 202
        running.settle()
        ended = running.audit.newest(volume_id)
        assert (ended["end"], ended["error_code"]) == ("error", "NoSpace"), ended
        assert running.audit.volume(volume_id)["host"] == A


def test_migrations_that_share_a_failing_device_end_each_for_itself(
    tmp_path: Path, broker: str, chance: random.Random
) -> None:
    """A device that fails under several copies at once: each is rolled back, and the service goes on."""
    with on_device(tmp_path, broker, "file2/pool2") as (running, device):
        volumes = [running.volume(chance, 40) for _ in range(3)]
        device.cut(CUT, for_good=True)
        for volume_id in volumes:
            assert running.rest.migrate(volume_id, B, force_host_copy=True)[0] == 202
        running.settle()
        ends = [running.audit.newest(each)["end"] for each in volumes]
        assert "error" in ends, ends
        assert set(ends) <= {"success", "error"}, ends
