"""The numbers of the NBD protocol, and the errors of its client.

The protocol is described in ``doc/proto.md`` of the NetworkBlockDevice project.  All numbers are big-endian.
"""

from __future__ import annotations

import errno
import os
import struct

# --- handshake -------------------------------------------------------------------------------------------------------

INIT_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OLD_STYLE_MAGIC = 0x00420281861253
OPTION_REPLY_MAGIC = 0x3E889045565A9

FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES = 1, 2
OPT_EXPORT_NAME, OPT_ABORT, OPT_STARTTLS, OPT_GO, OPT_STRUCTURED_REPLY, OPT_SET_META_CONTEXT = 1, 2, 5, 7, 8, 10
REP_ACK, REP_INFO, REP_META_CONTEXT, REP_ERROR = 1, 3, 4, 1 << 31
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3

#: What an option may be refused with: the errno it becomes, and what to say.
OPTION_ERRORS = {
    REP_ERROR + 1: (errno.EOPNOTSUPP, "does not know the option"),
    REP_ERROR + 2: (errno.EACCES, "forbids it by its policy"),
    REP_ERROR + 3: (errno.EINVAL, "finds the option invalid"),
    REP_ERROR + 4: (errno.EOPNOTSUPP, "cannot do that on its platform"),
    REP_ERROR + 5: (errno.EACCES, "wants TLS: use an nbds:// or nbds+unix:// address"),
    REP_ERROR + 6: (errno.ENOENT, "has no such export"),
    REP_ERROR + 7: (errno.ESHUTDOWN, "is shutting down"),
    REP_ERROR + 8: (errno.EINVAL, "wants its block sizes obeyed"),
    REP_ERROR + 9: (errno.EOVERFLOW, "finds the option too long"),
}

BASE_ALLOCATION = b"base:allocation"
MAX_STRING = 4096

# --- transmission ----------------------------------------------------------------------------------------------------

READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM = 1 << 1, 1 << 2, 1 << 3, 1 << 5
SEND_WRITE_ZEROES, CAN_MULTI_CONN = 1 << 6, 1 << 8

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 0, 1, 2, 3, 4, 6, 7
CMD_FLAG_FUA, CMD_FLAG_NO_HOLE = 1, 2

REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
CHUNK_DONE = 1
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_IS_ERROR, CHUNK_ERROR_OFFSET = 0, 1, 2, 5, 1 << 15, 32770
STATUS_ZERO = 2

REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
SIMPLE_REPLY = struct.Struct(">IIQ")  # magic, error, cookie
CHUNK_REST = struct.Struct(">I")  # the length, which follows what has the size of a simple reply
CHUNK_START = struct.Struct(">IHHQ")  # magic, flags, type, cookie
OPTION = struct.Struct(">QII")  # magic, option, length
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
U16, U32, U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
EXPORT = struct.Struct(">QH")  # size, transmission flags
BLOCK_SIZES = struct.Struct(">III")  # minimum, preferred, maximum
STATUS = struct.Struct(">II")  # length, flags
ERROR = struct.Struct(">IH")  # error, length of the message
HOLE = struct.Struct(">QI")  # offset, length

#: Numbers of the protocol are those of Linux; one that is none of them says no more than EIO.
ERRNOS = frozenset({1, 5, 12, 22, 28, 75, 95, 108})

# --- errors ----------------------------------------------------------------------------------------------------------


class NbdError(OSError):
    """The server broke the protocol; the connection is of no use any more."""

    def __init__(self, message: str, code: int = errno.EPROTO) -> None:
        super().__init__(code, message)


class Disconnected(NbdError):
    """The server ended the connection, or it was lost; ECONNRESET."""

    def __init__(self, message: str = "the NBD server closed the connection") -> None:
        super().__init__(message, errno.ECONNRESET)


class Refused(OSError):
    """The server answered with an error, as the protocol has it; the connection goes on."""


def refused(doing: str, code: int, message: bytes = b"") -> Refused:
    """Make the error of a reply; the server's own words are cut short and made printable."""
    number = code if code in ERRNOS else errno.EIO
    words = printable(message)
    return Refused(
        number, f"the NBD server failed to {doing}: {os.strerror(number)}" + (f" ({words})" if words else "")
    )


def printable(message: bytes) -> str:
    text = message[:200].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
