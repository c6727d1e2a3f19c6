"""Filters: each asks one question of a pool and answers with the numbers."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from migrator.backend_name import BackendName
from migrator.conf import Conf
from migrator.scheduler.pools import Pool, Usage


@dataclass(frozen=True)
class ServiceState:
    """The volume service of a backend, as it is judged now."""

    up: bool
    disabled: bool
    disabled_reason: str | None
    frozen: bool
    seconds_since_heartbeat: float


@dataclass(frozen=True)
class Request:
    """What a place is sought for; ``source`` is None for a volume that is being created."""

    size_gib: int
    extra_specs: Mapping[str, str]
    availability_zone: str | None
    source: BackendName | None
    source_location: Mapping[str, Any] | None
    requested: BackendName | None
    exclude: frozenset[BackendName]
    services: Mapping[str, ServiceState] = field(default_factory=dict)
    #: The database's clock, epoch seconds.
    now: float = 0.0


class Verdict(NamedTuple):
    """What one filter says of one pool."""

    pool: str
    filter: str
    passed: bool
    reason: str


class Filter(abc.ABC):
    """One question; ``name`` is its entry point in migrator.scheduler.filters."""

    name: ClassVar[str]

    def __init__(self, conf: Conf) -> None:
        """Options are to be read here, once: reading one costs more than a verdict."""
        self.conf = conf

    @abc.abstractmethod
    def against(self, pool: Pool, usage: Usage, request: Request) -> str | None:
        """Return why the pool cannot be taken, with the numbers; None: it passes.

        It is asked of every pool there is, so that words are only made for one that fails.
        """

    @abc.abstractmethod
    def in_favour(self, pool: Pool, usage: Usage, request: Request) -> str:
        """Return what is said of a pool that passes, with the numbers; asked only where it is kept."""
