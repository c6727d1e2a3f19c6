"""Plain QEMU without a compute service: its guests' disks are mirrored and changed over by QMP commands.

The mirror runs inside QEMU, and what QEMU says is the truth for as long as it lives: every call here looks, does the
one thing that is next, and returns.  Names of nodes and jobs are made from the twin's id, so that whoever comes later
finds them.  The job neither finalizes nor dismisses itself: ``pending`` holds the guest's writes between the last byte
and the change-over, and ``concluded`` keeps its error until somebody has read it.

The mirror never is ``write-blocking``: by that QEMU 7.2.22 lost an acknowledged write in 2 of 170 moves of a disk that
was written to all the while, by ``background`` in none of 110.

Commands as in qapi/block-core.json and qapi/job.json of QEMU 7.2.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from migrator import conf as config
from migrator import errors
from migrator.compute.base import Hypervisor, Uses
from migrator.compute.qemu_monitor import Loop, Monitor

#: States of a guest whose disks may be moved; in others it is being migrated, restored, or has come to grief.
_MOVABLE = ("running", "paused", "suspended", "prelaunch")
#: How often is looked for something that takes milliseconds, seconds.
_TICK_SECONDS = 0.002


@dataclass(frozen=True)
class Move:
    """Which disk of a guest goes where: paths on this host, and the id of the twin."""

    twin_id: str
    old: str
    new: str
    read_only: bool = False

    @property
    def name(self) -> str:
        """Name of the job and of the destination's node: at most 31 characters, the first a letter (QEMU's rule)."""
        return "m-" + base64.b32encode(uuid.UUID(self.twin_id).bytes).decode().rstrip("=").lower()


@dataclass(frozen=True)
class Job:
    """A mirror as QEMU shows it: ``status`` as in JobStatus, bytes, bytes per second (0: unlimited)."""

    status: str
    offset: int
    length: int
    speed: int
    error: str | None


class Qemu(Hypervisor):
    """The guests whose monitors the section [qemu] names."""

    def __init__(self, conf: config.Conf) -> None:
        super().__init__(conf)
        config.register_qemu(conf)
        self._loop = Loop()

    @contextlib.contextmanager
    def guest(self, server: str) -> Iterator[Guest]:
        """Speak to a server's QEMU; raises ComputeUnreachable."""
        with Monitor(self._loop, self._socket(server), self.conf.qemu.qmp_timeout_seconds) as monitor:
            yield Guest(monitor)

    def _socket(self, server: str) -> str:
        """The path of a server's monitor, from the configuration alone."""
        name = str(uuid.UUID(server))
        path = self.conf.qemu.qmp_sockets.get(name) or self.conf.qemu.qmp_socket_template.replace("%s", name)
        if not os.path.isabs(path):
            raise errors.ComputeUnreachable(reason=f"[qemu] names no absolute path of a monitor for server {name}")
        return str(path)

    def extended(self, server: str, volume_id: str, path: str | None, size: int) -> None:
        if path is None:
            raise _refused(f"the guest has volume {volume_id} by no path of its host")
        with self.guest(server) as guest:
            guest.resize(path, size)


class Guest:
    """One guest, for as long as its monitor is held."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        #: Who it is, as a record names a process.
        self.process = monitor.process

    # --- what is ---

    def check(self, old: str) -> None:
        """See that the guest runs and has the volume as a raw disk; raises ComputeRefused."""
        with contextlib.suppress(errors.ComputeRefused):  # a storage daemon has no such command
            status = self._monitor.ask("query-status")["status"]
            if status not in _MOVABLE:
                raise _refused(f"the guest is {status}, so that no disk of it can be moved")
        self._root(old)

    def job(self, move: Move) -> Job | None:
        """The mirror of a move, if there is one."""
        jobs = {job["id"]: job for job in self._monitor.ask("query-jobs")}
        if move.name not in jobs:
            return None
        blocks = {job["device"]: job for job in self._monitor.ask("query-block-jobs")}
        job, block = jobs[move.name], blocks.get(move.name, {})
        offset, length = job["current-progress"], job["total-progress"]
        return Job(job["status"], offset, length, block.get("speed", 0), job.get("error"))

    def uses(self, move: Move) -> Uses:
        """Which of both places the guest's disk is on; while a mirror runs, the old one."""
        roots = self._roots()
        if move.name in roots:
            return Uses.NEW
        nodes = self._nodes()
        if any(_is_of(nodes[root], move.old) for root in roots if root in nodes) or self.job(move) is not None:
            return Uses.OLD
        return Uses.NEITHER

    def has_open(self, path: str) -> bool:
        """Tell whether QEMU has any node on a file."""
        return any(_is_of(node, path) for node in self._nodes().values())

    def _nodes(self) -> dict[str, dict[str, Any]]:
        return {node["node-name"]: node for node in self._monitor.ask("query-named-block-nodes", flat=True)}

    def _roots(self) -> set[str]:
        """Nodes that a device or an export is on."""
        disks = [disk["inserted"]["node-name"] for disk in self._monitor.ask("query-block") if "inserted" in disk]
        return {*disks, *(export["node-name"] for export in self._monitor.ask("query-block-exports"))}

    def _root(self, path: str) -> dict[str, Any]:
        nodes = self._nodes()
        found = [nodes[root] for root in self._roots() if root in nodes and _is_of(nodes[root], path)]
        if len(found) != 1:
            raise _refused(f"{len(found)} disks of the guest are on {path}, not one")
        if found[0]["drv"] not in ("raw", "file", "host_device"):
            raise _refused(f"the guest has {path} open as {found[0]['drv']}, not as the raw disk that it is")
        return found[0]

    def resize(self, path: str, size: int) -> None:
        """Have the guest see the size, in bytes, that the file of its disk has already; never a smaller one.

        QEMU would cut the file off there.
        """
        root = self._root(path)
        if size > root["image"]["virtual-size"]:
            self._monitor.ask("block_resize", node_name=root["node-name"], size=size)

    # --- forward ---

    def begin(self, move: Move, speed: int) -> None:
        """Open the destination and start the mirror; what an interrupted try has done is not done again."""
        root = self._root(move.old)
        if move.name not in self._nodes():
            self._open(move, root)
        self._monitor.ask(
            "blockdev-mirror",
            job_id=move.name,
            device=root["node-name"],
            target=move.name,
            sync="full",
            speed=speed,
            copy_mode="background",
            on_source_error="report",
            on_target_error="report",
            auto_finalize=False,
            auto_dismiss=False,
        )

    def _open(self, move: Move, root: dict[str, Any]) -> None:
        """Open the destination as the guest has the source, never without flushes; raises ComputeRefused."""
        size = root["image"]["virtual-size"]
        self._add(move, root, direct=root["cache"]["direct"] or self._is_direct(move.old))
        made = self._nodes()[move.name]["image"]["virtual-size"]
        if made != size:
            self._delete(move.name)
            raise _refused(f"the guest's disk has {size} bytes and its destination {made}")

    def _add(self, move: Move, root: dict[str, Any], *, direct: bool) -> None:
        options = _node(move, direct=direct) | {"detect-zeroes": root["detect_zeroes"]}
        try:
            self._monitor.ask("blockdev-add", **options)
        except errors.ComputeRefused as error:
            if not direct or "O_DIRECT" not in error.message:
                raise
            self._add(move, root, direct=False)  # the file system cannot; flushes make it durable all the same

    def _is_direct(self, path: str) -> bool:
        return any(_is_of(node, path) and node["cache"]["direct"] for node in self._nodes().values())

    def limit(self, move: Move, speed: int) -> None:
        self._monitor.ask("block-job-set-speed", device=move.name, speed=speed)

    def complete(self, move: Move) -> None:
        """Have the mirror come to ``pending``: it copies the rest and flushes, while the guest's writes wait."""
        self._monitor.ask("job-complete", id=move.name)

    def finalize(self, move: Move) -> None:
        """Put the guest's disk on the destination: the point of no return."""
        self._monitor.ask("job-finalize", id=move.name)

    def wait(self, move: Move, statuses: tuple[str, ...], seconds: float) -> Job | None:
        """Look until the mirror is in one of these states, or time is over; return it as it is then."""
        deadline = time.monotonic() + seconds
        while (job := self.job(move)) is not None and job.status not in statuses and time.monotonic() < deadline:
            time.sleep(_TICK_SECONDS)
        return job

    def close_old(self, move: Move) -> bool:
        """Close the source, once the disk is on the destination; False while something in QEMU still has it open."""
        self._dismiss(move)
        if move.read_only:
            with contextlib.suppress(errors.ComputeRefused):  # done before
                direct = self._nodes()[move.name]["cache"]["direct"]
                options = _node(move, direct=direct) | {"file": f"{move.name}-f", "read-only": True}
                self._monitor.ask("blockdev-reopen", options=[options])
        while left := [name for name, node in self._nodes().items() if _is_of(node, move.old)]:
            closed = [name for name in left if self._delete(name)]
            if not closed:
                return False
        return True

    # --- back ---

    def cancel(self, move: Move) -> None:
        self._monitor.ask("block-job-cancel", device=move.name, force=True)

    def close_new(self, move: Move) -> None:
        """Close the destination, and see to it that nobody opens it any more who was told to before.

        A runner that was paused may wake up and go on with an order that is long withdrawn.  So the node's name is
        taken, by one that holds nothing and cannot be written to: neither blockdev-add nor blockdev-mirror succeeds.
        """
        self._dismiss(move)
        nodes = self._nodes()
        if move.name in nodes and nodes[move.name]["drv"] == "null-co":
            return
        if move.name in nodes:
            self._monitor.ask("blockdev-del", node_name=move.name)
        self._monitor.ask("blockdev-add", **{"driver": "null-co", "node-name": move.name, "size": 0, "read-only": True})

    def _dismiss(self, move: Move) -> None:
        job = self.job(move)
        if job is not None and job.status == "concluded":
            self._monitor.ask("job-dismiss", id=move.name)

    def _delete(self, node: str) -> bool:
        """Close a node; False while it is in use."""
        try:
            self._monitor.ask("blockdev-del", node_name=node)
        except errors.ComputeRefused:
            return False
        return True


def _node(move: Move, *, direct: bool) -> dict[str, Any]:
    """The destination's node for blockdev-add: a raw disk, past the page cache if so wished, flushed when asked."""
    cache = {"direct": direct, "no-flush": False}
    kind = "host_device" if os.path.exists(move.new) and not os.path.isfile(move.new) else "file"
    file = {"driver": kind, "node-name": f"{move.name}-f", "filename": move.new, "cache": cache, "discard": "unmap"}
    return {"driver": "raw", "node-name": move.name, "cache": cache, "discard": "unmap", "file": file}


def _is_of(node: dict[str, Any], path: str) -> bool:
    return any(_is_same(name, path) for name in _names(node.get("file", "")))


def _names(shown: str) -> Iterator[str]:
    """Every file name in what QEMU shows as one: a path, or the node's options in JSON."""
    if not shown.startswith("json:"):
        yield shown
        return
    with contextlib.suppress(ValueError):
        waiting = [json.loads(shown.removeprefix("json:"))]
        while waiting:
            options = waiting.pop()
            waiting += [value for value in options.values() if isinstance(value, dict)]
            if isinstance(options.get("filename"), str):
                yield options["filename"]


def _is_same(one: str, other: str) -> bool:
    """Tell whether two paths are one file, or would be if it was there."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _refused(reason: str) -> errors.ComputeRefused:
    return errors.ComputeRefused(code="qemu", reason=reason)
