"""Real worker processes: copy, stop, die, are fenced off, outlive nobody and leave nothing behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator import errors, machine
from migrator.volume import worker_copier as one
from migrator.volume.copiers import CopierPool, CopyStopped, WorkerCopier, kill_worker
from tests.contract.mounts import tmpfs
from tests.support.copying import MIB, SIZE, SLOW, Volume, after, ignore, no
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool() -> Iterator[CopierPool]:
    pool = CopierPool(1)
    yield pool
    pool.shut_down()


@pytest.fixture
def source(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "source", os.urandom(SIZE))


@pytest.fixture
def destination(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "destination")


def is_gone(identity: dict[str, Any] | None) -> bool:
    assert identity is not None
    return not machine.is_alive(identity["pid"], identity["started"])


def pid(copier: Any) -> int:
    return int(copier.identity["pid"])


def open_files(process: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(descriptor))
    return found


def test_a_worker_copies_and_verifies_and_stays_for_the_next(
    pool: CopierPool, source: Volume, destination: Volume
) -> None:
    events: list[dict[str, Any]] = []
    with pool.take() as copier:
        result = copier.copy(source(), destination(True), [], {"checkpoint_seconds": 0.05}, events.append, no)
        # Done means closed: nothing can be written any more.
        assert not [path for path in open_files(pid(copier)) if path.startswith(str(source.path.parent))]
        first = pid(copier)
    assert destination.path.read_bytes() == source.path.read_bytes()
    assert events[0]["event"] == "started"
    assert events[-1]["event"] == "checkpoint"
    assert events[-1]["ranges"] == [[0, SIZE]]
    assert all({"ranges", "bytes_done", "bytes_written", "rate"} <= event.keys() for event in events)
    assert (result["bytes_done"], result["bytes_written"]) == (SIZE, SIZE)
    with pool.take() as copier:
        checksum = copier.verify(source(), destination(), no)
        assert pid(copier) == first
    assert checksum.startswith("xxh3-128:")


def test_a_dirty_destination_is_zeroed_unless_it_is_known_to_be_zero(pool: CopierPool, tmp_path: Path) -> None:
    """field.md bug 9 (LP2045431): the connection says whether it reads as zeros."""
    source, destination = Volume(tmp_path / "source"), Volume(tmp_path / "destination", b"secret" * 1000)
    with pool.take() as copier:
        copier.copy(source(), destination(True, is_zero=False), [], {}, ignore, no)
    assert destination.path.read_bytes() == bytes(SIZE)


def test_only_what_is_not_done_is_copied_on_resume(pool: CopierPool, source: Volume, destination: Volume) -> None:
    events: list[dict[str, Any]] = []
    with pool.take() as copier:
        with pytest.raises(CopyStopped, match="pause"):
            copier.copy(source(), destination(True), [], SLOW, events.append, after(0.7, "pause"))
        done = events[-1]["ranges"]
        copied = sum(length for _, length in done)
        assert MIB <= copied < SIZE
        result = copier.copy(source(), destination(True), done, {}, ignore, no)
    assert result["bytes_written"] == SIZE - copied
    assert destination.path.read_bytes() == source.path.read_bytes()


@pytest.mark.parametrize("job", ["copy", "verify"])
def test_a_job_is_cancelled_within_a_second_and_both_ends_are_closed(
    pool: CopierPool, source: Volume, destination: Volume, job: str
) -> None:
    asked = [time.monotonic()]

    def cancelled() -> bool:
        asked.append(time.monotonic())
        return asked[-1] - asked[0] > 0.6

    with pool.take() as copier:
        jobs: dict[str, Callable[[], object]] = {
            "copy": lambda: copier.copy(source(), destination(True), [], SLOW, ignore, cancelled),
            "verify": lambda: copier.verify(source(), destination(), cancelled, {"bytes_per_second": 1000}),
        }
        if job == "verify":
            copier.copy(source(), destination(True), [], {}, ignore, no)
        with pytest.raises(CopyStopped, match="cancel"):
            jobs[job]()
        assert time.monotonic() - asked[-1] < 1.0
        assert max(b - a for a, b in itertools.pairwise(asked[1:])) < 0.5
        assert not [path for path in open_files(pid(copier)) if path.startswith(str(source.path.parent))]


def test_a_rate_changes_while_the_copy_runs(pool: CopierPool, source: Volume, destination: Volume) -> None:
    with pool.take() as copier:
        lift = threading.Timer(0.5, copier.limit, (None,))
        lift.start()
        began = time.monotonic()
        copier.copy(source(), destination(True), [], {"bytes_per_second": MIB}, ignore, no)
        assert 0.5 < time.monotonic() - began < 4  # 8 s at the first rate
        lift.join()


def test_a_killed_worker_is_an_error_and_the_next_job_gets_a_new_one(
    pool: CopierPool, source: Volume, destination: Volume
) -> None:
    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            os.kill(pid(copier), signal.SIGKILL)

    with (
        pytest.raises(errors.DriverError, match="copy worker: was killed by signal 9"),
        pool.take() as copier,
    ):
        copier.copy(source(), destination(True), [], SLOW, kill, no)
    with pool.take() as other:
        assert pid(other) != pid(copier)
        other.copy(source(), destination(True), [], {}, ignore, no)
    assert destination.path.read_bytes() == source.path.read_bytes()


def test_a_worker_killed_while_idle_is_replaced(pool: CopierPool, source: Volume, destination: Volume) -> None:
    with pool.take() as copier:
        identity = copier.identity
    os.kill(pid(copier), signal.SIGKILL)
    until(lambda: is_gone(identity), "the worker's end")
    with pool.take() as other:
        other.copy(source(), destination(True), [], {}, ignore, no)
        assert pid(other) != pid(copier)


def test_what_on_event_raises_ends_the_writing_before_it_is_raised(
    pool: CopierPool, source: Volume, destination: Volume
) -> None:
    def lose(event: dict[str, Any]) -> None:
        raise errors.LostOwnership(migration_id="m", generation=1)

    with pool.take() as copier:
        with pytest.raises(errors.LostOwnership):
            copier.copy(source(), destination(True), [], SLOW, lose, no)
        assert is_gone(copier.identity)


def test_a_worker_that_does_not_obey_is_killed(
    pool: CopierPool, source: Volume, destination: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(one.PATIENCE_SECONDS, "cancel", 0.3)
    with pool.take() as copier, pytest.raises(CopyStopped, match="cancel"):
        copier.copy(
            source(), destination(True), [], SLOW, lambda event: os.kill(pid(copier), signal.SIGSTOP), after(0.3)
        )
    assert is_gone(copier.identity)


def test_fencing_kills_a_stopped_worker_and_waits_for_its_end(source: Volume, destination: Volume) -> None:
    copier = WorkerCopier()
    assert copier.identity is not None
    failed: list[BaseException] = []

    def run() -> None:
        try:
            copier.copy(source(), destination(True), [], SLOW, ignore, no)
        except errors.DriverError as error:
            failed.append(error)

    owner = threading.Thread(target=run)
    owner.start()
    until(lambda: str(destination.path) in open_files(pid(copier)), "the copy's begin")
    os.kill(pid(copier), signal.SIGSTOP)
    assert kill_worker(copier.identity)
    assert is_gone(copier.identity)
    assert kill_worker(copier.identity)  # of what is gone: success
    owner.join(5)
    assert [str(error) for error in failed] == ["copy worker: was killed by signal 9"]
    copier.close()


def test_fencing_leaves_other_processes_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        started = machine.process_started(bystander.pid)
        assert started is not None
        identity = {"machine": machine.boot_id(), "pid": bystander.pid, "started": started}
        assert kill_worker(identity | {"started": started - 1})
        assert not kill_worker(identity | {"machine": "another"})
        assert bystander.poll() is None
        bystander.kill()


def test_a_worker_ends_with_its_parent_in_the_middle_of_a_copy(
    source: Volume, destination: Volume, tmp_path: Path
) -> None:
    """The orphaned copy that went on after kill -9 of its service, field.md part 5."""
    program = """if True:
        import sys, json
        from migrator.volume.copiers import CopierPool
        source, destination, options = map(json.loads, sys.argv[1:])
        with CopierPool(1).take() as copier:
            def tell(event):
                print(json.dumps(copier.identity), flush=True)
            copier.copy(source, destination, [], options, tell, lambda: False)
    """
    arguments = [json.dumps(value) for value in (source(), destination(True), {**SLOW, "bytes_per_second": MIB})]
    parent = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
    )
    assert parent.stdout is not None
    identity = json.loads(parent.stdout.readline())
    assert not is_gone(identity)
    parent.kill()
    parent.wait()
    until(lambda: is_gone(identity), "the worker's end", seconds=2)
    parent.stdout.close()


def test_a_worker_at_rest_ends_when_its_socket_does(source: Volume) -> None:
    copier = WorkerCopier()
    copier.verify(source(), source(), no)
    copier._channel.close()
    until(lambda: is_gone(copier.identity), "the worker's end", seconds=2)
    copier.close()


def test_a_worker_ignores_signals_of_its_service(pool: CopierPool, source: Volume, destination: Volume) -> None:
    with pool.take() as copier:

        def signals(event: dict[str, Any]) -> None:
            os.kill(pid(copier), signal.SIGTERM)
            os.kill(pid(copier), signal.SIGINT)

        copier.copy(source(), destination(True), [], {"checkpoint_seconds": 0.05}, signals, no)
        assert not is_gone(copier.identity)


def test_a_worker_inherits_nothing_but_its_socket(tmp_path: Path, source: Volume, destination: Volume) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        copier = WorkerCopier()
        copier.verify(source(), source(), no)
        files = open_files(pid(copier))
        copier.close()
    assert len([name for name in files if name.startswith("socket:")]) == 1
    assert not [name for name in files if str(tmp_path) in name]


def test_memory_of_a_worker_is_bounded(pool: CopierPool, tmp_path: Path) -> None:
    big, destination = (Volume(tmp_path / name, None, 4 << 30) for name in "ab")
    with big.path.open("r+b") as file:
        for offset in range(0, 4 << 30, 32 * MIB):
            os.pwrite(file.fileno(), b"data" * 20_000, offset)
    with pool.take() as copier:
        copier.copy(big(), destination(True), [], {}, ignore, no)
        status = Path(f"/proc/{pid(copier)}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 64 * 1024


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_full_destination_is_no_space(pool: CopierPool, source: Volume, destination: Volume) -> None:
    with pool.take() as copier, pytest.raises(errors.NoSpace, match="quota"):
        copier.copy(source(), destination(True, limit=3 * MIB), [], {}, ignore, no)
    assert destination.path.stat().st_blocks * 512 <= 5 * MIB


def test_a_full_file_system_is_no_space(pool: CopierPool, source: Volume, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=4m") as small:
        destination = Volume(small / "destination")
        with pool.take() as copier, pytest.raises(errors.NoSpace):
            copier.copy(source(), destination(True), [], {}, ignore, no)


def test_a_difference_is_told_with_its_offset(pool: CopierPool, source: Volume, tmp_path: Path) -> None:
    """field.md part 5: a destination corrupted behind its back was taken for a success."""
    content = bytearray(source.path.read_bytes())
    content[7 * MIB + 13] ^= 1
    with pool.take() as copier, pytest.raises(errors.VerifyMismatch) as caught:
        copier.verify(source(), Volume(tmp_path / "other", bytes(content))(), no)
    assert caught.value.kwargs["offset"] == 7 * MIB + 13


def test_sizes_that_are_not_as_recorded_are_refused(pool: CopierPool, source: Volume, destination: Volume) -> None:
    os.truncate(destination.path, SIZE - 1)
    with pool.take() as copier, pytest.raises(errors.SizeMismatch) as caught:
        copier.copy(source(), destination(True), [], {}, ignore, no)
    assert (caught.value.kwargs["wanted"], caught.value.kwargs["got"]) == (SIZE, SIZE - 1)


def test_ends_that_cannot_be_opened_are_told_apart(pool: CopierPool, source: Volume, destination: Volume) -> None:
    nowhere = {**source(), "path": str(source.path) + "-none"}
    with pool.take() as copier:
        with pytest.raises(errors.SourceUnreadable, match="No such file"):
            copier.copy(nowhere, destination(True), [], {}, ignore, no)
        with pytest.raises(errors.DestinationUnwritable, match="No such file"):
            copier.copy(source(), nowhere, [], {}, ignore, no)
        with pytest.raises(errors.DriverError, match="threads"):
            copier.copy(source(), destination(True), [], {"threads": 0}, ignore, no)
        copier.copy(source(), destination(True), [], {}, ignore, no)  # it lives on


# --- the pool --------------------------------------------------------------------------------------------------------


def test_workers_are_handed_out_in_the_order_of_asking(pool: CopierPool) -> None:
    order: list[int] = []

    def wait(number: int) -> None:
        with pool.take():
            order.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(4)]
    with pool.take():
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: len(pool._waiting) == number + 1, "a thread in the queue")  # type: ignore[misc]
    for thread in threads:
        thread.join(5)
    assert order == [0, 1, 2, 3]


def test_waiting_for_a_worker_ends_by_time_or_on_request(pool: CopierPool) -> None:
    with pool.take():
        with pytest.raises(errors.DriverError, match="became free"), pool.take(timeout=0.1):
            pass
        with pytest.raises(CopyStopped, match="pause"), pool.take(stop=lambda: "pause"):
            pass
    with pool.take(timeout=5):
        pass


def test_shutting_down_ends_workers_at_rest_and_at_work(source: Volume, destination: Volume) -> None:
    pool = CopierPool(2)
    failed: list[BaseException] = []
    identities: list[Any] = []

    def run() -> None:
        try:
            with pool.take() as copier:
                identities.append(copier.identity)
                copier.copy(source(), destination(True), [], SLOW, ignore, no)
        except errors.DriverError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: identities and str(destination.path) in open_files(identities[0]["pid"]), "the copy's begin")
    with pool.take() as idle:
        identities.append(idle.identity)
    pool.shut_down()
    assert all(is_gone(identity) for identity in identities)
    thread.join(5)
    assert len(failed) == 1
    with pytest.raises(errors.DriverError, match="ending"), pool.take():
        pass
