"""A volume goes from a file to a block device, to another one that holds old data, and back to a file, unchanged."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.loops import Loops
from tests.support.data import GIB, MIB, write_pattern
from tests.support.processes import AllInOne
from tests.support.rest import Rest
from tests.support.waiting import until

#: Larger than the volume, and no multiple of anything large.
DEVICE = GIB + 3 * MIB + 512


class Setting:
    """migrator-all with files, a device that is wiped, and a dirty one that is not."""

    def __init__(self, directory: Path, loops: Loops) -> None:
        self.directory = directory
        self.loops = loops
        self.clean = self.loops.make("clean/disk", DEVICE)
        self.dirty = self.loops.make("dirty/disk", DEVICE, sector=4096)
        with self.dirty.node.open("r+b") as device:
            for offset in range(2 * MIB, DEVICE - 2 * MIB, 16 * MIB):
                os.pwrite(device.fileno(), b"SECRET" * 1000, offset)
        self.service = AllInOne(directory, self._config())

    def _config(self) -> str:
        dev = self.directory / "dev"
        return (
            "enabled_backends = files,clean,dirty\nreport_interval = 1\nverify = none\n"  # the test itself compares
            f"[files]\nvolume_driver = file\nfile_pools = p:{self.directory}/files\n"
            f"[clean]\nvolume_driver = block\nblock_pools = p:{dev}/clean/*\n"
            f"[dirty]\nvolume_driver = block\nblock_pools = p:{dev}/dirty/*\nblock_wipe = none\n"
        )


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with contextlib.ExitStack() as ends:
        loops = Loops(tmp_path)
        ends.callback(loops.end)
        made = Setting(tmp_path, loops)
        ends.callback(made.service.process.end)
        yield made


def same_volume(one: Path, other: Path, size: int) -> bool:
    """Compare the first ``size`` bytes of two files or devices, past the cache of what others wrote."""
    with one.open("rb") as a, other.open("rb") as b:
        for offset in range(0, size, 4 * MIB):
            length = min(4 * MIB, size - offset)
            if os.pread(a.fileno(), length, offset) != os.pread(b.fileno(), length, offset):
                return False
    return True


def free_gib(rest: Rest, host: str) -> float:
    pools = rest.ok("GET", "/scheduler-stats/get_pools?detail=true")["pools"]
    return next((float(pool["capabilities"]["free_capacity_gb"]) for pool in pools if pool["name"] == host), 0.0)


def test_a_volume_moves_between_files_and_devices_byte_for_byte(setting: Setting, tmp_path: Path) -> None:
    """LP2045431: holes must hide what the device held before; LP1454835: the device is larger than the volume."""
    rest = setting.service.rest()
    volume_id = rest.create(1, name="wanderer")["id"]
    if rest.volume(volume_id)["os-vol-host-attr:host"] != "node@files#p":
        rest.moved(volume_id, "node@files#p")
    (file,) = (tmp_path / "files").glob("volume-*")
    write_pattern(file, GIB, seed=7, data_share=0.05)
    reference = tmp_path / "reference"
    file.rename(reference)
    os.link(reference, file)

    rest.moved(volume_id, "node@dirty#p")
    assert same_volume(reference, setting.dirty.node, GIB)
    until(lambda: free_gib(rest, "node@clean#p") >= 1, "the clean device is checked", pause=0.2)
    rest.moved(volume_id, "node@clean#p")
    assert same_volume(reference, setting.clean.node, GIB)
    refuse_snapshot(rest, volume_id)
    rest.moved(volume_id, "node@files#p")
    (file,) = (tmp_path / "files").glob("volume-*")
    assert same_volume(reference, file, GIB)
    assert file.stat().st_size == GIB
    until(lambda: free_gib(rest, "node@clean#p") >= 1, "the device is wiped", pause=0.2)
    assert is_zero(setting.clean.node)
    assert list((setting.service.state / "block").glob("*.device"))


def refuse_snapshot(rest: Rest, volume_id: str) -> None:
    """A backend without snapshots fails the snapshot alone, and what is left of it can be deleted."""
    body = {"snapshot": {"volume_id": volume_id, "name": "none"}}
    snapshot_id = rest.ok("POST", "/snapshots", body)["snapshot"]["id"]
    path = f"/snapshots/{snapshot_id}"
    until(lambda: rest.ok("GET", path)["snapshot"]["status"] == "error", "the snapshot fails")
    assert rest.volume(volume_id)["status"] == "available"
    assert "cannot take snapshots" in str(rest.ok("GET", "/messages"))
    rest.ok("DELETE", path)
    until(lambda: rest.request("GET", path)[0] == 404, "the snapshot is gone")


def is_zero(device: Path) -> bool:
    with device.open("rb") as file:
        return not any(os.pread(file.fileno(), MIB, at).strip(b"\0") for at in range(0, DEVICE - MIB, MIB))


def checksum(device: Path) -> str:
    """Of all of a device but its last, broken, sector."""
    whole = hashlib.sha256()
    with device.open("rb") as file:
        for _ in range(0, DEVICE - MIB, MIB):
            whole.update(file.read(MIB))
    return whole.hexdigest()


def test_a_device_that_is_no_whole_gib_is_not_managed_and_stays_as_it_was(setting: Setting) -> None:
    """A volume has whole GiB, and a device cannot grow to the next one as a file does."""
    rest, device = setting.service.rest(), setting.directory / "dev" / "dirty" / "disk"
    before = checksum(setting.dirty.node)
    body = {"volume": {"host": "node@dirty#p", "ref": {"source-name": str(device)}, "name": "odd"}}
    volume_id = rest.ok("POST", "/os-volume-manage", body)["volume"]["id"]
    until(lambda: rest.volume(volume_id)["status"] == "error_managing", "it is refused")
    (message,) = rest.ok("GET", "/messages")["messages"]
    assert f"{2 * GIB} bytes are wanted" in message["user_message"]
    assert "cannot leave its device" in message["user_message"]
    rest.delete(volume_id)
    until(lambda: rest.request("GET", f"/volumes/{volume_id}")[0] == 404, "the row is gone")
    assert checksum(setting.dirty.node) == before
