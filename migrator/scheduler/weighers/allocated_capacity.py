"""What is promised to volumes already."""

from __future__ import annotations

from migrator.conf import Conf
from migrator.scheduler.pools import Pool, Usage
from migrator.scheduler.weighers import Weigher


class AllocatedCapacityWeigher(Weigher):
    """GiB that the pool's volumes have been promised."""

    name = "allocated_capacity"

    @staticmethod
    def weight(conf: Conf) -> float:
        return float(conf.allocated_capacity_multiplier)

    def measure(self, pool: Pool, usage: Usage) -> float:
        return usage.provisioned_gib
