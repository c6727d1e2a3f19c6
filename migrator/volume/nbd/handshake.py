"""What client and server agree on before the first byte of data: TLS, structured replies, block status, the export.

Every reply is bounded in length and in number, and all of the handshake in time.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from migrator.volume.nbd import protocol as p
from migrator.volume.nbd import tls
from migrator.volume.nbd.transport import PlainTransport, Transport, deadline_for
from migrator.volume.nbd.uri import Address, Tls

#: Replies to one option: informations and contexts come in handfuls.
_MAX_REPLIES = 64
#: The longest reply of use is a context's name or an error's message; both are strings of the protocol.
_MAX_REPLY = p.MAX_STRING + 64
_MAX_SIZE = (1 << 63) - 1
#: What the protocol recommends where the server names no sizes: any server takes requests of at most 32 MiB.
_MAX_REQUEST = 32 << 20
_MAX_MINIMUM = 64 << 10
_PREFERRED = 4096


@dataclass(frozen=True)
class Export:
    """What the server offers: ``flags`` of the transmission, requests it likes, and how it answers."""

    size: int
    flags: int
    minimum: int = 1
    preferred: int = _PREFERRED
    maximum: int = _MAX_REQUEST
    is_structured: bool = False
    #: The number of base:allocation; None where the server cannot tell holes.
    context: int | None = None

    def has(self, flag: int) -> bool:
        return bool(self.flags & flag)


class Refusal(p.Refused):
    """The server refuses an option; ``type`` is its reply."""

    def __init__(self, type_: int, message: bytes) -> None:
        code, words = p.OPTION_ERRORS.get(type_, (errno.EPROTO, f"refuses with the unknown reply {type_:#x}"))
        own = p.printable(message)
        super().__init__(code, f"the NBD server {words}" + (f" ({own})" if own else ""))
        self.type = type_

    @property
    def is_unknown(self) -> bool:
        """True where the server does not know the option, or not in this case; the client can do without."""
        return self.type in (p.REP_ERROR + 1, p.REP_ERROR + 2, p.REP_ERROR + 3, p.REP_ERROR + 4)


def negotiate(plain: PlainTransport, address: Address) -> tuple[Transport, Export]:
    """Agree on an export; raises OSError, and then the caller closes ``plain``."""
    talk = _Talk(plain)
    no_zeroes = talk.greet()
    if address.tls is not None:
        talk.start_tls(address.tls)
    try:
        return talk.transport, talk.choose(address.export.encode(), no_zeroes)
    except BaseException:
        talk.transport.close()
        raise


class _Talk:
    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._deadline = deadline_for(transport.timeout)

    # --- the order of things

    def greet(self) -> bool:
        """Exchange magic numbers; return whether the padding of old is left out."""
        magic, style = struct.unpack(">QQ", self._take(16))
        if magic != p.INIT_MAGIC:
            raise p.NbdError("what answers is not an NBD server")
        if style != p.OPTION_MAGIC:
            old = style == p.OLD_STYLE_MAGIC
            raise p.NbdError("the NBD server speaks the old style only" if old else "the NBD server's style is unknown")
        (flags,) = p.U16.unpack(self._take(2))
        if not flags & p.FLAG_FIXED_NEWSTYLE:
            raise p.NbdError("the NBD server does not speak the fixed new style")
        answer = flags & (p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES)
        self._send(p.U32.pack(answer))
        return bool(flags & p.FLAG_NO_ZEROES)

    def start_tls(self, wanted: Tls) -> None:
        try:
            for _, _ in self._replies(p.OPT_STARTTLS, b""):
                raise p.NbdError("the NBD server answers the start of TLS with something else")
        except Refusal as refusal:
            raise tls.TlsError(f"TLS is wanted, but {refusal.strerror}") from None
        plain = self.transport
        if not isinstance(plain, PlainTransport):
            raise p.NbdError("TLS is on already")
        self.transport = tls.start(plain, wanted)

    def choose(self, name: bytes, no_zeroes: bool) -> Export:
        structured = self._structured_replies()
        context = self._allocation(name) if structured else None
        sizes: dict[str, int] = {}
        try:
            offered = self._go(name, sizes)
        except Refusal as refusal:
            if refusal.type != p.REP_ERROR + 1:
                raise
            offered = self._export_name(name, no_zeroes)
        return _checked(Export(*offered, **sizes, is_structured=structured, context=context))

    def _structured_replies(self) -> bool:
        try:
            for _, _ in self._replies(p.OPT_STRUCTURED_REPLY, b""):
                raise p.NbdError("the NBD server answers structured replies with something else")
        except Refusal as refusal:
            if not refusal.is_unknown:
                raise
            return False
        return True

    def _allocation(self, name: bytes) -> int | None:
        query = _string(name) + p.U32.pack(1) + _string(p.BASE_ALLOCATION)
        context: int | None = None
        try:
            for type_, data in self._replies(p.OPT_SET_META_CONTEXT, query):
                if type_ != p.REP_META_CONTEXT or data[4:] != p.BASE_ALLOCATION or context is not None:
                    raise p.NbdError("the NBD server answers with a context that was not asked for")
                (context,) = p.U32.unpack(data[:4])
        except Refusal as refusal:
            if not refusal.is_unknown:
                raise
        return context

    def _go(self, name: bytes, sizes: dict[str, int]) -> tuple[int, int]:
        query = _string(name) + p.U16.pack(1) + p.U16.pack(p.INFO_BLOCK_SIZE)
        offered: tuple[int, int] | None = None
        for type_, data in self._replies(p.OPT_GO, query):
            if type_ != p.REP_INFO or len(data) < 2:
                raise p.NbdError("the NBD server describes the export with an unknown reply")
            (kind,) = p.U16.unpack(data[:2])
            if kind == p.INFO_EXPORT:
                size, flags = _unpack(p.EXPORT, data[2:])
                offered = size, flags
            elif kind == p.INFO_BLOCK_SIZE:
                sizes.update(zip(("minimum", "preferred", "maximum"), _unpack(p.BLOCK_SIZES, data[2:]), strict=True))
        if offered is None:
            raise p.NbdError("the NBD server opened the export without telling its size")
        return offered

    def _export_name(self, name: bytes, no_zeroes: bool) -> tuple[int, int]:
        """Open the export in the way of servers that know no other; they can only hang up on a wrong name."""
        self._send(p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, len(name)) + name)
        size, flags = p.EXPORT.unpack(self._take(p.EXPORT.size))
        if not no_zeroes:
            self._take(124)
        return size, flags

    # --- options and their replies

    def _replies(self, option: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Send an option; yield its replies up to the acknowledgement; raises Refusal."""
        self._send(p.OPTION.pack(p.OPTION_MAGIC, option, len(data)) + data)
        for _ in range(_MAX_REPLIES):
            magic, answered, type_, length = p.OPTION_REPLY.unpack(self._take(p.OPTION_REPLY.size))
            if magic != p.OPTION_REPLY_MAGIC:
                raise p.NbdError(f"the NBD server's reply begins with {magic:#x}")
            if answered != option:
                raise p.NbdError(f"the NBD server replies to option {answered} instead of {option}")
            if length > _MAX_REPLY:
                raise p.NbdError(f"the NBD server's reply is {length} bytes long")
            reply = self._take(length)
            if type_ == p.REP_ACK:
                if reply:
                    raise p.NbdError("the NBD server's acknowledgement has data")
                return
            if type_ >= p.REP_ERROR:
                raise Refusal(type_, reply)
            yield type_, reply
        raise p.NbdError(f"the NBD server sent {_MAX_REPLIES} replies to one option")

    def _take(self, length: int) -> bytes:
        buffer = bytearray(length)
        self.transport.receive(memoryview(buffer), self._deadline)
        return bytes(buffer)

    def _send(self, data: bytes) -> None:
        self.transport.send([data], self._deadline)


def _string(text: bytes) -> bytes:
    return p.U32.pack(len(text)) + text


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise p.NbdError(f"the NBD server describes the export in {len(data)} bytes instead of {layout.size}")
    return layout.unpack(data)


def _checked(export: Export) -> Export:
    """Refuse what no server can mean; raises NbdError."""
    minimum, preferred, maximum = export.minimum, export.preferred, export.maximum
    if export.size > _MAX_SIZE:
        raise p.NbdError(f"the NBD server offers {export.size} bytes")
    powers = all(size and not size & (size - 1) for size in (minimum, preferred))
    if not powers or minimum > _MAX_MINIMUM or preferred < minimum or maximum < minimum:
        raise p.NbdError(f"the NBD server's block sizes are {minimum}, {preferred}, {maximum}")
    if export.size % minimum:
        raise p.NbdError(
            f"the NBD server offers {export.size} bytes in blocks of {minimum}: the last cannot be reached"
        )
    return Export(**{**export.__dict__, "maximum": min(maximum, _MAX_REQUEST) // minimum * minimum})
