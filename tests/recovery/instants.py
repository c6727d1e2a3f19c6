"""Instants: the moments at which a schedule may do something, and the wrappers that make them.

An instant has a label such as ``copy_data forward before``, ``mem2 create after``, ``commit inside`` or
``object flush before``.  At each one the world checks every invariant and then springs the traps set for it.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from oslo_db import exception as db_exc
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from migrator import errors
from migrator.conf import Conf
from migrator.context import RequestContext
from migrator.db.api import Database
from migrator.drivers.base import VolumeDriver
from migrator.drivers.faults import Died
from migrator.rpc import VolumeClient
from migrator.volume import states
from migrator.volume.endpoints import MemoryObject
from migrator.volume.states import Direction

T = TypeVar("T")

At = Callable[[str], None]
"""Is told the label of each instant as it comes."""

_DRIVER_CALLS = ("create", "delete", "export", "revoke", "can_assist", "move", "unmove", "allocated")


class Trap:
    """Something to be done at the instants that match; ``after``: let so many pass; ``times`` None: always."""

    def __init__(
        self, matches: Callable[[str], bool], action: Callable[[], object], after: int = 0, times: int | None = 1
    ) -> None:
        self._matches = matches
        self._action = action
        self._after = after
        self._left = times
        self.sprung = 0
        #: The instant at which it sprang last.
        self.label = ""

    def wants(self, label: str) -> bool:
        """Count the instant; tell whether this is one to act at."""
        if self._left == 0 or not self._matches(label):
            return False
        if self._after > 0:
            self._after -= 1
            return False
        if self._left is not None:
            self._left -= 1
        self.sprung += 1
        self.label = label
        return True

    def act(self) -> None:
        self._action()


class Instants:
    """The instants of one schedule, in order; safe to use from several threads."""

    def __init__(self, check: At) -> None:
        self._check = check
        self._lock = threading.Lock()
        self.trail: list[str] = []
        self.traps: list[Trap] = []
        #: Set when the process died in a thread that serves messages: the thread that waits for them dies too.
        self.died = False
        #: Times that a process died in this schedule.
        self.deaths = 0

    def clear(self) -> None:
        self.trail, self.traps, self.died, self.deaths = [], [], False, 0

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """Nothing is looked at inside: what a test broke on purpose is being cleared away."""
        check, self._check = self._check, lambda label: None
        try:
            yield
        finally:
            self._check = check

    def die(self) -> None:
        """The process ends at this instant."""
        self.deaths += 1
        raise Died

    def trap(
        self,
        label: str | None,
        action: Callable[[], object],
        *,
        after: int = 0,
        times: int | None = 1,
        only: Callable[[str], bool] = lambda label: True,
    ) -> Trap:
        """Do ``action`` at the instants of that label, None: of any that ``only`` accepts."""
        trap = Trap(lambda at: only(at) if label is None else at == label, action, after, times)
        with self._lock:
            self.traps.append(trap)
        return trap

    def at(self, label: str) -> None:
        """An instant has come; nothing happens between one and the next "before", so that is not looked at again."""
        if not label.endswith("before"):
            try:
                self._check(label)
            except AssertionError:
                self.deaths += 1  # nothing goes on from here, and whoever waits for it need not
                raise
        with self._lock:
            self.trail.append(label)
            due = [trap for trap in self.traps if trap.wants(label)]
        for trap in due:
            trap.act()

    def at_peer(self, label: str) -> None:
        """An instant has come in a thread that serves a message for the other service.

        Where the whole process dies there, nobody answers; so that nobody has to wait for that, the message ends with
        an error and the thread that gets it dies at once.
        """
        try:
            self.at(label)
        except Died:
            self.died = True
            raise errors.DriverError(backend="the process", reason="died") from None

    def die_too(self) -> None:
        if self.died:
            raise Died


# --- what can go wrong -------------------------------------------------------------------------------------------


def failure(label: str, *, final: bool = False) -> BaseException:
    """The failure that fits an instant: a device's, the database's, or a backend's."""
    if label.startswith("object"):
        return OSError(errno.EIO, "broken on purpose")
    if label.startswith(("commit", "scheduler", f"{states.FIRST_STEP} {Direction.FORWARD}")):
        lost: BaseException = db_exc.DBConnectionError(OSError("broken on purpose"))
        return lost
    if final:
        return errors.NoSpace(where=label, reason="broken on purpose")
    return errors.DriverError(backend=label, reason="broken on purpose")


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error.with_traceback(None)

    return action


# --- wrappers ----------------------------------------------------------------------------------------------------


class WatchedDatabase(Database):
    """Instants before a writing transaction, before its commit, and behind it."""

    def __init__(self, engine: Engine, at: At, name: str = "commit") -> None:
        super().__init__(engine)
        self._at = at
        self._name = name

    def run(self, work: Callable[[Session], T], *, if_unanswered: bool = True) -> T:
        def whole(session: Session) -> T:
            result = work(session)
            self._at(f"{self._name} inside")
            return result

        self._at(f"{self._name} before")
        result = super().run(whole, if_unanswered=if_unanswered)
        self._at(f"{self._name} after")
        return result


class WatchedClient(VolumeClient):
    """Instants before a call to the other service, and behind its answer."""

    def __init__(self, bus: Any, conf: Conf, instants: Instants) -> None:
        super().__init__(bus, conf)
        self._instants = instants

    def _call(
        self, context: RequestContext, method: str, server: str | None, timeouts: dict[str, float], **values: Any
    ) -> Any:
        self._instants.at(f"call {method} before")
        try:
            answer = super()._call(context, method, server, timeouts, **values)
        finally:
            self._instants.die_too()
        self._instants.at(f"call {method} after")
        return answer


class WatchedObject:
    """An object that a copier writes to, with instants around each change."""

    def __init__(self, inner: MemoryObject, at: At) -> None:
        self._inner = inner
        self._at = at

    @property
    def size(self) -> int:
        return self._inner.size

    def extents(self, start: int, length: int, /) -> Iterable[tuple[int, int, bool]]:
        return self._inner.extents(start, length)

    def pread_into(self, offset: int, buffer: memoryview, /) -> int:
        return self._inner.pread_into(offset, buffer)

    def pwrite(self, offset: int, data: memoryview, /) -> int:
        self._at("object pwrite before")
        count = self._inner.pwrite(offset, data)
        self._at("object pwrite after")
        return count

    def zero(self, start: int, length: int, /) -> None:
        self._inner.zero(start, length)

    def flush(self) -> None:
        self._at("object flush before")
        self._inner.flush()
        self._at("object flush after")

    def close(self) -> None:
        self._inner.close()


def watch(driver: VolumeDriver, at: At) -> None:
    """Make instants around every call of the driver that a migration makes."""
    backend = driver.backend.partition("@")[2]
    for name in _DRIVER_CALLS:
        setattr(driver, name, _watched(f"{backend} {name}", getattr(driver, name), at))


def _watched(label: str, function: Callable[..., Any], at: At) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        at(f"{label} before")
        result = function(*args, **kwargs)
        at(f"{label} after")
        return result

    return call
