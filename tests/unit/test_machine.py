"""Naming processes so that a reused id, a zombie or a strange program name never misleads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator import machine
from tests.support.needs import missing

#: Number of the system call that ends the calling thread alone.
SYS_EXIT = {"x86_64": 60, "aarch64": 93}


def spawn(code: str, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + 10
    while state_of(pid) != state:
        assert time.monotonic() < deadline, f"process {pid} never came to state {state}"
        os.sched_yield()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = spawn("import sys; print('ready', flush=True); sys.stdin.read()")
    ready(process)
    with process:
        yield process
        process.kill()


def started(process: subprocess.Popen[bytes]) -> int:
    ticks = machine.process_started(process.pid)
    assert ticks is not None
    return ticks


def test_boot_id_is_the_same_in_every_process_of_this_machine() -> None:
    code = "from migrator import machine; print(machine.boot_id())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert other.stdout.strip() == machine.boot_id()
    assert machine.boot_id().startswith(Path("/proc/sys/kernel/random/boot_id").read_text().strip())


def test_a_process_of_another_container_has_another_boot_id() -> None:
    code = "from migrator import machine; print(machine.boot_id())"
    argv = ["unshare", "--pid", "--mount-proc", "--fork", sys.executable, "-c", code]
    other = subprocess.run(argv, capture_output=True, check=False, text=True)
    if other.returncode != 0:
        missing(f"no process id namespace can be made here: {other.stderr.strip()}")
    assert other.stdout.strip() != machine.boot_id()


def test_process_id_differs_after_a_fork() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, machine.process_id().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 1000).decode() != machine.process_id()
    os.close(reader)
    os.close(writer)


def test_a_running_process_is_alive_and_its_start_does_not_change(child: subprocess.Popen[bytes]) -> None:
    assert machine.is_alive(child.pid, started(child))
    assert machine.process_started(child.pid) == started(child)


def test_start_time_lies_within_the_uptime(child: subprocess.Popen[bytes]) -> None:
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    seconds = started(child) / os.sysconf("SC_CLK_TCK")
    assert uptime - 60 < seconds <= uptime


def test_a_reused_process_id_is_not_taken_for_the_old_process(child: subprocess.Popen[bytes]) -> None:
    assert not machine.is_alive(child.pid, started(child) - 1)


def test_a_process_that_is_gone_is_dead() -> None:
    process = spawn("")
    ticks = started(process)
    process.communicate()
    assert machine.process_started(process.pid) is None
    assert not machine.is_alive(process.pid, ticks)


def test_a_stopped_process_is_alive(child: subprocess.Popen[bytes]) -> None:
    ticks = started(child)
    child.send_signal(signal.SIGSTOP)
    wait_for_state(child.pid, "T")
    assert machine.is_alive(child.pid, ticks)


def test_a_killed_process_that_nobody_waited_for_is_dead(child: subprocess.Popen[bytes]) -> None:
    ticks = started(child)
    child.kill()
    wait_for_state(child.pid, "Z")
    assert not machine.is_alive(child.pid, ticks)


def test_a_process_whose_first_thread_ended_is_alive_while_another_runs() -> None:
    number = SYS_EXIT.get(os.uname().machine)
    if number is None:
        pytest.skip("the number of the system call is not known for this processor")
    process = spawn(
        "import ctypes, sys, threading\n"
        "threading.Thread(target=sys.stdin.read).start()\n"
        "print('ready', flush=True)\n"
        "ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)\n",
        str(number),
    )
    ready(process)
    wait_for_state(process.pid, "Z")
    try:
        assert machine.is_alive(process.pid, started(process))
    finally:
        process.communicate()


@pytest.mark.parametrize("name", [b"a b", b") S 1 1", b"((", b") Z 1)", b"\xff\xfe"])
def test_a_strange_program_name_does_not_shift_the_fields(name: bytes) -> None:
    process = spawn(
        "import sys\n"
        "open('/proc/self/comm', 'wb').write(bytes.fromhex(sys.argv[1]))\n"
        "print('ready', flush=True); sys.stdin.read()\n",
        name.hex(),
    )
    before = machine.process_started(process.pid)
    ready(process)
    try:
        assert Path(f"/proc/{process.pid}/comm").read_bytes().strip() == name.strip()
        assert before is not None
        assert started(process) == before
        assert machine.is_alive(process.pid, before)
    finally:
        process.communicate()
