"""What a copier is for its caller, and the one that works in the calling thread.

A connection of kind ``memory`` can only be reached inside this process, so its copy runs in the calling thread; all
others run in a worker process (worker_copier.py), where a device that hangs stops nobody else and SIGKILL ends the
writing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from migrator import errors
from migrator.volume import job
from migrator.volume.control import Control, Stopped
from migrator.volume.endpoints import CopyError, Endpoint, MemoryEndpoint, MemoryObject

OnEvent = Callable[[dict[str, Any]], None]
"""Is given every started, progress and checkpoint event of a copy, as volume/worker.py describes them.

Every one has ``ranges``, those flushed last.  What it raises ends the copy.
"""

Cancelled = Callable[[], bool | str]
"""Asked at least twice a second; anything true stops the job, a text being the reason (else ``cancel``)."""

#: Longest time between two questions whether a job is cancelled.
LOOK_SECONDS = 0.25
BACKEND = "copy worker"


class CopyStopped(Exception):
    """The job ended because it was asked to; nothing is written any more. ``reason`` is ``cancel`` or ``pause``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def never() -> bool:
    """Let a job go on to its end."""
    return False


def ignore(event: dict[str, Any]) -> None:
    """Let an event pass."""


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


def translated(error: Mapping[str, Any]) -> errors.MigratorError:
    """Return the error that ``CopyError.as_dict`` describes, or DriverError for one that nobody foresaw."""
    kind = _TRANSLATED.get(error["kind"])
    if kind is None:
        return errors.DriverError(backend=BACKEND, reason=f"{error['kind']}: {error['reason']}")
    return kind(**error, where=error["path"])


Options = Mapping[str, Any]
"""``bytes_per_second`` (None or absent: no limit), ``checkpoint_seconds``, ``hash`` (default True: make a checksum),
``io_timeout_seconds`` (from when on a request counts as stalled), ``threads`` and ``block`` (else found by measurement)
"""


class Copier(Protocol):
    """Who copies or compares one volume at a time, in the caller's thread.

    Both calls return or raise only when both ends are closed; CopierHangs is the one exception, and its job may still
    write.  They raise CopyStopped when ``cancelled`` said so, SourceUnreadable, DestinationUnwritable, NoSpace,
    SizeMismatch, VerifyMismatch, DriverError, or whatever ``on_event`` and ``cancelled`` raise.
    """

    @property
    def identity(self) -> dict[str, Any] | None:
        """What ``kill_worker`` needs to end it from elsewhere; None if it is no process of its own."""

    def copy(
        self,
        source: Mapping[str, Any],
        destination: Mapping[str, Any],
        done: list[list[int]],
        options: Options,
        on_event: OnEvent,
        cancelled: Cancelled,
    ) -> dict[str, Any]:
        """Copy all but ``done``; returns bytes_total, bytes_done, bytes_read, bytes_written, seconds and checksum.

        The checksum is None where ``done`` held a part, or none was wanted.
        """

    def verify(
        self,
        source: Mapping[str, Any],
        destination: Mapping[str, Any],
        cancelled: Cancelled,
        options: Options | None = None,
        on_event: OnEvent = ignore,
    ) -> str:
        """Read the destination back, compare it with the source, and return the checksum.

        Only the destination is read where this copier has just made the copy, with a checksum, through the very same
        exports (see copiers.open_copier).
        """

    def limit(self, bytes_per_second: float | None) -> None:
        """Change the rate of the job under way; from any thread, and at once."""

    def kill(self) -> None:
        """End it at once; what it had under way raises. From any thread."""


class Orders:
    """The two calls of a copier, put into the words that volume/worker.py knows."""

    def _run(self, command: dict[str, Any], on_event: OnEvent, cancelled: Cancelled) -> dict[str, Any]:
        """Do what the command asks for and return its last event."""
        raise AssertionError("each copier runs its jobs somewhere")

    def copy(
        self,
        source: Mapping[str, Any],
        destination: Mapping[str, Any],
        done: list[list[int]],
        options: Options,
        on_event: OnEvent,
        cancelled: Cancelled,
    ) -> dict[str, Any]:
        command = {"do": "copy", "source": source, "destination": destination, "done": done, "options": dict(options)}
        return self._run(command, on_event, cancelled)

    def verify(
        self,
        source: Mapping[str, Any],
        destination: Mapping[str, Any],
        cancelled: Cancelled,
        options: Options | None = None,
        on_event: OnEvent = ignore,
    ) -> str:
        command = {"do": "verify", "source": source, "destination": destination, "options": dict(options or {})}
        return str(self._run(command, on_event, cancelled)["checksum"])


# --- in the calling thread -------------------------------------------------------------------------------------------


class InlineCopier(Orders):
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
        control = self._control = Control(command["options"].get("bytes_per_second"))

        def look() -> None:
            if control.reason is None and (reason := reason_to_stop(cancelled)):
                control.stop(reason)

        try:
            return job.Performer(self._open).perform(command, control, on_event, look)
        except Stopped as stopped:
            raise CopyStopped(stopped.reason) from None
        except CopyError as error:
            raise translated(error.as_dict()) from error

    def _open(self, connection: Mapping[str, Any], writable: bool) -> Endpoint:
        if connection["kind"] != "memory":
            return job.open_endpoint(connection, writable)
        path = connection["path"]
        return MemoryEndpoint(path, self._open_memory(path), new_volume_is_zero=bool(connection.get("is_zero")))
