"""migrator-copy as its users run it: a process, its words, its files and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.cmd import copy as program
from migrator.volume.statefile import StateError, StateFile
from tests.contract.loops import Loops
from tests.contract.mounts import tmpfs
from tests.support.data import same_bytes
from tests.support.disks import naive
from tests.support.needs import missing
from tests.support.waiting import until

MIB = 1 << 20
SIZE = 6 * MIB + 777
ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    with path.open("wb") as file:
        file.write(os.urandom(3 * MIB))
        file.seek(5 * MIB)
        file.write(b"behind a hole")
        file.truncate(SIZE)
    return path


def argv(*words: object) -> list[str]:
    return [sys.executable, "-m", "migrator.cmd.copy", *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(*words), capture_output=True, text=True, check=False, timeout=60, env=environment())


def started(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(argv(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("verify", ["readback", "inline", "none"])
def test_a_missing_destination_is_made_of_the_right_size_and_only_for_its_owner(
    source: Path, tmp_path: Path, verify: str
) -> None:
    destination = tmp_path / "new"
    done = run(source, destination, "--verify", verify, "--checksum")
    assert (done.returncode, done.stderr) == (0, "")
    assert same_bytes(source, destination)
    assert destination.stat().st_mode & 0o777 == 0o600
    assert destination.stat().st_blocks * 512 < 5 * MIB
    assert naive(source.read_bytes()) in done.stdout
    assert ("read back" in done.stdout) == (verify == "readback")


def test_a_destination_that_was_used_before_shows_nothing_of_that(source: Path, tmp_path: Path) -> None:
    """field.md bug 9 (LP2045431)."""
    destination = tmp_path / "dirty"
    destination.write_bytes(b"\xee" * SIZE)
    assert run(source, destination).returncode == 0
    assert same_bytes(source, destination)


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1])
def test_a_file_of_another_size_is_left_alone(source: Path, tmp_path: Path, size: int) -> None:
    destination = tmp_path / "other"
    destination.write_bytes(b"x" * size)
    done = run(source, destination)
    assert done.returncode == program.USAGE
    assert str(size) in done.stderr
    assert destination.read_bytes() == b"x" * size


def test_what_cannot_be_is_refused_and_nothing_is_left(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    os.mkfifo(tmp_path / "pipe")
    new = tmp_path / "new"
    (tmp_path / "foreign").write_text("{}", encoding="utf-8")
    refused: list[tuple[object, ...]] = [
        (source, source),
        (source, tmp_path / "link"),
        (tmp_path / "none", new),
        (source, tmp_path / "pipe"),
        (tmp_path, new),
        (source, tmp_path / "none/new"),
        (source, new, "--rate", "fast"),
        (source, new, "--rate", "0"),
        (source, new, "--threads", "1000"),
        (source, new, "--verify", "maybe"),
        (source, new, "--resume", tmp_path / "foreign"),
        (source,),
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    with_processes = [run(*refused[0]), run(*refused[-1])]
    assert [done.returncode for done in with_processes] == [program.USAGE, program.USAGE]
    for words in refused:
        assert in_this_process(*words) == program.USAGE, words
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def in_this_process(*words: object) -> int:
    try:
        return program.main([str(word) for word in words])
    except SystemExit as error:
        return int(error.code or 0)


def test_a_mounted_or_busy_device_is_refused(source: Path, tmp_path: Path) -> None:
    loops = Loops(tmp_path)
    disk = loops.make("disk", 8 * MIB)
    device = disk.node
    try:
        held = os.open(device, os.O_RDWR | os.O_EXCL)
        done = run(source, device)
        os.close(held)
        assert done.returncode == program.USAGE
        assert "uses it" in done.stderr
        assert disk.backing.read_bytes() == bytes(8 * MIB)
        # A larger one is taken, and keeps what lies behind.
        device.write_bytes(b"\xdd" * (8 * MIB))
        assert run(source, device).returncode == 0
        assert device.read_bytes() == source.read_bytes() + b"\xdd" * (8 * MIB - SIZE)
        small = tmp_path / "small"
        small.write_bytes(b"x" * (9 * MIB))
        assert run(small, device).returncode == program.USAGE
    finally:
        loops.end()


@pytest.fixture
def export(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An NBD server, and the file that it serves, which is larger than the source and held other data."""
    if shutil.which("nbdkit") is None:
        missing("nbdkit is not installed")
    stored, where = tmp_path / "stored", tmp_path / "nbd.sock"
    stored.write_bytes(b"\xee" * (SIZE + 247))
    with subprocess.Popen(["nbdkit", "-f", "-U", str(where), "file", str(stored)]) as server:
        until(where.exists, "the server's socket")
        yield f"nbd+unix:///?socket={where}", stored
        server.kill()


def test_an_export_is_copied_to_and_from(source: Path, tmp_path: Path, export: tuple[str, Path]) -> None:
    address, stored = export
    done = run(source, address, "--json", "--resume", tmp_path / "state")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stored.read_bytes() == source.read_bytes() + b"\xee" * 247
    assert run(address, tmp_path / "back").returncode == 0
    assert (tmp_path / "back").read_bytes() == stored.read_bytes()
    assert run(address, address).returncode == program.USAGE


def test_addresses_that_are_wrong_and_servers_that_are_not_there_are_told_apart(source: Path, tmp_path: Path) -> None:
    assert in_this_process(source, "nbd://host/x?port=5") == program.USAGE
    assert in_this_process(source, f"nbd+unix:///?socket={tmp_path}/none") == program.IO_ERROR
    assert in_this_process(f"nbd+unix:///?socket={tmp_path}/none", tmp_path / "new") == program.IO_ERROR
    assert not (tmp_path / "new").exists()


def test_events_are_lines_of_json_and_the_last_says_how_it_ended(source: Path, tmp_path: Path) -> None:
    done = run(source, tmp_path / "new", "--json")
    told = events(done.stdout)
    assert told[0]["event"] == "started"
    assert {event["doing"] for event in told[:-1]} == {"copying", "verifying"}
    assert told[-1] | {"seconds": 0, "verify_seconds": 0} == {
        "event": "end",
        "exit_code": 0,
        "bytes_total": SIZE,
        "bytes_copied": told[-1]["bytes_copied"],
        "seconds": 0,
        "verify": "readback",
        "verify_seconds": 0,
        "checksum": naive(source.read_bytes()),
    }
    failed = run(source, tmp_path / "none/new", "--json")
    assert events(failed.stdout)[-1]["exit_code"] == failed.returncode == program.USAGE


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_it_and_the_same_command_goes_on(source: Path, tmp_path: Path, name: str) -> None:
    state, destination = tmp_path / "state", tmp_path / "new"
    words = [source, destination, "--resume", state, "--json", "--checkpoint-seconds", "0.1"]
    with started(*words, "--rate", "1M") as copying:
        until(lambda: state.exists() and json.loads(state.read_text("utf-8"))["ranges"], "a first checkpoint")
        copying.send_signal(signal.Signals[name])
        output, _ = copying.communicate(timeout=30)
    assert copying.returncode == program.INTERRUPTED
    assert events(output)[-1]["error"]["kind"] == "Stopped"
    kept = sum(length for _, length in json.loads(state.read_text("utf-8"))["ranges"])
    assert 0 < kept < SIZE
    done = run(*words)
    end = events(done.stdout)[-1]
    assert done.returncode == 0
    assert end["checksum"] == naive(source.read_bytes())  # made by reading both ends back
    assert end["bytes_copied"] <= SIZE - kept
    assert same_bytes(source, destination)
    assert not state.exists()


def test_killed_at_any_moment_it_goes_on_and_copies_truly(source: Path, tmp_path: Path) -> None:
    state, destination = tmp_path / "state", tmp_path / "new"
    words = [source, destination, "--resume", state, "--checkpoint-seconds", "0.05", "--quiet"]
    for moment in (0.0, 0.1, 0.3):
        with started(*words, "--rate", "1M") as copying:
            until(lambda: state.exists() or copying.poll() is not None, "its begin")
            due = time.monotonic() + moment
            until(lambda: time.monotonic() >= due, "the moment")  # noqa: B023
            copying.kill()
    assert run(*words).returncode == 0
    assert same_bytes(source, destination)


def test_a_second_signal_ends_it_at_once(source: Path, tmp_path: Path) -> None:
    """Whoever waits for a device that hangs cannot wait for a last checkpoint."""
    with started(source, tmp_path / "new", "--rate", "1", "--json") as copying:
        assert copying.stdout is not None
        copying.stdout.readline()
        copying.send_signal(signal.SIGSTOP)
        copying.send_signal(signal.SIGINT)
        copying.send_signal(signal.SIGTERM)
        began = time.monotonic()
        copying.send_signal(signal.SIGCONT)
        copying.wait(10)
    assert copying.returncode == program.INTERRUPTED
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("change", ["source", "destination", "size"])
def test_a_state_of_another_copy_is_refused(source: Path, tmp_path: Path, change: str) -> None:
    state, destination = tmp_path / "state", tmp_path / "new"
    words = [source, destination, "--resume", state]
    with started(*words, "--rate", "1M", "--checkpoint-seconds", "0.1") as copying:
        until(state.exists, "the state")
        copying.send_signal(signal.SIGTERM)
        copying.wait(30)
    if change == "source":
        os.utime(source, (1, 1))
    elif change == "size":
        os.truncate(source, SIZE - 1)
        os.truncate(destination, SIZE - 1)
    else:
        destination.unlink()
    before = state.read_bytes()
    assert in_this_process(*words) == program.USAGE
    assert state.read_bytes() == before
    assert destination.exists() == (change != "destination")


def test_a_full_disk_is_an_io_error_with_its_number(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with tmpfs(tmp_path / "small", "size=2m") as place:
        assert in_this_process(source, place / "new", "--json") == program.IO_ERROR
    error = events(capfd.readouterr().out)[-1]["error"]
    assert (error["kind"], error["errno"]) == ("DestinationFull", 28)


def test_a_destination_that_changes_behind_its_back_is_a_mismatch(source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "new"
    with started(source, destination, "--json", "--rate", "4M", "--checkpoint-seconds", "0.05") as copying:
        assert copying.stdout is not None
        for line in copying.stdout:
            event = json.loads(line)
            if event["event"] == "checkpoint" and event["ranges"] and event["ranges"][0][0] == 0:
                with destination.open("r+b") as file:
                    byte = os.pread(file.fileno(), 1, 5)[0] ^ 1
                    os.pwrite(file.fileno(), bytes([byte]), 5)
                break
        output, _ = copying.communicate(timeout=30)
    assert copying.returncode == program.MISMATCH
    assert events(output)[-1]["error"]["offset"] == 5


def test_on_a_terminal_there_is_a_bar(source: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        argv(source, tmp_path / "new", "--rate", "4M"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment(),
        check=True,
        timeout=60,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\r" in shown
    assert "copying" in shown
    assert "[####" in shown
    assert b"copied in" in done.stdout


def test_the_page_has_every_option_and_every_exit_code() -> None:
    page, _, _ = (ROOT / "doc/source/user/copy.rst").read_text(encoding="utf-8").partition("How fast")
    codes = {int(number): text for number, text in re.findall(r"^(\d+) +(.+)$", page, re.MULTILINE)}
    assert {number: text.replace("`", "") for number, text in codes.items()} == program.EXIT_CODES
    told = set(re.findall(r"``(--[a-z-]+)``", page))
    known = {word for action in program.parser()._actions for word in action.option_strings if word.startswith("--")}
    assert told == known - {"--help", "--version"}


def test_a_rate_is_kept(source: Path, tmp_path: Path) -> None:
    done = run(source, tmp_path / "new", "--rate", "4M", "--json", "--verify", "none")
    seconds = events(done.stdout)[-1]["seconds"]
    assert 0.6 < seconds < 1.4  # 3 MiB and some


def test_it_needs_nothing_of_the_services() -> None:
    """It starts at once, and on a machine that has no configuration."""
    code = "import sys, migrator.cmd.copy; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    loaded = {name.split(".")[0] for name in told.stdout.split()}
    assert not loaded & {"oslo_config", "oslo_messaging", "sqlalchemy", "webob", "stevedore", "eventlet", "ssl"}
    assert not [
        name for name in told.stdout.split() if name.startswith(("migrator.conf", "migrator.db", "migrator.rpc"))
    ]


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("100M", 100 << 20), ("1.5k", 1536), ("2GiB", 2 << 30), ("3 ", 3)]
)
def test_sizes_are_understood(text: str, value: int) -> None:
    assert program.size(text) == value


def test_two_copies_do_not_write_one_file(source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "new"
    with started(source, destination, "--rate", "1M", "--json") as copying:
        assert copying.stdout is not None
        copying.stdout.readline()
        assert in_this_process(source, destination) == program.USAGE
        copying.kill()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 2}', '{"format": 1}', '{"format": 1, "ends": {}}', "\0"])
def test_a_damaged_state_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StateError):
        StateFile(path, {}, False).load()
    assert path.read_text(encoding="utf-8") == text


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state", {"source": {"size": 5}}, True)
    state.save([[0, 5]])
    broken = StateFile(state.path, {"source": object()}, True)
    with pytest.raises(TypeError):
        broken.save([])
    assert StateFile(state.path, state.ends, False).load() == [[0, 5]]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
