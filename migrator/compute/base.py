"""The contract of a compute service."""

from __future__ import annotations

import abc
import enum

from migrator.conf import Conf


class Uses(enum.StrEnum):
    """Which of two volumes a server has, as the compute service tells it."""

    OLD = "old"
    NEW = "new"
    NEITHER = "neither"
    #: There is no such server any more.
    GONE = "gone"


class Compute(abc.ABC):
    """Moves running servers from one volume to another; built from the configuration, opens nothing until it is used.

    Every call may be made from several threads at once, and raises ComputeUnreachable (nothing was sent),
    ComputeSilent (nobody knows), ComputeFailed or ComputeRefused.
    """

    def __init__(self, conf: Conf) -> None:
        self.conf = conf

    @abc.abstractmethod
    def swap(self, server: str, old: str, new: str) -> None:
        """Ask that a server be moved from volume ``old`` to ``new``, data and all; never repeated by itself.

        Returns once the request is accepted: the end is reported by os-migrate_volume_completion, or never.
        """

    @abc.abstractmethod
    def uses(self, server: str, old: str, new: str) -> Uses:
        """Ask which of both volumes the server has; may be repeated."""

    @abc.abstractmethod
    def extended(self, server: str, volume_id: str) -> None:
        """Tell that a volume which the server uses has grown."""
