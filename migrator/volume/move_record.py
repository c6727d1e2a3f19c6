"""The record of an assisted move: how far the backend says that it is, and the order to end it."""

from __future__ import annotations

import time
from collections import deque

from migrator.volume.copier import CopyStopped
from migrator.volume.watch import Watch

#: The rate that is shown is that of so many seconds.
RATE_SECONDS = 10.0


class MoveRecord:
    """Writes down what a driver reports of an assisted move, and ends the move when it is cancelled."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def __call__(self, done: int, total: int) -> None:
        if self._watch.stop() == "cancel":  # a pause waits for the end of the step
            raise CopyStopped("cancel")
        if not self._watch.is_due:
            return
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - RATE_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = max(0, done - before) / max(now - since, 0.001)
        self._watch.record(bytes_done=done, rate=rate, **self._watch.moved(done))
