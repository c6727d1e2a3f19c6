"""How many volumes lie there."""

from __future__ import annotations

from migrator.conf import Conf
from migrator.scheduler.pools import Pool, Usage
from migrator.scheduler.weighers import Weigher


class VolumeNumberWeigher(Weigher):
    """Number of volumes on the pool, twins included."""

    name = "volume_number"

    @staticmethod
    def weight(conf: Conf) -> float:
        return float(conf.volume_number_multiplier)

    def measure(self, pool: Pool, usage: Usage) -> float:
        return float(usage.volumes)
