"""An NBD server of a few lines whose every word can be ordered: polite by default, as bad as a test wants it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

from migrator.volume.nbd import protocol as p

FLAGS = 1 | p.SEND_FLUSH | p.SEND_FUA | p.SEND_TRIM | p.SEND_WRITE_ZEROES | p.CAN_MULTI_CONN
GREETING = struct.pack(">QQH", p.INIT_MAGIC, p.OPTION_MAGIC, p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES)
CONTEXT = 7
GRANULE = 4096


class Request(NamedTuple):
    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    data: bytes = b""


# --- words -----------------------------------------------------------------------------------------------------------


def option_reply(option: int, type_: int, data: bytes = b"", *, magic: int = p.OPTION_REPLY_MAGIC) -> bytes:
    return p.OPTION_REPLY.pack(magic, option, type_, len(data)) + data


def ack(option: int) -> bytes:
    return option_reply(option, p.REP_ACK)


def context(number: int = CONTEXT, name: bytes = p.BASE_ALLOCATION) -> bytes:
    return option_reply(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, p.U32.pack(number) + name)


def info_export(size: int, flags: int = FLAGS) -> bytes:
    return option_reply(p.OPT_GO, p.REP_INFO, p.U16.pack(p.INFO_EXPORT) + p.EXPORT.pack(size, flags))


def info_sizes(minimum: int, preferred: int, maximum: int) -> bytes:
    body = p.U16.pack(p.INFO_BLOCK_SIZE) + p.BLOCK_SIZES.pack(minimum, preferred, maximum)
    return option_reply(p.OPT_GO, p.REP_INFO, body)


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, error, cookie) + data


def chunk(cookie: int, type_: int, body: bytes = b"", *, done: bool = True, length: int | None = None) -> bytes:
    start = p.CHUNK_START.pack(p.STRUCTURED_REPLY_MAGIC, p.CHUNK_DONE * done, type_, cookie)
    return start + p.CHUNK_REST.pack(len(body) if length is None else length) + body


def data_chunk(cookie: int, offset: int, data: bytes, *, done: bool = True) -> bytes:
    return chunk(cookie, p.CHUNK_DATA, p.U64.pack(offset) + data, done=done)


def hole_chunk(cookie: int, offset: int, length: int, *, done: bool = True) -> bytes:
    return chunk(cookie, p.CHUNK_HOLE, p.HOLE.pack(offset, length), done=done)


def status_chunk(cookie: int, extents: list[tuple[int, int]], number: int = CONTEXT, *, done: bool = True) -> bytes:
    body = p.U32.pack(number) + b"".join(p.STATUS.pack(*extent) for extent in extents)
    return chunk(cookie, p.CHUNK_STATUS, body, done=done)


def error_chunk(cookie: int, error: int, message: bytes = b"", *, done: bool = True) -> bytes:
    return chunk(cookie, p.CHUNK_IS_ERROR | 1, p.ERROR.pack(error, len(message)) + message, done=done)


# --- the server ------------------------------------------------------------------------------------------------------


@dataclass
class Manners:
    """How the server behaves."""

    size: int = 64 * GRANULE
    flags: int = FLAGS
    greeting: bytes = GREETING
    sizes: tuple[int, int, int] | None = (1, 4096, 32 << 20)
    #: Options that it does not know.
    unknown: frozenset[int] = frozenset()
    #: What it says to an option instead of the right thing.
    options: Mapping[int, bytes] = field(default_factory=dict)
    #: What it says to a request instead; None where it does the right thing, empty where it says nothing.
    answer: Callable[[Request], bytes | None] = lambda request: None
    #: How many connections it talks to at the same time; others wait.
    connections: int = 1000


class ScriptedServer:
    """Listens on a TCP port of loopback; ``requests`` is what it was asked, from all connections."""

    def __init__(self, manners: Manners) -> None:
        self.manners = manners
        self.content = bytearray(manners.size)
        self.requests: list[Request] = []
        self.most_connections = 0
        self._room = threading.BoundedSemaphore(manners.connections)
        self._open: set[socket.socket] = set()
        #: Connections that were accepted by the kernel, and that nobody talks to.
        self.waiting: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._spawn(self._accept)

    @property
    def uri(self) -> str:
        return f"nbd://127.0.0.1:{self._listener.getsockname()[1]}/"

    def count(self, command: int) -> int:
        return sum(request.command == command for request in self.requests)

    def hang_up(self) -> None:
        """End every connection, and go on listening."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for connection in self.waiting:
            connection.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="scripted-nbd", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                if self._room.acquire(blocking=False):
                    self._open.add(connection)
                    self.most_connections = max(self.most_connections, len(self._open))
                    self._spawn(self._serve, connection)
                else:
                    self.waiting.append(connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), connection:
            connection.settimeout(20)
            _Talk(self, connection).run()
        self._open.discard(connection)
        self._room.release()


class _Talk:
    def __init__(self, server: ScriptedServer, connection: socket.socket) -> None:
        self._server, self._manners, self._connection = server, server.manners, connection
        self._is_structured = False

    def run(self) -> None:
        self._connection.sendall(self._manners.greeting)
        self._take(4)
        while self._option():
            pass
        while True:
            self._request()

    def _take(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self._connection.recv(min(length - len(data), 1 << 16))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _option(self) -> bool:
        _, option, length = p.OPTION.unpack(self._take(p.OPTION.size))
        self._take(length)
        if option in self._manners.options:
            self._connection.sendall(self._manners.options[option])
        elif option in self._manners.unknown:
            self._connection.sendall(option_reply(option, p.REP_ERROR + 1))
            return True
        else:
            self._connection.sendall(b"".join(self._polite(option)))
        self._is_structured |= option == p.OPT_STRUCTURED_REPLY
        return option not in (p.OPT_GO, p.OPT_EXPORT_NAME)

    def _polite(self, option: int) -> Iterator[bytes]:
        manners = self._manners
        if option == p.OPT_EXPORT_NAME:
            yield p.EXPORT.pack(manners.size, manners.flags)
            yield bytes(0 if manners.greeting == GREETING else 124)
            return
        if option == p.OPT_SET_META_CONTEXT:
            yield context()
        if option == p.OPT_GO:
            yield option_reply(option, p.REP_INFO, p.U16.pack(1) + b"a name that nobody asked for")
            yield info_export(manners.size, manners.flags)
            yield info_sizes(*manners.sizes) if manners.sizes else b""
        yield ack(option)

    def _request(self) -> None:
        _, flags, command, cookie, offset, length = p.REQUEST.unpack(self._take(p.REQUEST.size))
        data = self._take(length) if command == p.CMD_WRITE else b""
        request = Request(flags, command, cookie, offset, length, data)
        self._server.requests.append(request)
        if command == p.CMD_DISC:
            raise EOFError
        answer = self._manners.answer(request)
        self._connection.sendall(self._right(request) if answer is None else answer)

    def _right(self, request: Request) -> bytes:
        content = self._server.content
        place = slice(request.offset, request.offset + request.length)
        if request.command == p.CMD_READ:
            data = bytes(content[place])
            if self._is_structured:
                return data_chunk(request.cookie, request.offset, data)
            return simple(request.cookie, 0, data)
        if request.command == p.CMD_BLOCK_STATUS:
            return status_chunk(request.cookie, list(self._extents(request)))
        if request.command in (p.CMD_WRITE, p.CMD_WRITE_ZEROES):
            content[place] = request.data or bytes(request.length)
        return simple(request.cookie)

    def _extents(self, request: Request) -> Iterator[tuple[int, int]]:
        for start in range(request.offset, request.offset + request.length, GRANULE):
            is_zero = not any(self._server.content[start : start + GRANULE])
            yield GRANULE, 3 * is_zero
