"""TLS with a pre-shared key by the system's GnuTLS, for Pythons whose ssl module has none (before 3.13).

GnuTLS is what qemu and nbdkit use themselves, so it is where they are; it is called through its C interface, which has
been the same since version 3.0.  Nothing but keys is offered, so a server that does not know the key has no way in.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import select
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from migrator.volume.nbd.protocol import Disconnected, NbdError
from migrator.volume.nbd.transport import PlainTransport, Transport, deadline_for, timed_out, translated

_LIBRARY = "libgnutls.so.30"
_PRIORITIES = "NORMAL:-KX-ALL:+ECDHE-PSK:+DHE-PSK:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-CIPHER-ALL"
#: All of 128 bits and more, authenticated.  A key is tied to SHA-256, and so to the first and the last of them in TLS
#: 1.3; by itself GnuTLS takes the last, which costs seven times as much where the processor knows AES.
_CIPHERS = ("AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305")
_PROCESSOR = Path("/proc/cpuinfo")
# gnutls/gnutls.h
_CLIENT, _NONBLOCK, _NO_SIGNAL = 1 << 1, 1 << 3, 1 << 6
_CREDENTIALS_PSK, _KEY_RAW = 4, 0
_AGAIN, _INTERRUPTED = -28, -52
#: Nothing came, the connection broke while reading or writing, it ended without a goodbye.
_LOST = frozenset({0, -53, -54, -110})
_SHUT_WRITING = 1
_ALLOWED_WARNINGS = 16


class GnutlsError(OSError):
    """GnuTLS is not there, or says no."""


class _Datum(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("size", ctypes.c_uint)]


_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "gnutls_init": (ctypes.c_int, [_POINTER, ctypes.c_uint]),
    "gnutls_deinit": (None, [_POINTER]),
    "gnutls_psk_allocate_client_credentials": (ctypes.c_int, [_POINTER]),
    "gnutls_psk_set_client_credentials": (ctypes.c_int, [_POINTER, ctypes.c_char_p, _POINTER, ctypes.c_int]),
    "gnutls_psk_free_client_credentials": (None, [_POINTER]),
    "gnutls_credentials_set": (ctypes.c_int, [_POINTER, ctypes.c_int, _POINTER]),
    "gnutls_priority_set_direct": (ctypes.c_int, [_POINTER, ctypes.c_char_p, _POINTER]),
    "gnutls_transport_set_int2": (None, [_POINTER, ctypes.c_int, ctypes.c_int]),
    "gnutls_handshake": (ctypes.c_int, [_POINTER]),
    "gnutls_cipher_get": (ctypes.c_int, [_POINTER]),
    "gnutls_cipher_get_name": (ctypes.c_char_p, [ctypes.c_int]),
    "gnutls_auth_get_type": (ctypes.c_int, [_POINTER]),
    "gnutls_record_send": (ctypes.c_ssize_t, [_POINTER, _POINTER, _SIZE]),
    "gnutls_record_recv": (ctypes.c_ssize_t, [_POINTER, _POINTER, _SIZE]),
    "gnutls_record_get_direction": (ctypes.c_int, [_POINTER]),
    "gnutls_bye": (ctypes.c_int, [_POINTER, ctypes.c_int]),
    "gnutls_error_is_fatal": (ctypes.c_int, [ctypes.c_int]),
    "gnutls_strerror": (ctypes.c_char_p, [ctypes.c_int]),
}


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        raise GnutlsError(
            f"neither this Python's ssl module (3.13 has it) nor {_LIBRARY} can do it; use certificates instead"
        ) from None
    return library


def priorities(processor: str) -> bytes:
    """Say what the client offers, what it likes best first; ``processor`` is the text of /proc/cpuinfo."""
    lines = (line.partition(":") for line in processor.splitlines())
    knows_aes = any("aes" in words.split() for name, _, words in lines if name.strip() in ("flags", "Features"))
    ciphers = _CIPHERS if knows_aes else reversed(_CIPHERS)
    return "".join([_PRIORITIES, *(f":+{cipher}" for cipher in ciphers)]).encode("ascii")


@functools.cache
def _priorities() -> bytes:
    try:
        return priorities(_PROCESSOR.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return priorities("")


def is_there() -> bool:
    try:
        return bool(_library())
    except GnutlsError:
        return False


def start(plain: PlainTransport, user: str, key: bytes) -> Transport:
    """Do the handshake as ``user`` with ``key``; raises GnutlsError, TimeoutError. The plain transport is used up."""
    transport = GnutlsTransport(plain.wire, plain.timeout, _library())
    try:
        transport.handshake(user, key)
    except BaseException:
        transport.close()
        raise
    return transport


class GnutlsTransport:
    """A TLS session over a socket; GnuTLS never waits itself, so that the deadlines hold."""

    def __init__(self, connected: socket.socket, timeout: float, library: ctypes.CDLL) -> None:
        self.wire, self.timeout = connected, timeout
        self._library = library
        self._session, self._credentials = ctypes.c_void_p(), ctypes.c_void_p()
        self._poll = select.poll()
        connected.setblocking(False)

    def handshake(self, user: str, key: bytes) -> None:
        library, datum = self._library, _Datum(key, len(key))
        self._check(library.gnutls_init(ctypes.byref(self._session), _CLIENT | _NONBLOCK | _NO_SIGNAL))
        self._check(library.gnutls_psk_allocate_client_credentials(ctypes.byref(self._credentials)))
        self._check(
            library.gnutls_psk_set_client_credentials(self._credentials, user.encode(), ctypes.byref(datum), _KEY_RAW)
        )
        self._check(library.gnutls_credentials_set(self._session, _CREDENTIALS_PSK, self._credentials))
        self._check(library.gnutls_priority_set_direct(self._session, _priorities(), None))
        library.gnutls_transport_set_int2(self._session, self.wire.fileno(), self.wire.fileno())
        self._check(self._repeat(lambda: library.gnutls_handshake(self._session), deadline_for(self.timeout)))
        if library.gnutls_auth_get_type(self._session) != _CREDENTIALS_PSK:
            raise GnutlsError("the server did not prove that it knows the key")

    @property
    def cipher(self) -> str:
        """The name of what the bytes are encrypted with."""
        name: bytes = self._library.gnutls_cipher_get_name(self._library.gnutls_cipher_get(self._session))
        return name.decode("ascii")

    def _check(self, code: int) -> None:
        if code < 0:
            raise GnutlsError(self._library.gnutls_strerror(code).decode("utf-8", "replace"))

    def _repeat(self, call: Callable[[], int], deadline: float) -> int:
        """Make a call until it is through; it is the caller's to judge a fatal code."""
        warnings = 0
        while (code := call()) < 0 and not self._library.gnutls_error_is_fatal(code):
            if code == _AGAIN:
                self._wait(deadline)
            elif code != _INTERRUPTED and (warnings := warnings + 1) > _ALLOWED_WARNINGS:
                return code
        return code

    def _wait(self, deadline: float) -> None:
        wants_to_write = self._library.gnutls_record_get_direction(self._session)
        self._poll.register(self.wire, select.POLLOUT if wants_to_write else select.POLLIN)
        seconds = min(self.timeout, deadline - time.monotonic())
        if seconds <= 0 or not self._poll.poll(max(1, int(seconds * 1000))):
            raise timed_out(self.timeout)

    def receive(self, buffer: memoryview, deadline: float) -> None:
        self._move(self._library.gnutls_record_recv, buffer, deadline)

    def send(self, parts: Sequence[memoryview | bytes], deadline: float) -> None:
        for part in parts:
            # What is read-only has no address that Python tells; bytearray copies it.
            view = memoryview(part)
            self._move(
                self._library.gnutls_record_send, memoryview(bytearray(view)) if view.readonly else view, deadline
            )

    def _move(self, call: Callable[..., int], buffer: memoryview, deadline: float) -> None:
        if not buffer:
            return
        held = ctypes.c_char.from_buffer(buffer)
        start, left = ctypes.addressof(held), len(buffer)
        with translated(self.timeout):
            while left:
                count = self._repeat(functools.partial(call, self._session, start, left), deadline)
                if count in _LOST:
                    raise Disconnected
                if count < 0:
                    words = self._library.gnutls_strerror(count).decode("utf-8", "replace")
                    raise NbdError(f"TLS failed: {words}")
                start, left = start + count, left - count
                if left and time.monotonic() > deadline:
                    raise TimeoutError

    def limit(self, timeout: float) -> None:
        self.timeout = timeout

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self.wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        session, credentials = self._session, self._credentials
        self._session, self._credentials = ctypes.c_void_p(), ctypes.c_void_p()
        if session and self.wire.fileno() >= 0:
            self._library.gnutls_bye(session, _SHUT_WRITING)
        if session:
            self._library.gnutls_deinit(session)
        if credentials:
            self._library.gnutls_psk_free_client_credentials(credentials)
        self.wire.close()
