"""Who we are and who is alive: this machine's boot, this process, and processes named in records.

A process id says nothing by itself: ids are used again, also after a reboot, and mean another process in another
container.  So a process is named by three values together: the boot, its id and its start time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: The kernel gives the first process id namespace this fixed number (PROC_PID_INIT_INO in linux/proc_ns.h).
_FIRST_PID_NAMESPACE = "pid:[4026531836]"
_ENDED_STATES = "ZX"


@dataclass(frozen=True)
class _Stat:
    """What /proc/<pid>/stat says: see proc_pid_stat(5), fields 3, 20 and 22."""

    state: str
    threads: int
    started: int


def boot_id() -> str:
    """Return what names this machine since its last boot; equal in two processes only if they can signal each other.

    Containers of one kernel share the boot id, but not process ids: outside the first process id namespace the
    namespace's number is added, so that nobody takes a process of another container for one of its own.
    """
    namespace = os.readlink("/proc/self/ns/pid")
    boot = _BOOT_ID.read_text().strip()
    return boot if namespace == _FIRST_PID_NAMESPACE else f"{boot}.{namespace[5:-1]}"


def process_id() -> str:
    """Return what names this very process, differently after a fork: ``<boot id>:<pid>:<start time>``."""
    pid = os.getpid()
    return f"{boot_id()}:{pid}:{process_started(pid)}"


def process_started(pid: int) -> int | None:
    """Return when the process began, in clock ticks since boot; None if there is none."""
    stat = _stat(pid)
    return stat.started if stat else None


def is_alive(pid: int, started: int) -> bool:
    """Tell whether the process that began at ``started`` may still do anything, even if it is stopped.

    One that ended but was not waited for is dead; one whose first thread ended while others go on is alive.
    """
    stat = _stat(pid)
    if stat is None or stat.started != started:
        return False
    return stat.state not in _ENDED_STATES or stat.threads > 1


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may hold spaces and parentheses itself.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(state=fields[0], threads=int(fields[17]), started=int(fields[19]))
