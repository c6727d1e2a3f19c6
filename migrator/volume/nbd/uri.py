"""NBD addresses: ``nbd://``, ``nbds://``, ``nbd+unix://`` and ``nbds+unix://``.

::

    nbd://HOST[:PORT]/EXPORT                    TCP, readable by everybody on the way
    nbds://[USER@]HOST[:PORT]/EXPORT?...        TCP with TLS
    nbd+unix:///EXPORT?socket=PATH              a unix socket
    nbds+unix://[USER@]/EXPORT?socket=PATH&...  a unix socket with TLS

    tls-certificates=DIRECTORY                  ca-cert.pem, and client-cert.pem with client-key.pem where wanted
    tls-psk-file=PATH                           lines ``user:hexkey``; needs USER
    tls-hostname=NAME                           whose certificate is accepted, if it is not HOST

Whoever knows the name of an export or of a user is a step nearer to the volume, so neither is in any message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote_to_bytes, urlsplit

from migrator.volume.nbd.protocol import MAX_STRING

DEFAULT_PORT = 10809
#: Scheme: is there TLS, is it a unix socket.
SCHEMES = {"nbd": (False, False), "nbds": (True, False), "nbd+unix": (False, True), "nbds+unix": (True, True)}
_TLS_KEYS = ("tls-certificates", "tls-psk-file", "tls-hostname")


class UriError(ValueError):
    """An address that cannot be used; says which part of it is wrong, and repeats nothing that may be secret."""


@dataclass(frozen=True)
class Tls:
    """What TLS is to be done with; without a directory, the system's certificate authorities are believed."""

    certificates: str | None = None
    psk_file: str | None = None
    user: str | None = field(default=None, repr=False)
    #: The name that the server's certificate must have.
    hostname: str | None = None
    #: The user's key itself, in place of a file that holds it.
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Address:
    """Where an export is; ``tls`` is None where the connection is plain."""

    export: str = field(repr=False)
    host: str | None = None
    port: int = DEFAULT_PORT
    socket: str | None = None
    tls: Tls | None = None

    def __str__(self) -> str:
        scheme = ("nbds" if self.tls else "nbd") + ("+unix" if self.socket else "")
        export = "..." if self.export else ""
        if self.socket:
            return f"{scheme}:///{export}?socket={self.socket}"
        host = f"[{self.host}]" if ":" in (self.host or "") else self.host
        return f"{scheme}://{host}:{self.port}/{export}"


def parse_uri(uri: str) -> Address:
    """Understand an NBD address; raises UriError."""
    if not uri.isprintable() or " " in uri:
        raise UriError("an NBD address has no spaces and no control characters; write %20 and the like")
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        raise UriError("the host or the port of the NBD address is malformed") from None
    if parts.scheme not in SCHEMES:
        raise UriError(f"an NBD address begins with one of {', '.join(SCHEMES)}, each followed by ://")
    if not uri.lower().startswith(f"{parts.scheme}://"):
        raise UriError(f"there is no // behind {parts.scheme}:")
    with_tls, is_unix = SCHEMES[parts.scheme]
    query = _query(parts.query)
    _check(parts, query, with_tls, is_unix)
    host = None if is_unix else parts.hostname
    return Address(
        export=_export(parts.path),
        host=host,
        port=DEFAULT_PORT if port is None else port,
        socket=query.get("socket"),
        tls=_tls(parts.username, host, query) if with_tls else None,
    )


def _query(text: str) -> dict[str, str]:
    text = text.replace("+", "%2B")  # in an address, unlike in a form, it means itself
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=16)
    except ValueError:
        raise UriError("what follows the ? is not a list of name=value") from None
    for name, value in pairs:
        if name not in ("socket", *_TLS_KEYS):
            raise UriError(f"unknown parameter behind the ?; known are socket, {', '.join(_TLS_KEYS)}")
        if not value or "\0" in value:
            raise UriError(f"the parameter {name} is empty or has a zero byte")
    if len(dict(pairs)) != len(pairs):
        raise UriError("a parameter behind the ? is there twice")
    return dict(pairs)


def _check(parts: SplitResult, query: dict[str, str], with_tls: bool, is_unix: bool) -> None:
    wrong = {
        "a fragment (#) means nothing here; write %23 in a name": bool(parts.fragment),
        "a password has no meaning in an NBD address": parts.password is not None,
        "a user is for TLS only: nbds:// or nbds+unix://": parts.username is not None and not with_tls,
        "TLS parameters need nbds:// or nbds+unix://": not with_tls and any(key in query for key in _TLS_KEYS),
        "either tls-psk-file or tls-certificates": "tls-psk-file" in query and "tls-certificates" in query,
        "tls-psk-file needs a user before the host: USER@": "tls-psk-file" in query and not parts.username,
        "a user needs tls-psk-file": bool(parts.username) and "tls-psk-file" not in query,
        "a unix socket needs the parameter socket=PATH": is_unix and "socket" not in query,
        "a unix socket has no host and no port": is_unix and bool(parts.netloc.rpartition("@")[2]),
        "the host is missing": not is_unix and not parts.hostname,
        "the parameter socket is for nbd+unix:// and nbds+unix:// only": not is_unix and "socket" in query,
        "port 0 does not exist": not is_unix and parts.port == 0,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise UriError(message)


def _export(path: str) -> str:
    name = unquote_to_bytes(path.removeprefix("/"))
    if len(name) > MAX_STRING or b"\0" in name:
        raise UriError(f"the name of the export is longer than {MAX_STRING} bytes or has a zero byte")
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise UriError("the name of the export is not UTF-8") from None


def _tls(user: str | None, host: str | None, query: dict[str, str]) -> Tls:
    # A unix socket has no name that a certificate could bear; by convention it is that of the machine to itself.
    return Tls(
        certificates=query.get("tls-certificates"),
        psk_file=query.get("tls-psk-file"),
        user=None if user is None else unquote_to_bytes(user).decode("utf-8", "replace"),
        hostname=query.get("tls-hostname") or host or "localhost",
    )
