"""Wait for a condition with a deadline; no test sleeps for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: Seconds between the first looks, and the longest between two: whoever asks a service all the time slows it down.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.1


def until(condition: Callable[[], T], what: str, seconds: float = 60.0, pause: float | None = None) -> T:
    """Return the first true value of ``condition``; raises AssertionError naming ``what`` at the deadline.

    ``pause``: seconds between two looks, for what does not last long; they grow otherwise.
    """
    deadline = time.monotonic() + seconds
    wait = FIRST_PAUSE if pause is None else pause
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what} (last: {value!r})")
        time.sleep(wait)
        if pause is None:
            wait = min(wait * 1.5, LONGEST_PAUSE)
