"""The copiers of a volume service: a pool of warm worker processes, and who copies between two given connections."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from migrator import errors, machine
from migrator.drivers import memory
from migrator.drivers.base import Connection
from migrator.volume.copier import (
    BACKEND,
    LOOK_SECONDS,
    Cancelled,
    Copier,
    CopyStopped,
    InlineCopier,
    never,
    reason_to_stop,
)
from migrator.volume.endpoints import MemoryObject
from migrator.volume.worker_copier import Ends, WorkerCopier, kill_worker

LOG = logging.getLogger(__name__)

SPAWN_RETRY_SECONDS = 1.0


@dataclass(eq=False)
class _Place:
    """Room for one worker; empty until one is needed or the pool has time to start it."""

    copier: WorkerCopier | None = None

    @property
    def is_warm(self) -> bool:
        return self.copier is not None and self.copier.is_alive

    def worth(self, ends: Ends | None) -> tuple[bool, bool, bool]:
        """Tell how good it is for a job between ``ends``: the greater the better.

        Best is the one that copied there; next, one that has nothing to forget.
        """
        if self.copier is None:
            return (False, False, False)
        return (self.is_warm, ends is not None and self.copier.has_copied(ends), self.copier.forgets_nothing)

    def clear(self) -> None:
        if self.copier is not None:
            self.copier.close()
        self.copier = None

    def occupy(self) -> WorkerCopier:
        """Return its worker, a new one if need be; raises DriverError."""
        if self.copier is not None and self.copier.is_alive:
            return self.copier
        self.clear()
        self.copier = WorkerCopier()
        return self.copier


class CopierPool:
    """Places for workers, kept warm by a thread of their own; who waits for one gets it in order of coming."""

    def __init__(self, size: int, open_memory: Callable[[str], MemoryObject] = memory.open_object) -> None:
        """``open_memory`` opens the object that a connection of kind ``memory`` names; raises OSError."""
        self.open_memory = open_memory
        self._places = [_Place() for _ in range(size)]
        self._free = list(self._places)
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()
        self._is_shut = False
        threading.Thread(target=self._keep_warm, name="copiers", daemon=True).start()

    @contextlib.contextmanager
    def take(
        self, timeout: float | None = None, stop: Cancelled = never, ends: Ends | None = None
    ) -> Iterator[WorkerCopier]:
        """Hand out a worker; raises CopyStopped, or DriverError if none became free in ``timeout`` seconds.

        Of several free ones, that which copied between ``ends``.
        """
        place = self._wait(timeout, stop, ends)
        try:
            yield place.occupy()
        finally:
            self._give_back(place)

    def shut_down(self) -> None:
        """Kill every worker; what is under way fails, and nothing can be taken any more."""
        with self._changed:
            self._is_shut = True
            free, self._free = self._free, []
            self._changed.notify_all()
        for place in free:
            place.clear()
        for place in self._places:
            if (copier := place.copier) is not None:  # taken: whoever has it sees its end, and clears up
                with contextlib.suppress(errors.CopierHangs):
                    copier.kill()

    def _wait(self, timeout: float | None, stop: Cancelled, ends: Ends | None) -> _Place:
        ticket = object()
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        with self._changed:
            self._waiting.append(ticket)
        try:
            while (place := self._claim(ticket, min(LOOK_SECONDS, deadline - time.monotonic()), ends)) is None:
                if reason := reason_to_stop(stop):
                    raise CopyStopped(reason)
                if time.monotonic() >= deadline:
                    raise errors.DriverError(backend=BACKEND, reason=f"none became free within {timeout} s")
            return place
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _claim(self, ticket: object, seconds: float, ends: Ends | None) -> _Place | None:
        """Take a free place, the best there is, once all who came before have theirs."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_shut or (self._free and self._waiting[0] is ticket), seconds)
            if self._is_shut:
                raise errors.DriverError(backend=BACKEND, reason="the service is ending")
            if not self._free or self._waiting[0] is not ticket:
                return None
            place = max(self._free, key=lambda place: place.worth(ends))
            self._free.remove(place)
            return place

    def _give_back(self, place: _Place) -> None:
        if not place.is_warm:
            place.clear()
        with self._changed:
            if not self._is_shut:
                self._free.append(place)
                self._changed.notify_all()
                return
        place.clear()

    def _keep_warm(self) -> None:
        """Fill empty places while nobody uses them: the top of the pool's thread."""
        while (place := self._empty_place()) is not None:
            failed = False
            try:
                place.occupy()
            except errors.DriverError as error:
                LOG.warning("No copy worker could be started ahead: %s", error)
                failed = True
            self._give_back(place)
            if failed:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_shut, SPAWN_RETRY_SECONDS)

    def _empty_place(self) -> _Place | None:
        """Wait for a free place that is empty and take it; None when the pool is shut."""

        def empty() -> _Place | None:
            return next((place for place in self._free if place.copier is None), None)

        with self._changed:
            self._changed.wait_for(lambda: self._is_shut or empty())
            place = empty()
            if place is None or self._is_shut:
                return None
            self._free.remove(place)
            return place


@contextlib.contextmanager
def open_copier(
    pool: CopierPool,
    source: Connection,
    destination: Connection,
    cancelled: Cancelled = never,
    timeout: float | None = None,
) -> Iterator[Copier]:
    """Hand out who can copy between two connections; waits for a free worker like ``CopierPool.take``.

    Whoever opens a copier for the verification with the same two objects as for the copy gets, if it is free, the one
    that copied, which needs to read the destination only.

    Raises Unreachable for a connection that leads to another machine or process.
    """
    for end in (source, destination):
        if end.machine != machine.boot_id() or end.process not in (None, machine.process_id()):
            raise errors.Unreachable(what=end.path, reason="it is on another machine or in another process")
    if "memory" in (source.kind, destination.kind):
        yield InlineCopier(pool.open_memory)
        return
    ends = (source, destination)
    with pool.take(timeout, cancelled, ends) as copier:
        copier.ends = ends
        try:
            yield copier
        finally:
            copier.ends = None


__all__ = ["Copier", "CopierPool", "CopyStopped", "InlineCopier", "WorkerCopier", "kill_worker", "open_copier"]
