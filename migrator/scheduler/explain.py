"""What a choice of a pool was made of, for whoever asks what would happen: verdicts, numbers, scores and remedies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from migrator.scheduler.choose import Choice
from migrator.scheduler.filters import Request, Verdict
from migrator.scheduler.filters.capacity import room
from migrator.scheduler.pools import Pool, Usage
from migrator.scheduler.weighers import Weigher

#: What an operator can do about the refusal of a filter.
REMEDIES = {
    "service_up": "start or enable that volume service, or thaw its backend, or name another host",
    "availability_zone": "name a host: without one the volume stays in its zone",
    "different_place": "name another pool: the volume lies in this one",
    "capabilities": "retype the volume to a type that the pool offers, or change the type's extra specs",
    "capacity": "make room there, lower the backend's reserved_percentage, or name another host",
    "known": "see that the name is right (migrator get-pools) and that its volume service runs",
}
NOTHING_KNOWN = "start the volume services: none has reported a pool"
_OF_OTHERS = "see what the filter {} asks for"


def tell(
    choice: Choice, candidates: Sequence[tuple[Pool, Usage]], weighers: Iterable[Weigher], request: Request
) -> dict[str, Any]:
    """Return the choice in plain values: ``pools`` in the order in which they would be taken, those refused behind."""
    known = {pool.host: (pool, usage) for pool, usage in candidates}
    verdicts: dict[str, list[Verdict]] = {}
    for verdict in choice.verdicts:
        verdicts.setdefault(verdict.pool, []).append(verdict)
    # Best first; of very many pools not every one has a score or all verdicts, and the choice is the same.
    order = [*choice.scores, *sorted(host for host in verdicts if host not in choice.scores)]
    weighing = tuple(weighers)
    return {
        "chosen": choice.pool.host if choice.pool is not None else None,
        "location": dict(choice.pool.location) if choice.pool is not None else None,
        "reason": choice.reason(),
        "remedy": None if choice.pool is not None else _remedy(choice.verdicts),
        "refused_by": sorted({verdict.filter for verdict in choice.verdicts if not verdict.passed}),
        "pools": [
            {
                **_numbers(host, known.get(host), request),
                **_rank(choice, host, known, weighing),
                "filters": [_verdict(verdict) for verdict in verdicts.get(host, ())],
            }
            for host in order
        ],
    }


def _numbers(host: str, known: tuple[Pool, Usage] | None, request: Request) -> dict[str, Any]:
    """What the verdicts go by, GiB; null for a pool that nobody has reported."""
    values: dict[str, Any] = {"pool": host, "needed_gib": request.size_gib}
    if known is None:
        names = ("total_gib", "free_gib", "kept_gib", "reserved_gib", "provisioned_gib", "room_gib", "volumes")
        return values | dict.fromkeys(names)
    pool, usage = known
    return values | {
        "total_gib": round(pool.total_gib, 2),
        "free_gib": round(pool.free_gib, 2),
        "kept_gib": round(pool.kept_gib, 2),
        "reserved_gib": round(usage.reserved_gib, 2),
        "provisioned_gib": round(usage.provisioned_gib, 2),
        "room_gib": round(room(pool, usage), 2),
        "volumes": usage.volumes,
    }


def _rank(
    choice: Choice, host: str, known: Mapping[str, tuple[Pool, Usage]], weighers: Sequence[Weigher]
) -> dict[str, Any]:
    """Where the pool stands among those that fit, and what each weigher gave it."""
    scores = choice.scores.get(host)
    if scores is None:
        return {"fits": False, "rank": None, "score": None, "weighers": []}
    weighed = [
        {
            "weigher": weigher.name,
            "measure": round(weigher.measure(*known[host]), 4),
            "multiplier": weigher.multiplier,
            "score": scores[weigher.name],
        }
        for weigher in weighers
    ]
    rank = list(choice.scores).index(host) + 1
    return {"fits": True, "rank": rank, "score": round(sum(scores.values()), 4), "weighers": weighed}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    remedy = None if verdict.passed else _remedy_of(verdict.filter)
    return {"filter": verdict.filter, "passed": verdict.passed, "reason": verdict.reason, "remedy": remedy}


def _remedy_of(name: str) -> str:
    return REMEDIES.get(name, _OF_OTHERS.format(name))


def _remedy(verdicts: Iterable[Verdict]) -> str:
    """What to do where no pool fits, in the order in which the filters are asked."""
    refusals = list(dict.fromkeys(verdict.filter for verdict in verdicts if not verdict.passed))
    # That the volume's own pool is refused needs no remedy where others are refused for something else.
    others = [name for name in refusals if name != "different_place"] or refusals
    return "; ".join(_remedy_of(name) for name in others) or NOTHING_KNOWN
