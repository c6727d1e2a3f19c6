"""What a copy that was interrupted left to go on with: a small file that names both ends and the ranges copied."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1


class StateError(Exception):
    """The file is of another copy, of another program, or damaged; says which."""


@dataclass
class StateFile:
    """The state of one copy at ``path``; ``ends`` name source and destination, in plain JSON values."""

    path: Path
    ends: Mapping[str, Any]
    #: The destination read as zeros everywhere before its first copy.
    is_zero: bool

    def load(self) -> list[list[int]]:
        """Return the ranges copied so far, none if there is no file; raises StateError, OSError.

        What the file says of ``is_zero`` counts: the destination may hold a part of the copy by now.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        state = self._parsed(text)
        if state["ends"] != self.ends:
            names = [name for name in self.ends if state["ends"].get(name) != self.ends[name]]
            raise StateError(f"{self.path} is of another copy: the {' and the '.join(names)} changed since")
        self.is_zero = state["is_zero"]
        ranges: list[list[int]] = state["ranges"]
        return ranges

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            state = json.loads(text)
            if state["format"] != FORMAT:
                raise StateError(f"{self.path} has the format {state['format']}, this is {FORMAT}")
            ranges = [(int(start), int(length)) for start, length in state["ranges"]]
            is_sound = all(start >= 0 and length > 0 for start, length in ranges)
            if not is_sound or not isinstance(state["is_zero"], bool) or not isinstance(state["ends"], dict):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"{self.path} is not the state of a copy") from error
        return dict(state)

    def save(self, ranges: list[list[int]]) -> None:
        """Replace the file in one step, durably; raises OSError."""
        state = {"format": FORMAT, "ends": self.ends, "is_zero": self.is_zero, "ranges": ranges}
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with new.open("w", encoding="utf-8") as file:
                json.dump(state, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
        self._flush_directory()

    def remove(self) -> None:
        """Take it away: the copy is complete."""
        self.path.unlink(missing_ok=True)
        self._flush_directory()

    def _flush_directory(self) -> None:
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
