"""A guest of a real QEMU for the stand-in of Nova: the swap is QEMU's own mirror and its change to the new disk."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from tests.support.guest import FILE_NODE, NODE, StorageDaemon, Writer
from tests.support.waiting import until

JOB = "swap"
#: Names of the new disk's node and its file's node in QEMU.
NEW, NEW_FILE = "new", "new-file"


class QemuGuest:
    """What ``tests.support.nova.Guest`` is, but with a hypervisor; it can be swapped once."""

    def __init__(self, path: str, pause: float = 0.0, program: type[StorageDaemon] = StorageDaemon) -> None:
        self.path = path
        self.mirror: str | None = None
        #: The old disk's file, which stays readable when it is deleted.
        self._old: int | None = None
        self.qemu = program(path)
        self.writer: Writer = self.qemu.start_writer()

    @property
    def acknowledged(self) -> dict[int, int]:
        return self.writer.acknowledged

    def copy_to(self, path: str) -> None:
        """Mirror the disk until both are alike, as libvirt's block copy does."""
        file = {"driver": "file", "node-name": NEW_FILE, "filename": path, "cache": {"direct": True}}
        self.qemu.qmp("blockdev-add", **{"driver": "raw", "node-name": NEW, "file": file})
        mirror: dict[str, Any] = {"job-id": JOB, "device": NODE, "target": NEW, "sync": "full"}
        self.qemu.qmp("blockdev-mirror", **mirror)
        self.mirror = path
        until(lambda: self._job() == "ready", "the mirror is ready", pause=0.02)

    def _job(self) -> str | None:
        return next((str(job["status"]) for job in self.qemu.qmp("query-jobs") if job["id"] == JOB), None)

    def pivot(self) -> None:
        """Change over to the new disk, and let go of the old one."""
        assert self.mirror is not None
        self._old = os.open(self.path, os.O_RDONLY)
        self.qemu.qmp("job-complete", id=JOB)
        until(lambda: self._job() is None, "the mirror ends", pause=0.01)
        assert self.qemu.root() == NEW
        for node in (NODE, FILE_NODE):
            self.qemu.qmp("blockdev-del", **{"node-name": node})
        self.path, self.mirror = self.mirror, None

    def abort(self) -> None:
        """End the mirror, if there is one under way, and let go of the new disk."""
        if self.mirror is None:
            return
        self.qemu.qmp("job-cancel", id=JOB)
        until(lambda: self._job() is None, "the mirror is given up", pause=0.01)
        self.qemu.qmp("blockdev-del", **{"node-name": NEW})
        self.mirror = None

    def check(self) -> None:
        """See that all that was acknowledged is on the disk, the newest of it nowhere else, and nothing failed."""
        assert self.qemu.files() & {self.path} == {self.path}
        self.writer.check(self.path, None if self._old is None else f"/proc/self/fd/{self._old}")
        assert self.writer.error is None, self.writer.error

    def stop(self) -> None:
        self.writer.stop()

    def end(self) -> None:
        """Power off."""
        self.qemu.__exit__(None, None, None)
        if self._old is not None:
            with contextlib.suppress(OSError):
                os.close(self._old)
            self._old = None
