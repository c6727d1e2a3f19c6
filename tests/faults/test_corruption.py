"""The destination is changed behind our back: found by the verification, rolled back, the source as it was."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit import content
from tests.support.bed import B, Bed
from tests.support.data import GIB, MIB, data_extents
from tests.support.needs import missing
from tests.support.waiting import until

#: So much that a copy and a verification can be met in the middle.
DATA_MIB = 250


def flip_bits(path: Path) -> None:
    """Flip one bit of the first byte of every extent that was written so far."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for start, _ in list(data_extents(file.fileno(), size)):
            byte = os.pread(file.fileno(), 1, start)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), start)
        os.fsync(file.fileno())


def lose_data(path: Path) -> None:
    """Make the file a hole of the same size."""
    os.truncate(path, 0)
    os.truncate(path, GIB)


def cut_short(path: Path) -> None:
    """Cut off all but the first MiB; a copy that still writes makes it grow again."""
    os.truncate(path, MIB)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "bits flipped": flip_bits,
    "data lost": lose_data,
    "cut short": cut_short,
}


def is_rolled_back(bed: Bed, volume_id: str, row: dict[str, Any]) -> None:
    """Fail unless the damage was found and the volume is where and as it was; then make room for the next."""
    bed.settle()
    ended = bed.audit.migration(row["id"])
    assert ended["end"] == "error", ended
    assert ended["error_code"] in ("VerifyMismatch", "SizeMismatch"), ended
    assert bed.audit.volume(volume_id)["host"] == ended["source_host"]
    bed.rest.moved(volume_id, bed.other(volume_id), force_host_copy=True)
    bed.rest.delete(volume_id)
    del bed.wanted[volume_id]
    bed.settle()


def destination(bed: Bed, row: dict[str, Any]) -> Path:
    return bed.pools[row["destination_host"]] / f"volume-{row['destination_volume_id']}"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_during_the_copy(shared: Bed, chance: random.Random, damage: str) -> None:
    """field.md part 5: a destination corrupted behind its back was told as success, and the good copy deleted."""
    volume_id = shared.volume(chance, DATA_MIB)
    row = shared.copying(volume_id, done=1)
    with shared.stopped("hosta"):
        assert shared.audit.migration(row["id"])["step"] == "copy_data", "it was to be met in the copy"
        DAMAGES[damage](destination(shared, row))
    is_rolled_back(shared, volume_id, row)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_between_copy_and_verification(shared: Bed, chance: random.Random, damage: str) -> None:
    """The service is killed when all is copied and nothing is compared for good: it compares all of it anew."""
    volume_id = shared.volume(chance, DATA_MIB)
    row = shared.copying(volume_id, "verify_copy")
    shared.kill("hosta")
    assert shared.audit.migration(row["id"])["step"] == "verify_copy", "it was to be met in the verification"
    DAMAGES[damage](destination(shared, row))
    shared.start("hosta")
    shared.ready("hosta")
    is_rolled_back(shared, volume_id, row)


def test_behind_the_switch_nothing_is_compared_any_more(shared: Bed, chance: random.Random) -> None:
    """What the owner writes at the new place, while the old one is not deleted yet, is the owner's to write."""
    volume_id = shared.volume(chance, 8)
    old = shared.audit.path(volume_id)
    with undeletable(old):
        row = shared.copying(volume_id, "delete_source")
        new = shared.audit.path(volume_id)
        assert new == destination(shared, row)
        flip_bits(new)
        shared.wanted[volume_id] = content(new)
        query = "SELECT 1 FROM migration_steps WHERE migration_id = :id AND step = 'delete_source' AND attempt > 1"
        until(lambda: shared.audit.rows(query, id=row["id"]), "the deletion is tried again", 30)
        assert old.exists()
    shared.settle()
    assert shared.audit.migration(row["id"])["end"] == "success"
    assert shared.audit.volume(volume_id)["host"] == B


@contextlib.contextmanager
def undeletable(path: Path) -> Iterator[None]:
    """Let the file be read alone for the time of the block, also by root."""
    done = subprocess.run(["chattr", "+i", str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"chattr +i is not possible here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)
