"""Is there room, with the space of migrations under way counted (invariant 7)."""

from __future__ import annotations

import math

from migrator.scheduler.filters import Filter, Request
from migrator.scheduler.pools import Pool, Usage


class CapacityFilter(Filter):
    """A thick pool needs the space free; a thin one may promise more than it has, up to its ratio."""

    name = "capacity"

    def against(self, pool: Pool, usage: Usage, request: Request) -> str | None:
        if pool.thin and usage.provisioned_gib + request.size_gib > promisable(pool):
            return _over_promised(pool, usage, request)
        fits = request.size_gib <= min(room(pool, usage), largest_free(pool))
        return None if fits else self.in_favour(pool, usage, request)

    def in_favour(self, pool: Pool, usage: Usage, request: Request) -> str:
        ratio = f"over-subscribed up to {pool.max_over_subscription_ratio:g} times, " if pool.thin else ""
        largest = largest_free(pool)
        piece = f"largest free piece {largest:g} GiB, " if largest != math.inf else ""
        return (
            f"needs {request.size_gib} GiB, {pool.free_gib:.1f} GiB free of {pool.total_gib:.1f}, {piece}"
            f"{pool.kept_gib:.1f} GiB kept back ({pool.reserved_percentage:g} %), {ratio}"
            f"{usage.reserved_gib:g} GiB reserved by work under way"
        )


def room(pool: Pool, usage: Usage) -> float:
    """GiB that a new volume may have by what is free now.

    Of a thin pool it is over-subscribed too: nobody promises twenty times a disk that is all but full.
    """
    ratio = pool.max_over_subscription_ratio if pool.thin else 1.0
    return (pool.free_gib - pool.kept_gib) * ratio - usage.reserved_gib


def largest_free(pool: Pool) -> float:
    """GiB of the largest volume that one free piece of the pool holds, by the capability ``largest_free_gib``.

    A pool of whole devices has room for a volume only if one of them is large enough.  Infinite where the pool reports
    no such figure, or one that makes no sense.
    """
    value = pool.capabilities.get("largest_free_gib")
    is_size = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    return float(value) if is_size and value is not None else math.inf


def promisable(pool: Pool) -> float:
    """GiB that all volumes of a thin pool may be promised together."""
    return (pool.total_gib - pool.kept_gib) * pool.max_over_subscription_ratio


def _over_promised(pool: Pool, usage: Usage, request: Request) -> str:
    return (
        f"needs {request.size_gib} GiB, would promise {usage.provisioned_gib + request.size_gib:g} GiB in all, "
        f"at most {promisable(pool):.1f} GiB are allowed ({pool.total_gib:.1f} GiB, {pool.reserved_percentage:g} % "
        f"kept back, times {pool.max_over_subscription_ratio:g})"
    )
