"""Interrupts that are not lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def remembered() -> Iterator[threading.Event]:
    """Raise KeyboardInterrupt at an interrupt, as ever, and set the event.

    Python drops an exception that is raised inside a destructor, so a loop that waits for long asks the event, too.
    """
    asked = threading.Event()

    def interrupted(number: int, frame: FrameType | None) -> None:
        asked.set()
        raise KeyboardInterrupt

    # Who ignores interrupts, as a shell has its background jobs do, goes on doing so; other threads get none.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    signal.signal(signal.SIGINT, interrupted)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
