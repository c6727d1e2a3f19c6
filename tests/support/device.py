"""A block device that fails: a loop device on memory which is cut short behind its back.

The kernel answers EIO to reads beyond the cut, and to writes there once the memory may not grow again.  For root only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.needs import missing

_LOOP_SET_FD, _LOOP_CLR_FD, _LOOP_CTL_GET_FREE = 0x4C00, 0x4C01, 0x4C82
#: Times that another process may take the free device before we do.
_TRIES = 20


class Device:
    """The device below a mounted ext4 without a journal, whose tables lie at its beginning."""

    def __init__(self, memory: int, path: str, directory: Path) -> None:
        self._memory = memory
        self._lost = b""
        self._at = 0
        self.path = path
        self.directory = directory

    def cut(self, at: int, *, for_good: bool = False) -> None:
        """Let reads at ``at`` and beyond fail, and with ``for_good`` writes too; then it cannot be mended."""
        self._at = at
        self._lost = b"" if for_good else os.pread(self._memory, os.fstat(self._memory).st_size - at, at)
        self._size = os.fstat(self._memory).st_size
        os.ftruncate(self._memory, at)
        if for_good:
            fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)

    def mend(self) -> None:
        """Give back what was cut off, as it was."""
        os.ftruncate(self._memory, self._size)
        os.pwrite(self._memory, self._lost, self._at)
        self._lost = b""


@contextlib.contextmanager
def failing_device(directory: Path, size: int) -> Iterator[Device]:
    """Mount one on ``directory`` for the time of a block; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        missing("only root can set up a loop device")
    mkfs = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if mkfs is None:
        missing("mkfs.ext4 is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    memory = os.memfd_create("device", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with contextlib.ExitStack() as ends:
        ends.callback(os.close, memory)
        os.ftruncate(memory, size)
        path = _attach(memory)
        ends.callback(_detach, path)
        options = ["-O", "^has_journal", "-E", "lazy_itable_init=0", "-m", "0"]
        subprocess.run([mkfs, "-q", "-F", *options, path], check=True)
        done = subprocess.run(["mount", "-o", "noatime", path, str(directory)], capture_output=True, check=False)
        if done.returncode != 0:
            missing(f"mount is not possible here: {done.stderr.decode().strip()}")
        ends.callback(subprocess.run, ["umount", "--lazy", str(directory)], check=True)
        yield Device(memory, path, directory)


def _attach(memory: int) -> str:
    """Lay a free loop device over the memory; return its path."""
    for _ in range(_TRIES - 1):
        try:
            with open("/dev/loop-control", "rb", buffering=0) as control:
                path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            with open(path, "r+b", buffering=0) as device:
                fcntl.ioctl(device, _LOOP_SET_FD, memory)
        except OSError as error:
            if error.errno != errno.EBUSY:  # taken by somebody else in between
                missing(f"no loop device is to be had: {error}")
        else:
            return path
    return missing("every loop device was taken by others")


def _detach(path: str) -> None:
    with open(path, "r+b", buffering=0) as device:
        fcntl.ioctl(device, _LOOP_CLR_FD, 0)


def drop_cache(path: Path) -> None:
    """Have the next read of the file ask the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
