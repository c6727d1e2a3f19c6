"""A stream to the server on which no call waits for ever.

Two limits: a server that is silent for ``timeout`` seconds, or does not take anything for so long, is given up; and so
is one that keeps dripping bytes, at the deadline that the caller sets for all of its exchange.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from migrator.volume.nbd.protocol import Disconnected, NbdError

#: Bytes per second that are waited for beyond the time-out: 64 KiB/s is less than any line over which volumes move.
SLOWEST = 64 * 1024
#: A whole request fits in, so that the sender need not wake up for each part that the server takes.  The kernel cuts
#: it to net.core.wmem_max; TCP finds its own size.
_UNIX_BUFFER = 2 << 20
_LOST = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ECONNABORTED})


class Transport(Protocol):
    """Bytes to and from one server; used by one thread at a time, except for ``abort``."""

    timeout: float

    def receive(self, buffer: memoryview, deadline: float) -> None:
        """Fill the buffer; raises TimeoutError (ETIMEDOUT), Disconnected, NbdError."""

    def send(self, parts: Sequence[memoryview | bytes], deadline: float) -> None:
        """Send all of it; raises as ``receive`` does."""

    def limit(self, timeout: float) -> None:
        """Change how long a silent server is waited for."""

    def abort(self) -> None:
        """Make the call that another thread is in fail at once."""

    def close(self) -> None:
        """Give up the connection without a word; closing twice is allowed."""


def deadline_for(timeout: float, length: int = 0) -> float:
    """By when an exchange must be over that moves ``length`` bytes, on the monotonic clock."""
    return time.monotonic() + timeout + length / SLOWEST


def timed_out(timeout: float) -> OSError:
    return TimeoutError(errno.ETIMEDOUT, f"the NBD server did not answer within {timeout:g} seconds")


@contextlib.contextmanager
def translated(timeout: float) -> Iterator[None]:
    """Name what may go wrong on a socket in the client's words."""
    try:
        yield
    except NbdError:
        raise
    except (BlockingIOError, TimeoutError):
        raise timed_out(timeout) from None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        raise Disconnected from None
    except ssl.SSLError as error:
        raise NbdError(f"TLS failed: {error.reason or 'unexpected end'}") from None
    except OSError as error:
        if error.errno in _LOST:
            raise Disconnected("the connection to the NBD server was lost") from None
        raise


class PlainTransport:
    """A socket as it is; the kernel does the waiting, so that 1 MiB usually takes one call."""

    def __init__(self, connected: socket.socket, timeout: float) -> None:
        self.wire = connected
        connected.settimeout(None)
        self.limit(timeout)

    def limit(self, timeout: float) -> None:
        self.timeout = timeout
        microseconds = max(1, int(timeout * 1e6))  # 0 would mean for ever
        limit = struct.pack("ll", *divmod(microseconds, 1_000_000))
        self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def receive(self, buffer: memoryview, deadline: float) -> None:
        with translated(self.timeout):
            while buffer:
                count = self.wire.recv_into(buffer, 0, socket.MSG_WAITALL)
                if not count:
                    raise Disconnected
                buffer = buffer[count:]
                if buffer and time.monotonic() > deadline:
                    raise TimeoutError

    def send(self, parts: Sequence[memoryview | bytes], deadline: float) -> None:
        left = [memoryview(part) for part in parts]
        with translated(self.timeout):
            while left:
                count = self.wire.sendmsg(left, [], socket.MSG_NOSIGNAL)
                while left and count >= len(left[0]):
                    count -= len(left.pop(0))
                if left:
                    left[0] = left[0][count:]
                    if time.monotonic() > deadline:
                        raise TimeoutError

    def abort(self) -> None:
        _shut_down(self.wire)

    def close(self) -> None:
        self.wire.close()


class SslTransport:
    """TLS by the ssl module."""

    def __init__(self, connected: ssl.SSLSocket, timeout: float) -> None:
        self.wire = connected
        self.limit(timeout)

    def limit(self, timeout: float) -> None:
        self.timeout = timeout
        self.wire.settimeout(timeout)

    def receive(self, buffer: memoryview, deadline: float) -> None:
        with translated(self.timeout):
            while buffer:
                count = self.wire.recv_into(buffer)
                if not count:
                    raise Disconnected
                buffer = buffer[count:]
                if buffer and time.monotonic() > deadline:
                    raise TimeoutError

    def send(self, parts: Sequence[memoryview | bytes], deadline: float) -> None:
        with translated(self.timeout):
            for part in parts:
                left = memoryview(part)
                while left:
                    left = left[self.wire.send(left) :]
                    if left and time.monotonic() > deadline:
                        raise TimeoutError

    def abort(self) -> None:
        _shut_down(self.wire)

    def close(self) -> None:
        self.wire.close()


def _shut_down(connected: socket.socket) -> None:
    # Not the method of the ssl module: it would forget its TLS state under the thread that uses it.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


# --- connecting ------------------------------------------------------------------------------------------------------


def resolve(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    """Return the family and the address of every place that a host's name means; raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise OSError(errno.EHOSTUNREACH, "the name of the NBD server's host is not known") from None
    return [(int(family), address) for family, _, _, _, address in found]


def connect(family: int, address: object, timeout: float) -> PlainTransport:
    """Connect to one address; raises OSError."""
    connected = socket.socket(family, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout)
        with translated(timeout):
            connected.connect(address)  # type: ignore[arg-type]
        if family == socket.AF_UNIX:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER)
        else:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return PlainTransport(connected, timeout)
    except BaseException:
        connected.close()
        raise
