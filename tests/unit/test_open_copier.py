"""Who copies between two given connections, and what one who copied knows for the verification."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator import errors, machine
from migrator.drivers.base import Connection
from migrator.volume.copiers import CopierPool, CopyStopped, InlineCopier, WorkerCopier, open_copier
from migrator.volume.files import FileEndpoint
from tests.support.copying import MIB, SIZE, SLOW, Volume, after, ignore, no
from tests.support.disks import naive


@pytest.fixture(scope="module")
def pool() -> Iterator[CopierPool]:
    pool = CopierPool(2)
    yield pool
    pool.shut_down()


@pytest.fixture
def source(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "source", os.urandom(SIZE))


@pytest.fixture
def destination(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "destination")


def test_files_go_to_a_worker_and_memory_stays_here(pool: CopierPool, source: Volume, destination: Volume) -> None:
    memory = Connection("memory", "m", machine.boot_id(), SIZE)
    with open_copier(pool, source.connection(), destination.connection(True)) as copier:
        assert isinstance(copier, WorkerCopier)
    for ends in ((memory, destination.connection(True)), (source.connection(), memory)):
        with open_copier(pool, *ends) as inline:
            assert isinstance(inline, InlineCopier)
            assert inline.identity is None


def test_another_machine_is_unreachable(pool: CopierPool, source: Volume) -> None:
    far = Connection("file", "/x", "another boot", SIZE)
    with pytest.raises(errors.Unreachable), open_copier(pool, source.connection(), far):
        pass


class Opened:
    """Objects in memory for the inline copier: files, which say what was called."""

    def __init__(self, *volumes: Volume) -> None:
        self._paths = {volume.path.name: volume.path for volume in volumes}

    def __call__(self, path: str) -> Any:
        return FileEndpoint(str(self._paths[path]), writable=True)


def test_the_inline_copier_does_the_same(source: Volume, destination: Volume) -> None:
    copier = InlineCopier(Opened(source, destination))
    ends = [{**volume(), "kind": "memory", "path": volume.path.name} for volume in (source, destination)]
    events: list[dict[str, Any]] = []
    began = time.monotonic()
    with pytest.raises(CopyStopped, match="pause"):
        copier.copy(ends[0], ends[1], [], SLOW, events.append, after(0.5, "pause"))
    assert time.monotonic() - began < 1.5
    result = copier.copy(ends[0], ends[1], events[-1]["ranges"], {}, events.append, no)
    assert 0 < result["bytes_written"] < SIZE
    assert copier.verify(ends[0], ends[1], no).startswith("xxh3-128:")
    with pytest.raises(errors.SizeMismatch):
        copier.verify(ends[0] | {"size": 5}, ends[1], no)


@pytest.mark.parametrize(("limit", "wanted"), [(None, errors.DestinationUnwritable), (MIB, errors.NoSpace)])
def test_a_destination_that_cannot_be_closed_fails_the_copy_but_hides_no_earlier_error(
    source: Volume, destination: Volume, limit: int | None, wanted: type[errors.MigratorError]
) -> None:
    """Some file systems tell only at the close that what was written is lost."""

    class Sticky(FileEndpoint):
        def close(self) -> None:
            super().close()
            raise OSError(122, "Disk quota exceeded late") if limit else OSError(5, "Input/output error at close")

    copier = InlineCopier(lambda path: Sticky(path, writable=True, limit=limit))
    with pytest.raises(wanted) as caught:
        copier.copy(source(), destination(True) | {"kind": "memory"}, [], {}, ignore, no)
    assert ("late" in str(caught.value), "at close" in str(caught.value)) == (False, limit is None)
    copier = InlineCopier(lambda path: Sticky(path, writable=False))
    if limit is None:  # of the source, which is only read, nothing can be lost
        copier.copy(source() | {"kind": "memory"}, destination(True), [], {}, ignore, no)


# --- what one who copied knows ---------------------------------------------------------------------------------------


def bytes_read(copier: Any) -> int:
    """Bytes that the worker's system calls have read so far."""
    lines = Path(f"/proc/{copier.identity['pid']}/io").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def verified(pool: CopierPool, ends: tuple[Connection, Connection]) -> tuple[str, int]:
    """Verify between two exports; returns the checksum, and how many volumes were read for it."""
    with open_copier(pool, *ends) as copier:
        before = bytes_read(copier)
        checksum = copier.verify(ends[0].as_dict(), ends[1].as_dict(), no)
        return checksum, (bytes_read(copier) - before) // SIZE


def copied(pool: CopierPool, ends: tuple[Connection, Connection], **options: Any) -> Any:
    with open_copier(pool, *ends) as copier:
        return copier.copy(ends[0].as_dict(), ends[1].as_dict(), [], options, ignore, no)["checksum"]


def test_behind_a_copy_through_the_same_exports_only_the_destination_is_read(
    pool: CopierPool, source: Volume, destination: Volume, tmp_path: Path
) -> None:
    """Whichever of the free workers made it; the checksum is that of the bytes, as the copy told it."""
    ends = (source.connection(), destination.connection(True))
    others = (source.connection(), Volume(tmp_path / "other").connection(True))
    wanted = naive(source.path.read_bytes())
    assert copied(pool, ends) == wanted
    assert copied(pool, others) == wanted  # by the other one, which has nothing to forget
    assert verified(pool, ends) == (wanted, 1)
    assert verified(pool, others) == (wanted, 1)
    assert verified(pool, ends) == (wanted, 2)  # what was used is forgotten


@pytest.mark.parametrize("why", ["equal, but another export", "no checksum was wanted", "another copy came between"])
def test_in_any_doubt_both_ends_are_read(pool: CopierPool, source: Volume, destination: Volume, why: str) -> None:
    ends = (source.connection(), destination.connection(True))
    copied(pool, ends, hash=why != "no checksum was wanted")
    if why == "equal, but another export":
        ends = (source.connection(), destination.connection(True))
    elif why == "another copy came between":
        with open_copier(pool, *ends) as copier, pytest.raises(CopyStopped):
            copier.copy(ends[0].as_dict(), ends[1].as_dict(), [], SLOW, ignore, after(0.3))
    assert verified(pool, ends)[1] == 2 or why == "another copy came between"
    with destination.path.open("r+b") as file:
        os.pwrite(file.fileno(), bytes([source.path.read_bytes()[MIB + 5] ^ 1]), MIB + 5)
    with pytest.raises(errors.VerifyMismatch) as caught:
        verified(pool, ends)
    assert caught.value.kwargs["offset"] == MIB + 5


def test_a_part_that_an_earlier_run_copied_leaves_no_checksum(
    pool: CopierPool, source: Volume, destination: Volume
) -> None:
    ends = (source.connection(), destination.connection(True))
    destination.path.write_bytes(source.path.read_bytes()[:MIB] + bytes(SIZE - MIB))
    with open_copier(pool, *ends) as copier:
        result = copier.copy(ends[0].as_dict(), ends[1].as_dict(), [[0, MIB]], {}, ignore, no)
    assert result["checksum"] is None
    assert verified(pool, ends) == (naive(source.path.read_bytes()), 1)


def test_a_verification_reports_its_progress(pool: CopierPool, source: Volume, destination: Volume) -> None:
    destination.path.write_bytes(source.path.read_bytes())
    events: list[dict[str, Any]] = []
    with pool.take() as copier:
        copier.verify(source(), destination(), no, {"bytes_per_second": 5 * MIB}, events.append)
    assert [event["event"] for event in events][:2] == ["started", "progress"]
    assert 0 < events[1]["bytes_done"] < SIZE
    assert events[1]["stalled_seconds"] == 0.0
    assert 2 * MIB < events[1]["rate"] < 8 * MIB
    assert events[1]["rate"] == pytest.approx(events[1]["rate_overall"])


def test_a_rate_ordered_before_the_worker_listens_is_not_lost(
    pool: CopierPool, source: Volume, destination: Volume
) -> None:
    with pool.take() as copier:
        lift = threading.Timer(0.0, copier.limit, (None,))

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "started":
                lift.start()

        began = time.monotonic()
        copier.copy(source(), destination(True), [], {"bytes_per_second": MIB}, on_event, no)
        assert time.monotonic() - began < 4
        lift.join()
