"""One copier as its parent sees it: how to order a worker process about, and how to end one for certain.

A connection of kind ``memory`` can only be reached inside this process, so its copy runs in the calling thread; all
others run in a worker, where a device that hangs stops nobody else and SIGKILL ends the writing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import migrator
from migrator import errors, machine
from migrator.volume import worker
from migrator.volume.copy import Control, Stopped
from migrator.volume.endpoints import CopyError, Endpoint, MemoryEndpoint, MemoryObject

LOG = logging.getLogger(__name__)

OnEvent = Callable[[dict[str, Any]], None]
"""Is given every started, progress and checkpoint event of a copy, as volume/worker.py describes them.

Every one has ``ranges``, those flushed last.  What it raises ends the copy.
"""

Cancelled = Callable[[], bool | str]
"""Asked at least twice a second; anything true stops the job, a text being the reason (else ``cancel``)."""

#: Longest time between two questions whether a job is cancelled.
LOOK_SECONDS = 0.25
#: A worker that was told to stop and has not after this time hangs in a device, and is killed.
STOP_SECONDS = 10.0
#: A killed process that is not gone after this time waits for a device inside the kernel.
KILL_SECONDS = 30.0
_MODULE = "migrator.volume.worker"
BACKEND = "copy worker"
_LAST_EVENTS = frozenset(("done", "stopped", "failed"))


class CopyStopped(Exception):
    """The job ended because it was asked to; nothing is written any more. ``reason`` is ``cancel`` or ``pause``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def never() -> bool:
    """Let a job go on to its end."""
    return False


def reason_to_stop(cancelled: Cancelled) -> str | None:
    """Ask whether to stop: None, or why."""
    answer = cancelled()
    return answer if isinstance(answer, str) and answer else "cancel" if answer else None


#: What an error of the engine means to the rest of migrator.
_TRANSLATED: dict[str, type[errors.MigratorError]] = {
    "ReadFailed": errors.SourceUnreadable,
    "WriteFailed": errors.DestinationUnwritable,
    "DestinationFull": errors.NoSpace,
    "WrongSize": errors.SizeMismatch,
    "Different": errors.VerifyMismatch,
}


def _translated(error: Mapping[str, Any]) -> errors.MigratorError:
    """Return the error that ``CopyError.as_dict`` describes, or DriverError for one that nobody foresaw."""
    kind = _TRANSLATED.get(error["kind"])
    if kind is None:
        return errors.DriverError(backend=BACKEND, reason=f"{error['kind']}: {error['reason']}")
    return kind(**error, where=error["path"])


class Copier(Protocol):
    """Who copies or compares one volume at a time, in the caller's thread.

    Both calls return or raise only when both ends are closed.  They raise CopyStopped when ``cancelled`` said so,
    SourceUnreadable, DestinationUnwritable, NoSpace, SizeMismatch, VerifyMismatch, DriverError, or whatever
    ``on_event`` and ``cancelled`` raise.
    """

    @property
    def identity(self) -> dict[str, Any] | None:
        """What ``kill_worker`` needs to end it from elsewhere; None if it is no process of its own."""

    def copy(
        self,
        source: Mapping[str, Any],
        destination: Mapping[str, Any],
        done: list[list[int]],
        options: Mapping[str, Any],
        on_event: OnEvent,
        cancelled: Cancelled,
    ) -> dict[str, Any]:
        """Copy all but ``done``; returns bytes_total, bytes_done, bytes_read, bytes_written and seconds.

        Options: threads, block, checkpoint_seconds, bytes_per_second (None or absent: no limit).
        """

    def verify(
        self,
        source: Mapping[str, Any],
        destination: Mapping[str, Any],
        cancelled: Cancelled,
        bytes_per_second: float | None = None,
    ) -> str:
        """Compare both ends and return the checksum."""

    def limit(self, bytes_per_second: float | None) -> None:
        """Change the rate of the job under way; from any thread."""

    def kill(self) -> None:
        """End it at once; what it had under way raises. From any thread."""


class _Orders:
    """The two calls of a copier, put into the words that volume/worker.py knows."""

    def _run(self, command: dict[str, Any], on_event: OnEvent, cancelled: Cancelled) -> dict[str, Any]:
        """Do what the command asks for and return its last event."""
        raise AssertionError("each copier runs its jobs somewhere")

    def copy(
        self,
        source: Mapping[str, Any],
        destination: Mapping[str, Any],
        done: list[list[int]],
        options: Mapping[str, Any],
        on_event: OnEvent,
        cancelled: Cancelled,
    ) -> dict[str, Any]:
        command = {"do": "copy", "source": source, "destination": destination, "done": done, "options": options}
        return self._run(command, on_event, cancelled)

    def verify(
        self,
        source: Mapping[str, Any],
        destination: Mapping[str, Any],
        cancelled: Cancelled,
        bytes_per_second: float | None = None,
    ) -> str:
        options = {"bytes_per_second": bytes_per_second}
        command = {"do": "verify", "source": source, "destination": destination, "options": options}
        return str(self._run(command, lambda event: None, cancelled)["checksum"])


# --- in a process of its own -----------------------------------------------------------------------------------------


class WorkerCopier(_Orders):
    """One worker process; a job that ends in any other way than by the worker's own word ends the worker too."""

    def __init__(self) -> None:
        """Start it; raises DriverError. It is ready some time later, and what it is told meanwhile waits for it."""
        self._channel, theirs = socket.socketpair()
        argv = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                argv,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        except OSError as error:
            self._channel.close()
            raise errors.DriverError(backend=BACKEND, reason=f"cannot be started: {error}") from error
        finally:
            theirs.close()
        self._jobs = itertools.count(1)
        self._pending = b""
        self._sending = threading.Lock()
        self.identity: dict[str, Any] | None = {
            "machine": machine.boot_id(),
            "pid": self._process.pid,
            "started": machine.process_started(self._process.pid),
        }

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def limit(self, bytes_per_second: float | None) -> None:
        self._send({"do": "rate", "bytes_per_second": bytes_per_second})

    def kill(self) -> None:
        """Kill it and wait until it is gone; raises DriverError if it cannot die."""
        self._process.kill()
        try:
            self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _undying(self._process.pid) from error

    def close(self) -> None:
        """Kill it and forget it; only by the thread that holds it."""
        self._channel.close()
        self.kill()

    def _run(self, command: dict[str, Any], on_event: OnEvent, cancelled: Cancelled) -> dict[str, Any]:
        job = next(self._jobs)
        try:
            self._send(command | {"job": job})
            last = self._follow(job, on_event, cancelled)
        except BaseException:  # it may still write, and nobody listens any more
            self.kill()
            raise
        if last["event"] == "stopped":
            raise CopyStopped(last["reason"])
        if last["event"] == "failed":
            raise _translated(last["error"])
        return last

    def _follow(self, job: int, on_event: OnEvent, cancelled: Cancelled) -> dict[str, Any]:
        """Hand on the events of a job; return the last, which says how it ended."""
        events = self._events(job, cancelled)
        while (event := next(events))["event"] not in _LAST_EVENTS:
            on_event(event)
        return event

    def _events(self, job: int, cancelled: Cancelled) -> Iterator[dict[str, Any]]:
        """Yield what the worker says, passing on the wish to stop; raises CopyStopped if it does not obey in time."""
        reason, give_up = None, 0.0
        while reason is None or time.monotonic() < give_up:
            yield from self._receive(LOOK_SECONDS)
            if reason is None and (reason := reason_to_stop(cancelled)):
                self._send({"do": "stop", "job": job, "reason": reason})
                give_up = time.monotonic() + STOP_SECONDS
        raise CopyStopped(reason)

    def _receive(self, seconds: float) -> list[dict[str, Any]]:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return []
        try:
            data = self._channel.recv(1 << 20)
        except ConnectionError:
            data = b""
        if not data:
            raise self._died()
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def _send(self, command: Mapping[str, Any]) -> None:
        try:
            with self._sending:
                self._channel.sendall(json.dumps(command).encode() + b"\n")
        except OSError as error:
            raise self._died() from error

    def _died(self) -> errors.DriverError:
        """Wait for the end of a worker that closed its socket; return the error that says how it ended."""
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self._process.returncode
        reason = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        LOG.warning("Copy worker %s %s", self._process.pid, reason)
        return errors.DriverError(backend=BACKEND, reason=reason)


def _undying(pid: int) -> errors.DriverError:
    reason = f"process {pid} was killed and is not gone after {KILL_SECONDS:.0f} s: it waits for a device"
    return errors.DriverError(backend=BACKEND, reason=reason)


def _environment() -> dict[str, str]:
    """Return an environment in which the worker finds the package that this process runs, wherever it lies."""
    root = Path(migrator.__file__).parent.parent
    if root.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def kill_worker(identity: Mapping[str, Any]) -> bool:
    """Kill the worker that a record names and wait until it is gone: then it writes nothing any more.

    Returns False for one of another machine, or of an earlier boot of this one, about which nothing can be known
    here.  Raises DriverError if it cannot die.
    """
    if identity["machine"] != machine.boot_id():
        return False
    pid = int(identity["pid"])
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # Looked up while the descriptor holds on to the process: its id cannot pass to another one in between.
        if machine.process_started(pid) != identity["started"]:
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(KILL_SECONDS * 1000):
            raise _undying(pid)
        return True
    finally:
        os.close(descriptor)


# --- in the calling thread -------------------------------------------------------------------------------------------


class InlineCopier(_Orders):
    """Copies in the calling thread what only this process can reach."""

    identity: dict[str, Any] | None = None

    def __init__(self, open_memory: Callable[[str], MemoryObject]) -> None:
        self._open_memory = open_memory
        self._control: Control | None = None

    def limit(self, bytes_per_second: float | None) -> None:
        if self._control is not None:
            self._control.bytes_per_second = bytes_per_second

    def kill(self) -> None:
        if self._control is not None:
            self._control.stop("cancel")

    def _run(self, command: Mapping[str, Any], on_event: OnEvent, cancelled: Cancelled) -> dict[str, Any]:
        control = self._control = Control()

        def look() -> None:
            if control.reason is None and (reason := reason_to_stop(cancelled)):
                control.stop(reason)

        try:
            return worker.perform(command, control, on_event, self._open, look)
        except Stopped as stopped:
            raise CopyStopped(stopped.reason) from None
        except CopyError as error:
            raise _translated(error.as_dict()) from error

    def _open(self, connection: Mapping[str, Any], writable: bool) -> Endpoint:
        if connection["kind"] != "memory":
            return worker.open_file(connection, writable)
        path = connection["path"]
        return MemoryEndpoint(path, self._open_memory(path), new_volume_is_zero=bool(connection.get("is_zero")))
