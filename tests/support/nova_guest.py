"""A guest of a real QEMU for the stand-in of Nova: the swap is QEMU's own mirror and its change to the new disk."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from tests.support.guest import BLOCK, BLOCKS, FILE_NODE, NODE, RealGuest, StorageDaemon, Writer
from tests.support.waiting import until


class QemuGuest:
    """What ``tests.support.plain_guest.Guest`` is, but with a hypervisor; a disk of it can be swapped once."""

    def __init__(
        self,
        path: str,
        pause: float = 0.0,
        program: type[StorageDaemon] = RealGuest,
        read_only: bool = False,
        beside: QemuGuest | None = None,
    ) -> None:
        """``beside``: another disk of the same guest.  What is opened ``read_only`` is never written to."""
        self.path = path
        self.mirror: str | None = None
        self.writes = not read_only
        #: The old disk's file, which stays readable when it is deleted, and what was on it at the change-over.
        self._old: int | None = None
        self._then = b""
        self._owns = beside is None
        self.qemu: StorageDaemon = program(path, read_only=read_only) if beside is None else beside.qemu
        #: Names of the disk's node, its file's node and its export; and of what the swap makes.
        self._node, self._file, self._export = (NODE, FILE_NODE, "e0")
        if beside is not None:
            self._node, self._file, self._export = ("second", "second-file", "e-second")
        self._new = f"new-{self._node}"
        self.writer: Writer | None = None
        if beside is not None:
            self.writer = self.qemu.add_disk(path, self._node)
        elif self.writes:
            self.writer = self.qemu.start_writer()

    @property
    def acknowledged(self) -> dict[int, int]:
        return self.writer.acknowledged if self.writer is not None else {}

    def copy_to(self, path: str) -> None:
        """Mirror the disk until both are alike, as libvirt's block copy does."""
        file = {"driver": "file", "node-name": f"{self._new}-f", "filename": path, "cache": {"direct": True}}
        self.qemu.qmp("blockdev-add", **{"driver": "raw", "node-name": self._new, "file": file})
        mirror: dict[str, Any] = {"job-id": self._new, "device": self._node, "target": self._new, "sync": "full"}
        self.qemu.qmp("blockdev-mirror", **mirror)
        self.mirror = path
        until(lambda: self._job() == "ready", "the mirror is ready", pause=0.02)

    def _job(self) -> str | None:
        return next((str(job["status"]) for job in self.qemu.qmp("query-jobs") if job["id"] == self._new), None)

    def pivot(self) -> None:
        """Change over to the new disk, and let go of the old one."""
        assert self.mirror is not None
        self._old = os.open(self.path, os.O_RDONLY)
        self.qemu.qmp("job-complete", id=self._new)
        until(lambda: self._job() is None, "the mirror ends", pause=0.01)
        exports = {export["id"]: export["node-name"] for export in self.qemu.qmp("query-block-exports")}
        assert exports[self._export] == self._new
        for node in (self._node, self._file):
            self.qemu.qmp("blockdev-del", **{"node-name": node})
        self._then = self._head(self._old)
        self.path, self.mirror = self.mirror, None

    def abort(self) -> None:
        """End the mirror, if there is one under way, and let go of the new disk."""
        if self.mirror is None:
            return
        self.qemu.qmp("job-cancel", id=self._new)
        until(lambda: self._job() is None, "the mirror is given up", pause=0.01)
        self.qemu.qmp("blockdev-del", **{"node-name": self._new})
        self.mirror = None

    @staticmethod
    def _head(fd: int) -> bytes:
        """The part of a disk that is written to."""
        return os.pread(fd, BLOCK * BLOCKS, 0)

    def check(self) -> None:
        """See that all that was acknowledged is on the disk, nothing of what came later elsewhere, and none failed."""
        assert self.path in self.qemu.files()
        old = None if self._old is None else f"/proc/self/fd/{self._old}"
        if self.writer is not None:
            self.writer.check(self.path, old)
            assert self.writer.error is None, self.writer.error
        if self._old is not None:
            assert os.readlink(str(old)) not in self.qemu.files(), "the old disk is still open"
            assert self._head(self._old) == self._then, "the old disk was written to behind the change-over"

    def stop(self) -> None:
        if self.writer is not None:
            self.writer.stop()

    def end(self) -> None:
        """Power off, or take out this disk of several."""
        self.stop()
        if self._owns:
            self.qemu.__exit__(None, None, None)
        if self._old is not None:
            with contextlib.suppress(OSError):
                os.close(self._old)
            self._old = None
