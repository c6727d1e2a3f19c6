"""The contract of a compute service."""

from __future__ import annotations

import abc
import enum
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from migrator.conf import Conf

if TYPE_CHECKING:
    from migrator.compute.qemu import Guest


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
    def extended(self, server: str, volume_id: str, path: str | None, size: int) -> None:
        """Tell that a volume which the server uses has grown, to ``size`` bytes.

        ``path`` is where the server's host has it, None where it has it by other means.
        """


class Hypervisor(Compute):
    """Moves nothing by itself and reports nothing: it is led, look by look (volume/driven.py)."""

    def swap(self, server: str, old: str, new: str) -> None:
        raise AssertionError("a hypervisor is led")

    def uses(self, server: str, old: str, new: str) -> Uses:
        raise AssertionError("a hypervisor is led")

    @abc.abstractmethod
    def guest(self, server: str) -> AbstractContextManager[Guest]:
        """Speak to the hypervisor of a server for a short time; raises ComputeUnreachable."""
