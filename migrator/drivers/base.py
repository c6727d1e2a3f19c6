"""The contract between migrator and a backend.

Read README.rst beside this file first: it says, for every call, whether it may be repeated, whether it may block, and
which errors are final.  In one paragraph: every call may come twice and at any time (``create`` of what exists,
``delete`` of what is gone, ``revoke`` of what never was all succeed); a call either did all of its work, durably, or
raises; an answer never means "maybe"; names are chosen by the caller before the call; nothing is renamed.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from oslo_config import cfg


class Capability(StrEnum):
    """What a driver declares about itself, as data; the same words appear in pool reports."""

    #: It can be asked can_assist and may move volumes itself.
    ASSIST = "can_assist"
    #: A new volume reads as zeros everywhere, so a copy may skip holes.
    NEW_VOLUME_IS_ZERO = "new_volume_is_zero"
    #: An export can be ended by the destination's service while a foreign process has it open.
    FENCED_EXPORT = "fenced_export"
    SNAPSHOTS = "snapshots"
    CLONE = "clone"
    ADOPT = "adopt"


@dataclass(frozen=True)
class PoolReport:
    """One pool's capacity and nature, as the scheduler sees it. Sizes in GiB.

    ``location`` tells where the pool really lies (plain JSON values): two pools with equal ``location["place"]``
    are the same place under two names, and a migration between them would destroy the volume (LP1404013).
    """

    pool: str
    total_gib: float
    free_gib: float
    #: GiB that the objects really occupy.
    allocated_gib: float
    thin: bool
    location: dict[str, Any]
    capabilities: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Connection:
    """How the copier reaches an exported volume.

    ``kind`` is ``file`` (a path on the machine ``machine``) or ``memory`` (an object of the process ``process``).
    ``is_zero``: it reads as zeros everywhere now, so a copy into it may skip holes.  ``limit``: bytes that the object
    may come to occupy in all before its pool is full; exceeding it is to be treated as a full disk.  Both tell of this
    moment, so connections of one export are equal whatever they say.
    """

    kind: str
    path: str
    machine: str
    size: int  # bytes
    is_zero: bool = field(default=False, compare=False)
    writable: bool = False
    process: str | None = None
    limit: int | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Connection:
        return cls(**values)


@dataclass(frozen=True)
class Answer:
    """The answer to a question such as can_assist: yes or no, and why."""

    yes: bool
    reason: str


Progress = Callable[[int, int], None]
"""Called by an assisted move with bytes done and bytes total, at least every two seconds."""


class VolumeDriver(abc.ABC):
    """One configured backend: its pools and the objects in them.

    ``name`` arguments are object names such as ``volume-<uuid>``; ``pool`` is one of ``pools()``.  Sizes are bytes.
    Any call may raise DriverError (worth another attempt) or a final error of migrator.errors.  Calls come from
    several threads at once; calls for one object never overlap.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def __init__(self, backend: str, options: cfg.ConfigOpts.GroupAttr) -> None:
        """Keep the options of ``backend`` (host@backend); raises ConfigError; touches nothing on disk."""
        self.backend = backend
        self.options = options

    @abc.abstractmethod
    def start(self) -> None:
        """Make ready to serve: called once, before any other call; raises ConfigError or DriverError."""

    @abc.abstractmethod
    def pools(self) -> list[str]:
        """Names of the pools."""

    @abc.abstractmethod
    def report(self) -> list[PoolReport]:
        """Capacity of every pool, real and now."""

    @abc.abstractmethod
    def create(self, pool: str, name: str, size: int) -> None:
        """Create an object of ``size`` bytes that reads as zeros.

        An existing one of that size is left untouched; a smaller one, left by a crash, is grown; a larger one is a
        DriverError.  Raises NoSpace.
        """

    @abc.abstractmethod
    def delete(self, pool: str, name: str) -> None:
        """Delete the object and all that belongs to it; success when it is gone already."""

    @abc.abstractmethod
    def extend(self, pool: str, name: str, size: int) -> None:
        """Make the object ``size`` bytes; the new part reads as zeros.  Never shrinks: success if it is as large."""

    @abc.abstractmethod
    def exists(self, pool: str, name: str) -> bool:
        """Tell whether the object is there."""

    @abc.abstractmethod
    def objects(self, pool: str) -> Iterable[str]:
        """Names of all objects that this driver created or adopted in the pool: volumes and snapshots."""

    @abc.abstractmethod
    def allocated(self, pool: str, name: str) -> int:
        """Bytes that the object really occupies; raises VolumeMissing."""

    @abc.abstractmethod
    def create_snapshot(self, pool: str, volume: str, name: str) -> None:
        """Keep the content of ``volume`` as it is now under ``name``; an existing one is left untouched."""

    @abc.abstractmethod
    def delete_snapshot(self, pool: str, volume: str, name: str) -> None:
        """Delete the snapshot; success when it is gone already."""

    @abc.abstractmethod
    def clone(self, pool: str, source: str, name: str, size: int) -> None:
        """Create ``name`` with the content of ``source`` (a volume or a snapshot of the pool), grown to ``size``.

        An existing ``name`` is a finished clone, because a half one never has the name; it is only grown.
        """

    @abc.abstractmethod
    def adopt(self, pool: str, reference: dict[str, Any], name: str) -> int:
        """Take an object that lies in the pool already under our ``name``; return its size in bytes.

        ``reference`` is ``{"source-name": …}``.  Raises InvalidInput for one that is not there, not inside the pool or
        not a plain object.  Repeating a successful call succeeds.
        """

    @abc.abstractmethod
    def export(self, pool: str, name: str, *, writable: bool) -> Connection:
        """Make the object reachable for the copier; repeating it gives an equal connection."""

    @abc.abstractmethod
    def revoke(self, pool: str, name: str) -> None:
        """End every export of the object; success when there was none."""

    def can_assist(self, pool: str, name: str, destination: dict[str, Any]) -> Answer:
        """Can this backend move the object to the pool whose ``location`` is given?  A pure question."""
        return Answer(False, f"the driver of {self.backend} cannot move volumes itself")

    def move(self, pool: str, name: str, destination: dict[str, Any], progress: Progress) -> None:
        """Make the object complete and durable at ``destination`` under the same name; the old place stays valid.

        Repeating it after a crash continues or finds it done.  The old object is deleted by ``delete`` afterwards.
        """
        raise AssertionError("move is called only after can_assist said yes")

    def unmove(self, pool: str, name: str, destination: dict[str, Any]) -> None:
        """Take back whatever ``move`` made at the destination; success when there is nothing, wherever it is."""
        raise AssertionError("unmove is called only of a driver that declares ASSIST")
