"""Regular files and block devices as endpoints: direct I/O where it can be, holes, discards, and exclusive opening."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from migrator.volume import page_cache
from migrator.volume.endpoints import Capabilities
from migrator.volume.extents import BLOCK, Extent

#: Every disk and file system in use takes direct I/O at multiples of a page; those which do not are read buffered.
ALIGNMENT = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})
_ZEROS = memoryview(mmap.mmap(-1, BLOCK))
_SYS_BLOCK = Path("/sys/dev/block")


class FileEndpoint:
    """A regular file or a block device by its path; symbolic links and anything else are refused.

    Bytes go past the page cache where both the file and the request allow it, otherwise through it and out of it again
    (a tail that no alignment divides, a file system without direct I/O, whoever asks for it by ``use_cache``).
    ``limit``: bytes that the file may occupy in all; the write that takes it over the limit (so at most the requests in
    flight are too much) and every later one fail with ENOSPC, like a full disk.  ``volume_size``: a block device may be
    larger than its volume, which then is its first so many bytes.  ``may_punch``: zeroing may free space; otherwise
    what is allocated stays so.
    """

    def __init__(
        self,
        path: str,
        *,
        writable: bool,
        new_volume_is_zero: bool = False,
        limit: int | None = None,
        direct: bool = True,
        volume_size: int | None = None,
        may_punch: bool = True,
    ) -> None:
        """Open it; raises OSError."""
        self.name = path
        self._volume_size, self._may_punch = volume_size, may_punch
        self._fd = _open_plain(path, writable)
        self._direct: int | None = None
        self._waiting: int | None = None
        self._uses_direct = self._uses_cache = self._leaves_cache = False
        try:
            status = os.fstat(self._fd)
            self._is_block = stat.S_ISBLK(status.st_mode)
            self._direct = _open_direct(self._fd, writable) if direct else None
            # The kernel tells of a failed write once to each opening: who waits for one must not hide it from a flush,
            # which would call it stored.
            self._waiting = _open_again(self._fd, writable)
            if not writable:
                self._forget_cache()
            may_cache = self._direct is not None and self._is_cached_rightly(writable)
        except BaseException:
            self.close()
            raise
        file = ("file", status.st_dev, status.st_ino)
        self.place: object = ("device", status.st_rdev) if self._is_block else file
        self.capabilities = Capabilities(
            alignment=ALIGNMENT,
            new_volume_is_zero=new_volume_is_zero,
            zeroes_cheaply=not self._is_block or _zeroes_by_itself(status.st_rdev),
            direct_io=self._direct is not None,
            may_cache=may_cache,
        )
        self._uses_direct = self._direct is not None
        self._readings, self._writings = page_cache.DropBehind(self._fd), page_cache.WriteBehind(self._waiting)
        # Two requests side by side look like leaps to the kernel, and it reads ahead no more: a quarter of the speed.
        self._reading = Lock()
        self._limit = limit

    def _forget_cache(self) -> None:
        # What another process wrote may be in the cache only: some file systems still call that a hole, and a
        # comparison must see what the disk holds.
        os.fdatasync(self._fd)
        is_direct = self._direct is not None and not self._is_block
        page_cache.drop(self._fd, _down(os.fstat(self._fd).st_size) if is_direct else 0)

    def _is_cached_rightly(self, writable: bool) -> bool:
        """Tell whether the cache may stand between us and a disk that other machines may have, too."""
        # It knows nothing of what another machine wrote: that of a device has to be empty before it is asked.  And what
        # is written to it may reach the disk after our death, when another machine has gone on.
        if self._is_block:
            return not writable and page_cache.cached_pages(self._fd) == 0
        return page_cache.is_of_one_machine(self._fd)

    @property
    def size(self) -> int:
        if not self._is_block:
            return os.fstat(self._fd).st_size
        device = os.lseek(self._fd, 0, os.SEEK_END)
        return device if self._volume_size is None else min(device, self._volume_size)

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

    def use_cache(self, wanted: bool) -> None:
        """Go through the page cache, where requests become larger than those of direct I/O; or no longer."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL if wanted else os.POSIX_FADV_NORMAL)
        self._uses_cache = wanted
        self._leaves_cache = True
        if not wanted:
            self._writings.settle()
            page_cache.drop(self._fd)  # what was read ahead and nobody came for, unless it is still being read

    def pread_into(self, offset: int, buffer: memoryview) -> int:
        whole = self._direct_part(offset, buffer)
        if whole and self._direct is not None:
            try:
                return os.preadv(self._direct, [buffer[:whole]], offset)
            except OSError as error:
                self._go_buffered(error)
        with self._reading if self._uses_cache else contextlib.nullcontext():
            count = os.preadv(self._fd, [buffer], offset)
        if count:  # to drop nothing would mean: all behind it
            self._readings.read(offset, count)
        return count

    def pwrite(self, offset: int, data: memoryview) -> int:
        count = self._pwrite(offset, data)
        if self._limit is not None and os.fstat(self._fd).st_blocks * 512 > self._limit:
            raise OSError(errno.ENOSPC, "the pool's quota is used up")
        return count

    def _pwrite(self, offset: int, data: memoryview) -> int:
        whole = self._direct_part(offset, data)
        if whole and self._direct is not None:
            try:
                return os.pwritev(self._direct, [data[:whole]], offset)
            except OSError as error:
                self._go_buffered(error)
        count = os.pwritev(self._fd, [data], offset)
        # On its way at once, or the next flush would find seconds of work.
        self._writings.wrote(offset, count)
        return count

    def _direct_part(self, offset: int, buffer: memoryview) -> int:
        """Return how many bytes of the request direct I/O can take; the rest is asked for again by the caller."""
        is_direct = self._uses_direct and not self._uses_cache and offset % ALIGNMENT == 0
        return _down(len(buffer)) if is_direct else 0

    def _go_buffered(self, error: OSError) -> None:
        """Do without direct I/O if that was refused; raises any other error."""
        # A device with larger sectors than a page, or a file system that promised direct I/O and does not do it.
        if error.errno != errno.EINVAL:
            raise error
        self._uses_direct = False

    def zero(self, start: int, length: int) -> None:
        if _zero(self._fd, _PUNCH_HOLE if self._may_punch else _ZERO_RANGE, start, length):
            return
        end = start + length
        while start < end:
            start += self.pwrite(start, _ZEROS[: min(BLOCK - start % BLOCK, end - start)])

    def flush(self) -> None:
        os.fdatasync(self._fd)
        if self._uses_cache or not self._uses_direct:
            page_cache.drop(self._fd)

    def close(self) -> None:
        if self._fd >= 0 and self._leaves_cache:
            page_cache.drop(self._fd)
        descriptors = [fd for fd in (self._direct, self._waiting, self._fd) if fd is not None and fd >= 0]
        self._direct, self._waiting, self._fd, self._uses_direct = None, None, -1, False
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
    try:
        return _open_again(descriptor, writable, os.O_DIRECT)
    except OSError as error:
        if error.errno in _CANNOT:
            return None
        raise


def _open_again(descriptor: int, writable: bool, flags: int = 0) -> int:
    """Open the same file once more; raises OSError."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_CLOEXEC | flags | (os.O_RDWR if writable else os.O_RDONLY))


def _zero(descriptor: int, mode: int, start: int, length: int) -> bool:
    """Make a range read as zeros, freed or still allocated as ``mode`` says; False where that does not exist."""
    while _fallocate(descriptor, mode | _KEEP_SIZE, start, length) != 0:
        code = ctypes.get_errno()
        if code in _CANNOT:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def _zeroes_by_itself(device: int) -> bool:
    """Tell whether a block device zeroes ranges without being sent the zeros."""
    directory = _SYS_BLOCK / f"{os.major(device)}:{os.minor(device)}"
    for queue in (directory / "queue", directory / ".." / "queue"):  # that of a partition is its disk's
        try:
            return int((queue / "write_zeroes_max_bytes").read_text(encoding="ascii")) > 0
        except (OSError, ValueError):
            continue
    return False


def _down(offset: int) -> int:
    return offset // ALIGNMENT * ALIGNMENT


def _up(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
