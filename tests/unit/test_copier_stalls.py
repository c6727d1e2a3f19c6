"""A device that hangs: reported, and nobody but its own job waits for it; not even when its process cannot die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator import errors, machine
from migrator.drivers.base import Connection
from migrator.volume import worker_copier
from migrator.volume.control import Control, Stopped
from migrator.volume.copiers import CopierPool, CopyStopped, InlineCopier, WorkerCopier, kill_worker
from migrator.volume.files import FileEndpoint
from migrator.volume.worker_copier import _Job
from tests.support.needs import missing
from tests.support.waiting import until

MIB = 1 << 20
SIZE = 32 * MIB


def file(path: Path, size: int = SIZE, content: bytes = b"") -> dict[str, Any]:
    with path.open("wb") as made:
        made.write(content)
        made.truncate(size)
    return Connection("file", str(path), machine.boot_id(), size, is_zero=True, writable=True).as_dict()


class Frozen:
    """A file system of its own that can be frozen: whoever writes to it then waits inside the kernel, unkillable."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def freeze(self) -> None:
        subprocess.run(["fsfreeze", "--freeze", str(self.place)], check=True)

    def thaw(self) -> None:
        subprocess.run(["fsfreeze", "--unfreeze", str(self.place)], check=False, capture_output=True)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Frozen]:
    image, place = tmp_path / "image", tmp_path / "place"
    place.mkdir()
    with image.open("wb") as made:
        made.truncate(128 * MIB)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, env=os.environ | {"PATH": "/sbin:/usr/sbin"})
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        missing(f"no file system that can be frozen: {error}")
    frozen = Frozen(place)
    try:
        yield frozen
    finally:
        frozen.thaw()
        until(lambda: subprocess.run(["umount", str(place)], check=False).returncode == 0, "the unmounting")


def test_a_process_that_cannot_die_holds_up_nobody(device: Frozen, tmp_path: Path) -> None:
    """The cancel is through within a second or so; who has to be sure of the end is told that there is none yet."""
    source = file(tmp_path / "source", content=os.urandom(SIZE))
    destination = file(device.place / "destination")
    copier = WorkerCopier()
    events: list[dict[str, Any]] = []
    stop: list[float] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["bytes_written"] and not any(event["bytes_written"] for event in events):
            device.freeze()
        events.append(event)

    def cancelled() -> bool | str:
        if not stop and any(event["stalled_seconds"] for event in events):
            stop.append(time.monotonic())
        return "cancel" if stop else False

    options = {"bytes_per_second": 8 * MIB, "checkpoint_seconds": 0.2, "io_timeout_seconds": 0.5}
    with pytest.raises(errors.CopierHangs):
        copier.copy(source, destination, [], options, on_event, cancelled)
    assert time.monotonic() - stop[0] < 2.0
    assert events[-1]["stalled_seconds"] >= 0.5
    assert copier.identity is not None
    assert machine.is_alive(copier.identity["pid"], copier.identity["started"])
    began = time.monotonic()
    copier.close()
    assert time.monotonic() - began < 2.0
    with pytest.raises(errors.CopierHangs, match=str(copier.identity["pid"])):
        kill(copier.identity, 0.3)
    device.thaw()
    assert kill_worker(copier.identity)


def kill(identity: dict[str, Any], seconds: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_copier, "FENCE_SECONDS", seconds)
        kill_worker(identity)


def test_a_pool_with_a_process_that_cannot_die_goes_on(device: Frozen, tmp_path: Path) -> None:
    source = file(tmp_path / "source", content=os.urandom(SIZE))
    pool = CopierPool(1)
    frozen = False

    def on_event(event: dict[str, Any]) -> None:
        nonlocal frozen
        if event["bytes_written"] and not frozen:
            device.freeze()
            frozen = True

    options = {"bytes_per_second": 8 * MIB, "checkpoint_seconds": 0.2}
    due = time.monotonic() + 1.5
    with pytest.raises(errors.CopierHangs), pool.take() as copier:
        copier.copy(source, file(device.place / "d"), [], options, on_event, lambda: frozen and time.monotonic() > due)
    with pool.take(timeout=10) as other:
        other.copy(source, file(tmp_path / "destination"), [], {}, lambda event: None, lambda: False)
    began = time.monotonic()
    pool.shut_down()
    assert time.monotonic() - began < 5
    device.thaw()


class Slow(FileEndpoint):
    """A file whose calls wait for a gate."""

    gate = threading.Event()
    calls = ("pread_into",)

    def pread_into(self, offset: int, buffer: memoryview) -> int:
        if "pread_into" in self.calls:
            self.gate.wait(30)
        return super().pread_into(offset, buffer)

    def flush(self) -> None:
        if "flush" in self.calls:
            self.gate.wait(30)
        super().flush()


@pytest.mark.parametrize(("end", "call"), [("source", "pread_into"), ("destination", "flush")])
def test_the_caller_hears_of_a_request_that_does_not_come_back_and_of_its_coming(
    tmp_path: Path, end: str, call: str
) -> None:
    """Also of a flush: whoever waits for one goes on counting."""
    ends = {name: file(tmp_path / name, content=os.urandom(4 * MIB)) for name in ("source", "destination")}
    ends[end] = {**ends[end], "kind": "memory"}
    gate = threading.Event()
    opened = type("Opened", (Slow,), {"gate": gate, "calls": (call,)})
    copier = InlineCopier(lambda path: opened(path, writable=True))
    stalled: list[float] = []

    def on_event(event: dict[str, Any]) -> None:
        stalled.append(event["stalled_seconds"])
        if len([seconds for seconds in stalled if seconds]) == 2:
            gate.set()

    options = {"io_timeout_seconds": 0.4, "checkpoint_seconds": 0.1}
    copier.copy(ends["source"], ends["destination"], [], options, on_event, lambda: False)
    first, second = (seconds for seconds in stalled if seconds)
    assert 0.4 <= first < second
    assert stalled[-1] == 0.0
    assert Path(ends["source"]["path"]).read_bytes() == Path(ends["destination"]["path"]).read_bytes()


@contextlib.contextmanager
def stopped_worker(tmp_path: Path) -> Iterator[tuple[WorkerCopier, Callable[..., Any]]]:
    copier = WorkerCopier()
    source, destination = file(tmp_path / "source", content=os.urandom(SIZE)), file(tmp_path / "destination")
    assert copier.identity is not None
    pid = int(copier.identity["pid"])

    def copy(on_event: Callable[[dict[str, Any]], None], cancelled: Callable[[], bool | str]) -> Any:
        def stopping(event: dict[str, Any]) -> None:
            os.kill(pid, signal.SIGSTOP)
            on_event(event)

        options = {"bytes_per_second": 4 * MIB, "io_timeout_seconds": 0.3}
        return copier.copy(source, destination, [], options, stopping, cancelled)

    yield copier, copy
    copier.close()


def test_a_worker_that_says_nothing_is_spoken_for(tmp_path: Path) -> None:
    """Opening a device may hang as well, and then there is no thread that could report it."""
    events: list[dict[str, Any]] = []
    with stopped_worker(tmp_path) as (_, copy), pytest.raises(CopyStopped, match="pause"):
        copy(events.append, lambda: "pause" if len(events) > 2 else False)
    assert all(event["stalled_seconds"] >= 0.3 for event in events[1:])
    assert {"ranges", "bytes_done", "bytes_written", "rate", "rate_overall"} <= events[-1].keys()


@pytest.mark.parametrize("reason", ["cancel", "pause"])
def test_a_job_that_hangs_stops_within_a_second_and_a_half(tmp_path: Path, reason: str) -> None:
    told: list[float] = []
    events: list[dict[str, Any]] = []

    def cancelled() -> bool | str:
        if len(events) > 1:
            told.append(time.monotonic())
        return reason if told else False

    with stopped_worker(tmp_path) as (_, copy), pytest.raises(CopyStopped, match=reason):
        copy(events.append, cancelled)
    assert time.monotonic() - told[0] < 1.5


def test_a_pause_that_lasts_can_become_a_cancel() -> None:
    answers: list[bool | str] = ["pause"]
    command = {"source": {"size": 5}, "options": {}}
    job = _Job(7, command, lambda: answers[-1])
    assert job.order() == {"do": "stop", "job": 7, "reason": "pause"}
    patient = job._overdue_at
    assert job.order() is None
    answers.append(True)
    assert job.order() is None
    assert job.reason == "cancel"
    assert job._overdue_at < patient


def test_a_rate_is_ordered_at_once_even_of_a_worker_that_does_not_read(tmp_path: Path) -> None:
    with stopped_worker(tmp_path) as (copier, copy):
        events: list[dict[str, Any]] = []
        took: list[float] = []

        def on_event(event: dict[str, Any]) -> None:
            events.append(event)
            began = time.monotonic()
            for rate in range(10_000):
                copier.limit(rate)
            took.append(time.monotonic() - began)

        with pytest.raises(CopyStopped):
            copy(on_event, lambda: len(events) > 1)
        assert max(took) < 1.0


def test_control_stops_what_waits_for_its_turn() -> None:
    control = Control(1.0)
    while control.admit(1 << 20) == 0.0:
        pass
    control.stop("pause")
    began = time.monotonic()
    control.wait(5)
    assert time.monotonic() - began < 1
    with pytest.raises(Stopped, match="pause"):
        raise Stopped(control.reason or "")
