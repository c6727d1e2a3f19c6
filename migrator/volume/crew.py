"""The threads that share one job: as many as the tuner wants; the first error wins and stops the others."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from migrator.volume.control import TICK_SECONDS, Control
from migrator.volume.tuning import Tuner


class Hand:
    """One thread of a crew: its page-aligned buffer, and the request that it waits for."""

    def __init__(self, number: int, buffers: int) -> None:
        self.number = number
        #: When the request under way began, by the monotonic clock; 0 when there is none.
        self.since = 0.0
        self._buffers = buffers
        self._memory = memoryview(b"")

    def take(self, length: int) -> memoryview:
        """Return the buffers, of ``length`` bytes each, one behind the other."""
        wanted = length * self._buffers
        if len(self._memory) != wanted:
            self._memory = memoryview(mmap.mmap(-1, wanted))
        return self._memory

    def drop(self) -> None:
        """Give the memory back until it is needed again."""
        self._memory = memoryview(b"")

    def begin(self) -> None:
        """Note that a request goes out, which may never come back."""
        self.since = time.monotonic()

    def end(self) -> None:
        self.since = 0.0


Work = Callable[[Hand], int | None]
"""Does one piece of the job and returns how many bytes that moved; None when nothing is left to be done."""


class Crew:
    """Used as a context manager: leaving it waits until every thread has ended; by an exception, it makes them end.

    What went wrong first is kept in ``error``.
    """

    def __init__(self, control: Control, tuner: Tuner, buffers: int = 1) -> None:
        self.changed = threading.Condition()
        self.error: BaseException | None = None
        self.tuner = tuner
        self._control = control
        self._buffers = buffers
        self._hands: list[Hand] = []
        #: How many threads were started, and how many of them the tuner wanted when somebody last looked.
        self._started = self._depth = 0
        self._running = 0
        self._work: Work | None = None
        self._is_exhausted = False

    @property
    def halted(self) -> bool:
        """True when the threads should end: the job was stopped, or one of them failed."""
        return self.error is not None or self._control.reason is not None

    def start(self, work: Work) -> None:
        """Let as many threads as the tuner wants do ``work`` until nothing is left."""
        self._work = work
        self._grow()

    def aside(self, errand: Callable[[Hand], None]) -> None:
        """Let one more thread run an errand, which may wait for a device."""
        self._spawn(Hand(-1, 0), errand)

    def _grow(self) -> None:
        while True:
            with self.changed:
                if self._started >= self.tuner.setting.depth or self._is_exhausted or self.halted:
                    return
                hand = Hand(self._started, self._buffers)
                self._started += 1
            self._spawn(hand, self._labour)

    def _spawn(self, hand: Hand, target: Callable[[Hand], None]) -> None:
        with self.changed:
            self._hands.append(hand)
            self._running += 1
        try:
            threading.Thread(target=self._run, args=(target, hand), name=f"copy-{hand.number}", daemon=True).start()
        except BaseException:
            self._leave(hand)
            raise

    def _run(self, target: Callable[[Hand], None], hand: Hand) -> None:
        try:
            target(hand)
        except BaseException as error:  # the top of a thread: whatever it is, the caller's thread raises it
            self.fail(error)
        finally:
            hand.drop()
            self._leave(hand)

    def _leave(self, hand: Hand) -> None:
        with self.changed:
            self._hands.remove(hand)
            self._running -= 1
            self.changed.notify_all()

    def _labour(self, hand: Hand) -> None:
        assert self._work is not None, "started with it"
        while not self.halted:
            moved = self._work(hand)
            if moved is None:
                break
            if moved:
                self.tuner.finished(moved, time.monotonic())
                self._fit(hand)
        with self.changed:
            self._is_exhausted = True
            self.changed.notify_all()

    def _fit(self, hand: Hand) -> None:
        """Wait while the tuner wants fewer threads; start others when it wants more."""
        depth = self.tuner.setting.depth
        if depth != self._depth:
            self._grow()
            with self.changed:
                self._depth = depth
                self.changed.notify_all()
        if hand.number < depth:
            return
        hand.drop()
        with self.changed:
            while hand.number >= self.tuner.setting.depth and not self.halted and not self._is_exhausted:
                self.changed.wait(TICK_SECONDS)

    def fail(self, error: BaseException) -> None:
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def pace(self, length: int) -> None:
        """Wait as long as the rate limit asks for before ``length`` bytes are moved."""
        while not self.halted and (seconds := self._control.admit(length)):
            self.tuner.disturb()
            self._control.wait(min(seconds, TICK_SECONDS))

    def request(self) -> int:
        """Return how many bytes to ask for at once now."""
        return self._control.request(self.tuner.setting.block)

    def work_on(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let the threads work for so long, or until that; False once they all have ended."""
        with self.changed:
            self.changed.wait_for(lambda: not self._running or until(), seconds)
            return bool(self._running)

    def waited(self) -> float:
        """For how many seconds the oldest request under way has not come back."""
        with self.changed:
            oldest = min((since for hand in self._hands if (since := hand.since)), default=0.0)
        return time.monotonic() - oldest if oldest else 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error)
        with self.changed:
            self.changed.wait_for(lambda: not self._running)
