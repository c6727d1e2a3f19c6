"""The memory driver: volumes in this process's memory, lost when it ends; for tests, which can order it to fail.

Pools belong to the process and are found by the backend's name, so a second driver object of one backend, as after a
restart of a service inside the process, finds the objects again.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from oslo_config import cfg

from migrator import machine
from migrator.conf import GIB
from migrator.drivers.base import Adoptable, Answer, Capability, Connection, PoolReport, Progress, VolumeDriver
from migrator.drivers.faults import Died, Fault, Faults
from migrator.drivers.names import check_name, check_pools, source_name
from migrator.drivers.sparse import Buffer, Data, Extent, Sparse
from migrator.errors import ConfigError, DriverError, InvalidInput, NoSpace, VolumeMissing

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass
class _Object:
    """What a pool holds under one name; after an assisted move two names hold the same content."""

    content: Sparse
    #: False for what a test laid into the pool to be adopted.
    managed: bool = True
    #: The kinds of export that are open: True for a writable one.
    exports: set[bool] = field(default_factory=set)
    #: Counts the revocations, so that whatever was opened before one stays dead.
    generation: int = 0
    #: Held while a handle checks that it may act and acts, so that nothing acts after a revoke returned.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def revoke(self) -> None:
        with self.lock:
            self.exports.clear()
            self.generation += 1


_Pool = dict[str, _Object]


@dataclass
class _Backend:
    pools: dict[str, _Pool] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)


_backends: dict[str, _Backend] = {}
#: Guards _backends and all pools in it: one lock, so that an assisted move is atomic across two backends.
_lock = threading.RLock()


def reset() -> None:
    """Forget every backend, its objects and its faults; what is open becomes dead, what hangs goes on."""
    with _lock:
        for backend in _backends.values():
            for pool in backend.pools.values():
                for held in pool.values():
                    held.revoke()
            backend.faults.release()
        _backends.clear()


class MemoryObject:
    """An opened object: what the copy engine reads and writes.  Every call may come from any thread.

    Raises PermissionError once the export that it was opened under is revoked, and for a write without a writable one.
    """

    def __init__(self, held: _Object, faults: Faults) -> None:
        self._held = held
        self._faults = faults
        self._generation = held.generation
        self._closed = False

    @property
    def size(self) -> int:
        return self._held.content.size

    def pread_into(self, offset: int, buffer: Buffer) -> int:
        """Fill ``buffer`` from ``offset``; return how many bytes were read, perhaps fewer, 0 only at the end."""
        with self._faults.at("pread") as most, self._held.lock:
            self._check(writes=False)
            return self._held.content.read(offset, memoryview(buffer).cast("B")[:most])

    def pwrite(self, offset: int, data: Data) -> int:
        """Write ``data`` at ``offset``; return how many bytes were written, perhaps fewer; ENOSPC at the end."""
        with self._faults.at("pwrite") as most, self._held.lock:
            self._check(writes=True)
            if offset >= self.size and len(data) > 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._held.content.write(offset, memoryview(data).cast("B")[:most])

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros and free its memory."""
        with self._faults.at("zero"), self._held.lock:
            self._check(writes=True)
            self._held.content.zero(offset, length)

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        """Yield start, length and whether it holds data, in order and without a gap."""
        with self._faults.at("extents"), self._held.lock:
            self._check(writes=False)
            return self._held.content.extents(start, length)

    def flush(self) -> None:
        """Make what was written survive a power cut."""
        with self._faults.at("flush"), self._held.lock:
            self._check(writes=False)
            self._held.content.flush()

    def close(self) -> None:
        self._closed = True

    def _check(self, *, writes: bool) -> None:
        if self._closed:
            raise ValueError("I/O on a closed object")
        if self._generation != self._held.generation or not self._held.exports:
            raise PermissionError(errno.EACCES, "the export was revoked")
        if writes and True not in self._held.exports:
            raise PermissionError(errno.EACCES, "the export is not writable")


def open_object(path: str) -> MemoryObject:
    """Open the object that a connection of kind ``memory`` names by its path; raises OSError.

    Works only in the process that exported it, and only while it is exported.
    """
    backend_name, _, rest = path.partition("/")
    pool_name, _, name = rest.rpartition("/")
    with _lock:
        backend = _backends.get(backend_name)
        held = backend.pools.get(pool_name, {}).get(name) if backend else None
        if backend is None or held is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not held.exports:
            raise PermissionError(errno.EACCES, "the object is not exported", path)
        return MemoryObject(held, backend.faults)


def _faulty(
    method: Callable[Concatenate[MemoryDriver, _P], _R],
) -> Callable[Concatenate[MemoryDriver, _P], _R]:
    """Surround a call of the contract by the faults ordered for it."""

    def call(self: MemoryDriver, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self.faults.at(method.__name__):
            return method(self, *args, **kwargs)

    functools.update_wrapper(call, method)
    return call


class MemoryDriver(VolumeDriver):
    """One backend in memory.  ``faults`` takes orders to fail; ``assists`` False makes it refuse assisted moves."""

    capabilities = frozenset(Capability)

    def __init__(self, backend: str, options: cfg.ConfigOpts.GroupAttr) -> None:
        super().__init__(backend, options)
        names: list[str] = options.memory_pools
        if len(set(names)) != len(names):
            raise ConfigError(option="memory_pools", reason="a pool is named twice")
        check_pools("memory_pools", names)
        self.assists = True
        #: What a test says that hypervisors have open; None: it cannot be told.
        self.opened: set[str] | None = None
        with _lock:
            self._state = _backends.setdefault(backend, _Backend())

    @property
    def faults(self) -> Faults:
        return self._state.faults

    @_faulty
    def start(self) -> None:
        with _lock:
            for pool in self.options.memory_pools:
                self._state.pools.setdefault(pool, {})

    @_faulty
    def pools(self) -> list[str]:
        return list(self.options.memory_pools)

    @_faulty
    def report(self) -> list[PoolReport]:
        return [self._report(pool) for pool in self.options.memory_pools]

    def _report(self, pool: str) -> PoolReport:
        allocated = self._allocated(pool)
        return PoolReport(
            pool=pool,
            total_gib=float(self.options.memory_pool_gib),
            free_gib=max(0, self._total - allocated) / GIB,
            allocated_gib=allocated / GIB,
            thin=True,
            location=self._location(pool),
            capabilities={capability.value: True for capability in sorted(self.capabilities)},
        )

    @_faulty
    def create(self, pool: str, name: str, size: int) -> None:
        check_name(name)
        with _lock:
            held = self._pool(pool).get(name)
            if held is None:
                self._require_room(pool)
                self._pool(pool)[name] = _Object(Sparse(size))
            elif held.content.size > size:
                raise self._error(f"{name} exists with {held.content.size} bytes, wanted {size}")
            else:
                held.content.size = size

    @_faulty
    def delete(self, pool: str, name: str) -> None:
        self._delete(pool, name)

    @_faulty
    def extend(self, pool: str, name: str, size: int) -> None:
        with _lock:
            held = self._get(pool, name)
            if size > held.content.size:
                self._require_room(pool)
                held.content.size = size

    @_faulty
    def exists(self, pool: str, name: str) -> bool:
        with _lock:
            return check_name(name) in self._pool(pool)

    @_faulty
    def objects(self, pool: str) -> list[str]:
        with _lock:
            return sorted(name for name, held in self._pool(pool).items() if held.managed)

    @_faulty
    def exports(self, pool: str) -> list[str]:
        with _lock:
            return sorted(name for name, held in self._pool(pool).items() if held.exports)

    @_faulty
    def allocated(self, pool: str, name: str) -> int:
        return self._get(pool, name).content.allocated

    @_faulty
    def create_snapshot(self, pool: str, volume: str, name: str) -> None:
        self._copy(pool, volume, name, 0)

    @_faulty
    def delete_snapshot(self, pool: str, volume: str, name: str) -> None:
        self._delete(pool, name)

    @_faulty
    def clone(self, pool: str, source: str, name: str, size: int) -> None:
        self._copy(pool, source, name, size)

    @_faulty
    def adopt(self, pool: str, reference: dict[str, Any], name: str) -> int:
        found = source_name(reference)
        check_name(name)
        with _lock:
            objects = self._pool(pool)
            if found not in objects and name in objects:
                return objects[name].content.size
            if found not in objects or objects[found].managed:
                reason = f"there is no unmanaged object {found!r} in pool {pool}"
                raise InvalidInput(field="source-name", reason=reason)
            if name in objects:
                raise self._error(f"{name} exists already")
            objects[name] = objects.pop(found)
            objects[name].managed = True
            return objects[name].content.size

    @_faulty
    def adoptable(self, pool: str) -> list[Adoptable]:
        with _lock:
            return [
                Adoptable(
                    {"source-name": name},
                    id=name,
                    size=held.content.size,
                    reason="it is managed already" if held.managed else None,
                    name=name if held.managed else None,
                )
                for name, held in sorted(self._pool(pool).items())
            ]

    @_faulty
    def disown(self, pool: str, name: str) -> None:
        with _lock:
            held = self._pool(pool).get(check_name(name))
            if held is not None:
                held.managed = False
                held.revoke()

    @_faulty
    def export(self, pool: str, name: str, *, writable: bool) -> Connection:
        with _lock:
            held = self._get(pool, name)
            with held.lock:
                held.exports.add(writable)
            return Connection(
                kind="memory",
                path=f"{self.backend}/{pool}/{name}",
                machine=machine.boot_id(),
                size=held.content.size,
                is_zero=held.content.allocated == 0,
                writable=writable,
                process=machine.process_id(),
                limit=held.content.allocated + self._room(pool) if writable else None,
            )

    @_faulty
    def revoke(self, pool: str, name: str) -> None:
        with _lock:
            held = self._pool(pool).get(check_name(name))
        if held is not None:
            held.revoke()

    @_faulty
    def initialize_connection(
        self, pool: str, name: str, connector: dict[str, Any], *, writable: bool
    ) -> dict[str, Any]:
        self._get(pool, name)
        return {"driver_volume_type": "memory", "data": {"device_path": f"{self.backend}/{pool}/{name}"}}

    @_faulty
    def terminate_connection(self, pool: str, name: str, connector: dict[str, Any]) -> None:
        check_name(name)

    @_faulty
    def is_open(self, pool: str, name: str) -> bool | None:
        check_name(name)
        return None if self.opened is None else name in self.opened

    @_faulty
    def can_assist(self, pool: str, name: str, destination: dict[str, Any]) -> Answer:
        here = self._location(pool)
        if not self.assists:
            return super().can_assist(pool, name, destination)
        if destination.get("driver") != "memory" or destination.get("process") != here["process"]:
            return Answer(False, "the destination is not in this process's memory")
        if destination["place"] == here["place"]:
            return Answer(False, "source and destination are the same place")
        with _lock:
            self._get(pool, name)
        return Answer(True, "both pools are in this process's memory")

    @_faulty
    def move(self, pool: str, name: str, destination: dict[str, Any], new_name: str, progress: Progress) -> None:
        if destination["place"] == self._location(pool)["place"]:
            raise self._error(f"{destination['place']} is the same place")
        with _lock:
            content = self._get(pool, name).content
            there = self._there(destination).setdefault(check_name(new_name), _Object(content))
        if there.content is not content:
            raise self._error(f"another object named {new_name} is at {destination['place']}")
        content.flush()
        progress(content.size, content.size)

    @_faulty
    def unmove(self, pool: str, name: str, destination: dict[str, Any], new_name: str) -> None:
        if destination.get("process") != machine.process_id():
            return
        with _lock:
            objects = self._there(destination)
            if new_name not in objects or destination["place"] == self._location(pool)["place"]:
                return
            if objects[new_name].content is self._get(pool, name).content:
                objects.pop(new_name).revoke()

    # --- for tests -------------------------------------------------------------------------------------------------

    def lay(self, pool: str, name: str, content: bytes) -> None:
        """Put an object into the pool that the driver did not make, for adopt to find."""
        sparse = Sparse(len(content))
        sparse.write(0, content)
        sparse.flush()
        with _lock:
            self._pool(pool)[name] = _Object(sparse, managed=False)

    def power_cut(self, chance: random.Random | None = None) -> None:
        """Lose what was not flushed, all of it or by ``chance``, and end every export of this backend."""
        with _lock:
            for pool in self._state.pools.values():
                for held in pool.values():
                    held.revoke()
                    held.content.power_cut(chance)

    def durable(self, pool: str, name: str) -> Sparse | None:
        """What a power cut now would leave of an object; None if there is none."""
        with _lock:
            held = self._pool(pool).get(name)
        return None if held is None else held.content.durable()

    def is_writable(self, pool: str, name: str) -> bool:
        """Tell whether an export is open through which the object could be written."""
        with _lock:
            held = self._pool(pool).get(name)
        return held is not None and True in held.exports

    # --- inside ----------------------------------------------------------------------------------------------------

    def _pool(self, pool: str) -> _Pool:
        try:
            return self._state.pools[pool]
        except KeyError:
            raise self._error(f"there is no pool {pool!r}") from None

    def _get(self, pool: str, name: str) -> _Object:
        try:
            return self._pool(pool)[check_name(name)]
        except KeyError:
            raise VolumeMissing(backend=f"{self.backend}#{pool}", name=name) from None

    def _there(self, destination: dict[str, Any]) -> _Pool:
        try:
            return _backends[destination["backend"]].pools[destination["pool"]]
        except KeyError:
            raise self._error(f"there is no {destination.get('place')} in this process") from None

    def _delete(self, pool: str, name: str) -> None:
        with _lock:
            held = self._pool(pool).pop(check_name(name), None)
        if held is not None:
            held.revoke()

    def _copy(self, pool: str, source: str, name: str, size: int) -> None:
        check_name(name)
        with _lock:
            held = self._pool(pool).get(name)
            if held is None:
                self._require_room(pool)
                self._pool(pool)[name] = _Object(self._get(pool, source).content.copy(size))
            else:
                held.content.size = max(size, held.content.size)

    @property
    def _total(self) -> int:
        return int(self.options.memory_pool_gib) * GIB

    def _allocated(self, pool: str) -> int:
        with _lock:
            return sum(held.content.allocated for held in self._pool(pool).values())

    def _room(self, pool: str) -> int:
        return max(0, self._total - self._allocated(pool))

    def _require_room(self, pool: str) -> None:
        if not self._room(pool):
            raise NoSpace(where=f"{self.backend}#{pool}", reason=f"all of {self._total} bytes are allocated")

    def _location(self, pool: str) -> dict[str, Any]:
        process = machine.process_id()
        return {
            "driver": "memory",
            "process": process,
            "backend": self.backend,
            "pool": pool,
            "place": f"memory:{process}:{self.backend}:{pool}",
        }

    def _error(self, reason: str) -> DriverError:
        return DriverError(backend=self.backend, reason=reason)


__all__ = ["Died", "Fault", "Faults", "MemoryDriver", "MemoryObject", "open_object", "reset"]
