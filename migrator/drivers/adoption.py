"""Taking over files that lie in a pool's directory already, and saying of each whether that can be done.

A file can be taken if it is a plain one with no other hard link, not ours yet, not empty, and not open anywhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator

from migrator.drivers import directory as directories
from migrator.drivers.base import Adoptable
from migrator.drivers.directory import Directory
from migrator.drivers.names import source_name
from migrator.errors import InvalidInput

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}
_OURS = "it is managed already"
_OPEN = "it is open, somebody uses it"


def listed(here: Directory) -> list[Adoptable]:
    """Everything in the directory by name, but for directories and hidden files."""
    ours = here.objects()
    knows = leases_tell(here)
    with os.scandir(here.fd) as entries:
        found = [
            _entry(here, entry, entry.name in ours, knows)
            for entry in entries
            if not entry.name.startswith(".") and not entry.is_dir(follow_symlinks=False)
        ]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: str(entry.reference))


def _entry(here: Directory, entry: os.DirEntry[str], ours: bool, knows: bool) -> Adoptable | None:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # gone since the directory was read
        return None
    # A name that is no UTF-8 is shown as well as it can be, and refused.
    shown = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
    reference = {"source-name": shown}
    if ours:
        return Adoptable(reference, str(found.st_ino), found.st_size, _OURS, entry.name)
    reason = next(_reasons(here, entry.name, found, knows), None)
    return Adoptable(reference, str(found.st_ino), found.st_size, reason)


def _reasons(here: Directory, name: str, found: os.stat_result, knows: bool) -> Iterator[str]:
    if not stat.S_ISREG(found.st_mode):
        yield f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'not a regular file')}"
    try:
        source_name({"source-name": name})
    except InvalidInput:
        yield "its name cannot be asked for; rename it"
    if found.st_nlink > 1:
        yield "it has other hard links"
    if found.st_size == 0:
        yield "it is empty"
    if knows and _is_open(here, name):
        yield _OPEN


def take(here: Directory, found_name: str, name: str) -> int:
    """Give a file our name, durably, and return its size in bytes; raises InvalidInput, OSError."""
    old, new = look(here, found_name), here.find(name)
    if old is None and new is not None:  # an earlier call did it
        here.sync()
        return new.st_size
    _check(here, found_name, old, new)
    here.mark(name)
    if new is None and not directories.link(here, found_name, here, name):
        os.rename(found_name, name, src_dir_fd=here.fd, dst_dir_fd=here.fd)
    if here.get(name).st_nlink > 2:
        here.remove(name)
        raise OSError(errno.EBUSY, "another call takes it at the same time", found_name)
    here.sync()
    with here.file(name, os.O_RDONLY) as fd:
        os.fsync(fd)
    here.unlink(found_name)
    here.sync()
    return here.get(name).st_size


def look(here: Directory, name: str) -> os.stat_result | None:
    """Return what ``name`` is like if it is a regular file, None if there is nothing; raises InvalidInput."""
    try:
        return here.find(name)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENAMETOOLONG):
            raise
        raise InvalidInput(field="source-name", reason=f"{name!r}: {error.strerror}") from error


def _check(here: Directory, name: str, old: os.stat_result | None, new: os.stat_result | None) -> None:
    """Raise InvalidInput unless ``name`` is a file of no one else's, or a repeated call has only to go on."""
    same = old is not None and new is not None and os.path.samestat(old, new)
    refusals = [
        (old is None, "is not in the pool"),
        (here.origin(name) is not None, "is an object of the pool already"),
        (new is not None and not same, "cannot be taken, its new name is in use"),
        (old is not None and old.st_nlink > (2 if same else 1), "has other hard links"),
    ]
    for refused, reason in refusals:
        if refused:
            raise InvalidInput(field="source-name", reason=f"{name!r} {reason}")
    if leases_tell(here) and _is_open(here, name):
        raise InvalidInput(field="source-name", reason=f"{name!r}: {_OPEN}")


# --- is a file in use ------------------------------------------------------------------------------------------------


def leases_tell(here: Directory) -> bool:
    """Tell whether the kernel knows here who has a file open: on a network's file systems it may not."""
    try:
        with here.temporary(f"probe-{os.getpid()}-{os.urandom(4).hex()}") as probe:
            # The probe is open for writing once, which does not stand in the way of a lease.
            return not _refuses_lease(probe.fd)
    except OSError:  # a full disk must not keep anybody from looking
        return False


def _is_open(here: Directory, name: str) -> bool:
    """Tell whether any process of this machine has the file open; False where that cannot be known."""
    try:
        with here.file(name, os.O_RDONLY) as fd:
            return _refuses_lease(fd)
    except OSError:
        return False


def _refuses_lease(fd: int) -> bool:
    """Ask for a write lease, which is had only of a file that nobody else has open, and give it back."""
    try:
        # Who opens the file meanwhile has us signalled, by default with one that ends the process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
