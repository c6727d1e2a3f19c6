"""TLS inside an NBD connection: certificates by the ssl module, pre-shared keys by ssl (Python 3.13) or GnuTLS.

The server proves who it is in both ways, or the connection is not used: a certificate of a believed authority with the
server's name in it, or the key.  There is no way back to plain text.
"""

from __future__ import annotations

import errno
import os
import ssl

from migrator.volume.nbd import gnutls
from migrator.volume.nbd.transport import PlainTransport, SslTransport, Transport, timed_out
from migrator.volume.nbd.uri import Tls

_CA, _CERTIFICATE, _KEY = "ca-cert.pem", "client-cert.pem", "client-key.pem"
#: Suites of TLS 1.2 in which only the key counts, with forward secrecy and authenticated encryption.
_KEY_SUITES = "DHE-PSK-AES256-GCM-SHA384:DHE-PSK-AES128-GCM-SHA256:ECDHE-PSK-CHACHA20-POLY1305"
#: A key file has a line for each user; this is more than any needs.
_MAX_KEY_FILE = 1 << 20


class TlsError(OSError):
    """TLS was asked for and cannot be had, or the server is not who it should be; EACCES."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EACCES, message)


def start(plain: PlainTransport, tls: Tls) -> Transport:
    """Do the TLS handshake; raises TlsError, TimeoutError or another OSError. The plain transport is used up."""
    key = tls.key
    if key is None and tls.psk_file is not None:
        key = _key(tls.psk_file, tls.user or "")
    if key is None:
        return _wrapped(plain, _certificate_context(tls), tls.hostname)
    if hasattr(ssl.SSLContext, "set_psk_client_callback"):
        return _wrapped(plain, _key_context(tls.user or "", key), None)
    try:
        return gnutls.start(plain, tls.user or "", key)
    except gnutls.GnutlsError as error:
        raise TlsError(f"TLS with a pre-shared key failed: {error}") from None


def _wrapped(plain: PlainTransport, context: ssl.SSLContext, hostname: str | None) -> Transport:
    plain.wire.settimeout(plain.timeout)
    try:
        return SslTransport(context.wrap_socket(plain.wire, server_hostname=hostname), plain.timeout)
    except ssl.SSLCertVerificationError as error:
        raise TlsError(f"the NBD server's certificate is not accepted: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise TlsError(f"TLS with the NBD server failed: {error.reason or 'unexpected end'}") from None
    except (TimeoutError, BlockingIOError):
        raise timed_out(plain.timeout) from None


def _certificate_context(tls: Tls) -> ssl.SSLContext:
    directory = tls.certificates
    authority = os.path.join(directory, _CA) if directory else None
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority)
    except (OSError, ValueError) as error:
        raise TlsError(f"cannot use {authority}: {_words(error)}") from None
    certificate = os.path.join(directory, _CERTIFICATE) if directory else ""
    if directory and os.path.exists(certificate):
        try:
            # No pass phrase: asking for one would wait for a terminal.
            context.load_cert_chain(certificate, os.path.join(directory, _KEY), password=_no_pass_phrase)
        except (OSError, ValueError) as error:
            raise TlsError(f"cannot use {_CERTIFICATE} and {_KEY} of {directory}: {_words(error)}") from None
    return context


def _no_pass_phrase() -> str:
    raise ValueError("the key has a pass phrase, and there is nobody to type it")


def _words(error: Exception) -> str:
    return (isinstance(error, ssl.SSLError) and error.reason) or getattr(error, "strerror", None) or str(error)


def _key_context(user: str, key: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # With TLS 1.3 a server may pass the key over and show a certificate instead; with these suites it cannot.
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_KEY_SUITES)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_psk_client_callback(lambda hint: (user, key))  # type: ignore[attr-defined]
    return context


def _key(path: str, user: str) -> bytes:
    """Return the user's key out of a file of lines ``user:hexkey``."""
    try:
        with open(path, "rb", opener=_open_plain) as file:
            lines = file.read(_MAX_KEY_FILE).decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise TlsError(f"cannot read {path}: {error.strerror}") from None
    for line in lines:
        name, _, key = line.rpartition(":")
        if name == user:
            try:
                return bytes.fromhex(key.strip())
            except ValueError:
                raise TlsError(f"the user's key in {path} is not hexadecimal") from None
    raise TlsError(f"{path} has no key for the user of the NBD address")


def _open_plain(path: str, flags: int) -> int:
    # O_NONBLOCK: a pipe must not be waited for.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def is_supported_with_keys() -> bool:
    """Tell whether TLS with a pre-shared key can be had here at all."""
    return hasattr(ssl.SSLContext, "set_psk_client_callback") or gnutls.is_there()
