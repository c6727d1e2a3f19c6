"""The name of a place that holds volumes: ``host@backend#pool``.

The API calls the whole string a volume's *host* (the field's word, kept at the edge only).  Nobody else in migrator
splits on ``@`` or ``#``.  Examples::

    hosta                 a machine that runs services
    hosta@file1           a backend: one configured driver instance of a host
    hosta@file1#pool1     a pool: a part of a backend with its own capacity
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_PART = r"[^@#\s/\x00-\x1f]+"
_GRAMMAR = re.compile(rf"(?P<host>{_PART})(?:@(?P<backend>{_PART})(?:#(?P<pool>[^@#\x00-\x1f]+))?)?")
MAX_LENGTH = 255


class MalformedBackendName(ValueError):
    """The text is not ``host``, ``host@backend`` or ``host@backend#pool``."""


@dataclass(frozen=True, order=True)
class BackendName:
    """A host, a backend of it, or a pool of that backend."""

    host: str
    backend: str | None = None
    pool: str | None = None

    @classmethod
    def parse(cls, text: str) -> BackendName:
        """Return the name that ``text`` spells; raises MalformedBackendName."""
        match = _GRAMMAR.fullmatch(text)
        if match is None or len(text) > MAX_LENGTH:
            raise MalformedBackendName(f"{text[:80]!r} is not of the form host@backend#pool")
        return cls(match["host"], match["backend"], match["pool"])

    def __str__(self) -> str:
        backend = f"@{self.backend}" if self.backend is not None else ""
        pool = f"#{self.pool}" if self.pool is not None else ""
        return f"{self.host}{backend}{pool}"

    @property
    def service(self) -> str:
        """The volume service that answers for this place: ``host@backend``."""
        return str(replace(self, pool=None))

    def with_pool(self, pool: str) -> BackendName:
        """Return the pool of that name in this backend."""
        return replace(self, pool=pool)

    def contains(self, other: BackendName) -> bool:
        """Tell whether ``other`` is this place or a part of it."""
        return self.host == other.host and self.backend in (None, other.backend) and self.pool in (None, other.pool)
