"""A pool's directory: files made whole or not at all, and nothing ever reached through a symbolic link.

Everything goes through the descriptor of the opened directory, so that a name cannot lead elsewhere while a call runs.
Two kinds of files here are our own, told by their prefix:

    .migrator-tmp-<name>        a file in the making; locked by whoever makes it, so one that is not locked is a
                                leftover of a crash and may be removed
    .migrator-objects/<name>    says that <name> is an object of ours; holds where it was moved from, if it was
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

TEMPORARY = ".migrator-tmp-"
OBJECTS = ".migrator-objects"

#: Bytes moved at once by a copy; larger ones were not faster, smaller ones cost more calls.
_BUFFER = 1024 * 1024
#: _IOW(0x94, 9, int), see ioctl_ficlone(2).
_FICLONE = 0x40049409
_CANNOT_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
_CANNOT_LINK = {errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSYS}
#: struct flock: type, whence, start, length (0: to the end), process (0 for the locks of an open file).
_FLOCK = "hhqqi"
#: Without O_NONBLOCK, opening a pipe that somebody laid under a name would wait for ever.
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MODE = 0o640


class Identity(NamedTuple):
    """What tells a directory from every other one of this machine, whatever its path."""

    device: int
    inode: int


class Directory:
    """A pool's directory while it is open; raises OSError, with ``filename`` the name that was asked for."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        found = os.fstat(fd)
        self.identity = Identity(found.st_dev, found.st_ino)

    @classmethod
    @contextmanager
    def open(cls, path: str) -> Iterator[Directory]:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield cls(path, fd)
        finally:
            os.close(fd)

    def find(self, name: str) -> os.stat_result | None:
        """Return what the regular file ``name`` is like, None if there is nothing; raises OSError for anything else."""
        found = self._look(name)
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        return found

    def _look(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def get(self, name: str) -> os.stat_result:
        """Return what the regular file ``name`` is like; raises FileNotFoundError."""
        found = self.find(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return found

    @contextmanager
    def file(self, name: str, flags: int) -> Iterator[int]:
        """Open a regular file for the time of a block."""
        fd = os.open(name, flags | _SAFE, _MODE, dir_fd=self.fd)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", name)
            yield fd
        finally:
            os.close(fd)

    def unlink(self, name: str) -> None:
        """Remove a name, never what a symbolic link of that name points to; fine if there is none."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Remove the object ``name`` and all that belongs to it, durably."""
        self.unlink(name)
        self.unlink(TEMPORARY + name)
        self.unmark(name)
        self.sync()

    def sync(self) -> None:
        """Make every name here durable."""
        with suppress(FileNotFoundError), self._marks() as marks:
            os.fsync(marks)
        os.fsync(self.fd)

    # --- marks -----------------------------------------------------------------------------------------------------

    def mark(self, name: str, origin: str = "") -> None:
        """Say that ``name`` is ours, before it is made; durable with the next sync."""
        with suppress(FileExistsError):
            os.mkdir(OBJECTS, 0o750, dir_fd=self.fd)
        with self._marks() as marks:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _SAFE, _MODE, dir_fd=marks)
            try:
                if origin:
                    os.write(fd, origin.encode())
                    os.fsync(fd)
            finally:
                os.close(fd)

    def unmark(self, name: str) -> None:
        with suppress(FileNotFoundError), self._marks() as marks:
            os.unlink(name, dir_fd=marks)

    def origin(self, name: str) -> str | None:
        """Return where our object ``name`` was moved from, empty if nowhere; None if it is not marked as ours."""
        try:
            with self._marks() as marks:
                fd = os.open(name, os.O_RDONLY | _SAFE, dir_fd=marks)
                with open(fd, encoding="utf-8") as file:
                    return file.read()
        except FileNotFoundError:
            return None

    def objects(self) -> dict[str, os.stat_result]:
        """Return the regular files that are marked as ours."""
        try:
            with self._marks() as marks:
                names = os.listdir(marks)
        except FileNotFoundError:
            return {}
        found = {name: self._look(name) for name in names}
        return {name: entry for name, entry in found.items() if entry is not None and stat.S_ISREG(entry.st_mode)}

    @contextmanager
    def _marks(self) -> Iterator[int]:
        fd = os.open(OBJECTS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            yield fd
        finally:
            os.close(fd)

    # --- files in the making ---------------------------------------------------------------------------------------

    @contextmanager
    def temporary(self, name: str) -> Iterator[Temporary]:
        """Give an empty file that becomes ``name`` when it is published and else disappears with the block."""
        temporary = Temporary(self, name)
        try:
            yield temporary
        finally:
            temporary.close()

    def sweep(self) -> list[str]:
        """Remove the files in the making that a crash left; return their names."""
        with os.scandir(self.fd) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(TEMPORARY)]
        return [name for name in names if self._remove_if_left(name)]

    def _remove_if_left(self, name: str) -> bool:
        try:
            with self.file(name, os.O_RDONLY) as fd:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.unlink(name)
        except OSError as error:
            if error.errno != errno.ELOOP:  # somebody is at work on it, or it is no file of ours
                return False
            self.unlink(name)  # a symbolic link laid in our way
        return True


class Temporary:
    """A locked file in the making."""

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self.final_name = name
        self.name = TEMPORARY + name
        self.fd = os.open(self.name, os.O_RDWR | os.O_CREAT | _SAFE, _MODE, dir_fd=directory.fd)
        self._published = False
        try:
            self._take()
        except BaseException:
            os.close(self.fd)
            raise

    def _take(self) -> None:
        """Lock the file and make sure that it is still the one of that name, and not published meanwhile."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another call is at work on it", self.final_name) from None
        found = self._directory.find(self.name)
        if found is None or not os.path.samestat(found, os.fstat(self.fd)):
            raise OSError(errno.EBUSY, "another call was at work on it", self.final_name)
        os.ftruncate(self.fd, 0)

    def publish(self) -> None:
        """Give the file its name, durably; raises FileExistsError rather than replace one."""
        os.fsync(self.fd)
        if self._directory.find(self.final_name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.final_name)
        self.replace()

    def replace(self) -> None:
        """Give the file its name, durably, even if another has it."""
        os.fsync(self.fd)
        there = self._directory.fd
        os.rename(self.name, self.final_name, src_dir_fd=there, dst_dir_fd=there)
        self._published = True
        self._directory.sync()

    def close(self) -> None:
        try:
            if not self._published:
                self._directory.unlink(self.name)
        finally:
            os.close(self.fd)


# --- making a file out of another -----------------------------------------------------------------------------------


def link(source: Directory, name: str, destination: Directory, new_name: str) -> bool:
    """Give a file another name by a hard link; False where these directories cannot have one, nothing changed."""
    try:
        os.link(name, new_name, src_dir_fd=source.fd, dst_dir_fd=destination.fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in _CANNOT_LINK:
            return False
        raise
    return True


def clone(source: int, destination: int) -> bool:
    """Let an empty file share the blocks of another (reflink); False where it cannot, nothing changed."""
    try:
        fcntl.ioctl(destination, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def copy(source: int, destination: int) -> None:
    """Copy a file into one that reads as zeros, holes stay holes; needs a buffer of 1 MiB whatever the size."""
    size = os.fstat(source).st_size
    if os.fstat(destination).st_size < size:
        os.ftruncate(destination, size)
    view = memoryview(bytearray(_BUFFER))
    for start, end in data_ranges(source, size):
        at = start
        while at < end:
            got = os.preadv(source, [view[: min(_BUFFER, end - at)]], at)
            if got == 0:
                raise OSError(errno.EIO, f"the file ended at {at} while it was read, {size} bytes were expected")
            _write_all(destination, view[:got], at)
            at += got


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def is_locked(fd: int) -> bool:
    """Tell whether somebody else has any byte of the file locked, by whatever kind of fcntl(2) lock."""
    asked = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return bool(struct.unpack(_FLOCK, asked)[0] != fcntl.F_UNLCK)


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each range that may hold data; all that lies between reads as zeros."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end
                return
            raise
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, at


def can_link(source: Directory, destination: Directory) -> bool:
    """Try whether hard links from one directory into another work; leaves nothing behind."""
    new_name = TEMPORARY + _probe()
    with source.temporary(_probe()) as here:
        if not link(source, here.name, destination, new_name):
            return False
        destination.unlink(new_name)
        return True


def can_clone(source: Directory, destination: Directory) -> bool:
    """Try whether files of two directories can share blocks; leaves nothing behind."""
    with source.temporary(_probe()) as here, destination.temporary(_probe()) as there:
        _write_all(here.fd, memoryview(bytes(4096)), 0)
        return clone(here.fd, there.fd)


def _probe() -> str:
    return f"probe-{secrets.token_hex(8)}"
