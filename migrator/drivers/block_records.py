"""What the block driver remembers of each device: one small file per device, whole at any instant.

The files lie in a directory of the machine, not on the devices, which hold nothing but their volume's bytes.  All
backends of a machine share the directory, so that a device that two of them were given belongs to the first.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

#: It was a volume of ours and is its owner's again, who may have use for it although it is empty.
GIVEN_UP = -1
_VERSION = 1
_SUFFIX = ".device"


class State(StrEnum):
    """What a device is, and therefore what may be done to it."""

    #: It begins and ends with zeros; the rest is being read. Nothing is ever written in this state.
    CHECKING = "checking"
    #: Ours and empty: it may become a volume.
    FREE = "free"
    #: It is being looked at once more before it is a volume; after a crash it is free as before.
    ALLOCATING = "allocating"
    #: It is a volume.
    USED = "used"
    #: It held a volume, or the operator gave it up: it is being wiped.
    WIPING = "wiping"
    #: Somebody's data was found on it: it is never written to.
    FOREIGN = "foreign"


@dataclass(frozen=True)
class Record:
    """One device. Sizes and offsets in bytes."""

    identity: str
    #: The pool that it belongs to, host@backend#pool.
    owner: str
    #: Where it was seen last: for messages only.
    path: str
    device_size: int
    state: State
    #: Object that it is, and the object's size.
    name: str = ""
    size: int = 0
    #: Every byte of it is zero as far as we know: nobody was given it for writing.
    zero: bool = False
    #: How far it was checked or wiped, durably.
    done: int = 0
    #: Where the first byte of a foreign device lies that is not zero; GIVEN_UP whatever it holds.
    found: int = 0
    #: Counts the changes: a device that became free again is not as it was when it was free before.
    generation: int = 0


class Records:
    """The records of all devices of this machine; raises OSError."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def start(self) -> None:
        """Make the directory, whose content must survive what the devices survive."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        with self._locked():
            self.all()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Kept for the time of a small write alone, never while a device is used: one that hangs must not stop others.
        fd = os.open(os.path.join(self.directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def all(self) -> dict[str, Record]:
        """Return every record by the device's identity."""
        with os.scandir(self.directory) as entries:
            paths = [entry.path for entry in entries if entry.name.endswith(_SUFFIX)]
        found = [self._read(path) for path in sorted(paths)]
        return {record.identity: record for record in found if record is not None}

    def get(self, identity: str) -> Record | None:
        return self._read(self._path(identity))

    def _put(self, record: Record) -> None:
        path = self._path(record.identity)
        temporary = f"{path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"version": _VERSION, **asdict(record)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        self._sync()

    def _sync(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def change(self, old: Record | None, new: Record) -> Record | None:
        """Replace a device's record, durably, if it is still the old one; None if somebody changed it meanwhile.

        The old or the new one is there at any instant.  Returns the new one as it was stored.
        """
        with self._locked():
            if self.get(new.identity) != old:
                return None
            stored = replace(new, generation=old.generation + 1 if old is not None else 1)
            self._put(stored)
        return stored

    def forget(self, old: Record) -> bool:
        """Remove a record, durably, if it is still the old one."""
        with self._locked():
            unchanged = self.get(old.identity) == old
            if unchanged:
                os.unlink(self._path(old.identity))
                self._sync()
        return unchanged

    def _path(self, identity: str) -> str:
        return os.path.join(self.directory, hashlib.sha256(identity.encode()).hexdigest()[:32] + _SUFFIX)

    def _read(self, path: str) -> Record | None:
        with suppress(FileNotFoundError):
            with open(path, encoding="utf-8") as file:
                text = file.read()
            try:
                return _parse(text)
            except (ValueError, TypeError, KeyError) as error:
                # Going on without it might hand out a volume's device as a free one.
                raise OSError(errno.EUCLEAN, f"this record is damaged ({error}); restore it", path) from error
        return None


def _parse(text: str) -> Record:
    values = json.loads(text)
    if values.pop("version") != _VERSION:
        raise ValueError("it is of another version of migrator")
    return Record(**{**values, "state": State(values["state"])})
