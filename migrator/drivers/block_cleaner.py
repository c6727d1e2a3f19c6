"""Makes devices ready for a volume in the background: reads those that are new, wipes those that held a volume.

How far it came is recorded after each flush, so that a crash costs seconds of work and never a byte of safety: a device
is free only once every byte of it was read as zero or was zeroed, durably.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import StrEnum

from oslo_log import log

from migrator.drivers.block_records import Record, Records, State
from migrator.drivers.devices import Device, Opened

LOG = log.getLogger(__name__)

#: Zeroed or discarded by one request: even a slow disk answers it within some seconds.
PIECE = 16 * 1024**2
#: Seconds after which a device that failed is tried again, and one that another process works on is looked at again.
RETRY_SECONDS = 30.0
BUSY_SECONDS = 0.2
PENDING = (State.CHECKING, State.WIPING)


class Wipe(StrEnum):
    """What is done to a device between two volumes."""

    ZERO = "zero"
    DISCARD = "discard"
    NONE = "none"


class ChangedMeanwhileError(Exception):
    """The device's record is no longer the one that was worked on."""


class Cleaner:
    """Works on the devices of one backend with ``jobs`` threads, which live as long as there is something to do."""

    #: Between two records of how far it came; each costs a flush of the device.
    checkpoint_seconds = 2.0

    def __init__(
        self,
        backend: str,
        records: Records,
        devices: Callable[[], dict[str, Device]],
        wipe: Wipe,
        jobs: int,
    ) -> None:
        """``devices`` returns those that are there now, by identity."""
        self._backend = backend
        self._records = records
        self._devices = devices
        self._wipe = wipe
        self._jobs = jobs
        self._lock = threading.Lock()
        self._threads = 0
        self._busy: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._told: dict[str, str] = {}

    def nudge(self) -> None:
        """Have everything worked on that waits for it; returns at once. Raises OSError."""
        with self._lock:
            wanted = min(self._jobs - self._threads, len(self._waiting()))
            for _ in range(wanted):
                self._threads += 1
                threading.Thread(target=self._run, name=f"cleaner of {self._backend}", daemon=True).start()

    def _waiting(self) -> list[tuple[Record, Device]]:
        now, devices = time.monotonic(), self._devices()
        return [
            (record, devices[identity])
            for identity, record in self._records.all().items()
            if record.state in PENDING
            and record.owner.rpartition("#")[0] == self._backend
            and identity in devices
            and identity not in self._busy
            and self._not_before.get(identity, now) <= now
        ]

    def _run(self) -> None:
        try:
            while (job := self._take()) is not None:
                self._attempt(*job)
        finally:
            with self._lock:
                self._threads -= 1

    def _take(self) -> tuple[Record, Device] | None:
        with self._lock:
            try:
                waiting = self._waiting()
            except OSError as error:  # the top of a thread: the next nudge tells its caller
                LOG.warning("%s: devices wait to be wiped: %s", self._backend, error)
                return None
            if not waiting:
                return None
            self._busy.add(waiting[0][0].identity)
            return waiting[0]

    def _attempt(self, record: Record, device: Device) -> None:
        pause = 0.0
        try:
            self.work(record, device)
        except ChangedMeanwhileError:
            LOG.debug("%s is no longer to be cleaned", device.path)
        except OSError as error:  # the top of a job: others must not wait for a broken device
            pause = BUSY_SECONDS if error.errno == errno.EBUSY else RETRY_SECONDS
            if error.errno != errno.EBUSY and self._told.get(record.identity) != str(error):
                self._told[record.identity] = str(error)
                LOG.warning("%s: %s cannot be made ready yet (%s): %s", record.owner, device.path, record.state, error)
        with self._lock:
            self._busy.discard(record.identity)
            self._not_before[record.identity] = time.monotonic() + pause

    def work(self, record: Record, device: Device) -> None:
        """Do all that is left to do to one device; raises OSError."""
        if device.size != record.device_size:  # another partition, or a volume of an array that was resized
            record = self._save(record, replace(record, device_size=device.size, done=0))
        if record.state == State.CHECKING:
            self._check(record, device)
        else:
            self._wipe_all(record, device)

    def _check(self, record: Record, device: Device) -> None:
        with device.open() as opened:
            for start, end, current in self._pieces(record, device, opened):
                record = current
                found = opened.first_data(start, end)
                if found is not None:
                    self._save(record, replace(record, state=State.FOREIGN, found=found, done=0))
                    LOG.warning("%s: %s holds data at %d and is not used", record.owner, device.path, found)
                    return
        self._save(record, replace(record, state=State.FREE, zero=True, done=0))
        LOG.info("%s: %s is empty and may be used", record.owner, device.path)

    def _wipe_all(self, record: Record, device: Device) -> None:
        if self._wipe != Wipe.NONE:
            with device.open(write=True, alone=True) as opened:
                # Only now nobody else can wipe it; before, another may have, and it may be a volume again.
                record = self._save(record, record)
                for start, end, current in self._pieces(record, device, opened):
                    record = current
                    wipe_piece(opened, start, end, self._wipe)
                opened.flush()
        self._save(record, replace(record, state=State.FREE, zero=self._wipe != Wipe.NONE, done=0))
        LOG.info("%s: %s is free again (%s)", record.owner, device.path, self._wipe)

    def _pieces(self, record: Record, device: Device, opened: Opened) -> Iterator[tuple[int, int, Record]]:
        """Yield the pieces that are left, with the record as it then is; records what was done before each."""
        saved = time.monotonic()
        for start in range(record.done, device.size, PIECE):
            if time.monotonic() >= saved + self.checkpoint_seconds:
                opened.flush()
                record = self._save(record, replace(record, done=start))
                saved = time.monotonic()
            yield start, min(start + PIECE, device.size), record

    def _save(self, old: Record, new: Record) -> Record:
        stored = self._records.change(old, new)
        if stored is None:
            raise ChangedMeanwhileError
        return stored


def wipe_piece(opened: Opened, start: int, end: int, wipe: Wipe) -> None:
    """Make a range read as zeros, durably with the next flush.

    After a discard everything is read back, because many devices answer what they held, or anything.
    """
    if wipe == Wipe.DISCARD and opened.discard(start, end):
        opened.make_zero(start, end)
    else:
        opened.zero(start, end)
