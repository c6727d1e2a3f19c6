"""A worker process as its parent sees it: how to order it about, and how to end it for certain."""

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import migrator
from migrator import errors, machine
from migrator.drivers.base import Connection
from migrator.volume.copier import (
    BACKEND,
    LOOK_SECONDS,
    Cancelled,
    CopyStopped,
    OnEvent,
    Orders,
    reason_to_stop,
    translated,
)
from migrator.volume.job import IO_TIMEOUT_SECONDS

LOG = logging.getLogger(__name__)

#: A worker that was told to stop and has not after this time is killed.  A pause waits for a last flush, whose ranges
#: need not be copied again; a cancelled copy is thrown away.
PATIENCE_SECONDS = {"cancel": 0.6, "pause": 10.0}
#: A killed process that is not gone after this time waits for a device inside the kernel.  The first is for a job,
#: whose caller wants to know soon; the second for who may not go on before the process is gone.
KILL_SECONDS = 0.5
FENCE_SECONDS = 10.0
#: A worker that does not take an order in this time reads no more.
SEND_SECONDS = 10.0
#: A worker says something every second; between two reports of its silence goes this time.
SILENCE_SECONDS = 1.0
_MODULE = "migrator.volume.worker"
_LAST_EVENTS = frozenset(("done", "stopped", "failed"))


Ends = tuple[Connection, Connection]
"""The exports of a source and of a destination."""


class WorkerCopier(Orders):
    """One worker process; a job that ends in any other way than by the worker's own word ends the worker too."""

    def __init__(self) -> None:
        """Start it; raises DriverError. It is ready some time later, and what it is told meanwhile waits for it."""
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(SEND_SECONDS)
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
        self._is_killed = False
        #: A rate that was ordered and not passed on yet, in a tuple.
        self._rate: tuple[float | None] | None = None
        #: The exports that whoever took this copier works between.
        self.ends: Ends | None = None
        #: The number of the last copy, if it was complete, and its exports.
        self._copied: tuple[int, Ends | None] = (0, None)
        self.identity: dict[str, Any] | None = machine.identity(self._process.pid)

    @property
    def is_alive(self) -> bool:
        """True while it can be given a job; one that was killed and cannot die yet is of no use."""
        return not self._is_killed and self._process.poll() is None

    def has_copied(self, ends: Ends) -> bool:
        """Tell whether the last job was a copy between these very objects: equal ones may be later exports."""
        return _is_same(self._copied[1], ends)

    @property
    def forgets_nothing(self) -> bool:
        """True when no verification waits for what this one knows."""
        return self._copied[1] is None

    def limit(self, bytes_per_second: float | None) -> None:
        self._rate = (bytes_per_second,)  # the thread of the job sends it: a stuck worker shall stop nobody else

    def kill(self) -> None:
        """Kill it and wait a moment until it is gone; raises CopierHangs if it is not."""
        self._is_killed = True
        self._process.kill()
        try:
            self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise errors.CopierHangs(pid=self._process.pid) from error

    def close(self) -> None:
        """Kill it and forget it; only by the thread that holds it."""
        self._channel.close()
        try:
            self.kill()
        except errors.CopierHangs as error:
            LOG.warning("%s", error)
            threading.Thread(target=self._process.wait, name="undertaker", daemon=True).start()

    def _run(self, command: dict[str, Any], on_event: OnEvent, cancelled: Cancelled) -> dict[str, Any]:
        number = next(self._jobs)
        copied, self._copied = self._copied, (0, None)
        if command["do"] == "verify" and self.ends is not None and _is_same(copied[1], self.ends):
            command["copied"] = copied[0]
        try:
            self._send(command | {"job": number})
            last = self._follow(_Job(number, command, cancelled), on_event)
        except BaseException:  # it may still write, and nobody listens any more
            self.kill()
            raise
        finally:
            self._rate = None
        if last["event"] == "stopped":
            raise CopyStopped(last["reason"])
        if last["event"] == "failed":
            raise translated(last["error"])
        if command["do"] == "copy":
            self._copied = (number, self.ends)
        return last

    def _follow(self, job: _Job, on_event: OnEvent) -> dict[str, Any]:
        """Hand on the events of a job; return the last, which says how it ended.

        Raises CopyStopped if the worker does not obey in time.
        """
        while not job.is_overdue:
            for event in self._receive(LOOK_SECONDS):
                if event["event"] in _LAST_EVENTS:
                    return event
                job.heard(event)
                on_event(event)
            if (silence := job.silence()) is not None:
                on_event(silence)
            if self._rate is not None:
                (rate,), self._rate = self._rate, None
                self._send({"do": "rate", "bytes_per_second": rate})
            if (order := job.order()) is not None:
                self._send(order)
        raise CopyStopped(job.reason or "cancel")

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
            self._channel.sendall(json.dumps(command).encode() + b"\n")
        except OSError as error:
            raise self._died() from error

    def _died(self) -> errors.DriverError:
        """Wait for the end of a worker that closed its socket; return the error that says how it ended."""
        try:
            status = self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self._process.returncode
        reason = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        LOG.warning("Copy worker %s %s", self._process.pid, reason)
        return errors.DriverError(backend=BACKEND, reason=reason)


def _is_same(one: Ends | None, other: Ends) -> bool:
    return one is not None and one[0] is other[0] and one[1] is other[1]


class _Job:
    """What the parent of a worker knows of a job under way: its last word, and what it was told."""

    def __init__(self, number: int, command: Mapping[str, Any], cancelled: Cancelled) -> None:
        self.reason: str | None = None
        self._number = number
        self._cancelled = cancelled
        self._timeout = command["options"].get("io_timeout_seconds") or IO_TIMEOUT_SECONDS
        self._overdue_at = float("inf")
        done = [list(pair) for pair in command.get("done", ())]
        self._last: dict[str, Any] = {
            "ranges": done,
            "bytes_total": command["source"]["size"],
            "bytes_done": sum(length for _, length in done),
            "bytes_read": 0,
            "bytes_written": 0,
            "rate_overall": 0.0,
        }
        self._heard_at = self._told_at = time.monotonic()

    @property
    def is_overdue(self) -> bool:
        """True when it was told to stop and has not for too long."""
        return time.monotonic() >= self._overdue_at

    def heard(self, event: dict[str, Any]) -> None:
        self._last, self._heard_at = event, time.monotonic()

    def silence(self) -> dict[str, Any] | None:
        """Return, now and then, an event in place of a worker that says nothing: it waits for a device."""
        now = time.monotonic()
        seconds = now - self._heard_at
        if seconds < max(self._timeout, SILENCE_SECONDS) or now - self._told_at < SILENCE_SECONDS:
            return None
        self._told_at = now
        return {**self._last, "event": "progress", "rate": 0.0, "stalled_seconds": seconds}

    def order(self) -> dict[str, Any] | None:
        """Ask whether to stop; return the order to the worker, once."""
        if self.reason == "cancel" or (reason := reason_to_stop(self._cancelled)) in (None, self.reason):
            return None
        is_first, self.reason = self.reason is None, reason
        hangs = bool(self._last.get("stalled_seconds")) or time.monotonic() - self._heard_at > self._timeout
        patience = PATIENCE_SECONDS["cancel" if hangs or reason == "cancel" else "pause"]
        self._overdue_at = min(self._overdue_at, time.monotonic() + patience)
        return {"do": "stop", "job": self._number, "reason": reason} if is_first else None


def _environment() -> dict[str, str]:
    """Return an environment in which the worker finds the package that this process runs, wherever it lies."""
    root = Path(migrator.__file__).parent.parent
    if root.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def kill_worker(identity: Mapping[str, Any]) -> bool:
    """Kill the worker that a record names and wait until it is gone: then it writes nothing any more.

    One of an earlier boot of this machine is gone.  Returns False for one of another machine, or of a container, about
    which nothing can be known here.  Raises CopierHangs if it cannot die.
    """
    if not machine.is_here(identity):
        return machine.ended_with_its_boot(identity)
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
        if not poll.poll(FENCE_SECONDS * 1000):
            raise errors.CopierHangs(pid=pid)
        return True
    finally:
        os.close(descriptor)
