"""A running guest of a real QEMU, with a program that writes numbered, checksummed blocks to its disk.

    guest = StorageDaemon(path)     qemu-storage-daemon: the guest is a client of its block layer; starts in 0.1 s
    guest = RealGuest(path)         qemu-system-x86_64, not booted: a virtio-blk disk and a client of the same node
    with guest:
        writer = guest.start_writer()          blocks are acknowledged as QEMU answers them, one after the other
        guest.qmp_path                         its QMP socket: one client at a time, as QEMU has it
        guest.qmp("query-jobs")                one command, from a connection of its own
        guest.kill()                           SIGKILL, as a crash of the hypervisor
        writer.check(destination, source)      all that was acknowledged is there; nothing new is at the source

The disk is ``path``, a raw file that exists; ``read_only=True`` opens it so, and then nothing can write.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from migrator.volume.nbd.pool import Pool
from migrator.volume.nbd.uri import parse_uri
from tests.support.needs import missing
from tests.support.waiting import until

BLOCK = 4096
#: Blocks that the writer writes in turn, over and over.
BLOCKS = 256
#: Names of the disk's node and its file's node in QEMU.
NODE, FILE_NODE = "vol", "f0"
SECONDS = 20.0


def block(place: int, number: int) -> bytes:
    """What the write with this number puts at this place."""
    head = f"{place}:{number}:".encode()
    body = head + bytes(BLOCK - 32 - len(head))
    return body + hashlib.sha256(body).digest()


def _head(path: str | Path) -> bytes:
    """The part of a disk that is written to: the whole may be large."""
    with open(path, "rb") as disk:
        return disk.read(BLOCK * BLOCKS)


class Writer:
    """Writes without a pause; every tenth write asks QEMU to bring it to the disk, as a journal does."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        #: Place → number of the last write there that was acknowledged.
        self.acknowledged: dict[int, int] = {}
        self.error: OSError | None = None
        #: The longest that a write took, seconds.
        self.slowest = 0.0
        #: Of the write under way, which may or may not be on the disk.
        self._trying: tuple[int, int] = (0, 0)
        self._ending = threading.Event()
        self._pool = Pool(parse_uri(uri), timeout=SECONDS, connections=1)
        self._thread = threading.Thread(target=self._write_forever, daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Number of the newest acknowledged write."""
        return max(self.acknowledged.values(), default=0)

    def goes_on(self, blocks: int = 20) -> None:
        """Wait until so many further writes were acknowledged."""
        before = self.count
        until(lambda: self.error or self.count >= before + blocks, "the guest writes on", pause=0.002)
        assert self.error is None, self.error

    def _write_forever(self) -> None:
        number = 0
        try:
            while not self._ending.wait(0.0005):
                place, number = number % BLOCKS, number + 1
                self._trying = (place, number)
                began = time.monotonic()
                self._write(place, number)
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.acknowledged[place] = number
        except OSError as error:
            self.error = error

    def _write(self, place: int, number: int) -> None:
        with self._pool.borrow() as connection:
            connection.write(place * BLOCK, memoryview(block(place, number)), fua=number % 10 == 0)

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(SECONDS + 10)
        self._pool.close()

    def check(self, destination: str | Path, source: str | Path | None = None) -> None:
        """Stop, and see that all that was acknowledged is on ``destination``.

        With ``source``, a file that was kept open or linked elsewhere: the newest writes are not there.
        """
        self.stop()
        assert self.acknowledged
        found = _head(destination)
        trying = {self._trying[0]: self._trying[1]}
        for place, number in self.acknowledged.items():
            wanted = {block(place, number), block(place, trying.get(place, number))}
            assert found[place * BLOCK : (place + 1) * BLOCK] in wanted, (place, number)
        if source is not None:
            newest = max(self.acknowledged, key=lambda place: self.acknowledged[place])
            old = _head(source)[newest * BLOCK : (newest + 1) * BLOCK]
            assert old != block(newest, self.acknowledged[newest]), "the source was written to after the pivot"


class StorageDaemon:
    """qemu-storage-daemon with one disk; everything of it is gone at the end of its context."""

    program = "qemu-storage-daemon"

    def __init__(self, path: str | Path, *, read_only: bool = False, qmp_path: str | Path | None = None) -> None:
        if shutil.which(self.program) is None:
            missing(f"{self.program} is not installed: tests/prepare does it")
        self.path, self.read_only = str(path), read_only
        # The path of a unix socket has at most 107 bytes, and a test's own folder often more.
        self.folder = Path(tempfile.mkdtemp(prefix="guest-"))
        self.qmp_path = Path(qmp_path) if qmp_path is not None else self.folder / "qmp"
        self._nbd = self.folder / "nbd"
        self.writers: list[Writer] = []
        self.start()

    def start(self) -> None:
        """Start it, also again after ``kill``."""
        for left in (self.qmp_path, self._nbd):
            left.unlink(missing_ok=True)
        die = ["setpriv", "--pdeathsig", "KILL"]  # killed when the tests are
        with (self.folder / "log").open("ab") as log:
            self.popen = subprocess.Popen([*die, *self._command()], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until(self._listens, f"{self.program} listens", pause=0.005)
        self._serve()

    def _listens(self) -> bool:
        assert self.popen.poll() is None, (self.folder / "log").read_text()
        connection = self._greeted()  # not there yet, or there and nobody listens
        if connection is not None:
            connection.close()
        return connection is not None

    def _disk(self) -> list[str]:
        mode = "on" if self.read_only else "off"
        file = f"driver=file,node-name={FILE_NODE},filename={self.path},cache.direct=on,read-only={mode}"
        return [file, f"driver=raw,node-name={NODE},file={FILE_NODE},cache.direct=on,read-only={mode}"]

    def _command(self) -> list[str]:
        monitor = ["--chardev", f"socket,path={self.qmp_path},server=on,wait=off,id=c", "--monitor", "chardev=c"]
        return [self.program, *monitor, *(word for node in self._disk() for word in ("--blockdev", node))]

    def _serve(self) -> None:
        self.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(self._nbd)}})
        export = {"type": "nbd", "id": "e0", "node-name": NODE, "name": NODE, "writable": not self.read_only}
        self.qmp("block-export-add", **export)

    def add_disk(self, path: str | Path, name: str) -> Writer:
        """Give the guest another disk, and begin to write to it."""
        file = {"driver": "file", "node-name": f"{name}-file", "filename": str(path), "cache": {"direct": True}}
        self.qmp("blockdev-add", **file)
        raw = {"driver": "raw", "node-name": name, "file": f"{name}-file", "cache": {"direct": True}}
        self.qmp("blockdev-add", **raw)
        self.qmp(
            "block-export-add", **{"type": "nbd", "id": f"e-{name}", "node-name": name, "name": name}, writable=True
        )
        return self.start_writer(name)

    def start_writer(self, name: str = NODE) -> Writer:
        """Begin to write, as a program in the guest does."""
        writer = Writer(f"nbd+unix:///{name}?socket={self._nbd}")
        self.writers.append(writer)
        writer.goes_on()
        return writer

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Return the answer to one command; raises AssertionError for an error."""
        connection = until(self._greeted, "the monitor is free", pause=0.005)
        assert connection is not None
        with connection, connection.makefile("rw", encoding="utf-8") as lines:
            for number, (name, values) in enumerate([("qmp_capabilities", {}), (command, arguments)]):
                lines.write(json.dumps({"execute": name, "arguments": values, "id": number}) + "\n")
                lines.flush()
                answer = json.loads(lines.readline())
                while answer.get("id") != number:
                    answer = json.loads(lines.readline())
                assert "return" in answer, (name, answer)
        return answer["return"]

    def _greeted(self) -> socket.socket | None:
        """A connection, or None: QEMU hangs up on who comes while it takes leave of another client."""
        try:
            return self.hold_monitor()
        except OSError:
            return None

    def hold_monitor(self) -> socket.socket:
        """Be the one client that the monitor serves, until the connection is closed."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(SECONDS)
            connection.connect(str(self.qmp_path))
            if not connection.recv(65536):
                raise ConnectionResetError("the monitor hung up")
        except OSError:
            connection.close()
            raise
        return connection

    def root(self) -> str:
        """Name of the node that the guest's disk is on."""
        (export,) = self.qmp("query-block-exports")
        return str(export["node-name"])

    def files(self) -> set[str]:
        """Files that QEMU has open, from the kernel."""
        folder = Path(f"/proc/{self.popen.pid}/fd")
        return {os.readlink(each) for each in folder.iterdir() if each.is_symlink()}

    def kill(self) -> None:
        """SIGKILL, as a crash of the hypervisor; ``start`` may follow."""
        self.popen.kill()
        self.popen.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        for writer in self.writers:
            writer.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class RealGuest(StorageDaemon):
    """qemu-system-x86_64 that was not booted: a virtio-blk disk, and a block client of the same QEMU that writes."""

    program = "qemu-system-x86_64"

    def _command(self) -> list[str]:
        machine = ["-S", "-M", "q35", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]
        nodes = [word for node in self._disk() for word in ("-blockdev", node)]
        device = ["-device", f"virtio-blk-pci,drive={NODE},share-rw=on,id=disk0"]
        return [self.program, *machine, "-qmp", f"unix:{self.qmp_path},server=on,wait=off", *nodes, *device]

    def root(self) -> str:
        (disk,) = (each for each in self.qmp("query-block") if each.get("qdev", "").find("disk0") >= 0)
        return str(disk["inserted"]["node-name"])
