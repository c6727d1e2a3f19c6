"""One job of a copier, copy or verification, from the opening of both ends to their closing."""

from __future__ import annotations

import contextlib
import errno
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from migrator.volume.control import Control
from migrator.volume.copy import Checkpoint, CopyOptions, Progress, copy
from migrator.volume.digests import Digests
from migrator.volume.endpoints import Endpoint, WrongSize, read_failed, write_failed
from migrator.volume.extents import Ranges
from migrator.volume.files import FileEndpoint
from migrator.volume.verify import verify

Report = Callable[[dict[str, Any]], None]
"""Is given every event of a job but the last."""

Opener = Callable[[Mapping[str, Any], bool], Endpoint]
"""Opens the endpoint of a connection (a dict of drivers.base.Connection), for writing or not; raises OSError."""

PROGRESS_SECONDS = 1.0
RATE_SECONDS = 10.0
#: A request that has not come back after this time counts as stalled, where the options do not say otherwise.
IO_TIMEOUT_SECONDS = 30.0
_COPY_OPTIONS = ("threads", "block", "checkpoint_seconds", "hash")


class Performer:
    """Does one job after the other; keeps what it learned of the last copy for the verification behind it."""

    def __init__(self, open_endpoint: Opener) -> None:
        self._open = open_endpoint
        #: Number of the last copy that was complete, and the digests of its source.
        self._known: tuple[int, Digests] | None = None

    def perform(
        self, command: Mapping[str, Any], control: Control, report: Report, look: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Do what a command asks for and return what the last event says; raises CopyError, Stopped.

        Both ends are closed when it returns or raises.  ``look`` is called several times a second and may stop the job.
        """
        copies = command["do"] == "copy"
        if copies:
            self._known = None
        with (
            self._opened(command["source"], False) as source,
            self._opened(command["destination"], copies) as destination,
        ):
            timeout = command["options"].get("io_timeout_seconds") or IO_TIMEOUT_SECONDS
            reports = Reports(source.size, Ranges(command.get("done", ())), report, look, timeout)
            reports.send("started", Progress(source.size, reports.ranges.total))
            do = self._copy if copies else self._verify
            return do(command, source, destination, control, reports)

    def _copy(
        self, command: Mapping[str, Any], source: Endpoint, destination: Endpoint, control: Control, reports: Reports
    ) -> dict[str, Any]:
        result = copy(
            source,
            destination,
            done=reports.ranges,
            destination_is_zero=destination.capabilities.new_volume_is_zero,
            options=_options(command),
            control=control,
            on_checkpoint=reports.checkpoint,
            on_progress=reports.progress,
        )
        if result.digests is not None and "job" in command:
            self._known = (command["job"], result.digests)
        return {**_bytes(result.progress), "seconds": result.seconds, "checksum": result.checksum}

    def _verify(
        self, command: Mapping[str, Any], source: Endpoint, destination: Endpoint, control: Control, reports: Reports
    ) -> dict[str, Any]:
        known = None
        if self._known is not None and self._known[0] == command.get("copied"):
            known = self._known[1]
        checksum = verify(
            source,
            destination,
            control=control,
            options=_options(command),
            known=known,
            on_progress=reports.progress,
        )
        return {"checksum": checksum}

    @contextlib.contextmanager
    def _opened(self, connection: Mapping[str, Any], writable: bool) -> Iterator[Endpoint]:
        """Open one end, check its size, and close it: a writable one that cannot be closed has failed."""
        failed = write_failed if writable else read_failed
        try:
            endpoint = self._open(connection, writable)
        except OSError as error:
            raise failed(_name(connection), 0, error) from error
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


def _options(command: Mapping[str, Any]) -> CopyOptions:
    given = {name: command["options"][name] for name in _COPY_OPTIONS if name in command["options"]}
    return CopyOptions(**given)


def _name(connection: Mapping[str, Any]) -> str:
    """What a message calls an end that could not be opened; an address may hold secrets."""
    return "an NBD export" if connection["kind"] == "nbd" else str(connection["path"])


def _bytes(progress: Progress) -> dict[str, int]:
    names = ("bytes_total", "bytes_done", "bytes_read", "bytes_written")
    return {name: getattr(progress, name) for name in names}


class Reports:
    """Turns what the engine says about a job into events; the rate is that of ``bytes_done`` over some seconds."""

    def __init__(self, size: int, done: Ranges, report: Report, look: Callable[[], None], timeout: float) -> None:
        self.ranges = done.within(0, size)
        self._report = report
        self._look = look
        self._timeout = timeout
        self._flushed = self.ranges.as_list()
        self._began, self._before = time.monotonic(), self.ranges.total
        self._seen: deque[tuple[float, int]] = deque([(self._began, self._before)])
        self._next = self._began + PROGRESS_SECONDS

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
        waited = progress.waited_seconds
        self._report(
            {
                "event": event,
                "ranges": self._flushed,
                **_bytes(progress),
                "rate": _rate(self._seen[0], now, progress.bytes_done),
                "rate_overall": _rate((self._began, self._before), now, progress.bytes_done),
                "stalled_seconds": waited if waited >= self._timeout else 0.0,
            }
        )


def _rate(since: tuple[float, int], now: float, done: int) -> float:
    return max(0.0, done - since[1]) / max(now - since[0], 0.001)


def open_endpoint(connection: Mapping[str, Any], writable: bool) -> Endpoint:
    """Open a connection that can be reached from any process of this machine; raises OSError."""
    return _OPENERS[connection["kind"]](connection, writable)


def _open_file(connection: Mapping[str, Any], writable: bool) -> Endpoint:
    return FileEndpoint(
        connection["path"],
        writable=writable,
        new_volume_is_zero=bool(connection.get("is_zero")),
        limit=connection.get("limit") if writable else None,
        volume_size=connection["size"],
        may_punch=bool(connection.get("may_punch", True)),
    )


def _open_nbd(connection: Mapping[str, Any], writable: bool) -> Endpoint:
    from migrator.volume.nbd.endpoint import CONNECTIONS, NbdEndpoint  # TLS is slow to import; most copies need none
    from migrator.volume.nbd.uri import UriError

    access = connection.get("nbd") or {}  # of an export of ours; else the path is an address that a person typed
    try:
        return NbdEndpoint(
            _address(access) if access else connection["path"],
            writable=writable,
            new_volume_is_zero=bool(connection.get("is_zero")),
            may_punch=bool(connection.get("may_punch", True)),
            connections=min(access.get("connections", CONNECTIONS), CONNECTIONS),
        )
    except UriError as error:
        raise OSError(errno.EINVAL, str(error)) from error


def _address(access: Mapping[str, Any]) -> Any:
    """Put the address of an export together out of what volume/exports.py answered."""
    from migrator.volume.nbd.uri import Address, Tls

    tls = None
    if access["tls"] == "psk":
        tls = Tls(user=access["user"], key=bytes.fromhex(access["key"]))
    elif access["tls"] != "off":
        tls = Tls(certificates=access["certificates"], hostname=access["host"])
    return Address(access["export"], access["host"], access["port"], tls=tls)


_OPENERS: dict[str, Opener] = {"file": _open_file, "nbd": _open_nbd}
