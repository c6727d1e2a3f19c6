"""Endpoints: the one shape in which the copy engine sees a volume, the errors of its ends, and objects in memory.

The engine knows nothing of paths or protocols: another way to reach a volume is another class of this shape, such as
those of files.py and of nbd/.  All offsets and lengths are bytes.  Calls come from several threads at once.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from migrator.volume.extents import BLOCK, Extent

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


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
    #: It is Cacheable: they may go through it instead.
    may_cache: bool = False


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


class Cacheable(Endpoint, Protocol):
    """An endpoint that bypasses the page cache and can do otherwise."""

    def use_cache(self, wanted: bool) -> None:
        """Let the kernel read ahead and write behind, in its cache, from now on; or no longer.

        Returns, in the second case, when nothing that was written before is on its way any more.
        """


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
