"""The two ends of ``migrator-copy``: what a path or an address names, and what may be done with it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from migrator.volume.endpoints import Endpoint, read_failed
from migrator.volume.job import open_endpoint

_ADDRESS = re.compile(r"nbds?(\+unix)?://", re.IGNORECASE)
_GET_VERSION = 0x80087601  # FS_IOC_GETVERSION of linux/fs.h
#: What is wrong with the words of the command, and not with a device.
_REFUSALS = frozenset(
    {
        errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY,
        errno.EINVAL, errno.EEXIST, errno.ENAMETOOLONG,
    }
)  # fmt: skip
_OF_EXPORTS = frozenset({errno.EINVAL, errno.EROFS})


class Refused(Exception):
    """The command cannot be done as it was given; nothing was written."""


@dataclass(frozen=True)
class Place:
    """One end, and the connection that leads to it."""

    #: As the user wrote it.
    text: str
    connection: dict[str, Any]
    #: What a later run finds the same if it is the same end.
    identity: dict[str, Any]
    is_file: bool = False
    #: It was made by this run.
    is_new: bool = False

    def forget(self) -> None:
        """Take away a file that was made for a copy which is not to be."""
        if self.is_new:
            os.unlink(self.connection["path"])

    @property
    def size(self) -> int:
        return int(self.connection["size"])


def source_at(text: str) -> Place:
    """Look at the source; raises Refused, CopyError."""
    place = _place(text, 0)
    try:
        endpoint = open_endpoint(place.connection | {"size": None}, False)
    except OSError as error:
        raise refusal(text, error) from error
    try:
        size = endpoint.size
    finally:
        endpoint.close()
    identity = place.identity | {"size": size}
    if place.is_file:
        identity["modified"] = os.stat(place.connection["path"]).st_mtime_ns
    return replace(place, connection=place.connection | {"size": size}, identity=identity)


def destination_at(text: str, source: Place, is_zero: bool) -> Place:
    """Look at the destination of a copy, after creating a file that is missing.  Raises Refused, CopyError, OSError."""
    is_new = not is_address(text) and _create(os.path.realpath(text), source.size)
    place = replace(_place(text, source.size), is_new=is_new)
    try:
        _check(place, source)
    except BaseException:
        place.forget()
        raise
    is_zero = is_zero or is_new or (place.is_file and _is_empty(place.connection["path"]))
    return replace(place, connection=place.connection | {"is_zero": is_zero, "writable": True})


def _check(place: Place, source: Place) -> None:
    """See that the destination can be opened for writing and has the size; raises Refused, CopyError."""
    if place.is_file:
        size = os.stat(place.connection["path"]).st_size
        if size != source.size:
            raise Refused(f"{place.text} has {size} bytes and the source {source.size}: remove it, or make it as large")
    if all(place.identity[key] == source.identity.get(key) for key in place.identity):
        raise Refused(f"{place.text} is the source itself")
    try:
        endpoint = open_endpoint(place.connection, True)
    except OSError as error:
        raise refusal(place.text, error) from error
    try:
        if endpoint.size < source.size:
            raise Refused(f"{place.text} has {endpoint.size} bytes, and the source {source.size}")
    finally:
        endpoint.close()


def refusal(text: str, error: OSError) -> Exception:
    """Return what to raise for an end that cannot be opened."""
    refusals = _OF_EXPORTS if is_address(text) else _REFUSALS
    if error.errno not in refusals:
        return read_failed(text.partition("?")[0], 0, error)
    why = "it is mounted, or another program uses it" if error.errno == errno.EBUSY else error.strerror
    return Refused(f"{text} cannot be opened: {why}")


def is_address(text: str) -> bool:
    return _ADDRESS.match(text) is not None


@contextlib.contextmanager
def locked(place: Place) -> Iterator[None]:
    """Keep a second copy out of a destination file; raises Refused."""
    if not place.is_file:  # a device is opened exclusively, and an export is its server's business
        yield
        return
    descriptor = os.open(place.connection["path"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{place.text} is being written by another copy") from None
        yield
    finally:
        os.close(descriptor)


def open_place(connection: Any, writable: bool) -> Endpoint:
    """Open an end for a job; a destination may be larger than the source, whose bytes are then its first."""
    endpoint = open_endpoint(connection, writable)
    size = connection["size"]
    is_destination = "writable" in connection
    return Part(endpoint, size) if is_destination and endpoint.size > size else endpoint


class Part:
    """The first bytes of an endpoint."""

    def __init__(self, whole: Endpoint, size: int) -> None:
        self.name, self.place, self.size, self.capabilities = whole.name, whole.place, size, whole.capabilities
        self.extents, self.pread_into, self.pwrite = whole.extents, whole.pread_into, whole.pwrite
        self.zero, self.flush, self.close = whole.zero, whole.flush, whole.close


def _place(text: str, size: int) -> Place:
    if is_address(text):
        # The address may hold names that are not for everybody, and a state file is kept somewhere.
        identity = {"kind": "nbd", "address": hashlib.sha256(text.encode()).hexdigest(), "size": size}
        return Place(text, {"kind": "nbd", "path": text, "size": size}, identity)
    path = os.path.realpath(text)
    try:
        found = os.stat(path)
    except OSError as error:
        raise refusal(text, error) from error
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
        raise Refused(f"{text} is neither a regular file nor a block device")
    is_file = stat.S_ISREG(found.st_mode)
    number = [found.st_ino, _generation(path)] if is_file else [found.st_rdev]
    identity = {"kind": "file", "path": path, "number": number, "size": size}
    return Place(text, {"kind": "file", "path": path, "size": size}, identity, is_file)


def _create(path: str, size: int) -> bool:
    """Create a missing file that reads as zeros; False if there is something already."""
    if os.path.lexists(path):
        return False
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise refusal(path, error) from error
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    return True


def _generation(path: str) -> int:
    """Return what tells a file from one that was removed and whose number it got; 0 where there is no such thing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, _GET_VERSION, bytes(8)), sys.byteorder)
    except OSError:
        return 0
    finally:
        os.close(descriptor)


def _is_empty(path: str) -> bool:
    """Tell whether a file is one hole."""
    with open(path, "rb") as file:
        try:
            return os.lseek(file.fileno(), 0, os.SEEK_DATA) < 0
        except OSError as error:
            return error.errno == errno.ENXIO
