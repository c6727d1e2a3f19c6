"""Does the backend's service live and take volumes."""

from __future__ import annotations

from migrator.conf import Conf
from migrator.scheduler.filters import Filter, Request
from migrator.scheduler.pools import Pool, Usage


class ServiceUpFilter(Filter):
    """Refuses backends whose service is unknown, down, disabled or frozen, and reports that are too old."""

    name = "service_up"

    def __init__(self, conf: Conf) -> None:
        super().__init__(conf)
        self._oldest_seconds: int = conf.pool_report_max_age_seconds

    def against(self, pool: Pool, usage: Usage, request: Request) -> str | None:
        state = request.services.get(pool.service)
        if state is None:
            return f"no service {pool.service} is registered"
        if not state.up:
            return f"its service gave no sign of life for {state.seconds_since_heartbeat:.0f} s"
        if state.disabled:
            return f"its service is disabled ({state.disabled_reason or 'no reason was given'})"
        if state.frozen:
            return "its backend is frozen and takes no new volumes"
        age = request.now - pool.reported_at
        return f"its last report is {age:.0f} s old" if age > self._oldest_seconds else None

    def in_favour(self, pool: Pool, usage: Usage, request: Request) -> str:
        seconds = request.services[pool.service].seconds_since_heartbeat
        return f"its service gave a sign of life {seconds:.0f} s ago"
