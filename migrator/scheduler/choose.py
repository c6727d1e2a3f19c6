"""The choice of a pool: every filter's verdict on every candidate, then the weighers among those that passed."""

from __future__ import annotations

import functools
import heapq
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import stevedore

from migrator import errors
from migrator.conf import Conf
from migrator.scheduler.filters import Filter, Request, Verdict
from migrator.scheduler.pools import Pool, Usage
from migrator.scheduler.weighers import Weigher

#: Of up to so many candidates every filter's verdict is told; beyond, only why a pool failed, and the best scores.
EXPLAIN_ALL = 200
#: Failures told one by one in a reason; the rest are counted.
TOLD = 3


@dataclass(frozen=True)
class Choice:
    """The pool chosen, or None, with all that led there."""

    pool: Pool | None
    #: Gives the verdicts: most choices go well, and their words are never read.
    explain: Callable[[], list[Verdict]]
    #: The best of those that fit, at most EXPLAIN_ALL, with what each weigher gave them, best first.
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    fitting: int = 0
    #: The filters in the order in which they were asked.
    filters: tuple[str, ...] = ()

    @functools.cached_property
    def verdicts(self) -> list[Verdict]:
        """Every filter's verdict on every candidate; of more than EXPLAIN_ALL, the first failure of each."""
        return self.explain()

    def reason(self) -> str:
        """One line: why nothing was chosen, or what was."""
        if self.pool is not None:
            return f"{self.pool.name} of {self.fitting} that fit"
        failed = [verdict for verdict in self.verdicts if not verdict.passed]
        if not failed:
            return "no backend has reported a pool yet"
        if len(failed) > TOLD:
            failed = self._nearest_first(failed)
        told = [f"{verdict.pool}: {verdict.filter}: {verdict.reason}" for verdict in failed[:TOLD]]
        if len(failed) > TOLD:
            counts = Counter(verdict.filter for verdict in failed[TOLD:])
            told.append("and " + ", ".join(f"{count} more by {name}" for name, count in sorted(counts.items())))
        return "; ".join(told)

    def _nearest_first(self, failed: list[Verdict]) -> list[Verdict]:
        """A pool that fails one filter, and a late one, could almost have been taken: that is what helps a reader."""
        failures = Counter(verdict.pool for verdict in failed)
        late = {name: -place for place, name in enumerate(self.filters)}
        return sorted(failed, key=lambda verdict: (failures[verdict.pool], late.get(verdict.filter, 0), verdict.pool))


class Chooser:
    """Filters and weighers as the configuration names them."""

    def __init__(self, conf: Conf) -> None:
        """Load them; raises ConfigError for a name that does not exist."""
        self.filters: list[Filter] = _load(conf, "filters", conf.scheduler_default_filters)
        self.weighers: list[Weigher] = _load(conf, "weighers", conf.scheduler_default_weighers)

    def choose(self, pools: Iterable[tuple[Pool, Usage]], request: Request) -> Choice:
        """Return the best pool that passes every filter; equal ones are decided by name."""
        known = [(pool, usage) for pool, usage in pools if _is_requested(pool, request)]
        candidates = [pair for pair in known if pair[0].name not in request.exclude] if request.exclude else known
        if not candidates:
            return Choice(None, lambda: _no_candidates(known, request), filters=("known", "excluded"))
        refused: list[Verdict] = []
        passed = [(pool, usage) for pool, usage in candidates if self._passes(pool, usage, request, refused)]

        def explain() -> list[Verdict]:
            return self._verdicts(candidates, request) if len(candidates) <= EXPLAIN_ALL else refused

        if not passed:
            return Choice(None, explain, filters=tuple(each.name for each in self.filters))
        return self._best(passed, explain)

    def offers(self, pool: Pool, extra_specs: Mapping[str, str]) -> bool:
        """Tell whether the pool has what extra specs ask for, whatever else speaks against it."""
        request = Request(0, extra_specs, None, None, None, None, frozenset())
        asked = (each for each in self.filters if each.name == "capabilities")
        return all(each.against(pool, Usage(0.0, 0.0, 0), request) is None for each in asked)

    def _passes(self, pool: Pool, usage: Usage, request: Request, refused: list[Verdict]) -> bool:
        """Ask until one filter says no, and keep its verdict."""
        for each in self.filters:
            reason = each.against(pool, usage, request)
            if reason is not None:
                refused.append(Verdict(pool.host, each.name, False, reason))
                return False
        return True

    def _verdicts(self, candidates: Sequence[tuple[Pool, Usage]], request: Request) -> list[Verdict]:
        """Ask every filter of every candidate, and put each answer into words."""
        verdicts = []
        for pool, usage in candidates:
            for each in self.filters:
                reason = each.against(pool, usage, request)
                words = each.in_favour(pool, usage, request) if reason is None else reason
                verdicts.append(Verdict(pool.host, each.name, reason is None, words))
        return verdicts

    def _best(self, passed: Sequence[tuple[Pool, Usage]], explain: Callable[[], list[Verdict]]) -> Choice:
        names = [weigher.name for weigher in self.weighers]
        columns = [weigher.scores(passed) for weigher in self.weighers]
        rows = zip(*columns, strict=True) if columns else [()] * len(passed)
        scored = [(-sum(row), pool.host, row, pool) for (pool, _), row in zip(passed, rows, strict=True)]
        best = heapq.nsmallest(EXPLAIN_ALL, scored, key=operator.itemgetter(0, 1))
        scores = {
            host: {name: round(score, 4) for name, score in zip(names, row, strict=True)} for _, host, row, _ in best
        }
        return Choice(best[0][3], explain, scores, len(passed))


def _is_requested(pool: Pool, request: Request) -> bool:
    return request.requested is None or request.requested.contains(pool.name)


def _no_candidates(known: Sequence[tuple[Pool, Usage]], request: Request) -> list[Verdict]:
    """Why no pool was even asked: it was excluded, or nobody has reported it."""
    if known or request.requested is None:
        return [Verdict(pool.host, "excluded", False, "the request rules it out") for pool, _ in known]
    return [Verdict(str(request.requested), "known", False, "no report of it has come from its backend")]


def _load(conf: Conf, kind: str, names: Sequence[str]) -> list[Any]:
    """Instances of the entry points of that kind, in the order of ``names``."""
    namespace = f"migrator.scheduler.{kind}"
    known: stevedore.ExtensionManager[Any] = stevedore.ExtensionManager(namespace)
    classes = {extension.name: extension.plugin for extension in known}
    try:
        return [classes[name](conf) for name in names]
    except KeyError as error:
        raise errors.ConfigError(
            option=f"scheduler_default_{kind}",
            reason=f"{error} is not one of {', '.join(sorted(classes)) or 'none (migrator is not installed)'}",
        ) from error
