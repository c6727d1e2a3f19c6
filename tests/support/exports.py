"""What tests of exports to other hosts share: a service's exports, a volume's file, and the peer that opens it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from migrator import conf as config
from migrator import machine
from migrator.db.api import Database
from migrator.db.models import Migration
from migrator.drivers.base import Connection
from migrator.volume.endpoints import Endpoint
from migrator.volume.export_server import Server
from migrator.volume.exports import Exports
from migrator.volume.job import open_endpoint
from tests.support.data import MIB
from tests.support.needs import missing

SERVICE = "hostb@file2"
#: Of a volume whose end no page divides.
SIZE = 2 * MIB + 512
BLOCK = memoryview(b"x" * 4096)
#: Columns of a migration that somebody copies.
HELD = {"step": "copy_data", "direction": "forward", "lease_until": 1e12}

Make = Callable[..., Exports]


@contextlib.contextmanager
def maker(directory: Path) -> Iterator[Make]:
    """Gives who makes the exports of a service as ``nbd_`` options say; all of them end with the block."""
    with contextlib.ExitStack() as stack:

        def made(server: str = "nbdkit", **values: Any) -> Exports:
            if shutil.which(server) is None:
                missing(f"{server} is not installed: tests/prepare does it")
            conf = config.load("tests", [], [], state_path=str(directory / "state"), nbd_export_address="127.0.0.1")
            for name, value in {"server": server, **values}.items():
                conf.set_override(f"nbd_{name}", value)
            exports = Exports(conf, SERVICE)
            stack.callback(exports.close)
            return exports

        yield made


def local(path: Path, size: int = SIZE, **values: Any) -> Connection:
    """A driver's own connection to a file, made if need be."""
    if not path.exists():
        path.write_bytes(b"\0" * size)
    return Connection("file", str(path), machine.boot_id(), size, **{"writable": True, **values})


def opened(connection: Connection, **changes: Any) -> Endpoint:
    """Open it as the peer's worker does."""
    values = json.loads(json.dumps(connection.as_dict()))
    return open_endpoint({**values, "nbd": values["nbd"] | changes}, True)


def server_of(exports: Exports, migration_id: str = "m") -> Server:
    return exports._servers[migration_id]


def change(db: Database, migration_id: str, values: dict[str, Any]) -> None:
    db.run(lambda session: session.execute(sa.update(Migration).where(Migration.id == migration_id).values(**values)))
