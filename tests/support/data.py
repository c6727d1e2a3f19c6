"""Data to move, and how to tell that it is the same afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

PIECE = 1 << 16
_NOTHING = bytes(PIECE)
MIB = 1024**2
GIB = 1024**3


def write_pattern(path: Path, size: int, seed: int, data_share: float = 0.3) -> None:
    """Fill an existing sparse file of ``size`` bytes with random extents and holes, odd offsets included."""
    chance = random.Random(seed)
    written = 0
    with path.open("r+b") as file:
        while written < size * data_share:
            length = min(chance.randrange(1, 4 * MIB), size)
            start = chance.randrange(0, size - length + 1)
            file.seek(start)
            file.write(chance.randbytes(length))
            written += length
        # The last bytes are where tails get lost.
        file.seek(size - 513)
        file.write(chance.randbytes(513))
        file.flush()
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """SHA-256 of the whole file, holes as zeros."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """The same for two files of the same bytes, whatever is allocated: of the size, and of all pieces but zeros."""
    size = path.stat().st_size
    told = hashlib.sha256(str(size).encode())
    reached = 0
    with path.open("rb", buffering=0) as file:
        for start, end in data_extents(file.fileno(), size):
            for piece in range(max(start // PIECE * PIECE, reached), end, PIECE):
                data = os.pread(file.fileno(), PIECE, piece)
                if data != _NOTHING[: len(data)]:
                    told.update(piece.to_bytes(8, "little") + data)
                reached = piece + PIECE
    return told.hexdigest()


def allocated(path: Path) -> int:
    """Bytes that the file occupies on disk."""
    return path.stat().st_blocks * 512


def data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and end of every range that is not a hole; a hole reads as zeros by definition."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        offset = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, offset


def same_bytes(one: Path, other: Path) -> bool:
    """Compare two files byte by byte, sizes included; what is a hole in both is not read."""
    size = one.stat().st_size
    if other.stat().st_size != size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        places = [*data_extents(a.fileno(), size), *data_extents(b.fileno(), size)]
        for start, end in places:
            for offset in range(start, end, 4 * MIB):
                length = min(4 * MIB, end - offset)
                if os.pread(a.fileno(), length, offset) != os.pread(b.fileno(), length, offset):
                    return False
    return True


def ext4_image(path: Path, size: int, tree: Path) -> None:
    """Make ``path`` an ext4 file system of ``size`` bytes that holds the files of ``tree``."""
    path.touch()
    os.truncate(path, size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", str(tree), str(path)], check=True, env=_sbin())


def check_ext4(path: Path) -> None:
    """Raise CalledProcessError unless the file system is clean."""
    subprocess.run(["e2fsck", "-fn", str(path)], check=True, capture_output=True, env=_sbin())


def _sbin() -> dict[str, str]:
    return {**os.environ, "PATH": os.environ["PATH"] + ":/sbin:/usr/sbin"}
