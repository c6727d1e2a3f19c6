"""A TCP proxy that can be told to misbehave: what is wrong with a network happens here, and to this test alone."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

_BUFFER = 1 << 16
_PORTS = {"rabbit": 5672, "mysql+pymysql": 3306, "postgresql+psycopg2": 5432}
#: Closing a socket with this option set ends the connection by a reset, as the end of a peer's machine does.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes connections from a port of loopback on to the server of ``url``; every state is set from any thread."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or _PORTS[parts.scheme])
        login = parts.netloc.rpartition("@")[0]
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._stalled = False
        self._listener: socket.socket | None = None
        self.port = 0
        self.up()
        #: The URL that leads through here.
        self.url = urlunsplit(parts._replace(netloc=f"{login + '@' if login else ''}127.0.0.1:{self.port}"))

    def up(self) -> None:
        """Pass on every new connection; those that were stalled stay dead, as after a lost network."""
        self._stalled = False
        with self._lock:
            if self._listener is not None:
                return
            self._listener = listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
            self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), name="proxy", daemon=True).start()

    def down(self) -> None:
        """Reset every connection and refuse new ones, as a server that was stopped."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection, and pass on new ones."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.end()

    def stall(self) -> None:
        """Swallow what comes on every connection, old and new, and answer nothing: half-open."""
        self._stalled = True
        with self._lock:
            for link in self._links:
                link.swallows = True

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                try:
                    server = None if self._stalled else socket.create_connection(self._server, timeout=10)
                except OSError:
                    client.close()
                    continue
                link = _Link(client, server)
                with self._lock:
                    self._links.add(link)
                    link.swallows = self._stalled
                    closed = self._listener is not listener
                if closed:
                    link.end()


class _Link:
    """One connection, with a thread for each way."""

    def __init__(self, client: socket.socket, server: socket.socket | None) -> None:
        self.swallows = False
        self._sockets = [client] if server is None else [client, server]
        for each in self._sockets:
            each.settimeout(None)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = [(client, None)] if server is None else [(client, server), (server, client)]
        for way in ways:
            threading.Thread(target=self._pump, args=way, name="proxy-link", daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket | None) -> None:
        try:
            while data := source.recv(_BUFFER):
                if target is not None and not self.swallows:
                    target.sendall(data)
        except OSError:
            pass
        finally:
            self.end()

    def end(self) -> None:
        """Reset both sides."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                each.shutdown(socket.SHUT_RDWR)
            each.close()
