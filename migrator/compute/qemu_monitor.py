"""A QEMU's monitor (QMP), for callers in any thread: one event loop in a thread of its own, a time limit on everything.

QEMU serves one client of a monitor at a time, so a connection is made for a few commands and ended; commands of two
connections never mix.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from migrator import errors, machine

T = TypeVar("T")

#: struct ucred, see unix(7): process, user and group of who listens.
_UCRED = struct.Struct("3i")
#: How much longer than its command a caller waits for the event loop, seconds.
_GRACE_SECONDS = 5.0


class Loop:
    """The thread in which every connection of this process is served; begun at its first use, also after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: int | None = None
        self._loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Return what ``work`` returns; raises TimeoutError after ``seconds``, and what it raises."""
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), self._running())
        return future.result(seconds + _GRACE_SECONDS)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._of != os.getpid():
                self._loop, self._of = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True).start()
            return self._loop


class Monitor:
    """One connection, open for as long as the context lasts."""

    def __init__(self, loop: Loop, path: str, seconds: float) -> None:
        """Connect; raises ComputeUnreachable: nobody listens there, or somebody else is served."""
        self._loop, self._path, self._seconds = loop, path, seconds
        self._client = QMPClient("migrator")
        try:
            self.process, connection = self._connect()
            self._begin(connection)
        except (OSError, QMPError, TimeoutError, EOFError) as error:
            said = "no greeting in time, another client may hold it" if isinstance(error, TimeoutError) else error
            raise errors.ComputeUnreachable(reason=f"the monitor {path}: {said}") from error

    def _begin(self, connection: socket.socket) -> None:
        """Greet, and leave nothing open where that fails; the socket is the event loop's from here on."""
        try:
            self._loop.run(self._client.connect(connection), self._seconds)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        with contextlib.suppress(OSError, QMPError, TimeoutError, EOFError):  # lost already, as the commands said
            self._loop.run(self._client.disconnect(), self._seconds)

    def _connect(self) -> tuple[dict[str, Any], socket.socket]:
        """The socket, and who listens at its other end as a record names a process."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(self._seconds)
            connection.connect(self._path)
            told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            process = machine.identity(_UCRED.unpack(told)[0])
            if process["started"] is None:
                raise ConnectionError("the process that opened it is gone or is not to be seen from here")
            connection.setblocking(False)
        except BaseException:
            connection.close()
            raise
        return process, connection

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return the answer to a command, whose arguments are in QMP's spelling but for ``_`` instead of ``-``.

        Raises ComputeRefused with QEMU's reason, or ComputeSilent when nobody knows whether it was done.
        """
        values = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return self._loop.run(self._client.execute(command, values), self._seconds)
        except ExecuteError as error:
            raise errors.ComputeRefused(code=error.error_class, reason=f"{command}: {error}") from error
        except (OSError, QMPError, TimeoutError, EOFError) as error:
            said = "no answer in time" if isinstance(error, TimeoutError) else repr(error)
            raise errors.ComputeSilent(reason=f"the monitor {self._path}: {command}: {said}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
