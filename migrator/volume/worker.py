"""The copy worker: a process that copies or compares one volume at a time, as its parent tells it over a socket.

Started as ``python -m migrator.volume.worker <descriptor>`` and kept warm.  It speaks lines of JSON.

    parent: {"do": "copy", "job": 1, "source": {…}, "destination": {…}, "done": [[0, 1048576]], "options": {…}}
            {"do": "verify", "job": 2, "source": {…}, "destination": {…}, "options": {…}, "copied": 1}
            {"do": "stop", "job": 1, "reason": "cancel"}           {"do": "rate", "bytes_per_second": 1e8}
    worker: {"event": "started" | "progress" | "checkpoint", "job": 1, "ranges": […], "bytes_done": …, …}
            {"event": "done" | "stopped" | "failed", "job": 1, …}

A verification that names the job which copied, the last of this worker, needs to read the destination only.

The last event of a job is sent when both ends are closed: from then on nothing can be written any more.  A worker
never outlives its parent: the end of the socket ends it at once, also in the middle of a copy.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from migrator.volume.control import Control, Stopped
from migrator.volume.endpoints import CopyError
from migrator.volume.job import Performer, open_endpoint

#: Seconds between two looks whether the parent lives, should its end of the socket have been inherited by another.
PARENT_SECONDS = 1.0


class Worker:
    """Reads commands in a thread of its own, so that a stop is heard at any time; works in the main thread."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._parent = os.getppid()
        self._jobs: queue.SimpleQueue[tuple[dict[str, Any], Control]] = queue.SimpleQueue()
        self._current: tuple[int, Control] | None = None
        self._performer = Performer(open_endpoint)

    def serve(self) -> NoReturn:
        threading.Thread(target=self._read, name="commands", daemon=True).start()
        while True:
            command, control = self._jobs.get()
            self._send(self._work(command, control) | {"job": command["job"]})

    def _work(self, command: dict[str, Any], control: Control) -> dict[str, Any]:
        try:
            job = command["job"]
            done = self._performer.perform(command, control, lambda event: self._send(event | {"job": job}))
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
            control = Control(command["options"].get("bytes_per_second"))
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
