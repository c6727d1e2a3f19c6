"""Endpoints: the one shape in which the copy engine sees a volume, for files, block devices and objects in memory.

The engine knows nothing of paths or protocols: another way to reach a volume is another class of this shape.  All
offsets and lengths are bytes.  Calls come from several threads at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from migrator.volume.extents import BLOCK, Extent

#: Every disk and file system in use takes direct I/O at multiples of a page; those which do not are read buffered.
ALIGNMENT = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_memcmp = _libc.memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_fallocate = _libc.fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_START_WRITEBACK = 2  # SYNC_FILE_RANGE_WRITE of linux/fs.h
_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})
_ZEROS = memoryview(mmap.mmap(-1, BLOCK))


# --- errors ----------------------------------------------------------------------------------------------------------


class CopyError(Exception):
    """A copy or a comparison that could not go on: which end, where, and the numbers."""

    def __init__(
        self, path: str, *, offset: int = 0, wanted: int = 0, got: int = 0, errno: int = 0, reason: str = ""
    ) -> None:
        super().__init__(path, offset, wanted, got, errno, reason)
        self.path, self.offset, self.wanted, self.got = path, offset, wanted, got
        self.errno, self.reason = errno, reason

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.as_dict().items())

    def as_dict(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, **self.__dict__}


class ReadFailed(CopyError):
    """The source, or an end that is compared, could not be read at ``offset``."""


class WriteFailed(CopyError):
    """The destination could not be written, flushed or closed."""


class DestinationFull(CopyError):
    """The destination has no space for what belongs at ``offset``."""


class WrongSize(CopyError):
    """An end has ``got`` bytes where ``wanted`` were expected."""


class Different(CopyError):
    """Both ends were read and the first byte that differs is at ``offset``."""


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def read_failed(path: str, offset: int, error: OSError) -> CopyError:
    return ReadFailed(path, offset=offset, errno=error.errno or 0, reason=error.strerror or str(error))


def write_failed(path: str, offset: int, error: OSError, doing: str = "") -> CopyError:
    kind = DestinationFull if error.errno in _FULL else WriteFailed
    return kind(path, offset=offset, errno=error.errno or 0, reason=doing + (error.strerror or str(error)))


# --- the shape -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Capabilities:
    """What an endpoint declares about itself, as data."""

    #: Offsets, lengths and addresses at multiples of it are the fast ones; any other works too.
    alignment: int = 1
    #: The request it likes best, bytes.
    block: int = BLOCK
    #: It reads as zeros wherever nothing was written since it was created.
    new_volume_is_zero: bool = False
    #: Zeroing costs about the same for any length.
    zeroes_cheaply: bool = False
    #: Bytes pass by the page cache.
    direct_io: bool = False


class Endpoint(Protocol):
    """One end of a copy.  Every failing call raises OSError and may have done a part of its work."""

    @property
    def name(self) -> str:
        """What a message calls it."""

    @property
    def place(self) -> object:
        """Equal for two endpoints if and only if they are the same bytes."""

    @property
    def size(self) -> int:
        """Bytes, as they are now."""

    @property
    def capabilities(self) -> Capabilities: ...

    def extents(self, start: int, length: int) -> Iterable[Extent]:
        """Tile the range from its start to its end, in order, without a gap."""

    def pread_into(self, offset: int, buffer: memoryview) -> int:
        """Read at most ``len(buffer)`` bytes and return how many; fewer is not the end, 0 is."""

    def pwrite(self, offset: int, data: memoryview) -> int:
        """Write at most ``len(data)`` bytes and return how many."""

    def zero(self, start: int, length: int) -> None:
        """Make the whole range read as zeros."""

    def flush(self) -> None:
        """Return when all that was written or zeroed before the call would survive a power cut."""

    def close(self) -> None:
        """Give up the endpoint; nothing is written through it afterwards. Closing twice is allowed."""


# --- files and block devices -----------------------------------------------------------------------------------------


class FileEndpoint:
    """A regular file or a block device by its path; symbolic links and anything else are refused.

    Bytes go past the page cache where both the file and the request allow it, otherwise through it and out of it again
    (a tail that no alignment divides, a file system without direct I/O).  ``limit``: bytes that the file may occupy in
    all; the write that takes it over the limit (so at most the requests in flight are too much) and every later one
    fail with ENOSPC, like a full disk.
    """

    def __init__(
        self,
        path: str,
        *,
        writable: bool,
        new_volume_is_zero: bool = False,
        limit: int | None = None,
        direct: bool = True,
    ) -> None:
        """Open it; raises OSError."""
        self.name = path
        self._fd = _open_plain(path, writable)
        self._direct: int | None = None
        try:
            status = os.fstat(self._fd)
            self._is_block = stat.S_ISBLK(status.st_mode)
            self._direct = _open_direct(self._fd, writable) if direct else None
            if not writable:
                self._forget_cache()
        except BaseException:
            self.close()
            raise
        file = ("file", status.st_dev, status.st_ino)
        self.place: object = ("device", status.st_rdev) if self._is_block else file
        self.capabilities = Capabilities(
            alignment=ALIGNMENT,
            new_volume_is_zero=new_volume_is_zero,
            zeroes_cheaply=not self._is_block,
            direct_io=self._direct is not None,
        )
        self._uses_direct = self._direct is not None
        self._limit = limit

    def _forget_cache(self) -> None:
        # What another process wrote may be in the cache only: some file systems still call that a hole, and a
        # comparison must see what the disk holds.
        os.fdatasync(self._fd)
        tail = 0 if self._direct is None else os.fstat(self._fd).st_size // ALIGNMENT * ALIGNMENT
        os.posix_fadvise(self._fd, tail, 0, os.POSIX_FADV_DONTNEED)

    @property
    def size(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END) if self._is_block else os.fstat(self._fd).st_size

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        """Data is rounded outwards to the alignment, so that it can be copied by direct I/O."""
        end = start + length
        while start < end:
            data = min(_down(self._seek(start, os.SEEK_DATA, end)), end)
            if data > start:
                yield Extent(start, data - start, False)
                start = data
            if start < end:
                # Never less than one step forward, whatever the file does meanwhile.
                hole = min(max(_up(self._seek(start, os.SEEK_HOLE, end)), start + ALIGNMENT), end)
                yield Extent(start, hole - start, True)
                start = hole

    def _seek(self, start: int, whence: int, end: int) -> int:
        try:
            return os.lseek(self._fd, start, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole behind start
                return end
            if error.errno in _CANNOT:  # block devices and some file systems: all may be data
                return start if whence == os.SEEK_DATA else end
            raise

    def pread_into(self, offset: int, buffer: memoryview) -> int:
        whole = self._direct_part(offset, buffer)
        if whole and self._direct is not None:
            with self._buffered_if_refused():
                return os.preadv(self._direct, [buffer[:whole]], offset)
        count = os.preadv(self._fd, [buffer], offset)
        os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_DONTNEED)
        return count

    def pwrite(self, offset: int, data: memoryview) -> int:
        count = self._pwrite(offset, data)
        if self._limit is not None and os.fstat(self._fd).st_blocks * 512 > self._limit:
            raise OSError(errno.ENOSPC, "the pool's quota is used up")
        return count

    def _pwrite(self, offset: int, data: memoryview) -> int:
        whole = self._direct_part(offset, data)
        if whole and self._direct is not None:
            with self._buffered_if_refused():
                return os.pwritev(self._direct, [data[:whole]], offset)
        count = os.pwritev(self._fd, [data], offset)
        # Writing back starts at once, or the next flush would find seconds of work.
        _sync_file_range(self._fd, offset, count, _START_WRITEBACK)
        return count

    def _direct_part(self, offset: int, buffer: memoryview) -> int:
        """Return how many bytes of the request direct I/O can take; the rest is asked for again by the caller."""
        return _down(len(buffer)) if self._uses_direct and offset % ALIGNMENT == 0 else 0

    @contextlib.contextmanager
    def _buffered_if_refused(self) -> Iterator[None]:
        # A device with larger sectors than a page, or a file system that promised direct I/O and does not do it.
        try:
            yield
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._uses_direct = False

    def zero(self, start: int, length: int) -> None:
        if _punch_hole(self._fd, start, length):
            return
        end = start + length
        while start < end:
            start += self.pwrite(start, _ZEROS[: min(BLOCK - start % BLOCK, end - start)])

    def flush(self) -> None:
        os.fdatasync(self._fd)
        if not self._uses_direct:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        descriptors = [fd for fd in (self._direct, self._fd) if fd is not None and fd >= 0]
        self._direct, self._fd, self._uses_direct = None, -1, False
        failure: OSError | None = None
        for descriptor in descriptors:
            try:
                os.close(descriptor)
            except OSError as error:
                failure = failure or error
        if failure is not None:
            raise failure


def _open_plain(path: str, writable: bool) -> int:
    # O_NONBLOCK: opening a pipe by mistake must not wait for its other end; it means nothing for files.
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDWR if writable else os.O_RDONLY)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise OSError(errno.EINVAL, "neither a regular file nor a block device", path)
        if stat.S_ISBLK(mode) and writable:
            # For a block device O_EXCL means: not while it is mounted or another copier writes to it.
            exclusive = os.open(f"/proc/self/fd/{descriptor}", os.O_CLOEXEC | os.O_RDWR | os.O_EXCL)
            os.close(descriptor)
            descriptor = exclusive
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_direct(descriptor: int, writable: bool) -> int | None:
    """Open the same file again for direct I/O; None where its file system has none."""
    flags = os.O_CLOEXEC | os.O_DIRECT | (os.O_RDWR if writable else os.O_RDONLY)
    try:
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError as error:
        if error.errno in _CANNOT:
            return None
        raise


def _punch_hole(descriptor: int, start: int, length: int) -> bool:
    """Free a range, so that it reads as zeros; False where that does not exist."""
    while _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, start, length) != 0:
        code = ctypes.get_errno()
        if code in _CANNOT:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def _down(offset: int) -> int:
    return offset // ALIGNMENT * ALIGNMENT


def _up(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


# --- objects in memory -----------------------------------------------------------------------------------------------


class MemoryObject(Protocol):
    """What a backend in memory hands out: an endpoint without words about itself."""

    @property
    def size(self) -> int: ...

    def extents(self, start: int, length: int, /) -> Iterable[tuple[int, int, bool]]: ...

    def pread_into(self, offset: int, buffer: memoryview, /) -> int: ...

    def pwrite(self, offset: int, data: memoryview, /) -> int: ...

    def zero(self, start: int, length: int, /) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MemoryEndpoint:
    """An object that lives in this process; it can be ordered to fail, which the tests do."""

    def __init__(self, name: str, memory: MemoryObject, *, new_volume_is_zero: bool = False) -> None:
        self.name = name
        self.place: object = ("memory", name)
        self.capabilities = Capabilities(new_volume_is_zero=new_volume_is_zero, zeroes_cheaply=True)
        self._memory = memory

    @property
    def size(self) -> int:
        return self._memory.size

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        for extent in self._memory.extents(start, length):
            yield Extent(*extent)

    def pread_into(self, offset: int, buffer: memoryview) -> int:
        return self._memory.pread_into(offset, buffer)

    def pwrite(self, offset: int, data: memoryview) -> int:
        return self._memory.pwrite(offset, data)

    def zero(self, start: int, length: int) -> None:
        self._memory.zero(start, length)

    def flush(self) -> None:
        self._memory.flush()

    def close(self) -> None:
        self._memory.close()


# --- bytes -----------------------------------------------------------------------------------------------------------


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def is_zero(buffer: memoryview) -> bool:
    """Tell whether every byte of a writable buffer is zero.

    Compares the buffer with itself, 16 bytes on: no second buffer, and random data costs one look at its beginning.
    """
    if bytes(buffer[:16]).strip(b"\0"):
        return False
    length = len(buffer)
    if length <= 16:
        return True
    address = _address(buffer)
    return int(_memcmp(address, address + 16, length - 16)) == 0


def first_difference(one: memoryview, other: memoryview) -> int | None:
    """Return the index of the first byte in which two writable buffers of one length differ."""
    low, high = 0, len(one)
    if not high:
        return None
    a, b = _address(one), _address(other)
    if _memcmp(a, b, high) == 0:
        return None
    while high - low > 1:  # the first difference lies in [low, high)
        middle = (low + high) // 2
        if _memcmp(a + low, b + low, middle - low) == 0:
            low = middle
        else:
            high = middle
    return low
