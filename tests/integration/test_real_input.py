"""Real data through migrator-all: file systems of several sizes, moved A→B→C→A, checked after each move."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.data import GIB, MIB, allocated, check_ext4, data_extents, ext4_image, same_bytes
from tests.support.processes import AllInOne

BACKENDS = {"one": "a", "two": "b", "three": "c"}
HOSTS = [f"node@{backend}#{pool}" for backend, pool in BACKENDS.items()]


def config(directory: Path) -> str:
    """Three file backends in one process."""
    sections = "".join(
        f"[{backend}]\nvolume_driver = file\nvolume_backend_name = {backend}\n"
        f"file_pools = {pool}:{directory}/{backend}\n"
        for backend, pool in BACKENDS.items()
    )
    return f"enabled_backends = {','.join(BACKENDS)}\n{sections}"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AllInOne]:
    running = AllInOne(tmp_path, config(tmp_path))
    try:
        yield running
    finally:
        running.process.end()


def tree(directory: Path, size: int) -> Path:
    """A directory of files, odd sizes and deep names, of about ``size`` bytes in all."""
    chance = random.Random(size)
    left, number = size, 0
    while left > 0:
        length = min(left, chance.randrange(1, 3 * MIB))
        folder = directory / f"d{number % 7}" / f"e{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file {number}").write_bytes(chance.randbytes(length))
        left, number = left - length, number + 1
    return directory


@pytest.mark.parametrize(
    ("gib", "image_bytes", "data"),
    [
        (1, MIB + 123 * 1024, 300 * 1024),
        (1, 37 * MIB + 12345 * 1024, 20 * MIB),
        (1, GIB, 300 * MIB),
        (5, 5 * GIB, 100 * MIB),
    ],
    ids=["1 MiB and a bit", "a part of the volume, not aligned", "1 GiB", "5 GiB sparse"],
)
@pytest.mark.parametrize("forced", [True, False], ids=["host copy", "assisted"])
def test_a_file_system_goes_round_and_stays_the_same(
    service: AllInOne, tmp_path: Path, gib: int, image_bytes: int, data: int, forced: bool
) -> None:
    """field.md bugs 1, 2, 19 (LP1487952: name_id) and 41 (LP1472486, LP1455595: sparse volumes inflated)."""
    rest = service.rest()
    volume_id = rest.create(gib, name="fs")["id"]
    host = rest.volume(volume_id)["os-vol-host-attr:host"]
    first = HOSTS.index(host)

    def place() -> Path:
        volume = rest.volume(volume_id)
        backend = str(volume["os-vol-host-attr:host"]).split("@")[1].split("#")[0]
        return tmp_path / backend / f"volume-{volume['os-vol-mig-status-attr:name_id'] or volume_id}"

    image = tmp_path / "image"
    ext4_image(image, image_bytes, tree(tmp_path / "tree", data))
    with image.open("rb") as source, place().open("r+b") as target:
        for start, end in data_extents(source.fileno(), image_bytes):
            for offset in range(start, end, MIB):
                os.pwrite(target.fileno(), os.pread(source.fileno(), min(MIB, end - offset), offset), offset)
    reference = tmp_path / "reference"
    subprocess.run(["cp", "--sparse=always", str(place()), str(reference)], check=True)
    occupied = allocated(place())
    for step in (1, 2, 3):
        migration = rest.moved(volume_id, HOSTS[(first + step) % 3], force_host_copy=forced)
        assert migration["plan"] == ("host_copy" if forced else "assisted")
        now = place()
        assert same_bytes(now, reference)
        assert allocated(now) <= occupied + 2 * MIB, "thin stays thin"
        check_ext4(now)
        left = [path for backend in BACKENDS for path in (tmp_path / backend).glob("volume-*")]
        assert left == [now]
    rest.ok("POST", f"/volumes/{volume_id}/action", {"os-extend": {"new_size": gib + 1}})
    rest.wait_volume(volume_id, "available")
    assert place().stat().st_size == (gib + 1) * GIB
    rest.delete(volume_id)
    assert [path for backend in BACKENDS for path in (tmp_path / backend).glob("volume-*")] == []
