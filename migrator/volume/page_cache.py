"""The page cache under an open file: what it holds, dropping it, and writing through it in step with a copy."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from threading import Lock

from migrator.volume.extents import BLOCK

#: Bytes written through the cache that may be on their way to the disk before the next write has to wait.
WINDOW = 32 * BLOCK
#: Bytes read between two looks at what is still cached behind the requests.
SWEEP = 8 * BLOCK

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_START, _START_AND_WAIT = 2, 7  # SYNC_FILE_RANGE_* of linux/fs.h
_fstatfs = _libc.fstatfs64
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_STATFS_BYTES = 256  # more than struct statfs64 has anywhere
#: The file systems that only one machine at a time can have mounted, by their numbers in linux/magic.h.
_OF_ONE_MACHINE = {
    "ext2, ext3, ext4": 0xEF53,
    "XFS": 0x58465342,
    "btrfs": 0x9123683E,
    "F2FS": 0xF2F52010,
    "tmpfs": 0x01021994,
}
_CACHESTAT = 451  # one number on every architecture (Linux 6.5; include/uapi/asm-generic/unistd.h)


class _Range(ctypes.Structure):
    """struct cachestat_range of linux/mman.h; no length means: to the end."""

    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Statistics(ctypes.Structure):
    """struct cachestat of linux/mman.h: all are numbers of pages."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def cached_pages(descriptor: int) -> int | None:
    """Return how many pages of the file are in the cache; None where the kernel does not tell."""
    whole, found = _Range(0, 0), _Statistics()
    if _syscall(ctypes.c_long(_CACHESTAT), descriptor, ctypes.byref(whole), ctypes.byref(found), 0) != 0:
        return None
    return int(found.cached)


def is_of_one_machine(descriptor: int) -> bool:
    """Tell whether the file system of a file cannot be mounted by two machines; raises OSError."""
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if _fstatfs(descriptor, found) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return ctypes.c_long.from_buffer(found).value in _OF_ONE_MACHINE.values()


def drop(descriptor: int, start: int = 0, length: int = 0) -> None:
    """Let go of the clean pages of a range that nobody has mapped; a length of 0 means: to the end."""
    os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)


class DropBehind:
    """What was read through the cache, in about the order of the file: out of it again.  Used by several threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unswept = 0
        self._lock = Lock()

    def read(self, offset: int, length: int) -> None:
        """Drop what was read; the kernel keeps pages in pieces that requests may divide, and drops only whole ones."""
        drop(self._descriptor, offset, length)
        with self._lock:
            self._unswept += length
            if self._unswept < SWEEP:
                return
            self._unswept = 0
        if offset > WINDOW:  # what was read ahead for the requests under way has to stay
            drop(self._descriptor, 0, offset - WINDOW)


class WriteBehind:
    """What was written through the cache: it goes to the disk at once, and out of the cache when it is there.

    The descriptor is one that nobody flushes: the kernel tells of a failed write once to each opening of a file.
    Nothing here makes it survive a power cut: that is a flush of the file.  Used by several threads at once.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._under_way: deque[tuple[int, int]] = deque()
        self._bytes = 0
        self._lock = Lock()

    def wrote(self, offset: int, length: int) -> None:
        """Start what was written, and wait for what was written long ago; raises OSError if that failed."""
        # Should the start fail, the pages stay dirty and a later wait or flush says so.
        _sync_file_range(self._descriptor, offset, length, _START)
        with self._lock:
            self._under_way.append((offset, length))
            self._bytes += length
        self._wait(WINDOW)

    def settle(self) -> None:
        """Wait for all that is under way; raises OSError if it failed."""
        self._wait(0)

    def _wait(self, most: int) -> None:
        while True:
            with self._lock:
                if self._bytes <= most:
                    return
                offset, length = self._under_way.popleft()
                self._bytes -= length
            if _sync_file_range(self._descriptor, offset, length, _START_AND_WAIT) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            drop(self._descriptor, offset, length)
