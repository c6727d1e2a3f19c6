"""An NBD export as an endpoint of the copy engine.

The engine asks for any offset and length; the server may know only whole blocks and requests of a certain size.  What
does not fit is read, changed and written as a whole block, which happens at the ends of a range only.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
from collections.abc import Iterator

from migrator.volume.endpoints import Capabilities
from migrator.volume.extents import BLOCK, Extent
from migrator.volume.nbd.pool import Pool
from migrator.volume.nbd.protocol import READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES
from migrator.volume.nbd.uri import Address, parse_uri

#: Seconds of silence after which a server is given up.
TIMEOUT_SECONDS = 30.0
#: As many as the engine has threads at most; a server that accepts fewer is used with those.
CONNECTIONS = 32
#: What is asked about extents at once: a fragmented volume has some hundred thousand in it, an answer of some MiB.
_STATUS_LENGTH = 1 << 30


class NbdEndpoint:
    """The bytes of one export; every call may come from any thread.

    Each thread that is inside a call has a connection of its own, up to ``connections`` or what the server allows.
    After a lost connection or a broken protocol every call fails: whoever wants to go on opens another endpoint, and
    begins behind what was flushed.  ``may_punch``: zeroing may free space (thin); otherwise the server is asked to keep
    it.
    """

    def __init__(
        self,
        uri: str | Address,
        *,
        writable: bool,
        new_volume_is_zero: bool = False,
        may_punch: bool = True,
        timeout: float = TIMEOUT_SECONDS,
        connections: int = CONNECTIONS,
    ) -> None:
        """Connect; raises OSError, or UriError for an address that is none."""
        address = parse_uri(uri) if isinstance(uri, str) else uri
        self.name = str(address)
        self._pool = Pool(address, timeout=timeout, connections=connections)
        self._export = self._pool.export
        self._writable, self._may_punch = writable, may_punch
        self._writes_through = not self._export.has(SEND_FLUSH)
        self._can_zero = self._export.has(SEND_WRITE_ZEROES)
        # Two threads that change parts of one block each must not write it at the same time.
        self._block_lock = threading.Lock()
        try:
            self._check_writable()
            self.place: object = _place(address, self._pool.peer)
        except BaseException:
            self.close()
            raise
        self.capabilities = self._capabilities(new_volume_is_zero)

    def _check_writable(self) -> None:
        if self._writable and self._export.has(READ_ONLY):
            raise OSError(errno.EROFS, "the NBD export is read-only")
        if self._writable and self._writes_through and not self._export.has(SEND_FUA):
            raise OSError(errno.EOPNOTSUPP, "the NBD server cannot flush, so nothing written there is ever safe")

    def _capabilities(self, new_volume_is_zero: bool) -> Capabilities:
        block = -(-BLOCK // self._export.preferred) * self._export.preferred
        return Capabilities(
            alignment=self._export.minimum,
            block=min(block, self._export.maximum),
            new_volume_is_zero=new_volume_is_zero,
            zeroes_cheaply=self._can_zero,
        )

    def __repr__(self) -> str:
        return f"<NbdEndpoint {self.name}>"

    @property
    def size(self) -> int:
        """As the server told it at the beginning; the protocol cannot tell a change."""
        return self._export.size

    # --- extents

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        if self._export.context is None:
            if length:
                yield Extent(start, length, True)
            return
        end = start + length
        while start < end:
            for extent in _merged(self._status(start, end)):
                yield extent
                start = extent.end

    def _status(self, start: int, end: int) -> Iterator[Extent]:
        """Yield at least one extent from ``start`` on, none beyond ``end``."""
        first = self._down(start)
        last = min(-(-end // self._export.minimum) * self._export.minimum, first + _STATUS_LENGTH)
        with self._pool.borrow() as connection:
            told = connection.block_status(first, last - first)
        for length, is_data in told:
            extent = Extent(start, min(first + length, end) - start, is_data)
            first += length
            if extent.length > 0:
                yield extent
                start = extent.end

    # --- reading

    def pread_into(self, offset: int, buffer: memoryview) -> int:
        length = min(len(buffer), self.size - offset, self._export.maximum)
        if length <= 0:
            return 0
        whole = self._down(length)
        if whole and offset == self._down(offset):
            with self._pool.borrow() as connection:
                connection.read(offset, buffer[:whole])
            return whole
        block, start = self._block_at(offset)
        part = block[offset - start :][:length]
        buffer[: len(part)] = part
        return len(part)

    def _block_at(self, offset: int) -> tuple[memoryview, int]:
        """Read the whole block in which ``offset`` lies, and tell where it begins."""
        start, block = self._down(offset), memoryview(bytearray(self._export.minimum))
        with self._pool.borrow() as connection:
            connection.read(start, block)
        return block, start

    def _down(self, offset: int) -> int:
        return offset // self._export.minimum * self._export.minimum

    # --- writing

    def pwrite(self, offset: int, data: memoryview) -> int:
        length = min(len(data), self._room(offset), self._export.maximum)
        whole = self._down(length)
        if whole and offset == self._down(offset):
            with self._pool.borrow() as connection:
                connection.write(offset, data[:whole], fua=self._writes_through)
            return whole
        if not length:
            return 0
        with self._block_lock:
            block, start = self._block_at(offset)
            part = data[:length][: start + len(block) - offset]
            block[offset - start :][: len(part)] = part
            with self._pool.borrow() as connection:
                connection.write(start, block, fua=self._writes_through)
        return len(part)

    def _room(self, offset: int) -> int:
        if not self._writable:
            raise OSError(errno.EBADF, "the NBD export was opened for reading")
        if offset >= self.size:
            raise OSError(errno.ENOSPC, f"the NBD export ends at {self.size}")
        return self.size - offset

    def zero(self, start: int, length: int) -> None:
        end = start + length
        while start < end:
            piece = min(end - start, self._room(start), self._export.maximum)
            whole = self._down(piece)
            if self._can_zero and whole and start == self._down(start):
                start += self._zero_whole(start, whole)
            else:
                to_border = self._export.minimum - start % self._export.minimum
                piece = min(piece, BLOCK if to_border == self._export.minimum else to_border)
                start += self.pwrite(start, memoryview(bytes(piece)))

    def _zero_whole(self, start: int, length: int) -> int:
        try:
            with self._pool.borrow() as connection:
                connection.write_zeroes(start, length, may_punch=self._may_punch, fua=self._writes_through)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._can_zero = False  # announced, but not for this export: it is written from now on
            return 0
        return length

    def trim(self, start: int, length: int) -> None:
        """Give up the content of the whole blocks of a range; where the server cannot, nothing happens."""
        end = self._down(min(start + length, self.size))
        start = -(-start // self._export.minimum) * self._export.minimum
        while self._export.has(SEND_TRIM) and start < end:
            piece = min(end - start, self._room(start), self._export.maximum)
            with self._pool.borrow() as connection:
                connection.trim(start, piece)
            start += piece

    def flush(self) -> None:
        if not self._writes_through:
            self._pool.flush()

    def close(self) -> None:
        self._pool.close()


def _merged(extents: Iterator[Extent]) -> Iterator[Extent]:
    """Join neighbours of one kind: servers tell more kinds than there are here."""
    whole = next(extents)
    for extent in extents:
        if extent.is_data == whole.is_data:
            whole = whole._replace(length=extent.end - whole.start)
        else:
            yield whole
            whole = extent
    yield whole


def _place(address: Address, peer: tuple[int, object]) -> object:
    """Say which server, by where it really is, and which export of it."""
    family, place = peer
    if family == socket.AF_UNIX:
        status = os.stat(str(place))
        return ("nbd", status.st_dev, status.st_ino, address.export)
    assert isinstance(place, tuple)
    ip = ipaddress.ip_address(str(place[0]).partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    # One loopback, whichever the version; two servers that differ in nothing else would be a strange coincidence.
    host = "loopback" if str(ip) in ("::1", "127.0.0.1") else str(mapped or ip)
    return ("nbd", "loopback" if host == "127.0.0.1" else host, address.port, address.export)
