"""Several connections to one export, lent to one thread at a time, opened when they are needed.

Rules:

 1. All of them go to the address that the first one reached, and must find the same export there.
 2. When one of them breaks, none is lent any more: a new one could reach a server that was started again and has lost
    what was not flushed.
 3. Therefore a flush goes to every connection that wrote since its last one; a broken one among them fails it.
 4. After a failed flush no other may succeed.
 5. A server that accepts fewer connections than wanted is used with those; one whose connections do not see each
    other's writes (no multi-conn) with one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator

from migrator.volume.nbd.client import Connection
from migrator.volume.nbd.handshake import Export
from migrator.volume.nbd.protocol import CAN_MULTI_CONN, NbdError, Refused
from migrator.volume.nbd.transport import connect, resolve
from migrator.volume.nbd.uri import Address

#: How long a further connection may take: a server that is full lets it wait for ever, and there are others to use.
GROWTH_SECONDS = 3.0


class Pool:
    """Lends connections; used by many threads."""

    def __init__(self, address: Address, *, timeout: float, connections: int) -> None:
        """Open the first connection; raises OSError."""
        self._address, self._timeout = address, timeout
        self._changed = threading.Condition()
        first, self.peer = _first(address, timeout)
        self.export: Export = first.export
        self._all, self._idle = [first], [first]
        #: Lent to nobody but who waits for just this one.
        self._reserved: set[Connection] = set()
        self._limit = connections if self.export.has(CAN_MULTI_CONN) else 1
        self._opening = 0
        #: Why nothing is lent any more: words and errno.
        self._failure: tuple[str, int] | None = None

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Connection]:
        """Lend a connection, opening one if all are in use; raises OSError."""
        connection = self._take()
        try:
            yield connection
        finally:
            self._give_back(connection)

    def flush(self) -> None:
        """Flush every connection that wrote, or one to see that the server is there; raises OSError."""
        with self._changed:
            self._raise_failure()
            dirty = [connection for connection in self._all if connection.is_dirty] or self._all[:1]
        for connection in dirty:
            self._take_this(connection)
            try:
                connection.flush()
            except Refused:
                # What was lost with it stays lost, but a server may call the next flush a success.
                self._fail("a flush by the NBD server failed before", errno.EIO)
                raise
            finally:
                self._give_back(connection)

    def close(self) -> None:
        """End all of them, those in use too; closing twice is allowed."""
        with self._changed:
            self._failure = ("the NBD export was closed", errno.EBADF)
            idle, self._idle = self._idle, []
            busy = [connection for connection in self._all if connection not in idle]
            self._all = []
            self._changed.notify_all()
        for connection in busy:
            connection.abort()
        for connection in idle:
            connection.disconnect()

    # --- lending

    def _take(self) -> Connection:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._failure or self._free() or self._may_grow())
                self._raise_failure()
                if free := self._free():
                    self._idle.remove(free[-1])
                    return free[-1]
                self._opening += 1
            connection = self._grow()
            if connection is not None:
                return connection

    def _free(self) -> list[Connection]:
        return [connection for connection in self._idle if connection not in self._reserved]

    def _may_grow(self) -> bool:
        return len(self._all) + self._opening < self._limit

    def _take_this(self, connection: Connection) -> None:
        with self._changed:
            # Without the reservation, whoever works with it would take it again and again before we wake up.
            self._reserved.add(connection)
            try:
                self._changed.wait_for(lambda: self._failure or connection in self._idle)
                self._raise_failure()
                self._idle.remove(connection)
            finally:
                self._reserved.discard(connection)

    def _give_back(self, connection: Connection) -> None:
        with self._changed:
            if connection.is_dead:
                self._fail("a connection to the NBD server broke before", errno.ECONNRESET)
            is_closed = connection not in self._all
            if not is_closed:
                self._idle.append(connection)
            self._changed.notify_all()
        if is_closed:
            connection.disconnect()

    def _fail(self, words: str, code: int) -> None:
        with self._changed:
            self._failure = self._failure or (words, code)
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise NbdError(*self._failure)

    # --- growing

    def _grow(self) -> Connection | None:
        """Open a further connection; None where that cannot be."""
        connection: Connection | None = None
        failure: OSError | None = None
        try:
            connection = self._open_further()
        except OSError as error:
            failure = error
        with self._changed:
            self._opening -= 1
            is_wanted = self._failure is None
            if failure is not None:
                self._limit = len(self._all)
            if failure is not None and failure.errno == errno.EPROTO:
                self._fail(str(failure.strerror), errno.EPROTO)
            if connection is not None and is_wanted:
                self._all.append(connection)
            self._changed.notify_all()
        if connection is not None and not is_wanted:
            connection.disconnect()
            return None
        return connection

    def _open_further(self) -> Connection:
        timeout = min(self._timeout, GROWTH_SECONDS)
        connection = Connection(connect(*self.peer, timeout), self._address)
        if connection.export != self.export:
            connection.disconnect()
            raise NbdError("the NBD server offers something else on a further connection")
        connection.limit(self._timeout)
        return connection


def _first(address: Address, timeout: float) -> tuple[Connection, tuple[int, object]]:
    """Open a connection to the first address of the server that answers."""
    failure: OSError | None = None
    for family, place in _places(address):
        try:
            return Connection(connect(family, place, timeout), address), (family, place)
        except OSError as error:
            failure = failure or error
    raise failure or OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))


def _places(address: Address) -> list[tuple[int, object]]:
    if address.socket is not None:
        return [(int(socket.AF_UNIX), address.socket)]
    return list(resolve(address.host or "", address.port))
