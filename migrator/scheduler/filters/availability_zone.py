"""The zone that was asked for."""

from __future__ import annotations

from migrator.scheduler.filters import Filter, Request
from migrator.scheduler.pools import Pool, Usage


class AvailabilityZoneFilter(Filter):
    """Passes pools of the zone asked for; a migration may leave its zone, so it asks for none."""

    name = "availability_zone"

    def against(self, pool: Pool, usage: Usage, request: Request) -> str | None:
        if request.availability_zone in (None, pool.availability_zone):
            return None
        return f"lies in {pool.availability_zone}, wanted {request.availability_zone}"

    def in_favour(self, pool: Pool, usage: Usage, request: Request) -> str:
        return "no zone was asked for" if request.availability_zone is None else f"lies in {pool.availability_zone}"
