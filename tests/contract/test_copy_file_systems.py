"""The copy engine by its command on the file systems in use: what it writes there, what stays a hole, what it reads.

File systems differ in what they call a hole before it is written back, in what direct I/O they take, and in how they
zero; the rest of the tests see whichever one their own files are on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.cmd.copy import SUCCESS, main
from tests.contract.mounts import SHARING, sharing, tmpfs
from tests.support.data import MIB, allocated, digest, write_pattern

#: No alignment divides it.
SIZE = 24 * MIB + 4096 + 77
KINDS = (*SHARING, "tmpfs")


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        kind = request.param
        made = tmpfs(tmp_path / kind, "size=200m") if kind == "tmpfs" else sharing(kind, tmp_path / kind)
        yield stack.enter_context(made)


@pytest.fixture
def source(disk: Path) -> Path:
    """Data and holes; a part is not on the disk yet, which some file systems call a hole all the same."""
    path = disk / "source"
    path.touch()
    os.truncate(path, SIZE)
    write_pattern(path, SIZE, 5)
    with path.open("r+b") as file:
        for start in range(MIB + 13, SIZE, 3 * MIB):
            file.seek(start)
            file.write(b"late" * 5000)
    return path


def test_a_copy_is_true_and_sparse(disk: Path, source: Path) -> None:
    destination = disk / "destination"
    assert main([str(source), str(destination), "--quiet"]) == SUCCESS
    assert digest(destination) == digest(source)
    assert allocated(destination) <= allocated(source) + MIB


def test_old_data_of_a_dirty_destination_does_not_show(disk: Path, source: Path) -> None:
    destination = disk / "destination"
    destination.write_bytes(os.urandom(SIZE))
    assert main([str(source), str(destination), "--quiet"]) == SUCCESS
    assert digest(destination) == digest(source)
    os.sync()
    assert allocated(destination) <= allocated(source) + MIB, "what was old is free again"


def test_a_volume_goes_to_another_file_system_and_back(disk: Path, source: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", disk / "back"
    assert main([str(source), str(there), "--quiet"]) == SUCCESS
    assert main([str(there), str(back), "--quiet"]) == SUCCESS
    assert digest(there) == digest(back) == digest(source)
