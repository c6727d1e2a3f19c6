"""Helpers for the block driver's own tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from migrator.drivers.base import VolumeDriver
from migrator.drivers.block import BlockDriver
from migrator.drivers.block_records import Record, Records
from tests.contract.loops import Loop, Loops
from tests.contract.worlds import new_name, options, settled, write

MIB = 1024**2


class Bench:
    """Loop devices in one pool, and drivers that serve it, one after the other as after restarts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loops = Loops(directory)
        self.state = directory / "state"

    def loop(self, name: str = "disk", size: int = 2 * MIB, **values: Any) -> Loop:
        return self.loops.make(f"p/{name}", size, **values)

    def driver(
        self, backend: str = "hosta@one", pools: dict[str, str] | None = None, *, settle: bool = True, **values: Any
    ) -> BlockDriver:
        """Return a started driver whose devices are ready, by default one with the pool ``p`` of all devices."""
        pools = pools or {"p": f"{self.directory}/dev/p/*"}
        driver = BlockDriver(backend, options(block_pools=pools, block_state_dir=str(self.state), **values))
        driver.start()
        if settle:
            settled(driver)
        return driver

    def records(self) -> dict[str, Record]:
        """Every record by the name of the device's node."""
        return {Path(record.path).name: record for record in Records(str(self.state)).all().values()}


def volume(driver: VolumeDriver, size: int, content: bytes = b"", pool: str = "p") -> str:
    name = new_name()
    driver.create(pool, name, size)
    if content:
        write(driver.export(pool, name, writable=True), 0, content)
    return name


def free_bytes(driver: VolumeDriver) -> int:
    return round(sum(report.free_gib for report in driver.report()) * 1024**3)


def poke(loop: Loop, offset: int, data: bytes) -> None:
    """Write to the device beside the driver, as anybody could."""
    with loop.node.open("r+b") as device:
        os.pwrite(device.fileno(), data, offset)
        os.fsync(device.fileno())


def is_all_zero(loop: Loop) -> bool:
    with loop.node.open("rb") as device:
        os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return not any(piece.strip(b"\0") for piece in iter(lambda: device.read(MIB), b""))


def head(loop: Loop, length: int) -> bytes:
    with loop.node.open("rb") as device:
        os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return device.read(length)
