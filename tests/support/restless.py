"""A tuner that goes through the page cache and past it by turns, so that a test meets every change of the way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from migrator.volume.copy import CopyOptions
from migrator.volume.extents import BLOCK
from migrator.volume.tuning import Setting, Tuner

#: Requests that no alignment divides are among them.
SETTINGS: tuple[Setting, ...] = (
    Setting(2, BLOCK, cached=True),
    Setting(3, 4 * BLOCK),
    Setting(4, 4 * BLOCK, cached=True),
    Setting(1, BLOCK // 4 + 1, cached=True),
    Setting(2, BLOCK // 4 + 1),
)


class Turns(Tuner):
    """Takes the next setting after every piece of work; one alone stays."""

    def __init__(self, settings: tuple[Setting, ...]) -> None:
        super().__init__()
        self._settings: Iterator[Setting] = itertools.cycle(settings)
        self.setting = next(self._settings)

    def finished(self, moved: int, now: float) -> None:
        self.setting = next(self._settings)


class Restless(CopyOptions):
    settings = SETTINGS

    def tuner(self, buffers: int = 1, may_cache: bool = False) -> Tuner:
        return Turns(self.settings if may_cache else SETTINGS[1:2])


class Cached(Restless):
    settings = SETTINGS[:1]
