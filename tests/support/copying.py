"""Files to be copied, and what a copier is given with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from migrator import machine
from migrator.drivers.base import Connection
from migrator.volume.control import Control
from migrator.volume.copy import CopyOptions, Result, copy
from migrator.volume.endpoints import Endpoint
from migrator.volume.extents import Ranges

MIB = 1 << 20
SIZE = 8 * MIB + 4097
SLOW = {"bytes_per_second": 2 * MIB, "checkpoint_seconds": 0.1}


class Volume:
    """A file and the connections that lead to it."""

    def __init__(self, path: Path, content: bytes | None = None, size: int = SIZE) -> None:
        self.path, self.size = path, size
        with path.open("wb") as file:
            file.write(content or b"")
            file.truncate(size)

    def connection(self, writable: bool = False, **changes: Any) -> Connection:
        values = {"is_zero": True, **changes}
        return Connection("file", str(self.path), machine.boot_id(), self.size, writable=writable, **values)

    def __call__(self, writable: bool = False, **changes: Any) -> dict[str, Any]:
        return self.connection(writable, **changes).as_dict()


def copy_whole(
    source: Endpoint,
    destination: Endpoint,
    *,
    zero: bool,
    options: CopyOptions | None = None,
    done: Ranges | None = None,
) -> Result:
    """Run the engine alone, from the beginning unless something is ``done``; ``zero``: the destination is new."""
    return copy(
        source,
        destination,
        done=done or Ranges(),
        destination_is_zero=zero,
        options=options or CopyOptions(),
        control=Control(),
        on_checkpoint=ignore,
    )


def no() -> bool:
    return False


def ignore(event: Any) -> None:
    pass


def after(seconds: float, answer: bool | str = True) -> Callable[[], bool | str]:
    due = time.monotonic() + seconds
    return lambda: answer if time.monotonic() > due else False
