"""One pool of the block driver: which devices it has, which of them it may use, and which it must never touch."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from oslo_log import log

from migrator import machine
from migrator.drivers import devices as block_devices
from migrator.drivers.block_cleaner import Wipe
from migrator.drivers.block_records import GIVEN_UP, Record, Records, State
from migrator.drivers.devices import Device, Refusal, discover

LOG = log.getLogger(__name__)

#: Where file systems, partition tables, volume managers and RAID keep what they are recognised by: both ends.
EDGE = 1024**2
#: Read again where foreign data was found, to see whether the operator has wiped it.
_LOOK = 512


@dataclass(frozen=True)
class Place:
    """A device that is there, with what is recorded of it."""

    device: Device
    record: Record


class Pool:
    """The devices of one pool; raises OSError."""

    def __init__(
        self, owner: str, patterns: Collection[str], claims: Collection[str], wipe: Wipe, records: Records
    ) -> None:
        """``owner`` is host@backend#pool; ``claims`` are paths of devices whose content may be destroyed."""
        self.owner = owner
        self.patterns = tuple(patterns)
        self._claims = tuple(claims)
        self._wipe = wipe
        self._records = records
        self._told: dict[str, str] = {}

    def devices(self) -> dict[str, Device]:
        """Return what is there now, by identity."""
        return {device.identity: device for device in self._discover()[0]}

    def _discover(self) -> tuple[list[Device], list[Refusal]]:
        return discover(self.patterns)

    def records(self) -> dict[str, Record]:
        """Return what belongs to the pool, present or not."""
        return {identity: record for identity, record in self._records.all().items() if record.owner == self.owner}

    def places(self) -> Iterator[Place]:
        """Yield what belongs to the pool and is there."""
        records = self.records()
        for identity, device in self.devices().items():
            if identity in records:
                yield Place(device, records[identity])

    def place_of(self, name: str) -> Record | None:
        """Return the record of an object, None if there is no such object."""
        return next((r for r in self.records().values() if r.state == State.USED and r.name == name), None)

    def location(self) -> str:
        """Return what tells the pool from all others: one of its devices, always the same one.

        Pools that share any device usually share the least one, and equal places keep volumes from being moved onto
        themselves.
        """
        known = sorted({*self.devices(), *self.records()})
        if not known:
            return f"block:{machine.boot_id()}:{self.owner}"
        return f"block:{known[0] if block_devices.is_of_every_machine(known[0]) else f'{machine.boot_id()}:{known[0]}'}"

    # --- which devices may be used ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at what is new or has changed since the last look, and record what it is."""
        found, refusals = self._discover()
        for path, reason in refusals:
            self._tell(path, reason)
        known = self._records.all()
        for device in found:
            old = known.get(device.identity)
            try:
                new = self._judge(device, old)
            except OSError as error:
                self._tell(device.path, error.strerror or str(error))
                continue
            if new is not None:
                self._keep(old, new)
        self._miss({device.identity for device in found})

    def _miss(self, found: Collection[str]) -> None:
        """Warn of volumes without a device, and forget what held nothing: when it comes back it may hold something."""
        for identity, record in self.records().items():
            if identity in found:
                continue
            if record.state == State.USED:
                self._tell(record.path, f"it is missing; it holds {record.name} ({identity})")
            elif record.state != State.WIPING and record.found != GIVEN_UP and self._records.forget(record):
                LOG.info("%s: %s (%s, %s) is gone", self.owner, record.path, identity, record.state)

    def _keep(self, old: Record | None, new: Record) -> None:
        if not self._records.change(old, new):
            return
        if new.state == State.FOREIGN:
            self._tell(
                new.path, f"it holds data at {new.found}: adopt it, or zero it, or name it in block_claim_devices"
            )
        else:
            LOG.info("%s: %s (%s) is %s", self.owner, new.path, new.identity, new.state)

    def _judge(self, device: Device, old: Record | None) -> Record | None:
        """Return what is to be recorded of a device, None if nothing changed or it cannot be told yet."""
        if old is None or old.state == State.FOREIGN:
            return self._judge_unknown(device, old)
        if old.owner != self.owner:
            self._tell(device.path, f"it belongs to {old.owner}")
            return None
        if old.state != State.FREE:
            return None
        if old.device_size != device.size:
            return self._empty(device)
        if not old.zero and self._wipe != Wipe.NONE:
            return replace(old, state=State.WIPING, path=device.path)
        return None

    def _judge_unknown(self, device: Device, old: Record | None) -> Record | None:
        reason = _unusable(device)
        if reason:
            self._tell(device.path, reason)
            return None
        claimed = self._is_claimed(device)
        if old is not None and not claimed and _is_still_foreign(device, old):
            return None
        with device.open(alone=True) as opened:
            if claimed:
                return self._record(device, State.WIPING)
            found = first_data_at_edges(device, opened)
        return self._empty(device) if found is None else self._record(device, State.FOREIGN, found)

    def _empty(self, device: Device) -> Record:
        """Say of a device without a beginning or an end that it may be ours."""
        return self._record(device, State.FREE if self._wipe == Wipe.NONE else State.CHECKING)

    def _record(self, device: Device, state: State, found: int = 0) -> Record:
        return Record(device.identity, self.owner, device.path, device.size, state, found=found)

    def _is_claimed(self, device: Device) -> bool:
        return any(block_devices.number_of(path) == device.number for path in self._claims)

    def take(self, name: str, size: int) -> Record | None:
        """Make the smallest free device that is large enough the object; None if there is none."""
        free = [p for p in self.places() if p.record.state == State.FREE and p.device.size >= size]
        for place in sorted(free, key=lambda p: (p.device.size, p.device.identity)):
            claimed = self._records.change(place.record, replace(place.record, state=State.ALLOCATING))
            if claimed is not None:
                outcome = self._look_once_more(place.device, claimed)
                if outcome.state == State.USED:
                    outcome = replace(outcome, name=name, size=size)
                stored = self._records.change(claimed, outcome)
                if stored is not None and stored.state == State.USED:
                    return stored
        return None

    def _look_once_more(self, device: Device, record: Record) -> Record:
        """Say what is to become of a device that was free: somebody may have put it to another use.

        It is claimed before, so that no two calls open one device, and none opens what is another's volume by now.
        """
        try:
            reason = _unusable(device) or ("its size has changed" if device.size != record.device_size else "")
            if reason:
                raise OSError(errno.EINVAL, reason)
            with device.open(write=True, alone=True) as opened:
                found = first_data_at_edges(device, opened) if record.zero else None
        except OSError as error:
            self._tell(device.path, error.strerror or str(error))
            return replace(record, state=State.FREE)
        if found is None:
            return replace(record, state=State.USED, path=device.path)
        self._tell(device.path, f"it was free, and now holds data at {found}")
        return replace(record, state=State.FOREIGN, zero=False, found=found)

    def recover(self) -> None:
        """Free what a crash left in the middle of an allocation; one that is under way elsewhere looks again."""
        for record in self.records().values():
            if record.state == State.ALLOCATING:
                self._records.change(record, replace(record, state=State.FREE))

    def _tell(self, path: str, reason: str) -> None:
        """Warn of a device that is not used, once."""
        if self._told.get(path) != reason:
            self._told[path] = reason
            LOG.warning("%s: %s is not used: %s", self.owner, path, reason)


def first_data_at_edges(device: Device, opened: block_devices.Opened) -> int | None:
    """Return where the first byte of the device's first and last MiB lies that is not zero, None if there is none."""
    edges = [(0, EDGE), (device.size - EDGE, device.size)] if device.size > 2 * EDGE else [(0, device.size)]
    for start, end in edges:
        found = opened.first_data(start, end)
        if found is not None:
            return found
    return None


def _is_still_foreign(device: Device, record: Record) -> bool:
    """Look where data was found; not alone, since it is another's device and must not seem busy to its owner."""
    if record.found == GIVEN_UP:
        return True
    start = record.found - record.found % _LOOK
    with device.open() as opened:
        return start < device.size and opened.first_data(start, min(start + _LOOK, device.size)) is not None


def _unusable(device: Device) -> str:
    """Say what is against a device whatever it holds; empty if nothing is."""
    if device.read_only:
        return "it is read-only"
    if device.partitioned:
        return "it has partitions"
    return ""


def patterns_of(text: str) -> list[str]:
    """Return the paths and patterns of a pool's entry in block_pools, which blanks separate; raises ValueError."""
    patterns = text.split()
    if not patterns:
        raise ValueError("it names no device")
    for pattern in patterns:
        if not os.path.isabs(pattern):
            raise ValueError(f"{pattern!r} is no absolute path")
    return patterns


def check_distinct(pools: Mapping[str, Pool]) -> None:
    """Raise ValueError if two pools have one device."""
    seen: dict[str, str] = {}
    for name, pool in pools.items():
        for device in pool.devices().values():
            if seen.setdefault(device.identity, name) != name:
                raise ValueError(f"{device.path} is in {seen[device.identity]} and in {name}")
