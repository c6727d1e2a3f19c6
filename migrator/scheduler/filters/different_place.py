"""Is it another place: moving a volume onto itself destroys it."""

from __future__ import annotations

from migrator.scheduler.filters import Filter, Request
from migrator.scheduler.pools import Pool, Usage


class DifferentPlaceFilter(Filter):
    """Refuses the source itself, also under another backend's name (LP1404013, LP1871524)."""

    name = "different_place"

    def against(self, pool: Pool, usage: Usage, request: Request) -> str | None:
        if request.source is None:
            return None
        if pool.name == request.source:
            return "the volume lies there already"
        place = pool.location.get("place")
        if request.source_location and place is not None and place == request.source_location.get("place"):
            return f"is the same place as {request.source} under another name ({place})"
        return None

    def in_favour(self, pool: Pool, usage: Usage, request: Request) -> str:
        return "nothing is there yet" if request.source is None else f"is not {request.source}"
