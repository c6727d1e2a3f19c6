"""What is free once work under way has taken its share."""

from __future__ import annotations

from migrator.conf import Conf
from migrator.scheduler.filters.capacity import promisable, room
from migrator.scheduler.pools import Pool, Usage
from migrator.scheduler.weighers import Weigher


class FreeCapacityWeigher(Weigher):
    """GiB that may still be given away; a thin pool counts what it may still promise."""

    name = "free_capacity"

    @staticmethod
    def weight(conf: Conf) -> float:
        return float(conf.free_capacity_multiplier)

    def measure(self, pool: Pool, usage: Usage) -> float:
        if pool.thin:
            return promisable(pool) - usage.provisioned_gib
        return room(pool, usage)
