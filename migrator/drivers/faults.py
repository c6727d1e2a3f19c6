"""Faults on order: how a test makes the memory driver fail, wait, give less or die at a chosen call.

    faults.order("create", Fault.error(DriverError(…)), times=2)    the next two calls fail
    faults.order("create", Fault.error(DriverError(…)), late=True)  the work is done, but the answer is lost
    faults.order("pwrite", Fault.short(512), times=None)            every write moves 512 bytes at most
    faults.order("flush", Fault.die(), after=3)                     three flushes pass, the fourth kills the process

Orders for one call strike in the order given, each until it is used up.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_CONTRACT_CALLS = (
    *("start", "pools", "report", "create", "delete", "extend", "exists", "objects", "allocated"),
    *("create_snapshot", "delete_snapshot", "clone", "adopt", "adoptable", "disown"),
    *("export", "exports", "revoke", "can_assist", "move", "unmove"),
    *("initialize_connection", "terminate_connection", "is_open"),
)
_OBJECT_CALLS = ("pread", "pwrite", "zero", "extents", "flush")
#: Calls that faults can be ordered for: the contract's methods, and those of an opened object.
CALLS = frozenset((*_CONTRACT_CALLS, *_OBJECT_CALLS))


class Died(BaseException):
    """The process died here, as far as a test in the same process can tell; nothing may catch it."""


class Fault:
    """One kind of harm; the same fault may strike several times.

    ``struck`` is set when it strikes, so that a test knows that a call hangs; ``released`` ends a delay or a hang.
    """

    def __init__(self, strike: Callable[[Fault], None] | None = None, most: int | None = None) -> None:
        self.struck = threading.Event()
        self.released = threading.Event()
        #: Bytes that a read or a write may move at most.
        self.most = most
        self._strike = strike

    def strike(self) -> None:
        self.struck.set()
        if self._strike is not None:
            self._strike(self)

    @classmethod
    def error(cls, error: BaseException) -> Fault:
        """Raise ``error``."""

        def strike(_fault: Fault) -> None:
            raise error.with_traceback(None)

        return cls(strike)

    @classmethod
    def delay(cls, seconds: float) -> Fault:
        """Let the call take ``seconds`` longer, or until released."""
        return cls(lambda fault: _discard(fault.released.wait(seconds)))

    @classmethod
    def hang(cls) -> Fault:
        """Let the call wait until released."""
        return cls(lambda fault: _discard(fault.released.wait()))

    @classmethod
    def short(cls, most: int = 1) -> Fault:
        """Let a read or a write move ``most`` bytes at most."""
        return cls(most=most)

    @classmethod
    def die(cls, *, in_process: bool = False) -> Fault:
        """Kill this process on the spot; ``in_process``: raise Died instead."""
        return cls(_raise_died if in_process else _kill_myself)


def _discard(_value: object) -> None:
    """Turn a function that returns something into one that returns nothing."""


def _raise_died(_fault: Fault) -> None:
    raise Died


def _kill_myself(_fault: Fault) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class _Order:
    fault: Fault
    left: int | None  # None: for ever
    after: int
    late: bool


class Faults:
    """The orders of one backend; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: dict[str, list[_Order]] = {}
        self._calls: dict[str, int] = {}

    def order(self, call: str, fault: Fault, *, times: int | None = 1, after: int = 0, late: bool = False) -> Fault:
        """Let ``fault`` strike ``times`` calls (None: all), the first ``after`` excepted.

        ``late``: strike when the call's work is done, so that it succeeds but nobody hears of it.
        """
        if call not in CALLS:
            raise ValueError(f"there is no call {call!r}")
        with self._lock:
            self._orders.setdefault(call, []).append(_Order(fault, times, after, late))
        return fault

    def release(self) -> None:
        """Take back all orders and let every delayed or hanging call go on."""
        with self._lock:
            orders = [order for orders in self._orders.values() for order in orders]
            self._orders.clear()
        for order in orders:
            order.fault.released.set()

    def count(self, call: str) -> int:
        """Return how many times ``call`` was made."""
        with self._lock:
            return self._calls.get(call, 0)

    @contextmanager
    def at(self, call: str) -> Iterator[int | None]:
        """Surround the work of ``call`` by what was ordered for it; gives the bytes that it may move at most."""
        order = self._next(call)
        if order is None:
            yield None
            return
        if not order.late:
            order.fault.strike()
        yield order.fault.most
        if order.late:
            order.fault.strike()

    def _next(self, call: str) -> _Order | None:
        with self._lock:
            self._calls[call] = self._calls.get(call, 0) + 1
            for order in self._orders.get(call, []):
                if order.after > 0:
                    order.after -= 1
                    return None
                if order.left is None:
                    return order
                if order.left > 0:
                    order.left -= 1
                    return order
        return None
