"""Which names drivers accept: of pools, of objects, and of what is to be adopted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from migrator.errors import ConfigError, InvalidInput

#: Shorter than any file system's limit of 255, to leave room for the prefixes of drivers' own files.
MAX_LENGTH = 200
_NAME = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{MAX_LENGTH - 1}}}")
#: The last part of host@backend#pool, see migrator.backend_name.
_POOL = re.compile(r"[^@#\x00-\x1f]+")


def check_name(name: str) -> str:
    """Return an object's name that can do no harm as a file's name; raises InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(field="name", reason=f"{name[:80]!r} cannot be the name of an object")
    return name


def check_pools(option: str, names: Iterable[str]) -> None:
    """Raise ConfigError unless there are pools, and their names fit into host@backend#pool."""
    if not list(names):
        raise ConfigError(option=option, reason="there must be at least one pool")
    for name in names:
        if not _POOL.fullmatch(name):
            raise ConfigError(option=option, reason=f"{name!r} cannot be the name of a pool")


def source_name(reference: dict[str, Any]) -> str:
    """Return the plain name in a reference to what is to be adopted; raises InvalidInput.

    More is allowed than in our own names (blanks, letters of any script), but nothing that leads out of the pool, and
    no hidden file.
    """
    if set(reference) != {"source-name"}:
        raise InvalidInput(field="ref", reason="it must hold source-name and nothing else")
    name = reference["source-name"]
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise InvalidInput(field="source-name", reason=f"{name!r} is not the plain name of an object in the pool")
    return name
