"""One connection to an NBD server: one request at a time, answered before its deadline or the connection is dead.

Several requests at once take several connections (``pool``): a thread that reads straight into the caller's buffer
needs no other thread, no queue and no copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from migrator.volume.nbd import protocol as p
from migrator.volume.nbd.handshake import Export, negotiate
from migrator.volume.nbd.transport import PlainTransport, deadline_for
from migrator.volume.nbd.uri import Address

#: The longest answer to a question about extents: nbdkit sends up to a million extents.
_MAX_STATUS = 4 + (8 << 20)
#: Servers cut a read at the borders of extents; none has extents of less than a sector for long.
_SMALLEST_CHUNK = 512
_SPARE_CHUNKS = 64

_DOING = {
    p.CMD_READ: "read",
    p.CMD_WRITE: "write",
    p.CMD_FLUSH: "flush",
    p.CMD_TRIM: "trim",
    p.CMD_WRITE_ZEROES: "zero",
    p.CMD_BLOCK_STATUS: "tell the extents",
}


class Connection:
    """One export, open; used by one thread at a time.

    Requests must keep to the export's block sizes.  ``Refused`` (the server's error reply) leaves the connection as it
    was, any other OSError leaves it dead: ``is_dead``, and every later call raises.
    """

    def __init__(self, plain: PlainTransport, address: Address) -> None:
        """Do the handshake; raises OSError and has closed the socket then."""
        self.is_dead = False
        #: Something was written since the last flush of this connection.
        self.is_dirty = False
        self._cookies = itertools.count(1)
        try:
            self._transport, self.export = negotiate(plain, address)
        except BaseException:
            plain.close()
            raise

    # --- commands

    def read(self, offset: int, buffer: memoryview) -> None:
        self._exchange(p.CMD_READ, offset, len(buffer), into=buffer)

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> None:
        """``fua``: return when it would survive a power cut."""
        self.is_dirty = True
        self._exchange(p.CMD_WRITE, offset, len(data), flags=p.CMD_FLAG_FUA * fua, data=data)

    def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fua: bool = False) -> None:
        """``may_punch``: the space behind it may be freed."""
        self.is_dirty = True
        flags = p.CMD_FLAG_FUA * fua | p.CMD_FLAG_NO_HOLE * (not may_punch)
        self._exchange(p.CMD_WRITE_ZEROES, offset, length, flags=flags)

    def trim(self, offset: int, length: int) -> None:
        """Tell the server that the content is not needed any more; what it reads as afterwards is the server's."""
        self.is_dirty = True
        self._exchange(p.CMD_TRIM, offset, length)

    def flush(self) -> None:
        self._exchange(p.CMD_FLUSH, 0, 0)
        self.is_dirty = False

    def block_status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return lengths and whether they may hold data, from ``offset`` on: at least one, and no more than asked."""
        return self._exchange(p.CMD_BLOCK_STATUS, offset, length)

    def disconnect(self) -> None:
        """Say goodbye if that is possible, and close; never raises OSError."""
        if not self.is_dead:
            self.is_dead = True
            try:
                request = p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_DISC, next(self._cookies), 0, 0)
                self._transport.send([request], deadline_for(min(1.0, self._transport.timeout)))
            except OSError:
                pass  # the server is gone, which is what was wanted
        self._transport.close()

    def limit(self, timeout: float) -> None:
        """Change how long a silent server is waited for."""
        self._transport.limit(timeout)

    def abort(self) -> None:
        """Make the call that another thread is in fail; the connection is dead then."""
        self._transport.abort()

    # --- one request and its reply

    def _exchange(
        self,
        command: int,
        offset: int,
        length: int,
        *,
        flags: int = 0,
        data: memoryview | None = None,
        into: memoryview | None = None,
    ) -> list[tuple[int, bool]]:
        if self.is_dead:
            raise p.Disconnected("the connection to the NBD server was given up before")
        cookie = next(self._cookies)
        header = p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, cookie, offset, length)
        deadline = deadline_for(self._transport.timeout, len(data or into or b""))
        try:
            self._transport.send([header] if data is None else [header, data], deadline)
            reply = _Reply(self, command, cookie, offset, length, into, deadline)
            reply.receive()
        except p.Refused:
            raise
        except BaseException:
            # Where in the stream the next reply would begin is not known any more.
            self.is_dead = True
            self._transport.close()
            raise
        return reply.extents

    def fill(self, buffer: memoryview, deadline: float) -> None:
        self._transport.receive(buffer, deadline)


class _Reply:
    """What comes back for one request; nothing of it is believed before it was checked against the request."""

    def __init__(
        self,
        connection: Connection,
        command: int,
        cookie: int,
        offset: int,
        length: int,
        into: memoryview | None,
        deadline: float,
    ) -> None:
        self.extents: list[tuple[int, bool]] = []
        self._connection, self._command, self._cookie = connection, command, cookie
        self._offset, self._length, self._into, self._deadline = offset, length, into, deadline
        self._filled = _Filled()
        self._chunks = _SPARE_CHUNKS + length // _SMALLEST_CHUNK if into is not None else _SPARE_CHUNKS
        self._refused: p.Refused | None = None

    @property
    def _export(self) -> Export:
        return self._connection.export

    def receive(self) -> None:
        """Take all of the reply; raises Refused, or another OSError when the connection is of no use any more."""
        while self._receive_one():
            self._chunks -= 1
            if not self._chunks:
                raise p.NbdError("the NBD server sends a reply in too many pieces")
        if self._refused is not None:
            raise self._refused
        if self._into is not None and not self._filled.is_exactly(self._length):
            raise p.NbdError(f"the NBD server sent not just the {self._length} bytes at {self._offset}")
        if self._command == p.CMD_BLOCK_STATUS and not self.extents:
            raise p.NbdError("the NBD server tells no extents")

    def _receive_one(self) -> bool:
        """Take one message; return whether more belong to this reply."""
        start = self._take(p.SIMPLE_REPLY.size)
        magic, error, _ = p.SIMPLE_REPLY.unpack(start)
        _, flags, type_, cookie = p.CHUNK_START.unpack(start)
        if cookie != self._cookie:
            raise p.NbdError("the NBD server answers a request that was not made")
        if magic == p.SIMPLE_REPLY_MAGIC:
            self._simple(error)
            return False
        if magic != p.STRUCTURED_REPLY_MAGIC or not self._export.is_structured:
            raise p.NbdError(f"the NBD server's reply begins with {magic:#x}")
        (length,) = p.CHUNK_REST.unpack(self._take(p.CHUNK_REST.size))
        self._chunk(type_, length)
        return not flags & p.CHUNK_DONE

    def _simple(self, error: int) -> None:
        has_data = self._command in (p.CMD_READ, p.CMD_BLOCK_STATUS)
        if has_data and self._export.is_structured and not error:
            raise p.NbdError("the NBD server answers in the simple way what it agreed to answer in structure")
        if error:
            self._refuse(error, b"")
        elif self._into is not None:
            self._fill(0, self._length)

    def _chunk(self, type_: int, length: int) -> None:
        if type_ & p.CHUNK_IS_ERROR:
            self._error(type_, length)
        elif type_ == p.CHUNK_NONE and not length:
            pass
        elif type_ == p.CHUNK_DATA and self._into is not None and length > p.U64.size:
            (offset,) = p.U64.unpack(self._take(p.U64.size))
            self._fill(offset - self._offset, length - p.U64.size)
        elif type_ == p.CHUNK_HOLE and self._into is not None and length == p.HOLE.size:
            self._hole(*p.HOLE.unpack(self._take(length)))
        elif type_ == p.CHUNK_STATUS and self._command == p.CMD_BLOCK_STATUS and not self.extents:
            self._status(length)
        else:
            raise p.NbdError(f"the NBD server's reply has a piece of type {type_} with {length} bytes")

    def _fill(self, start: int, length: int) -> None:
        assert self._into is not None
        self._filled.add(start, length, self._length)
        self._connection.fill(self._into[start : start + length], self._deadline)

    def _hole(self, offset: int, length: int) -> None:
        assert self._into is not None
        start = offset - self._offset
        self._filled.add(start, length, self._length)
        self._into[start : start + length] = bytes(length)

    def _status(self, length: int) -> None:
        if length <= p.U32.size or length % p.STATUS.size != p.U32.size or length > _MAX_STATUS:
            raise p.NbdError(f"the NBD server tells extents in {length} bytes")
        body = self._take(length)
        if p.U32.unpack_from(body)[0] != self._export.context:
            raise p.NbdError("the NBD server tells extents of another kind than was asked for")
        self.extents = list(_clipped(memoryview(body)[p.U32.size :], self._length))

    def _error(self, type_: int, length: int) -> None:
        place = p.U64.size if type_ == p.CHUNK_ERROR_OFFSET else 0
        if not p.ERROR.size + place <= length <= p.ERROR.size + place + p.MAX_STRING:
            raise p.NbdError(f"the NBD server's error is {length} bytes long")
        body = self._take(length)
        error, words = p.ERROR.unpack_from(body)
        if not error or p.ERROR.size + words + place > length:
            raise p.NbdError("the NBD server's error is malformed")
        self._refuse(error, bytes(body[p.ERROR.size : p.ERROR.size + words]))

    def _refuse(self, error: int, message: bytes) -> None:
        self._refused = self._refused or p.refused(_DOING[self._command], error, message)

    def _take(self, length: int) -> bytearray:
        buffer = bytearray(length)
        self._connection.fill(memoryview(buffer), self._deadline)
        return buffer


def _clipped(body: memoryview, length: int) -> Iterator[tuple[int, bool]]:
    """Yield extents up to ``length``; the last one may reach beyond what was asked for, others may not be there."""
    for extent, flags in p.STATUS.iter_unpack(body):
        if not extent:
            raise p.NbdError("the NBD server tells an extent of no length")
        if not length:
            raise p.NbdError("the NBD server tells extents beyond what was asked for")
        # A hole that does not say that it reads as zeros may read as anything.
        yield min(extent, length), not flags & p.STATUS_ZERO
        length -= min(extent, length)


class _Filled:
    """Which parts of a buffer were filled."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int]] = []

    def add(self, start: int, length: int, limit: int) -> None:
        """Take note of a part before it is filled; raises NbdError if it does not belong there."""
        if start < 0 or not length or start + length > limit:
            raise p.NbdError("the NBD server sends data that was not asked for")
        self._parts.append((start, start + length))

    def is_exactly(self, length: int) -> bool:
        """Tell whether the parts are the whole buffer, each byte once: what is left out would be old content."""
        reached = 0
        for start, end in sorted(self._parts):
            if start != reached:
                return False
            reached = end
        return reached == length
