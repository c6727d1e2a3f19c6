"""Loop devices: real block devices on files, of any size and sector; for root only."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path

from tests.support.needs import missing
from tests.support.waiting import until

#: linux/loop.h
_LOOP_SET_CAPACITY = 0x4C07
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_READ_ONLY, _LO_FLAGS_PARTSCAN = 1, 8
#: linux/blkpg.h
_BLKPG, _BLKPG_ADD_PARTITION = 0x1269, 1
_LOOP_MAJOR = 7
_CONTROL = "/dev/loop-control"


class Loop:
    """A file as a block device, by a node of its own."""

    def __init__(self, node: Path, backing: Path, size: int, sector: int = 512, *, read_only: bool = False) -> None:
        """Make the file ``size`` bytes, with what is in it already."""
        self.node, self.backing, self.sector, self.read_only = node, backing, sector, read_only
        node.parent.mkdir(parents=True, exist_ok=True)
        backing.parent.mkdir(parents=True, exist_ok=True)
        backing.touch()
        os.truncate(backing, size)
        self.attach()

    def attach(self) -> None:
        """Connect the file with a free loop device: rarely the one that it had before."""
        until(self._attach, "a free loop device")

    def _attach(self) -> bool:
        try:
            control = os.open(_CONTROL, os.O_RDWR)
        except OSError as error:
            missing(f"loop devices cannot be made here: {error}")
        try:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        finally:
            os.close(control)
        self.node.unlink(missing_ok=True)
        try:
            os.mknod(self.node, 0o600 | stat.S_IFBLK, os.makedev(_LOOP_MAJOR, number))
            device = os.open(self.node, os.O_RDWR)
        except OSError as error:
            missing(f"block devices cannot be opened in {self.node.parent}: {error}")
        return self._configure(device)

    def _configure(self, device: int) -> bool:
        file = os.open(self.backing, os.O_RDWR)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, self._config(file))
        except OSError as error:
            if error.errno == errno.EBUSY:  # another test was faster
                return False
            raise
        finally:
            os.close(file)
            os.close(device)
        return True

    def _config(self, file: int) -> bytes:
        """struct loop_config with a struct loop_info64 in it."""
        flags = _LO_FLAGS_PARTSCAN | (_LO_FLAGS_READ_ONLY if self.read_only else 0)
        info = struct.pack("=QQQQQIIII", 0, 0, 0, 0, 0, 0, 0, 0, flags)
        return struct.pack("=II", file, self.sector) + info.ljust(232 + 64, b"\0")

    def resize(self, size: int) -> None:
        os.truncate(self.backing, size)
        self._ask(_LOOP_SET_CAPACITY)

    def detach(self) -> None:
        """Take the device away; fine if it is gone."""
        with suppress(OSError):
            self._ask(_LOOP_CLR_FD)

    def partition(self, number: int, start: int, size: int) -> Path:
        """Let the kernel know of a partition, which needs no table for it; return its node, beside the disk's."""
        partition = struct.pack("=qqi128x", start, size, number)
        argument = ctypes.create_string_buffer(partition, len(partition) + 4)
        self._ask(_BLKPG, struct.pack("@iiiP", _BLKPG_ADD_PARTITION, 0, len(argument), ctypes.addressof(argument)))
        disk = self.node.stat().st_rdev
        home = f"/sys/dev/block/{os.major(disk)}:{os.minor(disk)}"
        name = Path(os.path.realpath(home)).name
        major, minor = Path(f"{home}/{name}p{number}/dev").read_text(encoding="utf-8").split(":")
        node = self.node.with_name(f"{self.node.name}-{number}")
        os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
        return node

    def unplug(self) -> None:
        """Take the device away with its node."""
        self.detach()
        self.node.unlink()

    def _ask(self, request: int, argument: bytes | int = 0) -> None:
        device = os.open(self.node, os.O_RDONLY)
        try:
            fcntl.ioctl(device, request, argument)
        finally:
            os.close(device)


class Loops:
    """The loop devices of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._made: list[Loop] = []

    def make(
        self,
        name: str,
        size: int,
        sector: int = 512,
        content: bytes = b"",
        *,
        read_only: bool = False,
        at: Path | None = None,
    ) -> Loop:
        """Return a new device ``dev/<name>`` that begins with ``content``, on a file of ours or on that one."""
        backing = at or self.directory / "backing" / name
        backing.parent.mkdir(parents=True, exist_ok=True)
        backing.write_bytes(content)
        loop = Loop(self.directory / "dev" / name, backing, size, sector, read_only=read_only)
        self._made.append(loop)
        return loop

    def end(self) -> None:
        for loop in self._made:
            loop.detach()
