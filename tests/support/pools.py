"""Pools, their usage and requests for tests of the scheduler: each with values that pass, to be changed one by one."""

from __future__ import annotations

from typing import Any

from migrator.backend_name import BackendName
from migrator.scheduler.filters import Request, ServiceState
from migrator.scheduler.pools import Pool, Usage

#: The database's clock in these tests, epoch seconds.
NOW = 1_000_000.0


def make_pool(name: str = "hosta@file1#pool1", **values: Any) -> Pool:
    """A thick pool of 100 GiB, all free, reported 5 seconds ago."""
    columns = {
        "backend_name": "fast",
        "availability_zone": "zone1",
        "total_gib": 100.0,
        "free_gib": 100.0,
        "allocated_gib": 0.0,
        "thin": False,
        "max_over_subscription_ratio": 20.0,
        "reserved_percentage": 0.0,
        "location": {"place": f"place of {name}"},
        "capabilities": {},
        "driver": "file",
        "reported_at": NOW - 5,
        **values,
    }
    return Pool(name=BackendName.parse(name), **columns)


def make_usage(provisioned: float = 0.0, reserved: float = 0.0, volumes: int = 0) -> Usage:
    return Usage(provisioned, reserved, volumes)


def service(**values: Any) -> ServiceState:
    """A service that gave a sign of life 3 seconds ago."""
    columns = {
        "up": True,
        "disabled": False,
        "disabled_reason": None,
        "frozen": False,
        "seconds_since_heartbeat": 3.0,
        **values,
    }
    return ServiceState(**columns)


def make_request(*pools: Pool, **values: Any) -> Request:
    """A request for 10 GiB without any wish, with a living service for each of ``pools``."""
    columns = {
        "size_gib": 10,
        "extra_specs": {},
        "availability_zone": None,
        "source": None,
        "source_location": None,
        "requested": None,
        "exclude": frozenset(),
        "services": {pool.service: service() for pool in pools},
        "now": NOW,
        **values,
    }
    return Request(**columns)


def make_report(host: str = "hosta@file1", reported_at: float = NOW, **values: Any) -> dict[str, Any]:
    """A volume service's report of one thick pool, as it comes over the bus."""
    pool = {
        "pool": "pool1",
        "total_gib": 100.0,
        "free_gib": 100.0,
        "allocated_gib": 0.0,
        "thin": False,
        "location": {"place": f"place of {host}#pool1"},
        "capabilities": {},
        **values,
    }
    return {
        "host": host,
        "reported_at": reported_at,
        "availability_zone": "zone1",
        "volume_backend_name": host.partition("@")[2],
        "reserved_percentage": 0,
        "max_over_subscription_ratio": 20.0,
        "driver": "file",
        "pools": [pool],
    }
