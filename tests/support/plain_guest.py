"""A server's disk without a hypervisor: a thread that writes to a file, and to a second one while it is copied."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import threading

BLOCK = 4096
#: Blocks that a guest writes in turn, over and over.
BLOCKS = 256


class Image:
    """A file that a hypervisor has open, with the locks by which others see that (QEMU: bytes from 100 on)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 100, 4, 0))

    def close(self) -> None:
        """Close it, once: by then the number may be that of another guest's disk."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Guest:
    """A server's disk and a program that writes numbered, checksummed blocks to it without a pause."""

    writes = True

    def __init__(self, path: str, pause: float = 0.001) -> None:
        self._disk = Image(path)
        self._mirror: Image | None = None
        self._pause = pause
        self.acknowledged: dict[int, int] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write_forever, daemon=True)
        self._thread.start()

    @property
    def path(self) -> str:
        return self._disk.path

    @property
    def mirror(self) -> str | None:
        return self._mirror.path if self._mirror else None

    @staticmethod
    def block(place: int, number: int) -> bytes:
        head = f"{place}:{number}:".encode()
        body = head + bytes(BLOCK - 32 - len(head))
        return body + hashlib.sha256(body).digest()

    def _write_forever(self) -> None:
        number = 0
        while not self._ending.wait(self._pause):
            place, number = number % BLOCKS, number + 1
            with self._lock:
                for image in filter(None, (self._disk, self._mirror)):
                    os.pwrite(image.fd, self.block(place, number), place * BLOCK)
                self.acknowledged[place] = number

    def copy_to(self, path: str) -> None:
        """Copy the disk while the guest writes to both."""
        with self._lock:
            self._mirror = Image(path)
        for place in range(BLOCKS):
            with self._lock:
                os.pwrite(self._mirror.fd, os.pread(self._disk.fd, BLOCK, place * BLOCK), place * BLOCK)

    def pivot(self) -> None:
        with self._lock:
            assert self._mirror is not None
            self._disk.close()
            self._disk, self._mirror = self._mirror, None

    def abort(self) -> None:
        """End the copy, if there is one under way; what was changed over to stays."""
        with self._lock:
            if self._mirror is not None:
                self._mirror.close()
                self._mirror = None

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(10)

    def end(self) -> None:
        """Power off: nothing is open any more."""
        self.stop()
        self.abort()
        self._disk.close()

    def check(self) -> None:
        """See that every acknowledged block is on the disk that the guest has, by its path."""
        self.stop()
        with open(self.path, "rb") as disk:
            data = disk.read(BLOCK * BLOCKS)
        for place, number in self.acknowledged.items():
            found = data[place * BLOCK : (place + 1) * BLOCK]
            assert hashlib.sha256(found).digest() == hashlib.sha256(self.block(place, number)).digest(), (place, number)
