"""Who we are and who is alive: this machine, its boot, this process, and processes named in records.

A process id says nothing by itself: ids are used again, also after a reboot, and mean another process in another
container.  So a process is named by three values together: the boot, its id and its start time.  A fourth one, the
machine, tells a process of an earlier boot of this machine, which is gone, from one of another machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_ID = Path("/etc/machine-id")
_NETWORK = Path("/sys/class/net")
#: NET_ADDR_PERM in linux/netdevice.h: the address is the device's own, neither made up nor lent.
_PERMANENT = "0"
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


def machine_id() -> str | None:
    """Return what names this machine across its boots, and no other one; None where nothing does for certain.

    /etc/machine-id (see machine-id(5)) alone may be the same on machines that were copied from one image, so the
    permanent addresses of the network devices and the host's name are added: a copy differs in one of them.  A
    container, and a machine without such a device, have no such name.  Whatever changes makes another machine of it,
    which costs an operator a command and never data.
    """
    try:
        installed = _MACHINE_ID.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    addresses = _permanent_addresses()
    if len(installed) != 32 or not addresses or os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE:
        return None
    return hashlib.sha256("\n".join(["migrator", installed, host_name(), *addresses]).encode()).hexdigest()[:32]


def host_name() -> str:
    """Return the name that people know this machine by."""
    return os.uname().nodename


def _permanent_addresses() -> list[str]:
    """Addresses of the network devices that are hardware, or that a hypervisor shows as such."""
    found = set()
    for device in _NETWORK.glob("*/device"):
        try:
            if (device.parent / "addr_assign_type").read_text().strip() == _PERMANENT:
                found.add((device.parent / "address").read_text().strip())
        except OSError:  # a device that is being removed, or has no address
            continue
    return sorted(found)


def identity(pid: int) -> dict[str, Any]:
    """Return plain values that name a living process of this machine in a record."""
    return {
        "machine": machine_id(),
        "boot_id": boot_id(),
        "host": host_name(),
        "pid": pid,
        "started": process_started(pid),
    }


def is_here(recorded: Mapping[str, Any]) -> bool:
    """Tell whether a recorded process is, or was, one that this process could signal."""
    return bool(_recorded_boot(recorded) == boot_id())


def ended_with_its_boot(recorded: Mapping[str, Any]) -> bool:
    """Tell whether a recorded process certainly is gone, because this very machine was booted again since."""
    known, ours = recorded.get("machine"), machine_id()
    if ours is None or known != ours or "boot_id" not in recorded:
        return False
    # The same kernel with another process id namespace is a container of now, not an earlier boot.
    return str(recorded["boot_id"]).partition(".")[0] != boot_id().partition(".")[0]


def _recorded_boot(recorded: Mapping[str, Any]) -> Any:
    """The boot in a record; the first ones that were written had it as the machine."""
    return recorded.get("boot_id", recorded.get("machine"))


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
