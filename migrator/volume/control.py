"""How somebody else stops or slows a copy while it runs."""

from __future__ import annotations

import threading
import time

#: Longest wait of a thread between two looks at what it should do.
TICK_SECONDS = 0.25
#: A rate limit lets through at once what it allows in this time: over 5 s that is 2 per cent.
BURST_SECONDS = 0.1
#: A limited job asks for no more at once than this time allows, so that its rate has no jerks either.
REQUEST_SECONDS = 0.05
#: The smallest request of a limited job, and what all of its requests are multiples of.
SMALLEST_REQUEST = 4096


class Stopped(Exception):
    """The job was told to stop and did; ``reason`` is ``cancel`` or ``pause``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Control:
    """The brake and the throttle of one job; used from any thread."""

    def __init__(self, bytes_per_second: float | None = None) -> None:
        #: May be set at any time; None: no limit.
        self.bytes_per_second = bytes_per_second
        self.reason: str | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._tokens = 0.0
        self._filled_at = time.monotonic()

    def stop(self, reason: str) -> None:
        """Ask the job to stop; the first reason counts."""
        with self._lock:
            self.reason = self.reason or reason
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the job is to stop."""
        self._stop.wait(seconds)

    def request(self, block: int) -> int:
        """Return how many bytes to ask for at once, at most ``block``."""
        rate = self.bytes_per_second
        if rate is None:
            return block
        return min(block, max(int(rate * REQUEST_SECONDS) // SMALLEST_REQUEST, 1) * SMALLEST_REQUEST)

    def admit(self, length: int) -> float:
        """Take ``length`` bytes out of the bucket and return 0, or the seconds after which to ask again.

        The bucket may go into debt, so that a request larger than it gets through; the next ones wait for that.
        """
        with self._lock:
            rate, now = self.bytes_per_second, time.monotonic()
            passed, self._filled_at = now - self._filled_at, now
            if rate is None:
                self._tokens = 0.0
                return 0.0
            if rate <= 0:
                return TICK_SECONDS
            self._tokens = min(self._tokens + passed * rate, rate * BURST_SECONDS)
            if self._tokens < 0:
                return -self._tokens / rate
            self._tokens -= length
            return 0.0
