"""Where ``make bench-copy`` copies: file systems, loop devices, NBD servers, and the volumes to be copied."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.support.data import GIB, MIB
from tests.support.waiting import until

CHUNK = 4 * MIB
#: Threads that compare.
READERS = 2
#: Random volumes are made of turns of one block of so many bytes; whole chunks.
RANDOM = 16 * MIB
#: Extents of a tenth of a volume, about as a file system leaves them.
SMALL = 400 * 1024


class Absent(Exception):
    """What a row needs is not there; the table says what."""


# --- volumes ---------------------------------------------------------------------------------------------------------


@functools.cache
def _random_block() -> bytes:
    """A block of random bytes, twice, so that every turn of it is one slice."""
    return os.urandom(RANDOM) * 2


def random_piece(offset: int, length: int) -> bytes:
    """What a random volume of this process has there; within one piece of RANDOM bytes."""
    # Each piece begins elsewhere in the block, so that no two are equal and none is made for long.
    start = offset // RANDOM * 4099 % RANDOM + offset % RANDOM
    return _random_block()[start : start + length]


def fill_random(path: Path, size: int) -> None:
    """Random bytes everywhere."""
    with path.open("wb") as file:
        for offset in range(0, size, RANDOM):
            file.write(random_piece(offset, min(RANDOM, size - offset)))


def is_random(path: Path, size: int) -> bool:
    """Compare the first ``size`` bytes with what ``fill_random`` writes."""
    with path.open("rb") as file:

        def check(offset: int) -> bool:
            length = min(CHUNK, size - offset)
            return os.pread(file.fileno(), length, offset) == random_piece(offset, length)

        return _all(check, range(0, size, CHUNK))


def fill_tenth(path: Path, size: int) -> None:
    """A tenth of it in small extents, at odd places."""
    chance = random.Random(1)
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(size // 10 // SMALL):
            file.seek(chance.randrange(0, size - 2 * SMALL))
            file.write(chance.randbytes(chance.randrange(4096, 2 * SMALL)))


def fill_empty(path: Path, size: int) -> None:
    """One hole."""
    with path.open("wb") as file:
        file.truncate(size)


def fill_zeros(path: Path, size: int) -> None:
    """Zeros that were written, so that they take space."""
    zeros = bytes(16 * MIB)
    with path.open("wb") as file:
        for offset in range(0, size, len(zeros)):
            file.write(zeros[: size - offset])


KINDS: dict[str, Callable[[Path, int], None]] = {
    "random": fill_random,
    "tenth": fill_tenth,
    "empty": fill_empty,
    "zeros": fill_zeros,
}


def settle(path: Path) -> None:
    """Bring a file or device to the disk and out of the page cache."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same(one: Path, other: Path, size: int) -> bool:
    """Compare the first ``size`` bytes; what is a hole in both is not read."""
    with one.open("rb") as a, other.open("rb") as b:

        def check(part: tuple[int, int]) -> bool:
            offset, length = part
            return os.pread(a.fileno(), length, offset) == os.pread(b.fileno(), length, offset)

        extents = sorted([*_data(a.fileno(), size), *_data(b.fileno(), size)])
        return _all(check, _chunks(extents))


def _chunks(extents: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut starts and ends into offsets and lengths; what two extents have in common comes once."""
    reached = 0
    for start, end in extents:
        for offset in range(max(start, reached), end, CHUNK):
            yield offset, min(CHUNK, end - offset)
        reached = max(reached, end)


Part = TypeVar("Part")


def _all(check: Callable[[Part], bool], parts: Iterable[Part]) -> bool:
    """Tell whether every part passes, looking at several at once."""
    with ThreadPoolExecutor(READERS) as pool:
        try:
            return all(pool.map(check, parts))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
            offset = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            start, offset = offset, size  # a device: all of it
        yield start, offset


# --- file systems and devices ----------------------------------------------------------------------------------------


def run(*argv: str | Path) -> str:
    """Run a command; raises Absent where it cannot be had."""
    try:
        done = subprocess.run([str(word) for word in argv], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise Absent(f"{argv[0]} is not installed") from None
    if done.returncode:
        raise Absent(f"{argv[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


@contextlib.contextmanager
def disk(directory: Path, room: int) -> Iterator[Path]:
    yield directory


@contextlib.contextmanager
def tmpfs(directory: Path, room: int) -> Iterator[Path]:
    place = Path("/dev/shm") / f"migrator-bench-{os.getpid()}"
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        raise Absent("no /dev/shm") from error
    if free < room:
        raise Absent(f"/dev/shm has {free // MIB} MiB, wanted {room // MIB}")
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


@contextlib.contextmanager
def xfs(directory: Path, room: int) -> Iterator[Path]:
    image, place = directory / "xfs.img", directory / "xfs"
    # Written once, and not given back: whoever came first would otherwise pay for the blocks of the image.
    fill_zeros(image, room + 512 * MIB)
    settle(image)
    run("mkfs.xfs", "-q", "-f", "-K", image)
    place.mkdir()
    try:
        with loop(image) as device:
            run("mount", device, place)
            try:
                yield place
            finally:
                run("umount", place)
    finally:
        place.rmdir()
        image.unlink()


@contextlib.contextmanager
def loop(image: Path) -> Iterator[Path]:
    """A block device over a file, with direct I/O."""
    device = run("losetup", "--find", "--show", "--direct-io=on", image)
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


PLACES = {"disk": disk, "xfs": xfs, "tmpfs": tmpfs}


# --- NBD servers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """One way to serve a file: which program, over what."""

    program: str
    over: str

    @contextlib.contextmanager
    def serve(self, path: Path, directory: Path) -> Iterator[str]:
        """Serve a file until the end of the context; yields its address."""
        where = directory / "nbd.sock"
        where.unlink(missing_ok=True)
        port, keys = _free_port(), _psk(directory)
        argv = (self._nbdkit if self.program == "nbdkit" else self._qemu)(path, where, port, keys)
        try:
            server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            raise Absent(f"{argv[0]} is not installed") from None
        try:
            until(lambda: server.poll() is not None or self._listens(where, port), "a server that listens")
            if server.poll() is not None:
                raise Absent(f"{' '.join(argv)}: exit status {server.returncode}")
            yield self._address(where, port, keys)
        finally:
            server.kill()
            server.wait()

    def _nbdkit(self, path: Path, where: Path, port: int, keys: Path) -> list[str]:
        over = ["-U", str(where)] if self.over == "unix" else ["-i", "127.0.0.1", "-p", str(port)]
        tls = ["--tls=require", f"--tls-psk={keys}"] if self.over == "tls" else []
        return ["nbdkit", "-f", *over, *tls, "file", str(path)]

    def _qemu(self, path: Path, where: Path, port: int, keys: Path) -> list[str]:
        over = ["-k", str(where)] if self.over == "unix" else ["-b", "127.0.0.1", "-p", str(port)]
        creds = f"tls-creds-psk,id=t0,endpoint=server,dir={keys.parent}"
        tls = ["--object", creds, "--tls-creds", "t0"] if self.over == "tls" else []
        cache = "writeback" if str(path).startswith("/dev/shm") else "none"
        return [
            "qemu-nbd",
            "-t",
            "-f",
            "raw",
            "-e",
            "32",
            "--discard=unmap",
            f"--cache={cache}",
            *over,
            *tls,
            str(path),
        ]

    def _listens(self, where: Path, port: int) -> bool:
        family, address = (socket.AF_UNIX, str(where)) if self.over == "unix" else (socket.AF_INET, ("127.0.0.1", port))
        with socket.socket(family) as probe:
            return probe.connect_ex(address) == 0

    def _address(self, where: Path, port: int, keys: Path) -> str:
        return {
            "unix": f"nbd+unix:///?socket={where}",
            "tcp": f"nbd://127.0.0.1:{port}/",
            "tls": f"nbds://bench@127.0.0.1:{port}/?tls-psk-file={keys}",
        }[self.over]


SERVERS = [Server(program, over) for program in ("nbdkit", "qemu-nbd") for over in ("unix", "tcp", "tls")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _psk(directory: Path) -> Path:
    keys = directory / "keys.psk"
    if not keys.exists():
        keys.touch(mode=0o600)
        keys.write_text(f"bench:{os.urandom(32).hex()}\n", encoding="ascii")
    return keys


# --- words and numbers ------------------------------------------------------------------------------------------------


def machine(directory: Path) -> str:
    """One line about where this runs."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    kind = run("stat", "-f", "-c", "%T", directory)
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, disk: {kind}, load {os.getloadavg()[0]:.1f}"
    )


def gib(text: str) -> float:
    """A size, such as ``4``, ``4G`` or ``64M``, in GiB; raises ValueError."""
    unit = {"G": 1.0, "M": 1 / 1024}.get(text[-1:].upper())
    return float(text) if unit is None else float(text[:-1]) * unit
