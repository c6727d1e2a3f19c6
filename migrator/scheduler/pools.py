"""The pools that the backends report, and how they are shown."""

from __future__ import annotations

import datetime
import functools
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from migrator.backend_name import BackendName, MalformedBackendName

LOG = logging.getLogger(__name__)

#: GiB (93 EiB) or seconds (the year 5138) beyond which a figure is nonsense; sums and products of others stay finite.
LARGEST = 1e11


@dataclass(frozen=True)
class Pool:
    """One pool as its backend last reported it. Sizes in GiB; ``reported_at`` by the database's clock."""

    name: BackendName
    backend_name: str | None
    availability_zone: str
    total_gib: float
    free_gib: float
    allocated_gib: float
    thin: bool
    max_over_subscription_ratio: float
    reserved_percentage: float
    location: Mapping[str, Any]
    capabilities: Mapping[str, Any]
    driver: str
    reported_at: float

    # Asked of every pool in every choice, so each is made once.

    @functools.cached_property
    def host(self) -> str:
        """The name as the API, the database and verdicts have it."""
        return str(self.name)

    @functools.cached_property
    def service(self) -> str:
        """The volume service that answers for it."""
        return self.name.service

    @functools.cached_property
    def kept_gib(self) -> float:
        """GiB that ``reserved_percentage`` keeps free."""
        return self.total_gib * self.reserved_percentage / 100


@dataclass(frozen=True)
class Usage:
    """What the database says of a pool at the moment of a decision, GiB.

    ``provisioned_gib`` is promised to volumes, twins included; ``reserved_gib`` is not in the last report's free space
    yet, because its migration or creation is under way or ended after it.
    """

    provisioned_gib: float
    reserved_gib: float
    volumes: int


def pools_of_report(report: Mapping[str, Any]) -> list[Pool]:
    """The pools of one backend's report; one that makes no sense is left out with a warning that names it."""
    found = []
    reported = report.get("pools")
    if not isinstance(reported, list):
        LOG.warning("Left out a malformed report of %s: its pools are %r", report.get("host"), reported)
        return []
    for values in reported:
        try:
            found.append(_pool(report, values))
        except (KeyError, TypeError, ValueError, AttributeError, MalformedBackendName) as error:
            LOG.warning("Left out a malformed pool of %s: %r in %r", report.get("host"), error, values)
    return found


def _pool(report: Mapping[str, Any], values: Mapping[str, Any]) -> Pool:
    name = BackendName.parse(str(report["host"])).with_pool(str(values["pool"]))
    return Pool(
        name=BackendName.parse(str(name)),
        backend_name=report.get("volume_backend_name"),
        availability_zone=str(report["availability_zone"]),
        total_gib=_size(values["total_gib"]),
        free_gib=_size(values["free_gib"]),
        allocated_gib=_size(values["allocated_gib"]),
        thin=bool(values["thin"]),
        max_over_subscription_ratio=max(1.0, _size(report["max_over_subscription_ratio"])),
        reserved_percentage=_size(report["reserved_percentage"]),
        location=dict(values["location"]),
        capabilities=dict(values.get("capabilities") or {}),
        driver=str(report.get("driver")),
        reported_at=_size(report["reported_at"]),
    )


def _size(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST:
        raise ValueError(f"{str(value)[:40]!r} is no size")
    return float(value)


class PoolRegistry:
    """What every backend reported last; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._backends: dict[str, tuple[float, dict[BackendName, Pool]]] = {}

    def update(self, report: Mapping[str, Any]) -> None:
        """Replace the pools of one backend, unless a newer report of it is known (messages may overtake each other)."""
        try:
            host, reported_at = str(report["host"]), _size(report["reported_at"])
        except (KeyError, TypeError, ValueError) as error:
            LOG.warning("Left out a malformed pool report: %r", error)
            return
        pools = {pool.name: pool for pool in pools_of_report(report)}
        with self._lock:
            known = self._backends.get(host)
            if known is None or known[0] <= reported_at:
                self._backends[host] = (reported_at, pools)

    def forget(self, backend: BackendName) -> None:
        """Drop the pools of a backend that is gone for good; its next report would bring them back."""
        with self._lock:
            self._backends.pop(backend.service, None)

    def all(self) -> list[Pool]:
        with self._lock:
            return [pool for _, pools in self._backends.values() for pool in pools.values()]

    def get(self, name: BackendName) -> Pool | None:
        with self._lock:
            _, pools = self._backends.get(name.service, (0.0, {}))
            return pools.get(name)


def view(pool: Pool, usage: Usage, detail: bool) -> dict[str, Any]:
    """A pool as scheduler-stats/get_pools shows it (public Block Storage API reference)."""
    if not detail:
        return {"name": pool.host}
    stamp = datetime.datetime.fromtimestamp(pool.reported_at, datetime.UTC).replace(tzinfo=None)
    capabilities = {
        **pool.capabilities,
        "pool_name": pool.name.pool,
        "volume_backend_name": pool.backend_name,
        "total_capacity_gb": round(pool.total_gib, 2),
        "free_capacity_gb": round(max(0.0, pool.free_gib - usage.reserved_gib), 2),
        "allocated_capacity_gb": round(pool.allocated_gib, 2),
        "provisioned_capacity_gb": round(usage.provisioned_gib, 2),
        "reserved_percentage": pool.reserved_percentage,
        "max_over_subscription_ratio": str(pool.max_over_subscription_ratio),
        "thin_provisioning_support": pool.thin,
        "thick_provisioning_support": not pool.thin,
        "total_volumes": usage.volumes,
        "storage_protocol": pool.driver,
        "driver_version": "1.0",
        "vendor_name": "migrator",
        "multiattach": bool(pool.capabilities.get("multiattach", False)),
        "QoS_support": False,
        "backend_state": "up",
        "location_info": pool.location.get("place"),
        "timestamp": stamp.isoformat(timespec="microseconds"),
    }
    return {"name": pool.host, "capabilities": capabilities}
