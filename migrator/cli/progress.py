"""How far a migration is: one line rewritten on a terminal, a line per change elsewhere."""

from __future__ import annotations

import os
from typing import Protocol, TextIO

from migrator.cli.columns import Json, bytes_text, percent, seconds_text

_BAR_WIDTH = 24
#: A terminal that does not say how wide it is.
_USUAL_WIDTH = 80
_ERASE_TO_END = "\x1b[K"


class Progress(Protocol):
    """Shows the states of a migration one after the other."""

    def show(self, migration: Json) -> None:
        """Show this state, if that is news."""

    def clear(self) -> None:
        """Take away what must not stay; may be called twice."""


def progress_for(stdout: TextIO, stderr: TextIO, quiet: bool) -> Progress:
    """Return what suits the streams: a bar on a terminal, lines on stdout else (stderr is left to the reason)."""
    if quiet:
        return Silence()
    return Bar(stderr) if stderr.isatty() else Lines(stdout)


class Silence:
    """For those who want the end alone."""

    def show(self, migration: Json) -> None:
        pass

    def clear(self) -> None:
        pass


class Bar:
    """One line of a terminal, rewritten."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._drawn = False

    def show(self, migration: Json) -> None:
        self._terminal.write(f"\r{bar(migration, self._width())}{_ERASE_TO_END}")
        self._terminal.flush()
        self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            self._terminal.write(f"\r{_ERASE_TO_END}")
            self._terminal.flush()
            self._drawn = False

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._terminal.fileno()).columns or _USUAL_WIDTH
        except OSError:
            return _USUAL_WIDTH


class Lines:
    """A line when the step changes, and at each tenth of the bytes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: tuple[object, ...] | None = None

    def show(self, migration: Json) -> None:
        done = percent(migration)
        compared = _compared(migration)
        state = (_where(migration), *(None if share is None else int(share // 10) for share in (done, compared)))
        if state == self._last:
            return
        self._last = state
        self._stream.write(f"{', '.join([_where(migration), *_figures(migration)])}\n")
        self._stream.flush()

    def clear(self) -> None:
        pass


def bar(migration: Json, width: int) -> str:
    """Return the line for a terminal of ``width`` columns, a column left free so that it never wraps."""
    done = percent(migration)
    filled = 0 if done is None else int(_BAR_WIDTH * done / 100)
    picture = f"[{'#' * filled}{'-' * (_BAR_WIDTH - filled)}]"
    # What matters most stands first: a narrow terminal cuts the end off.
    return "  ".join([picture, *_figures(migration), _where(migration)])[: width - 1]


def _where(migration: Json) -> str:
    """Return the step, and what is special about it."""
    words = [str(migration.get("step") or "-")]
    if migration.get("direction") == "back":
        words.append("(taking back)")
    if migration.get("status") in ("queued", "paused"):
        words.append(f"({migration['status']})")
    return " ".join(words)


def _compared(migration: Json) -> float | None:
    """Return how much of the bytes was compared, while that is done."""
    if migration.get("step") != "verify_copy" or not migration.get("bytes_total"):
        return None
    return 100.0 * float(migration.get("bytes_verified") or 0) / float(migration["bytes_total"])


def _figures(migration: Json) -> list[str]:
    """Return percent, bytes, rate and time left, as far as they are known."""
    done, rate, left = percent(migration), migration.get("rate_bytes_per_second"), migration.get("eta_seconds")
    figures = []
    if done is not None:
        figures.append(f"{int(done)} %")
    if migration.get("bytes_total") and migration.get("bytes_done") is not None:
        figures.append(f"{bytes_text(migration['bytes_done'])} of {bytes_text(migration['bytes_total'])}")
    if (compared := _compared(migration)) is not None:
        figures.append(f"{int(compared)} % compared")
    if rate:
        figures.append(f"{bytes_text(rate)}/s")
    if left is not None and migration.get("status") != "success":
        figures.append(f"ETA {seconds_text(left)}")
    return figures
