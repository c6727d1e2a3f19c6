"""Small file systems to fill, to share blocks on, and to lay over a directory; for root only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.support.needs import missing

#: The smallest that mkfs.xfs makes; the image is sparse, so it costs a few megabytes.
SIZE = 300 * 1024**2
#: How file systems are made whose files can share blocks.
SHARING = {"xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"), "btrfs": ("mkfs.btrfs", "-q")}


@contextmanager
def mounted(directory: Path, *mount: str) -> Iterator[Path]:
    """Mount something on ``directory`` for the time of a block; skips the test where that is not allowed."""
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        missing("only root can mount")
    done = subprocess.run(["mount", *mount, str(directory)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"mount is not possible here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def tmpfs(directory: Path, options: str) -> Iterator[Path]:
    with mounted(directory, "-t", "tmpfs", "-o", options, "tmpfs"):
        yield directory


@contextmanager
def sharing(kind: str, directory: Path) -> Iterator[Path]:
    """A file system of that kind of SHARING."""
    name, *options = SHARING[kind]
    mkfs = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if mkfs is None:
        missing(f"{name} is not installed")
    image = directory.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run([mkfs, *options, str(image)], check=True)
    with mounted(directory, "-t", kind, "-o", "loop", str(image)):
        yield directory


def xfs(directory: Path) -> AbstractContextManager[Path]:
    """A file system whose files can share blocks."""
    return sharing("xfs", directory)
