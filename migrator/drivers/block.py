"""The block driver: a pool is a set of block devices, a volume is one whole device that is at least as large.

Nothing but the volume's bytes is ever on a device; which device is which volume is recorded elsewhere (block_records),
by what tells a device from every other one also after a reboot.  Three promises shape everything here: a device that
holds data we did not write is never written to unless the operator says so; a device that held a volume is wiped before
it becomes another one; and a volume is found again on its own device or not at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

from oslo_config import cfg
from oslo_log import log

from migrator import machine
from migrator.conf import GIB
from migrator.drivers import devices as block_devices
from migrator.drivers.base import Adoptable, Answer, Capability, Connection, PoolReport, VolumeDriver
from migrator.drivers.block_cleaner import PENDING, Cleaner, Wipe
from migrator.drivers.block_pool import Place, Pool, check_distinct, patterns_of
from migrator.drivers.block_records import GIVEN_UP, Record, Records, State
from migrator.drivers.devices import Device
from migrator.drivers.directory import is_locked
from migrator.drivers.names import check_name, check_pools
from migrator.errors import ConfigError, DriverError, InvalidInput, NoSpace, Unsupported, VolumeMissing

LOG = log.getLogger(__name__)

#: A new volume waits so long, in seconds, for a device that is being wiped: less than any caller waits for us.
WAIT_SECONDS = 20.0
_POLL_SECONDS = 0.02
#: A free one became so a moment ago, or could not be opened, which another attempt may find otherwise.
_COMING = (*PENDING, State.FREE, State.ALLOCATING)


class BlockDriver(VolumeDriver):
    """One backend of block devices.

    The copier opens the devices itself, and a node cannot be taken back from who has it open: copies are fenced by
    killing the recorded copier on this machine, so FENCED_EXPORT is not declared.
    """

    capabilities: frozenset[Capability] = frozenset({Capability.NEW_VOLUME_IS_ZERO, Capability.ADOPT})

    def __init__(self, backend: str, options: cfg.ConfigOpts.GroupAttr) -> None:
        super().__init__(backend, options)
        check_pools("block_pools", options.block_pools)
        self._wipe = Wipe(options.block_wipe)
        if self._wipe == Wipe.NONE:
            self.capabilities = type(self).capabilities - {Capability.NEW_VOLUME_IS_ZERO}
        self._records = Records(options.block_state_dir)
        self._pools = {pool: self._pool(pool, text) for pool, text in options.block_pools.items()}
        self._cleaner = Cleaner(backend, self._records, self._devices, self._wipe, options.block_wipe_jobs)
        self._unreported: dict[str, str] = {}

    def _pool(self, pool: str, text: str) -> Pool:
        try:
            patterns = patterns_of(text)
        except ValueError as error:
            raise ConfigError(option="block_pools", reason=f"pool {pool}: {error}") from error
        return Pool(f"{self.backend}#{pool}", patterns, self.options.block_claim_devices, self._wipe, self._records)

    def _devices(self) -> dict[str, Device]:
        return {identity: device for pool in self._pools.values() for identity, device in pool.devices().items()}

    # --- pools -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look at every device, and go on with what a crash interrupted."""
        try:
            self._records.start()
        except OSError as error:
            reason = f"{error.filename or self._records.directory}: {error.strerror}"
            raise ConfigError(option="block_state_dir", reason=reason) from error
        try:
            check_distinct(self._pools)
        except ValueError as error:
            raise ConfigError(option="block_pools", reason=str(error)) from error
        for pool in self._pools:
            with self._at(pool, "looking at its devices") as here:
                here.recover()
                here.refresh()
        with self._translate_failures("starting to wipe"):
            self._cleaner.nudge()

    def pools(self) -> list[str]:
        return list(self._pools)

    def report(self) -> list[PoolReport]:
        """Sees also what was plugged in or zeroed since the last time, and nudges what waits to be wiped."""
        reports = []
        for pool in self._pools:
            try:
                with self._at(pool, "looking at its devices") as here:
                    here.refresh()
                    self._cleaner.nudge()
                    reports.append(self._report(pool, here))
                self._unreported.pop(pool, None)
            except DriverError as error:
                if self._unreported.get(pool) != str(error):
                    LOG.warning("pool %s is not reported until it is back: %s", pool, error)
                self._unreported[pool] = str(error)
        return reports

    def _report(self, pool: str, here: Pool) -> PoolReport:
        places = list(here.places())
        free = [place.device.size for place in places if place.record.state == State.FREE]
        used = [place.device.size for place in places if place.record.state == State.USED]
        pending = [place.device.size for place in places if place.record.state in (*PENDING, State.ALLOCATING)]
        return PoolReport(
            pool=pool,
            total_gib=sum(free + used + pending) / GIB,
            free_gib=sum(free) / GIB,
            allocated_gib=sum(used) / GIB,
            thin=False,
            location={"driver": "block", "machine": machine.boot_id(), "place": here.location()},
            capabilities={
                **{capability.value: True for capability in sorted(self.capabilities)},
                "largest_free_gib": max(free, default=0) / GIB,
                "wiping_gib": sum(pending) / GIB,
                "foreign_devices": sum(place.record.state == State.FOREIGN for place in places),
            },
        )

    # --- objects ---------------------------------------------------------------------------------------------------

    def create(self, pool: str, name: str, size: int) -> None:
        with self._at(pool, f"creating {check_name(name)} of {size} bytes") as here:
            until = time.monotonic() + WAIT_SECONDS
            while True:
                record = here.place_of(name) or here.take(name, size)
                if record is not None:
                    break
                self._wait_for_a_device(here, size, until)
            if record.size > size:
                raise self._error(f"{name} exists with {record.size} bytes, wanted {size}")
            self._present(here, record)
            self._grow(here, record, size)

    def _wait_for_a_device(self, here: Pool, size: int, until: float) -> None:
        """Wait a moment for a device that is being made ready; raises NoSpace if none is, DriverError if it is late."""
        places = list(here.places())
        coming = [p for p in places if p.record.state in _COMING and p.device.size >= size]
        if not coming:
            free = [p.device.size for p in places if p.record.state == State.FREE]
            foreign = sum(p.record.state == State.FOREIGN for p in places)
            reason = f"{size} bytes are needed, the largest free device has {max(free, default=0)}"
            raise NoSpace(where=here.owner, reason=f"{reason}; {foreign} devices hold foreign data")
        if time.monotonic() > until:
            raise self._error(f"no device of {size} bytes is ready yet: {_progress(coming)}")
        self._cleaner.nudge()
        time.sleep(_POLL_SECONDS)

    def delete(self, pool: str, name: str) -> None:
        """Forget the object and leave its device to be wiped; one that is missing is wiped when it comes back."""
        with self._at(pool, f"deleting {check_name(name)}") as here:
            record = here.place_of(name)
            if record is None:
                return
            device = here.devices().get(record.identity)
            if device is not None:
                with device.open(alone=True):
                    pass
            ready = record.zero or self._wipe == Wipe.NONE
            state = State.FREE if ready else State.WIPING
            self._change(record, replace(record, state=state, name="", size=0, done=0))
            self._cleaner.nudge()

    def extend(self, pool: str, name: str, size: int) -> None:
        with self._at(pool, f"extending {check_name(name)} to {size} bytes") as here:
            self._grow(here, self._volume(here, name), size)

    def _grow(self, here: Pool, record: Record, size: int) -> None:
        """Let an object have more of its device; the new part reads as zeros whatever was there."""
        if record.size >= size:
            return
        device = self._present(here, record)
        if device.size < size:
            reason = f"{size} bytes are wanted, {record.name} cannot leave its device, which has {device.size}"
            raise NoSpace(where=here.owner, reason=reason)
        with device.open(write=True, alone=True) as opened:
            opened.make_zero(record.size, size)
        self._change(record, replace(record, size=size))

    def exists(self, pool: str, name: str) -> bool:
        with self._at(pool, f"looking for {check_name(name)}") as here:
            return here.place_of(name) is not None

    def objects(self, pool: str) -> list[str]:
        with self._at(pool, "listing the objects") as here:
            return sorted(record.name for record in here.records().values() if record.state == State.USED)

    def allocated(self, pool: str, name: str) -> int:
        """A volume keeps all others off its device, so it occupies the whole."""
        with self._at(pool, f"looking at {check_name(name)}") as here:
            return self._present(here, self._volume(here, name)).size

    def create_snapshot(self, pool: str, volume: str, name: str) -> None:
        self._refuse_copy(pool, volume, name, "take snapshots")

    def delete_snapshot(self, pool: str, volume: str, name: str) -> None:
        """Do nothing: there are none."""
        check_name(volume)
        check_name(name)

    def clone(self, pool: str, source: str, name: str, size: int) -> None:
        self._refuse_copy(pool, source, name, "clone volumes")

    def _refuse_copy(self, pool: str, source: str, name: str, what: str) -> NoReturn:
        with self._at(pool, f"copying {check_name(source)} to {check_name(name)}") as here:
            self._volume(here, source)
        raise Unsupported(backend=self.backend, what=what)

    def adopt(self, pool: str, reference: dict[str, Any], name: str) -> int:
        """``source-name`` is any path of a device of the pool; its content is left as it is."""
        with self._at(pool, f"adopting {reference} as {check_name(name)}") as here:
            device = _named(here, reference)
            record, holder = self._records.get(device.identity), here.place_of(name)
            if record is not None and holder == record:
                return record.size
            reason = _refusal(here, device, record) or ("cannot be taken, its new name is in use" if holder else None)
            if reason:
                raise InvalidInput(field="source-name", reason=f"{device.path} {reason}")
            with device.open(write=True, alone=True):
                pass
            self._change(
                record, Record(device.identity, here.owner, device.path, device.size, State.USED, name, device.size)
            )
            return device.size

    def adoptable(self, pool: str) -> list[Adoptable]:
        """Every device that is there, by the path of block_pools; its identity is the ``id``."""
        with self._at(pool, "looking for what could be adopted") as here:
            return [self._adoptable(here, device) for device in here.devices().values()]

    def _adoptable(self, here: Pool, device: Device) -> Adoptable:
        record = self._records.get(device.identity)
        ours = record if record is not None and record.state == State.USED else None
        return Adoptable(
            {"source-name": device.configured},
            id=device.identity,
            size=ours.size if ours else device.size,
            reason=_refusal(here, device, record) or _use(device),
            name=ours.name if ours and ours.owner == here.owner else None,
        )

    def disown(self, pool: str, name: str) -> None:
        """Leave the device to its owner: it is not used again, even if it is empty, unless it is adopted or claimed."""
        with self._at(pool, f"giving up {check_name(name)}") as here:
            record = here.place_of(name)
            if record is not None:
                given = replace(record, state=State.FOREIGN, name="", size=0, zero=False, found=GIVEN_UP)
                self._change(record, given)

    # --- exports ---------------------------------------------------------------------------------------------------

    def export(self, pool: str, name: str, *, writable: bool) -> Connection:
        """Once it was exported for writing an object is no longer known to be zero, until its device was wiped."""
        with self._at(pool, f"exporting {check_name(name)}") as here:
            record = self._volume(here, name)
            device = self._present(here, record)
            if writable:
                self._expect_data(record)
            return Connection(
                kind="file",
                path=device.path,
                machine=machine.boot_id(),
                size=record.size,
                is_zero=record.zero,
                writable=writable,
            )

    def _expect_data(self, record: Record) -> None:
        """Record, before anybody can write, that the object may hold something."""
        if record.zero:
            self._change(record, replace(record, zero=False))

    def revoke(self, pool: str, name: str) -> None:
        """Do nothing: a device's node is no session that could be ended."""
        check_name(name)

    def initialize_connection(
        self, pool: str, name: str, connector: dict[str, Any], *, writable: bool
    ) -> dict[str, Any]:
        """Tell the device, to a hypervisor of this machine; refused where a server would see more than its volume."""
        with self._at(pool, f"offering {check_name(name)}") as here:
            record = self._volume(here, name)
            device = self._present(here, record)
            if device.size != record.size:
                reason = f"{name} has {record.size} bytes, a server would see all {device.size} of {device.path}"
                raise InvalidInput(field="connector", reason=reason)
            if writable:
                self._expect_data(record)
            return {"driver_volume_type": "local", "data": {"name": name, "device_path": device.path}}

    def is_open(self, pool: str, name: str) -> bool | None:
        """Tell by the locks that QEMU holds on a device that it has open."""
        with self._at(pool, f"looking at {check_name(name)}") as here:
            found = self._present(here, self._volume(here, name))
            with found.open() as device:
                return is_locked(device.fd)

    def can_assist(self, pool: str, name: str, destination: dict[str, Any]) -> Answer:
        with self._at(pool, f"looking at {check_name(name)}") as here:
            self._volume(here, name)
        return super().can_assist(pool, name, destination)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _change(self, old: Record | None, new: Record) -> None:
        if not self._records.change(old, new):
            raise self._error(f"{new.path} was put to another use at the same moment")

    def _volume(self, here: Pool, name: str) -> Record:
        record = here.place_of(name)
        if record is None:
            raise VolumeMissing(backend=here.owner, name=name)
        return record

    def _present(self, here: Pool, record: Record) -> Device:
        """Return the device of an object; raises DriverError if it is not there or not as it was."""
        device = here.devices().get(record.identity)
        if device is None:
            raise self._error(f"the device of {record.name} is missing: {record.identity}, last seen at {record.path}")
        if device.size < record.device_size:
            reason = f"{device.path}, the device of {record.name}, shrank from {record.device_size} to {device.size}"
            raise self._error(f"{reason} bytes")
        return device

    @contextmanager
    def _at(self, pool: str, doing: str) -> Iterator[Pool]:
        if pool not in self._pools:
            raise self._error(f"there is no pool {pool!r}")
        with self._translate_failures(doing):
            yield self._pools[pool]

    @contextmanager
    def _translate_failures(self, doing: str) -> Iterator[None]:
        """Turn what the operating system reports into errors of ours, once and only here."""
        try:
            yield
        except OSError as error:
            where = f"{error.filename}: " if isinstance(error.filename, str) else ""
            raise self._error(f"{doing}: {where}{error.strerror or error}") from error

    def _error(self, reason: str) -> DriverError:
        return DriverError(backend=self.backend, reason=reason)


def _progress(places: list[Place]) -> str:
    return ", ".join(
        f"{place.device.path} is {place.record.state}, {100 * place.record.done // place.device.size} % done"
        for place in places
    )


def _named(here: Pool, reference: dict[str, Any]) -> Device:
    """Return the device of the pool that a reference leads to; raises InvalidInput."""
    if set(reference) != {"source-name"}:
        raise InvalidInput(field="ref", reason="it must hold source-name and nothing else")
    path = reference["source-name"]
    if isinstance(path, str) and os.path.isabs(path) and path.isprintable():
        number = block_devices.number_of(path)
        for device in here.devices().values():
            if device.number == number:
                return device
    raise InvalidInput(field="source-name", reason=f"{path!r} is not the path of a device of the pool")


def _refusal(here: Pool, device: Device, record: Record | None) -> str | None:
    """Say why a device cannot be adopted; None if nothing is against it."""
    state = record.state if record is not None else None
    refusals = [
        (state == State.USED, "is an object of a pool already"),
        (record is not None and state != State.FOREIGN and record.owner != here.owner, "belongs to another pool"),
        (state == State.WIPING, "is being wiped"),
        (state == State.ALLOCATING, "is being given to a volume"),
        (device.read_only, "is read-only"),
        (device.partitioned, "has partitions: name one of those in block_pools"),
    ]
    return next((reason for refused, reason in refusals if refused), None)


def _use(device: Device) -> str | None:
    """Say what keeps a device from being opened; None if nothing does."""
    try:
        with device.open(alone=True):
            return None
    except OSError as error:
        return error.strerror
