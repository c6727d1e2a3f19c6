"""NBD servers that lie, babble, drip, fall silent or hang up: an error each, soon, in little memory, no thread left."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.volume.nbd import protocol as p
from migrator.volume.nbd.client import Connection
from migrator.volume.nbd.endpoint import NbdEndpoint
from migrator.volume.nbd.transport import PlainTransport, connect
from migrator.volume.nbd.uri import Address, parse_uri
from tests.support import nbd_script as s
from tests.support.nbd_script import Manners, Request, ScriptedServer

TIMEOUT = 0.3
MIB = 1 << 20
HUGE = 0xFFFFFFFF
GO, META, STRUCTURED = p.OPT_GO, p.OPT_SET_META_CONTEXT, p.OPT_STRUCTURED_REPLY
RIGHT_GO = s.info_export(MIB) + s.ack(GO)


def option_header(option: int, type_: int, length: int) -> bytes:
    return p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, type_, length)


GREETINGS = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
    "half of it": s.GREETING[:9],
    "wrong magic": b"X" + s.GREETING[1:],
    "the old style": struct.pack(">QQQI", p.INIT_MAGIC, p.OLD_STYLE_MAGIC, MIB, 0) + bytes(124),
    "an unknown style": struct.pack(">QQH", p.INIT_MAGIC, 1, 3),
    "not the fixed style": s.GREETING[:-1] + b"\2",
}

#: What the server says to an option; it says it and is silent then.
OPTIONS: dict[str, tuple[int, bytes]] = {
    "wrong magic": (STRUCTURED, s.option_reply(STRUCTURED, p.REP_ACK, magic=1)),
    "a reply to something else": (STRUCTURED, s.ack(GO)),
    "an acknowledgement with data": (STRUCTURED, s.option_reply(STRUCTURED, p.REP_ACK, b"x")),
    "information about nothing": (STRUCTURED, s.option_reply(STRUCTURED, p.REP_INFO, b"xx")),
    "an absurd length": (STRUCTURED, option_header(STRUCTURED, p.REP_ACK, HUGE)),
    "an absurd error": (GO, option_header(GO, p.REP_ERROR + 6, HUGE)),
    "an unknown error": (GO, s.option_reply(GO, HUGE, b"words")),
    "an unknown reply": (GO, s.option_reply(GO, 77) + RIGHT_GO),
    "an empty information": (GO, s.option_reply(GO, p.REP_INFO) + RIGHT_GO),
    "a short export": (GO, s.option_reply(GO, p.REP_INFO, bytes(5)) + RIGHT_GO),
    "a long export": (GO, s.option_reply(GO, p.REP_INFO, bytes(30)) + RIGHT_GO),
    "no export": (GO, s.ack(GO)),
    "endless information": (GO, s.option_reply(GO, p.REP_INFO, p.U16.pack(1) + b"name") * 10_000),
    "size 2^64-1": (GO, s.info_export((1 << 64) - 1) + s.ack(GO)),
    "size 2^63": (GO, s.info_export(1 << 63) + s.ack(GO)),
    "minimum 0": (GO, s.info_sizes(0, 4096, MIB) + RIGHT_GO),
    "minimum 3": (GO, s.info_sizes(3, 4096, MIB) + RIGHT_GO),
    "minimum of a MiB": (GO, s.info_sizes(MIB, MIB, MIB) + RIGHT_GO),
    "preferred below minimum": (GO, s.info_sizes(4096, 512, MIB) + RIGHT_GO),
    "maximum below minimum": (GO, s.info_sizes(4096, 4096, 512) + RIGHT_GO),
    "maximum 0": (GO, s.info_sizes(1, 4096, 0) + RIGHT_GO),
    "half a block at the end": (GO, s.info_sizes(512, 4096, MIB) + s.info_export(1000) + s.ack(GO)),
    "two contexts": (META, s.context() + s.context() + s.ack(META)),
    "another context": (META, s.context(1, b"qemu:dirty-bitmap") + s.ack(META)),
    "a context without a number": (META, s.option_reply(META, p.REP_META_CONTEXT, b"xx") + s.ack(META)),
    "endless contexts": (META, s.context() * 10_000),
    "half a reply": (GO, RIGHT_GO[:15]),
    "silence": (GO, b""),
}


def fails(call: Callable[[], object], *, seconds: float = 2 * TIMEOUT + 1) -> OSError:
    """Expect OSError soon and in little memory; return it."""
    began, before = time.monotonic(), set(threading.enumerate())
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match=r".+") as caught:
            call()
        assert tracemalloc.get_traced_memory()[1] < 12 * MIB
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < seconds
    assert len(set(threading.enumerate()) - before) <= 1  # the server's
    return caught.value


def open_at(server: ScriptedServer, timeout: float = TIMEOUT) -> NbdEndpoint:
    return NbdEndpoint(server.uri, writable=True, timeout=timeout)


@pytest.mark.parametrize("name", GREETINGS)
def test_a_wrong_greeting(name: str) -> None:
    with ScriptedServer(Manners(greeting=GREETINGS[name])) as server:
        assert fails(lambda: open_at(server)).errno in (errno.EPROTO, errno.ETIMEDOUT)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_reply_to_an_option(name: str) -> None:
    option, reply = OPTIONS[name]
    with ScriptedServer(Manners(options={option: reply})) as server:
        error = fails(lambda: open_at(server))
    assert error.errno == (errno.ETIMEDOUT if name in ("half a reply", "silence") else errno.EPROTO)


def test_a_refusal_says_why_and_is_no_broken_protocol() -> None:
    for type_, (code, words) in p.OPTION_ERRORS.items():
        if type_ == p.REP_ERROR + 1:
            continue
        message = b"it \x1b[31m" + b"z" * 4000
        with ScriptedServer(Manners(options={GO: s.option_reply(GO, type_, message)})) as server:
            error = fails(lambda server=server: open_at(server))  # type: ignore[misc]
        assert error.errno == code
        assert words in str(error)
        assert "it ?[31mzzz" in str(error)
        assert len(str(error)) < 400


@pytest.mark.parametrize("reply", [b"", s.ack(p.OPT_STARTTLS), s.option_reply(p.OPT_STARTTLS, p.REP_ERROR + 1)])
@pytest.mark.parametrize("uri", ["nbds://x", "nbds://me@x?tls-psk-file=FILE"])
def test_tls_that_was_asked_for_is_never_gone_without(tmp_path: Any, uri: str, reply: bytes) -> None:
    """A server, or somebody before it, that says it has no TLS, or says yes and goes on in plain text."""
    (tmp_path / "keys").write_text("me:00112233445566778899aabbccddeeff\n", encoding="utf-8")
    with ScriptedServer(Manners(options={p.OPT_STARTTLS: reply})) as server:
        port = server.uri.rpartition(":")[2].strip("/")
        where = uri.replace("x", f"127.0.0.1:{port}/", 1).replace("FILE", str(tmp_path / "keys"))
        fails(lambda: NbdEndpoint(where, writable=True, timeout=TIMEOUT))
        assert not server.requests


# --- replies to requests ---------------------------------------------------------------------------------------------


def bad_replies(r: Request) -> dict[str, bytes]:
    """Wrong replies to a read of 100 bytes."""
    c, o, full = r.cookie, r.offset, b"x" * r.length
    return {
        "wrong magic": struct.pack(">IIQ", 1, 0, c),
        "the wrong request": s.data_chunk(c + 1, o, full),
        "the wrong request, simply": s.simple(c + 1),
        "a simple reply": s.simple(c, 0, full),
        "data before the range": s.data_chunk(c, o - 1, full),
        "data behind the range": s.data_chunk(c, o + 1, full),
        "data far away": s.data_chunk(c, (1 << 64) - 1, full),
        "more data than asked for": s.data_chunk(c, o, full + b"x"),
        "an absurd length": s.chunk(c, p.CHUNK_DATA, p.U64.pack(o) + full, length=HUGE),
        "no data": s.data_chunk(c, o, b"", done=False) + s.data_chunk(c, o, full),
        "less data than asked for": s.data_chunk(c, o, full[1:]),
        "a gap": s.data_chunk(c, o, b"x" * 40, done=False) + s.data_chunk(c, o + 41, b"x" * 59),
        "the same data twice": s.data_chunk(c, o, full, done=False) + s.data_chunk(c, o, full),
        "half of it twice": s.data_chunk(c, o, b"x" * 50, done=False) + s.data_chunk(c, o, b"x" * 50),
        "an overlap": s.data_chunk(c, o + 40, b"x" * 60, done=False) + s.data_chunk(c, o, b"x" * 41),
        "a hole of no length": s.hole_chunk(c, o, 0, done=False) + s.data_chunk(c, o, full),
        "a hole that is too long": s.hole_chunk(c, o, HUGE),
        "a hole elsewhere": s.hole_chunk(c, 0, 100),
        "a malformed hole": s.chunk(c, p.CHUNK_HOLE, bytes(11)),
        **bad_pieces(r),
    }


def bad_pieces(r: Request) -> dict[str, bytes]:
    """Wrong replies to it whose fault is not in the data."""
    c, o, full = r.cookie, r.offset, b"x" * r.length
    return {
        "nothing, done": s.chunk(c, p.CHUNK_NONE),
        "nothing, for ever": s.chunk(c, p.CHUNK_NONE, done=False) * 100_000,
        "nothing, with data": s.chunk(c, p.CHUNK_NONE, b"x"),
        "an unknown piece": s.chunk(c, 99, b"x"),
        "extents": s.status_chunk(c, [(100, 0)]),
        "an error of no bytes": s.chunk(c, p.CHUNK_IS_ERROR | 1),
        "an error that is none": s.error_chunk(c, 0),
        "an absurd error": s.chunk(c, p.CHUNK_IS_ERROR | 1, p.ERROR.pack(5, 1), length=HUGE),
        "an error longer than itself": s.chunk(c, p.CHUNK_IS_ERROR | 1, p.ERROR.pack(5, 99) + b"x"),
        "endless errors": s.error_chunk(c, 5, b"why", done=False) * 10_000,
        "crumbs": b"".join(s.data_chunk(c, o + n, b"x", done=False) for n in range(100)),
        "silence": b"",
        "half a reply": s.data_chunk(c, o, full)[:50],
    }


def bad_extents(r: Request) -> dict[str, bytes]:
    """Wrong replies to a question about the extents."""
    c, length = r.cookie, r.length
    return {
        "none": s.status_chunk(c, []),
        "no length": s.status_chunk(c, [(0, 0)]),
        "no length later": s.status_chunk(c, [(10, 0), (0, 0), (length, 0)]),
        "beyond": s.status_chunk(c, [(length, 0), (1, 0)]),
        "another context": s.status_chunk(c, [(length, 0)], number=s.CONTEXT + 1),
        "twice": s.status_chunk(c, [(10, 0)], done=False) + s.status_chunk(c, [(10, 0)]),
        "crooked": s.chunk(c, p.CHUNK_STATUS, bytes(13)),
        "too many": s.chunk(c, p.CHUNK_STATUS, bytes(100), length=4 + 8 * (2 << 20)),
        "done without": s.chunk(c, p.CHUNK_NONE),
        "a simple reply": s.simple(c),
        "data": s.data_chunk(c, r.offset, b"x"),
    }


def bad_acknowledgements(r: Request) -> dict[str, bytes]:
    """Wrong replies to a write."""
    c = r.cookie
    return {
        "data": s.data_chunk(c, r.offset, b"x" * r.length),
        "extents": s.status_chunk(c, [(100, 0)]),
        "the wrong request": s.simple(c - 1),
        "wrong magic": struct.pack(">IIQ", p.REQUEST_MAGIC, 0, c),
        "nothing, for ever": s.chunk(c, p.CHUNK_NONE, done=False) * 1000,
        "silence": b"",
    }


SAMPLE = Request(0, 0, 5, MIB // 2, 100)
#: Which command, the table of wrong replies, and what is called.
KINDS: dict[str, tuple[int, Callable[[Request], dict[str, bytes]], Callable[[NbdEndpoint], object]]] = {
    "read": (p.CMD_READ, bad_replies, lambda e: e.pread_into(MIB // 2, memoryview(bytearray(100)))),
    "extents": (p.CMD_BLOCK_STATUS, bad_extents, lambda e: list(e.extents(MIB // 2, 1000))),
    "write": (p.CMD_WRITE, bad_acknowledgements, lambda e: e.pwrite(MIB // 2, memoryview(bytes(100)))),
    "flush": (p.CMD_FLUSH, bad_acknowledgements, lambda e: e.flush()),
    "zero": (p.CMD_WRITE_ZEROES, bad_acknowledgements, lambda e: e.zero(0, 100)),
}
CASES = [(kind, name) for kind, (_, table, _) in KINDS.items() for name in table(SAMPLE)]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_wrong_reply_to_a_request(kind: str, name: str) -> None:
    """Each is an error, and after it the connection is never used again."""
    command, table, call = KINDS[kind]

    def answer(request: Request) -> bytes | None:
        return table(request)[name] if request.command == command else None

    with ScriptedServer(Manners(size=MIB, answer=answer)) as server:
        endpoint = open_at(server)
        error = fails(lambda: call(endpoint))
        is_late = name in ("silence", "half a reply")
        assert error.errno == (errno.ETIMEDOUT if is_late else errno.EPROTO)
        asked = len(server.requests)
        with pytest.raises(OSError, match="before"):
            call(endpoint)
        with pytest.raises(OSError, match="before"):
            endpoint.flush()
        assert len(server.requests) == asked
        endpoint.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_hangs_up(kind: str) -> None:
    command, _, call = KINDS[kind]

    def answer(request: Request) -> bytes | None:
        if request.command == command:
            raise EOFError
        return None

    with ScriptedServer(Manners(size=MIB, answer=answer)) as server:
        endpoint = open_at(server)
        assert fails(lambda: call(endpoint)).errno == errno.ECONNRESET
        endpoint.close()


def test_a_server_that_takes_nothing_is_given_up() -> None:
    """A half-open connection: the write fills what the kernel holds, and then nothing moves."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(HANDSHAKE)
        connection = Connection(PlainTransport(ours, TIMEOUT), Address(""))
        data = memoryview(bytearray(MIB))
        assert fails(lambda: connection.write(0, data)).errno == errno.ETIMEDOUT
        assert connection.is_dead


def test_a_server_that_drips_is_given_up_at_the_deadline() -> None:
    """One byte now and then would keep every single wait short, and all of them endless."""
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(TIMEOUT / 10):
                theirs.send(s.GREETING[:1])

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        error = fails(lambda: Connection(PlainTransport(ours, TIMEOUT), Address("")))
    finally:
        stop.set()
        thread.join()
        theirs.close()
    assert error.errno == errno.ETIMEDOUT


def test_a_port_at_which_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = fails(lambda: NbdEndpoint(f"nbd://127.0.0.1:{port}/x", writable=True, timeout=TIMEOUT))
    assert error.errno == errno.ECONNREFUSED


# --- garbage ---------------------------------------------------------------------------------------------------------

HANDSHAKE = (
    s.GREETING
    + s.ack(STRUCTURED)
    + s.context()
    + s.ack(META)
    + s.info_export(MIB)
    + s.info_sizes(1, 4096, MIB)
    + s.ack(GO)
)
#: Right answers to what ``converse`` asks.
TALK = (
    s.data_chunk(1, 10, b"x" * 60, done=False)
    + s.hole_chunk(1, 70, 40)
    + s.status_chunk(2, [(4096, 0), (8192, 3), (MIB, 0)])
    + s.simple(3)
    + s.error_chunk(4, 28, b"no space")
    + s.simple(5)
)


def converse(stream: bytes) -> None:
    """Speak with a server that says ``stream`` whatever it is asked, and then hangs up."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(stream)
        theirs.shutdown(socket.SHUT_WR)
        connection = Connection(PlainTransport(ours, 5), Address(""))
        try:
            buffer = bytearray(100)
            connection.read(10, memoryview(buffer))
            status = connection.block_status(0, 100_000)
            assert all(length > 0 for length, _ in status)
            assert 0 < sum(length for length, _ in status) <= 100_000
            connection.write(0, memoryview(b"abc"))
            with contextlib.suppress(p.Refused):
                connection.write_zeroes(0, 4096)
            connection.flush()
        finally:
            connection.disconnect()


def test_the_conversation_that_garbage_is_made_of_is_right() -> None:
    converse(HANDSHAKE + TALK)


@st.composite
def damaged(draw: Any) -> bytes:
    """A right conversation with some bytes changed, taken out or put in."""
    stream = bytearray(HANDSHAKE + TALK)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(stream) - 1))
        length = draw(st.integers(0, 12))
        stream[place : place + length] = draw(st.binary(max_size=12) | st.just(b"\xff" * length))
    return bytes(stream)


@settings(max_examples=400, deadline=None)
@given(damaged())
def test_a_damaged_conversation_ends_in_an_error_or_in_what_it_says(stream: bytes) -> None:
    with contextlib.suppress(OSError):
        converse(stream)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_instead_of_a_handshake(garbage: bytes) -> None:
    for start in (b"", s.GREETING, s.GREETING + s.ack(STRUCTURED)):
        with pytest.raises(OSError, match=r".+"):
            converse(start + garbage)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_instead_of_replies(garbage: bytes) -> None:
    with pytest.raises(OSError, match=r".+"):
        converse(HANDSHAKE + garbage)


def test_memory_stays_small_while_a_server_babbles() -> None:
    """Megabytes of pieces that belong to no reply are not collected anywhere."""

    def answer(request: Request) -> bytes | None:
        return s.error_chunk(request.cookie, 5, b"x" * 4000, done=False) * 2000 if request.command == 0 else None

    with ScriptedServer(Manners(size=MIB, answer=answer)) as server:
        plain = connect(int(socket.AF_INET), ("127.0.0.1", parse_uri(server.uri).port), TIMEOUT)
        connection = Connection(plain, parse_uri(server.uri))
        assert fails(lambda: connection.read(0, memoryview(bytearray(10)))).errno == errno.EPROTO
