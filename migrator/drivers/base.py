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
from typing import Any

from oslo_config import cfg

from migrator.drivers.names import check_name
from migrator.errors import InvalidInput


class Capability(StrEnum):
    """What a driver declares about itself, as data; the same words appear in pool reports."""

    #: It can be asked can_assist and may move volumes itself.
    ASSIST = "can_assist"
    #: A new volume reads as zeros everywhere, so a copy may skip holes.
    NEW_VOLUME_IS_ZERO = "new_volume_is_zero"
    #: An export can be ended by the destination's service while a foreign process has it open.
    FENCED_EXPORT = "fenced_export"
    #: Several hosts may have one object open for writing at the same time.
    MULTIATTACH = "multiattach"
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

    ``kind`` is ``file`` (a path on the machine ``machine``), ``memory`` (an object of the process ``process``), or
    ``nbd``: what the volume service answers the machine ``machine``, which is another one than the object is on;
    ``path`` then is the server's address for messages, ``nbd`` holds what is needed to use it (volume/exports.py).
    ``is_zero``: it reads as zeros everywhere now, so a copy into it may skip holes.  ``limit``: bytes that the object
    may come to occupy in all before its pool is full; exceeding it is to be treated as a full disk.  Both tell of this
    moment, so connections of one export are equal whatever they say.  ``may_punch``: zeroing may free space; False
    where every byte is to stay allocated.
    """

    kind: str
    path: str
    machine: str
    size: int  # bytes
    is_zero: bool = field(default=False, compare=False)
    writable: bool = False
    process: str | None = None
    limit: int | None = field(default=None, compare=False)
    may_punch: bool = True
    #: Holds secrets: never to be logged, nor to be in a message.
    nbd: dict[str, Any] | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Connection:
        return cls(**values)


@dataclass(frozen=True)
class Adoptable:
    """Something that lies in a pool, and whether ``adopt`` would take it."""

    #: What ``adopt`` takes: ``{"source-name": …}``.
    reference: dict[str, Any]
    #: The same thing by another name that stays when it is renamed; empty if there is none.
    id: str
    size: int  # bytes
    #: Why it cannot be taken; None: it can.
    reason: str | None = None
    #: Its object name, where it is ours already.
    name: str | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to a question such as can_assist: yes or no, and why."""

    yes: bool
    reason: str


Progress = Callable[[int, int], None]
"""Called by an assisted move with bytes done and bytes total, at least every two seconds.

What it raises must come through ``move``, which then stops moving at once: that is how a migration is cancelled.
"""


class VolumeDriver(abc.ABC):
    """One configured backend: its pools and the objects in them.

    ``name`` arguments are object names such as ``volume-<uuid>``; ``pool`` is one of ``pools()``.  Sizes are bytes.
    Any call may raise DriverError (worth another attempt) or a final error of migrator.errors.  Calls come from
    several threads at once; calls for one object never overlap.
    """

    #: Of the class, or of one backend where its options decide.
    capabilities: frozenset[Capability] = frozenset()

    #: True if objects() and report() only read, so that a second process may ask them without a start.
    asked_unstarted: bool = False

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

    def exports(self, pool: str) -> Iterable[str]:
        """Names of the objects that are exported now; none where an export leaves no trace."""
        return []

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

    def adoptable(self, pool: str) -> list[Adoptable]:
        """What lies in the pool, ours too; a driver that declares ADOPT has this, too."""
        return []

    def disown(self, pool: str, name: str) -> None:
        """Give the object up: it stays as it is under its name, is ours no longer, and can be adopted again.

        Success when it is not there.  A driver that declares ADOPT has this, too.
        """
        raise InvalidInput(field="volume", reason=f"the driver of {self.backend} cannot give up what it has")

    @abc.abstractmethod
    def export(self, pool: str, name: str, *, writable: bool) -> Connection:
        """Make the object reachable for the copier; repeating it gives an equal connection."""

    @abc.abstractmethod
    def revoke(self, pool: str, name: str) -> None:
        """End every export of the object; success when there was none."""

    def initialize_connection(
        self, pool: str, name: str, connector: dict[str, Any], *, writable: bool
    ) -> dict[str, Any]:
        """Offer the object to the host that ``connector`` describes; return how that host reaches it.

        The answer has ``driver_volume_type`` and ``data``, which the host's connector library understands.  Repeating
        it for one host gives the same.  Raises InvalidInput for a connector that lacks what the backend needs.
        """
        raise InvalidInput(field="connector", reason=f"the driver of {self.backend} connects no servers")

    def terminate_connection(self, pool: str, name: str, connector: dict[str, Any]) -> None:
        """Take the object back from that host alone; success when it was not offered, or is gone."""
        check_name(name)

    def is_open(self, pool: str, name: str) -> bool | None:
        """Tell whether a hypervisor has the object open now, wherever it runs; None: that cannot be told.

        True must be certain.  A volume in use is judged by it when the compute service's word cannot be trusted, and
        one that no row says is in use is not moved while it is open.
        """
        check_name(name)
        return None

    def can_assist(self, pool: str, name: str, destination: dict[str, Any]) -> Answer:
        """Can this backend move the object to the pool whose ``location`` is given?  A pure question."""
        return Answer(False, f"the driver of {self.backend} cannot move volumes itself")

    def move(self, pool: str, name: str, destination: dict[str, Any], new_name: str, progress: Progress) -> None:
        """Make the object complete and durable at ``destination`` as ``new_name``; the old place stays valid.

        Repeating it after a crash continues or finds it done.  The old object is deleted by ``delete`` afterwards.
        """
        raise AssertionError("move is called only after can_assist said yes")

    def unmove(self, pool: str, name: str, destination: dict[str, Any], new_name: str) -> None:
        """Take back whatever ``move`` made as ``new_name``; success when there is nothing, wherever it is."""
        raise AssertionError("unmove is called only of a driver that declares ASSIST")


def find_adoptable(driver: VolumeDriver, pool: str, reference: dict[str, Any]) -> Adoptable:
    """Return what a ``source-name`` or ``source-id`` refers to; raises InvalidInput for what is not there."""
    if len(reference) != 1 or not set(reference) <= {"source-name", "source-id"}:
        raise InvalidInput(field="ref", reason="it must hold either source-name or source-id and nothing else")
    wanted = reference.get("source-id")
    for found in driver.adoptable(pool):
        if found.reference == reference or (isinstance(wanted, str) and wanted == found.id != ""):
            return found
    shown = next(iter(reference.values()))
    raise InvalidInput(field="ref", reason=f"there is no {str(shown)[:80]!r} in pool {pool} of {driver.backend}")
