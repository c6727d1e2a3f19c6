"""The copy worker: a process that copies or compares one volume at a time, as its parent tells it over a socket.

Started as ``python -m migrator.volume.worker <descriptor>`` and kept warm.  It speaks lines of JSON.

    parent: {"do": "copy", "job": 1, "source": {…}, "destination": {…}, "done": [[0, 1048576]], "options": {…}}
            {"do": "verify", "job": 2, "source": {…}, "destination": {…}, "options": {…}}
            {"do": "stop", "job": 1, "reason": "cancel"}           {"do": "rate", "bytes_per_second": 1e8}
    worker: {"event": "started" | "progress" | "checkpoint", "job": 1, "ranges": […], "bytes_done": …, …}
            {"event": "done" | "stopped" | "failed", "job": 1, …}

The last event of a job is sent when both ends are closed: from then on nothing can be written any more.  A worker
never outlives its parent: the end of the socket ends it at once, also in the middle of a copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from migrator.volume.copy import Checkpoint, Control, CopyOptions, Progress, Stopped, copy
from migrator.volume.endpoints import CopyError, Endpoint, FileEndpoint, WrongSize, read_failed, write_failed
from migrator.volume.extents import Ranges
from migrator.volume.verify import verify

Report = Callable[[dict[str, Any]], None]
"""Is given every event of a job but the last."""

Opener = Callable[[Mapping[str, Any], bool], Endpoint]
"""Opens the endpoint of a connection (a dict of drivers.base.Connection), for writing or not; raises OSError."""

#: Seconds between two looks whether the parent lives, should its end of the socket have been inherited by another.
PARENT_SECONDS = 1.0
PROGRESS_SECONDS = 1.0
RATE_SECONDS = 10.0
_COPY_OPTIONS = ("threads", "block", "checkpoint_seconds")


# --- one job ---------------------------------------------------------------------------------------------------------


def perform(
    command: Mapping[str, Any],
    control: Control,
    report: Report,
    open_endpoint: Opener,
    look: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Do what a command asks for and return what the last event says; raises CopyError, Stopped.

    Both ends are closed when it returns or raises.  ``look`` is called several times a second and may stop the job.
    """
    copies = command["do"] == "copy"
    control.bytes_per_second = command["options"].get("bytes_per_second")
    with (
        _opened(command["source"], False, open_endpoint) as source,
        _opened(command["destination"], copies, open_endpoint) as destination,
    ):
        reports = Reports(source.size, Ranges(command.get("done", ())), report, look)
        reports.send("started", Progress(source.size, reports.ranges.total))
        if not copies:
            return {"checksum": verify(source, destination, control=control, on_progress=reports.progress)}
        result = copy(
            source,
            destination,
            done=reports.ranges,
            destination_is_zero=destination.capabilities.new_volume_is_zero,
            options=CopyOptions(**{k: v for k, v in command["options"].items() if k in _COPY_OPTIONS}),
            control=control,
            on_checkpoint=reports.checkpoint,
            on_progress=reports.progress,
        )
    return {**result.progress.__dict__, "seconds": result.seconds}


@contextlib.contextmanager
def _opened(connection: Mapping[str, Any], writable: bool, open_endpoint: Opener) -> Iterator[Endpoint]:
    """Open one end, check its size, and close it: a writable one that cannot be closed has failed."""
    failed = write_failed if writable else read_failed
    try:
        endpoint = open_endpoint(connection, writable)
    except OSError as error:
        raise failed(connection["path"], 0, error) from error
    try:
        if endpoint.size != connection["size"]:
            raise WrongSize(endpoint.name, wanted=connection["size"], got=endpoint.size)
        yield endpoint
    except BaseException:
        with contextlib.suppress(OSError):  # never in place of the first error
            endpoint.close()
        raise
    try:
        endpoint.close()
    except OSError as error:
        if writable:
            raise write_failed(endpoint.name, 0, error, "closing: ") from error


class Reports:
    """Turns what the engine says about a job into events; the rate is that of ``bytes_done`` over some seconds."""

    def __init__(self, size: int, done: Ranges, report: Report, look: Callable[[], None]) -> None:
        self.ranges = done.within(0, size)
        self._report = report
        self._look = look
        self._flushed = self.ranges.as_list()
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), self.ranges.total)])
        self._next = time.monotonic() + PROGRESS_SECONDS

    def progress(self, progress: Progress) -> None:
        self._look()
        if time.monotonic() >= self._next:
            self.send("progress", progress)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._flushed = checkpoint.ranges
        self.send("checkpoint", checkpoint.progress)

    def send(self, event: str, progress: Progress) -> None:
        """Report an event; ``ranges`` are always those that were flushed last."""
        now = time.monotonic()
        self._next = now + PROGRESS_SECONDS
        self._seen.append((now, progress.bytes_done))
        while len(self._seen) > 2 and self._seen[1][0] < now - RATE_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = max(0.0, progress.bytes_done - before) / max(now - since, 0.001)
        self._report({"event": event, "ranges": self._flushed, "rate": rate, **progress.__dict__})


def open_file(connection: Mapping[str, Any], writable: bool) -> Endpoint:
    """Open a connection of kind ``file``; raises OSError."""
    return FileEndpoint(
        connection["path"],
        writable=writable,
        new_volume_is_zero=bool(connection.get("is_zero")),
        limit=connection.get("limit") if writable else None,
    )


# --- the process -----------------------------------------------------------------------------------------------------


class Worker:
    """Reads commands in a thread of its own, so that a stop is heard at any time; works in the main thread."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._parent = os.getppid()
        self._jobs: queue.SimpleQueue[tuple[dict[str, Any], Control]] = queue.SimpleQueue()
        self._current: tuple[int, Control] | None = None

    def serve(self) -> NoReturn:
        threading.Thread(target=self._read, name="commands", daemon=True).start()
        while True:
            command, control = self._jobs.get()
            self._send(self._work(command, control) | {"job": command["job"]})

    def _work(self, command: dict[str, Any], control: Control) -> dict[str, Any]:
        try:
            job = command["job"]
            done = perform(command, control, lambda event: self._send(event | {"job": job}), open_file)
        except Stopped as stopped:
            return {"event": "stopped", "reason": stopped.reason}
        except CopyError as error:
            return {"event": "failed", "error": error.as_dict()}
        except Exception as error:  # the top of a job: the parent must hear of it, and the worker can do others
            traceback.print_exc()
            return {"event": "failed", "error": {"kind": type(error).__name__, "reason": str(error)}}
        return {"event": "done", **done}

    def _send(self, event: dict[str, Any]) -> None:
        try:
            self._channel.sendall(json.dumps(event).encode() + b"\n")
        except OSError:
            os._exit(1)

    def _read(self) -> NoReturn:
        try:
            for line in self._lines():
                self._obey(json.loads(line))
        except Exception:  # the top of the thread without which nobody could stop the copy
            traceback.print_exc()
        os._exit(1)

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines that come, until the parent is gone."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        pending = b""
        while os.getppid() == self._parent:
            if not poll.poll(PARENT_SECONDS * 1000):
                continue
            data = self._channel.recv(1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            yield from lines

    def _obey(self, command: dict[str, Any]) -> None:
        if command["do"] in ("copy", "verify"):
            control = Control()
            self._current = (command["job"], control)
            self._jobs.put((command, control))
        elif self._current is not None and command["do"] == "rate":
            self._current[1].bytes_per_second = command["bytes_per_second"]
        elif self._current is not None and self._current[0] == command["job"]:
            self._current[1].stop(command["reason"])


def main(arguments: list[str]) -> NoReturn:
    # Who stops a service stops its whole group: the parent alone decides when its workers end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Worker(socket.socket(fileno=int(arguments[0]))).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
