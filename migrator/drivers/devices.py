"""Block devices: which one it is, how large it is, whether anybody uses it, and whether it reads as zeros.

A device is told from every other one by its *identity*, which survives a reboot; the name of its node (/dev/sdb) need
not.  Nothing here runs a program: what there is to know comes from /sys (see sysfs-block) and from ioctls.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import mmap
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

#: linux/fs.h
_BLKGETSIZE64 = 0x80081272
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F
_LOOP_MAJOR = 7

#: Bytes read or written by one call; larger ones were not faster.
PIECE = 1024 * 1024
_ZEROS = bytes(PIECE)
#: What every sector size in use divides.
_ALIGNMENT = 4096
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS}

#: Where a whole disk says who it is, best first; the first word goes into the identity.
_SOURCES = [
    ("wwid", "wwid"),  # NVMe
    ("wwid", "device/wwid"),  # SCSI
    ("dm", "dm/uuid"),
    ("md", "md/uuid"),
    ("serial", "serial"),  # virtio
    ("serial", "device/serial"),
]
#: The identity of a device that says nothing of itself, but was configured by a link that the operator keeps (a zvol).
_LINK = "link:"
#: Identities that name the same storage on every machine that sees it.
_EVERYWHERE = ("wwid:", "dm:mpath-")


@dataclass(frozen=True)
class Device:
    """A block device as it is now. Sizes in bytes, of the whole sectors: a part of one cannot be read."""

    #: Its node, and the path by which it was configured.
    path: str
    configured: str
    number: int
    identity: str
    size: int
    sector: int
    read_only: bool
    #: It is a disk that the kernel found partitions on.
    partitioned: bool

    @contextmanager
    def open(self, *, write: bool = False, alone: bool = False) -> Iterator[Opened]:
        """Open it for the time of a block; raises OSError, EBUSY if ``alone`` and it is mounted or held by another."""
        access = (os.O_RDWR if write else os.O_RDONLY) | (os.O_EXCL if alone else 0)
        try:
            fd = os.open(self.path, access | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise OSError(errno.EBUSY, "it is in use: mounted, or held open by somebody", self.path) from None
        direct = None
        try:
            # While it is open its node cannot come to mean another device.
            if not self._is_behind(fd):
                raise OSError(errno.ENXIO, "another device has taken its node", self.path)
            direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            opened = Opened(self, fd, direct)
            if opened.size // self.sector * self.sector != self.size:
                raise OSError(errno.ENXIO, f"it has {opened.size} bytes, a moment ago {self.size}", self.path)
            yield opened
        finally:
            os.close(fd)
            if direct is not None:
                os.close(direct)

    def _is_behind(self, fd: int) -> bool:
        own = _own_identity(self.number)
        same = own == self.identity or (own is None and self.identity.startswith(_LINK))
        return same and _number(os.fstat(fd)) == self.number


class Opened:
    """A device while it is open; raises OSError."""

    def __init__(self, device: Device, fd: int, direct: int) -> None:
        """``direct`` is the same device, opened for reading past the cache."""
        self._path = device.path
        self._sector = device.sector
        self.fd = fd
        self.direct = direct
        self._buffer = mmap.mmap(-1, PIECE)

    @property
    def size(self) -> int:
        return int(struct.unpack("Q", fcntl.ioctl(self.fd, _BLKGETSIZE64, bytes(8)))[0])

    def first_data(self, start: int, end: int) -> int | None:
        """Return where the first byte that is not zero lies, read from the medium; None if there is none."""
        at = start - start % self._sector
        while at < end:
            length = min(PIECE, -(-(end - at) // self._sector) * self._sector)
            count = os.preadv(self.direct, [memoryview(self._buffer)[:length]], at)
            if not count:
                raise OSError(errno.EIO, f"it ended at {at}, {end} bytes were expected", self._path)
            first = max(start - at, 0)
            data = self._buffer[first : min(end - at, count)]
            if data != _ZEROS[: len(data)]:
                return at + first + len(data) - len(data.lstrip(b"\0"))
            at += count
        return None

    def zero(self, start: int, end: int) -> None:
        """Make a range read as zeros; durable with the next flush."""
        if start % self._sector or end % self._sector or not self._ask(_BLKZEROOUT, start, end):
            while start < end:
                start += os.pwrite(self.fd, _ZEROS[: min(PIECE - start % _ALIGNMENT, end - start)], start)

    def discard(self, start: int, end: int) -> bool:
        """Tell the device that a range is not needed; False where it cannot be told. It need not read as zeros then."""
        return self._ask(_BLKDISCARD, start, end)

    def _ask(self, request: int, start: int, end: int) -> bool:
        try:
            fcntl.ioctl(self.fd, request, struct.pack("QQ", start, end - start))
        except OSError as error:
            if error.errno in _CANNOT:
                return False
            raise
        return True

    def make_zero(self, start: int, end: int) -> None:
        """Read a range and zero what does not read as zeros already, durably: what is thin stays thin."""
        wrote = False
        while start < end:
            stop = min(end, start - start % PIECE + PIECE)
            if self.first_data(start, stop) is not None:
                self.zero(start, stop)
                wrote = True
            start = stop
        if wrote:
            self.flush()

    def flush(self) -> None:
        os.fsync(self.fd)


class Refusal(NamedTuple):
    """Something that was configured and cannot be used, and why."""

    path: str
    reason: str


def discover(patterns: Iterable[str]) -> tuple[list[Device], list[Refusal]]:
    """Return the devices that paths or patterns lead to, each once, and what there is besides devices."""
    devices: dict[int, Device] = {}
    refusals: list[Refusal] = []
    for path in sorted({path for pattern in patterns for path in glob.glob(pattern)}):
        found = _look(path)
        if isinstance(found, Refusal):
            refusals.append(found)
        elif found is not None:
            devices.setdefault(found.number, found)
    twice = _several([device.identity for device in devices.values()])
    for device in list(devices.values()):
        if device.identity in twice:
            del devices[device.number]
            refusals.append(Refusal(device.path, f"another device has its identity, {device.identity}"))
    return list(devices.values()), refusals


def number_of(path: str) -> int | None:
    """Return the number of the block device that a path leads to; None if it leads to no device."""
    with suppress(OSError, ValueError):
        return _number(os.stat(path))
    return None


def is_of_every_machine(identity: str) -> bool:
    """Tell whether the identity means the same storage on other machines too."""
    return identity.startswith(_EVERYWHERE)


def _several(values: list[str]) -> set[str]:
    return {value for value in values if values.count(value) > 1}


def _number(status: os.stat_result) -> int | None:
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _look(path: str) -> Device | Refusal | None:
    """Return what lies at a path, None for a device without a medium (a loop device without a file)."""
    real = os.path.realpath(path)
    number = number_of(real)
    if number is None:
        return Refusal(path, "it is no block device")
    home = _home(number)
    size = int(_read(home, "size") or 0) * 512  # in these units whatever the sector
    if not size:
        return None
    identity = _own_identity(number) or (f"{_LINK}{path}" if os.path.islink(path) else None)
    if identity is None:
        return Refusal(path, "nothing tells it from others after a reboot: name it by a link, as in /dev/disk/by-id")
    is_partition = _is_partition(home)
    sector = int(_read(f"{home}/.." if is_partition else home, "queue/logical_block_size") or 512)
    return Device(
        path=real,
        configured=path,
        number=number,
        identity=identity,
        size=size // sector * sector,
        sector=sector,
        read_only=_read(home, "ro") == "1",
        partitioned=not is_partition and _has_partitions(home),
    )


# --- identities ------------------------------------------------------------------------------------------------------


def _own_identity(number: int) -> str | None:
    """Return what the device says of itself; None if it says nothing that others could not say too."""
    home = _home(number)
    if not _is_partition(home):
        return _disk_identity(home, number)
    disk = f"{home}/.."
    parent = _disk_identity(disk, _parse_number(_read(disk, "dev") or "0:0"))
    if parent is not None:
        return f"{parent} partition at {_read(home, 'start')}"
    uuid = re.search(r"^PARTUUID=(.+)$", _read(home, "uevent") or "", re.MULTILINE)
    return f"partuuid:{uuid[1]}" if uuid else None


def _disk_identity(home: str, number: int) -> str | None:
    if os.major(number) == _LOOP_MAJOR:
        return _loop_identity(home)
    for kind, file in _SOURCES:
        value = _read(home, file)
        if value:
            return f"{kind}:{value}"
    return None


def _loop_identity(home: str) -> str | None:
    """A loop device is the file behind it, whatever its number."""
    backing, offset = _read(home, "loop/backing_file"), _read(home, "loop/offset")
    if backing is None:
        return None
    inode = 0
    with suppress(OSError):  # a file of another mount namespace is known by its path alone
        inode = os.stat(backing).st_ino
    return f"loop:{inode}:{offset}:{backing}"


def _home(number: int) -> str:
    return f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"


def _is_partition(home: str) -> bool:
    return os.path.exists(f"{home}/partition")


def _has_partitions(home: str) -> bool:
    """The kernel lists sda1 below sda."""
    disk = os.path.basename(os.readlink(home))
    return any(name.startswith(disk) and _is_partition(f"{home}/{name}") for name in os.listdir(home))


def _parse_number(text: str) -> int:
    major, _, minor = text.partition(":")
    return os.makedev(int(major), int(minor))


def _read(home: str, file: str) -> str | None:
    """Return the content of an attribute without blanks at its ends; None if it has none."""
    try:
        with open(f"{home}/{file}", encoding="utf-8", errors="replace") as attribute:
            return attribute.read().strip(" \n\0") or None
    except OSError:
        return None
