"""Weighers: each gives every pool that passed a number; the best sum wins."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

from migrator.conf import Conf
from migrator.scheduler.pools import Pool, Usage


class Weigher(abc.ABC):
    """One measure; ``name`` is its entry point in migrator.scheduler.weighers."""

    name: ClassVar[str]

    def __init__(self, conf: Conf) -> None:
        self.multiplier = float(self.weight(conf))

    @staticmethod
    @abc.abstractmethod
    def weight(conf: Conf) -> float:
        """Return how much the measure counts; negative where less is better."""

    @abc.abstractmethod
    def measure(self, pool: Pool, usage: Usage) -> float:
        """The pool's raw number; only its order and distances among the candidates count."""

    def scores(self, candidates: Sequence[tuple[Pool, Usage]]) -> list[float]:
        """Every candidate's measure brought to 0 … 1 among them, times the multiplier."""
        measures = [self.measure(pool, usage) for pool, usage in candidates]
        low, high = min(measures), max(measures)
        factor = self.multiplier / ((high - low) or 1.0)
        return [factor * (measure - low) for measure in measures]
