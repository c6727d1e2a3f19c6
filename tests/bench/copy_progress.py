"""How far ``make bench-copy`` is, how long it will still take, and whether it may begin something more."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Counts what is done of what was foretold (seconds); corrects the foretelling by what it really took."""

    foretold_seconds: float
    #: Nothing is begun that would not end within so many seconds; None: no limit.
    limit_seconds: float | None = None
    began: float = field(default_factory=time.monotonic)
    done_seconds: float = 0.0
    shows: bool = True

    @property
    def passed(self) -> float:
        return time.monotonic() - self.began

    @property
    def pace(self) -> float:
        """How much longer than foretold it takes so far."""
        # Half a minute is believed to go as foretold, or the first run would decide alone.
        believed = 30.0
        return (self.passed + believed) / (self.done_seconds + believed)

    @property
    def left(self) -> float:
        """How long the rest takes, at the pace so far."""
        return max(0.0, self.foretold_seconds - self.done_seconds) * self.pace

    def fits(self, foretold: float) -> bool:
        """Tell whether something that was foretold to take so many seconds would end within the limit."""
        return self.limit_seconds is None or self.passed + foretold * self.pace <= self.limit_seconds

    def step(self, what: str, foretold: float) -> None:
        """Say what begins, and that it was foretold to take so many seconds."""
        self.say(what)
        self.done_seconds += foretold

    def say(self, what: str) -> None:
        if not self.shows:
            return
        text = f"[{_clock(self.passed)} passed, {_clock(self.left)} left] {what}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        else:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away, so that a table can be printed."""
        if self.shows and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
