"""What the contract suite needs of each driver: how to make one, how to reach what it exports, how to lay a stray."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from migrator import conf
from migrator.drivers import memory
from migrator.drivers.base import Capability, Connection, VolumeDriver
from migrator.drivers.block import BlockDriver
from migrator.drivers.file import FileDriver
from migrator.drivers.memory import MemoryDriver
from tests.contract.loops import Loops
from tests.support.waiting import until

POOLS = ("pool1", "pool2")


def options(**values: Any) -> Any:
    """Return the options of a backend."""
    config = conf.new()
    group = conf.backend(config, "backend")
    for name, value in values.items():
        config.set_override(name, value, group="backend")
    return group


def read(connection: Connection, offset: int = 0, length: int | None = None) -> bytes:
    """Read through a connection."""
    length = connection.size - offset if length is None else length
    if connection.kind == "file":
        with open(connection.path, "rb") as file:
            return os.pread(file.fileno(), length, offset)
    buffer = bytearray(length)
    opened = memory.open_object(connection.path)
    got = opened.pread_into(offset, buffer)
    opened.close()
    return bytes(buffer[:got])


def write(connection: Connection, offset: int, data: bytes) -> None:
    """Write through a connection, durably."""
    if connection.kind == "file":
        with open(connection.path, "r+b") as file:
            assert os.pwrite(file.fileno(), data, offset) == len(data)
            os.fsync(file.fileno())
        return
    opened = memory.open_object(connection.path)
    assert opened.pwrite(offset, data) == len(data)
    opened.flush()
    opened.close()


class World:
    """One kind of driver and everything that its backends stand on."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path

    def driver(self, backend: str = "hosta@one") -> VolumeDriver:
        """Return a started driver of the backend, as after a restart if there was one before."""
        raise AssertionError("each kind has its own")

    def lay(self, driver: VolumeDriver, pool: str, name: str, content: bytes) -> tuple[str, int]:
        """Put something into the pool that the driver did not make; return its source-name and size."""
        raise AssertionError("each kind has its own")

    def make_room(self, driver: VolumeDriver, count: int) -> None:
        """Let pool1 have room for so many small volumes more."""

    def close(self) -> None:
        """Give back what the end of the process would not."""

    # What follows is the same for all.

    def content(self, driver: VolumeDriver, pool: str, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content = read(driver.export(pool, name, writable=False), offset, length)
        driver.revoke(pool, name)
        return content

    def put(self, driver: VolumeDriver, pool: str, name: str, offset: int, data: bytes) -> None:
        write(driver.export(pool, name, writable=True), offset, data)
        driver.revoke(pool, name)

    def volume(self, driver: VolumeDriver, pool: str = "pool1", content: bytes = b"x" * 5000) -> str:
        """Create a volume of that content."""
        name = new_name()
        driver.create(pool, name, len(content))
        self.put(driver, pool, name, 0, content)
        return name


class MemoryWorld(World):
    def driver(self, backend: str = "hosta@one") -> MemoryDriver:
        driver = MemoryDriver(backend, options(memory_pools=list(POOLS)))
        driver.start()
        return driver

    def lay(self, driver: VolumeDriver, pool: str, name: str, content: bytes) -> tuple[str, int]:
        assert isinstance(driver, MemoryDriver)
        driver.lay(pool, name, content)
        return name, len(content)


class FileWorld(World):
    thin = True

    def driver(self, backend: str = "hosta@one") -> FileDriver:
        pools = {pool: str(self.tmp_path / backend / pool) for pool in POOLS}
        driver = FileDriver(backend, options(file_pools=pools, file_thin_provisioning=self.thin))
        driver.start()
        return driver

    def lay(self, driver: VolumeDriver, pool: str, name: str, content: bytes) -> tuple[str, int]:
        (self.tmp_path / driver.backend / pool / name).write_bytes(content)
        return name, len(content)


class ThickFileWorld(FileWorld):
    thin = False


class BlockWorld(World):
    """Pools of loop devices."""

    wipe = "zero"
    sector = 512
    #: A volume takes the smallest one that is large enough.
    sizes: ClassVar[dict[str, list[int]]] = {
        "pool1": [128 * 1024] * 3 + [4 * 1024**2, 9 * 1024**2],
        "pool2": [128 * 1024],
    }

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        self.loops = Loops(tmp_path)
        self._made: set[str] = set()

    def driver(self, backend: str = "hosta@one") -> BlockDriver:
        if backend not in self._made:
            self._made.add(backend)
            for pool, sizes in self.sizes.items():
                for number, size in enumerate(sizes):
                    self.loops.make(f"{backend}/{pool}/disk{number}", size, self.sector)
        pools = {pool: f"{self.tmp_path}/dev/{backend}/{pool}/*" for pool in POOLS}
        state = str(self.tmp_path / "state")
        driver = BlockDriver(backend, options(block_pools=pools, block_state_dir=state, block_wipe=self.wipe))
        driver.start()
        settled(driver)
        return driver

    def lay(self, driver: VolumeDriver, pool: str, name: str, content: bytes) -> tuple[str, int]:
        size = -(-len(content) // self.sector) * self.sector
        return str(self.loops.make(f"{driver.backend}/{pool}/{name}", size, self.sector, content).node), size

    def make_room(self, driver: VolumeDriver, count: int) -> None:
        for number in range(count):
            self.loops.make(f"{driver.backend}/pool1/more{number}", 128 * 1024, self.sector)
        settled(driver)

    def close(self) -> None:
        self.loops.end()


class DiscardingBlockWorld(BlockWorld):
    """As on flash and thin devices, here with sectors of 4096 bytes."""

    wipe = "discard"
    sector = 4096


def settled(driver: VolumeDriver) -> None:
    """Wait until no device of a block driver is being checked or wiped."""
    until(lambda: all(report.capabilities["wiping_gib"] == 0 for report in driver.report()), "every device is ready")


#: Every driver; a new one adds a line here and its world above.
WORLDS: dict[str, Callable[[Path], World]] = {
    "memory": MemoryWorld,
    "file": FileWorld,
    "thick file": ThickFileWorld,
    "block": BlockWorld,
    "discarding block": DiscardingBlockWorld,
}


def new_name(kind: str = "volume") -> str:
    return f"{kind}-{uuid.uuid4()}"


def require(driver: VolumeDriver, capability: Capability) -> None:
    """Skip the test for a driver that does not declare the capability; nothing else may skip one."""
    if capability not in driver.capabilities:
        pytest.skip(f"{type(driver).__name__} does not declare {capability}")


def no_progress(_done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def location(driver: VolumeDriver, pool: str = "pool1") -> dict[str, Any]:
    """Return where a pool lies, as reported."""
    return next(report.location for report in driver.report() if report.pool == pool)
