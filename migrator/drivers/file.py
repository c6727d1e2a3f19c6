"""The file driver: a pool is a directory, a volume is the raw file of the volume's name in it.

No image format is ever interpreted.  What is copied or allocated is made under another name first or is grown where it
stands, so that a crash at any point leaves either the whole object or something that the next call or start repairs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn

from oslo_config import cfg
from oslo_log import log

from migrator import machine
from migrator.conf import GIB
from migrator.drivers import adoption
from migrator.drivers import directory as directories
from migrator.drivers.base import Adoptable, Answer, Capability, Connection, PoolReport, Progress, VolumeDriver
from migrator.drivers.directory import Directory, Identity
from migrator.drivers.names import check_name, check_pools, source_name
from migrator.errors import ConfigError, DriverError, NoSpace, VolumeMissing

LOG = log.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT}
#: st_blocks counts these, whatever the file system's own block size; see inode(7).
_STAT_BLOCK = 512


class FileDriver(VolumeDriver):
    """One backend of directories.

    The copier opens the files itself, and a path cannot be taken back from who has it open: copies are fenced by
    killing the recorded copier on this machine, so FENCED_EXPORT is not declared.
    """

    capabilities = frozenset(Capability) - {Capability.FENCED_EXPORT}
    asked_unstarted = True

    def __init__(self, backend: str, options: cfg.ConfigOpts.GroupAttr) -> None:
        super().__init__(backend, options)
        check_pools("file_pools", options.file_pools)
        self._paths = {pool: os.path.normpath(path) for pool, path in options.file_pools.items()}
        for pool, path in self._paths.items():
            if not os.path.isabs(options.file_pools[pool]):
                raise _misconfigured(f"the directory of pool {pool} must be an absolute path, not {path!r}")
        if len(set(self._paths.values())) < len(self._paths):
            raise _misconfigured("two pools have the same directory")
        self._thin = bool(options.file_thin_provisioning)
        quota = options.file_pool_quota_gib
        self._quota = None if quota is None else int(quota * GIB)
        #: The directories found at start; a call that finds another one in its place has nothing to do there.
        self._identities: dict[str, Identity] = {}
        self._abilities: dict[str, dict[str, bool]] = {}
        self._unreported: set[str] = set()

    # --- pools -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Create the directories that are missing, remove what a crash left, find out what each can do."""
        for pool, path in self._paths.items():
            try:
                os.makedirs(path, mode=0o750, exist_ok=True)
            except OSError as error:
                raise _misconfigured(f"the directory {path} of pool {pool} cannot be made: {error.strerror}") from error
            with self._at(pool, "starting") as here:
                if here.identity in self._identities.values():
                    raise _misconfigured(f"the directory {path} of pool {pool} is another pool's too")
                self._identities[pool] = here.identity
                for name in here.sweep():
                    LOG.info("pool %s of %s: removed %s, left by a crash", pool, self.backend, name)
                self._abilities[pool] = self._probe(here)
        LOG.info("backend %s serves %s", self.backend, self._abilities)

    def _probe(self, here: Directory) -> dict[str, bool]:
        try:
            return {
                "hard_link": directories.can_link(here, here),
                "reflink": directories.can_clone(here, here),
            }
        except OSError as error:
            if error.errno in _FULL:  # a full pool must start too, if only to delete from it
                return {"hard_link": False, "reflink": False}
            if error.errno in (errno.EACCES, errno.EROFS):
                raise _misconfigured(f"the directory {here.path} cannot be written: {error.strerror}") from error
            raise

    def pools(self) -> list[str]:
        return list(self._paths)

    def report(self) -> list[PoolReport]:
        """Leaves out pools that do not answer; the log says so once."""
        reports = []
        for pool in self._paths:
            try:
                with self._at(pool, "looking at the pool") as here:
                    reports.append(self._report(pool, here))
                self._unreported.discard(pool)
            except DriverError as error:
                if pool not in self._unreported:
                    LOG.warning("pool %s is not reported until it is back: %s", pool, error)
                self._unreported.add(pool)
        return reports

    def _report(self, pool: str, here: Directory) -> PoolReport:
        system = os.fstatvfs(here.fd)
        total, free = system.f_blocks * system.f_frsize, system.f_bavail * system.f_frsize
        allocated = _allocated_in(here)
        if self._quota is not None:
            total, free = min(total, self._quota), min(free, max(0, self._quota - allocated))
        return PoolReport(
            pool=pool,
            total_gib=total / GIB,
            free_gib=free / GIB,
            allocated_gib=allocated / GIB,
            thin=self._thin,
            location=self._location(here),
            capabilities={
                **{capability.value: True for capability in sorted(self.capabilities)},
                **self._abilities.get(pool, {}),
            },
        )

    # --- objects ---------------------------------------------------------------------------------------------------

    def create(self, pool: str, name: str, size: int) -> None:
        with self._at(pool, f"creating {check_name(name)} of {size} bytes") as here:
            found = here.find(name)
            if found is not None and found.st_size > size:
                raise self._error(f"{name} exists with {found.st_size} bytes, wanted {size}")
            held = found.st_blocks * _STAT_BLOCK if found else 0
            whole = found is not None and found.st_size == size and (self._thin or held >= size)
            if not whole:
                self._require_room(pool, here, 0 if self._thin else size - held)
            here.mark(name)
            with here.file(name, os.O_RDWR | (os.O_CREAT | os.O_EXCL if found is None else 0)) as fd:
                try:
                    self._grow(fd, size, size if whole else 0)
                except OSError:
                    if found is None:
                        with suppress(OSError):  # the first error is the one to tell
                            here.remove(name)
                    raise
            here.sync()

    def _grow(self, fd: int, size: int, allocated: int) -> None:
        """Make a file ``size`` bytes durably, in a thick pool with all of them from ``allocated`` on reserved."""
        if not self._thin and size > allocated:
            os.posix_fallocate(fd, allocated, size - allocated)
        elif os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        os.fsync(fd)

    def delete(self, pool: str, name: str) -> None:
        with self._at(pool, f"deleting {check_name(name)}") as here:
            here.remove(name)

    def extend(self, pool: str, name: str, size: int) -> None:
        with self._at(pool, f"extending {check_name(name)} to {size} bytes", missing=name) as here:
            with here.file(name, os.O_RDWR) as fd:
                old = os.fstat(fd).st_size
                if old < size:
                    self._require_room(pool, here, 0 if self._thin else size - old)
                try:
                    self._grow(fd, size, min(old, size))
                except OSError:
                    with suppress(OSError):
                        os.ftruncate(fd, old)
                    raise
            here.sync()

    def exists(self, pool: str, name: str) -> bool:
        with self._at(pool, f"looking for {check_name(name)}") as here:
            return here.find(name) is not None

    def objects(self, pool: str) -> list[str]:
        with self._at(pool, "listing the objects") as here:
            return sorted(here.objects())

    def allocated(self, pool: str, name: str) -> int:
        with self._at(pool, f"looking at {check_name(name)}", missing=name) as here:
            return here.get(name).st_blocks * _STAT_BLOCK

    def create_snapshot(self, pool: str, volume: str, name: str) -> None:
        self._copy(pool, volume, name, 0, thin=True)

    def delete_snapshot(self, pool: str, volume: str, name: str) -> None:
        self.delete(pool, name)

    def clone(self, pool: str, source: str, name: str, size: int) -> None:
        self._copy(pool, source, name, size, thin=self._thin)
        self.extend(pool, name, size)

    def _copy(self, pool: str, source: str, name: str, size: int, *, thin: bool) -> None:
        """Give ``name`` the content of ``source`` and at least ``size`` bytes, unless it exists."""
        what = f"copying {check_name(source)} to {check_name(name)}"
        with self._at(pool, what, missing=source) as here:
            if here.find(name) is not None:
                here.sync()
                return
            found = here.get(source)
            size = max(size, found.st_size)
            self._require_room(pool, here, found.st_blocks * _STAT_BLOCK if thin else size)
            here.mark(name)
            with here.file(source, os.O_RDONLY) as reader, here.temporary(name) as writer:
                # Shared blocks must be allocated when they are written to, which is not what thick promises.
                if not (thin and directories.clone(reader, writer.fd)):
                    if not thin and size > 0:
                        os.posix_fallocate(writer.fd, 0, size)
                    directories.copy(reader, writer.fd)
                if os.fstat(writer.fd).st_size < size:
                    os.ftruncate(writer.fd, size)
                writer.publish()

    def adopt(self, pool: str, reference: dict[str, Any], name: str) -> int:
        found_name = source_name(reference)
        with self._at(pool, f"adopting {found_name} as {check_name(name)}") as here:
            return adoption.take(here, found_name, name)

    def adoptable(self, pool: str) -> list[Adoptable]:
        with self._at(pool, "looking for what could be adopted") as here:
            return adoption.listed(here)

    def disown(self, pool: str, name: str) -> None:
        with self._at(pool, f"giving up {check_name(name)}") as here:
            here.unmark(name)
            here.sync()

    # --- exports ---------------------------------------------------------------------------------------------------

    def export(self, pool: str, name: str, *, writable: bool) -> Connection:
        with self._at(pool, f"exporting {check_name(name)}", missing=name) as here, here.file(name, os.O_RDONLY) as fd:
            found = os.fstat(fd)
            limit = None
            if writable and self._quota is not None:
                limit = found.st_blocks * _STAT_BLOCK + max(0, self._quota - _allocated_in(here))
            return Connection(
                kind="file",
                path=os.path.join(here.path, name),
                machine=machine.boot_id(),
                size=found.st_size,
                is_zero=next(directories.data_ranges(fd, found.st_size), None) is None,
                writable=writable,
                limit=limit,
                may_punch=self._thin,
            )

    def revoke(self, pool: str, name: str) -> None:
        """Do nothing: a path is no session that could be ended."""
        check_name(name)

    def initialize_connection(
        self, pool: str, name: str, connector: dict[str, Any], *, writable: bool
    ) -> dict[str, Any]:
        """Tell the file's path, for a hypervisor that has the pool's directory under the same path."""
        with self._at(pool, f"offering {check_name(name)}", missing=name) as here:
            here.get(name)
            data = {"name": name, "device_path": os.path.join(here.path, name)}
        return {"driver_volume_type": self.options.file_connection_type, "data": data}

    def is_open(self, pool: str, name: str) -> bool | None:
        """Tell by the locks that QEMU holds on what it has open; they are seen through NFS, too."""
        with self._at(pool, f"looking at {check_name(name)}", missing=name) as here, here.file(name, os.O_RDONLY) as fd:
            return directories.is_locked(fd)

    # --- assisted moves --------------------------------------------------------------------------------------------

    def can_assist(self, pool: str, name: str, destination: dict[str, Any]) -> Answer:
        with self._at(pool, f"looking at {check_name(name)}", missing=name) as here:
            found = here.get(name)
            reason = _differs(self._location(here), destination)
            if reason:
                return Answer(False, reason)
            try:
                with Directory.open(destination["directory"]) as there:
                    return self._can_move(here, there, name, found, destination["place"])
            except OSError as error:
                return Answer(False, f"the directory {destination['directory']} cannot be used: {error.strerror}")

    def _can_move(self, here: Directory, there: Directory, name: str, found: os.stat_result, place: str) -> Answer:
        if self._location(there)["place"] != place:
            return Answer(False, f"{there.path} is not the directory that the pool had")
        if found.st_nlink > 1:
            return Answer(False, f"{name} has {found.st_nlink} hard links, some unknown")
        if directories.can_link(here, there):
            return Answer(True, "by a hard link")
        if directories.can_clone(here, there):
            return Answer(True, "by shared blocks (reflink)")
        return Answer(False, "the file system offers neither hard links nor reflinks between these directories")

    def move(self, pool: str, name: str, destination: dict[str, Any], new_name: str, progress: Progress) -> None:
        doing = f"moving {check_name(name)} to {destination['directory']} as {check_name(new_name)}"
        with self._at(pool, doing, missing=name) as here, self._there(destination) as there:
            if there.identity == here.identity:
                raise self._error(f"{here.path} and {there.path} are the same directory")
            found, arrived = here.get(name), there.find(new_name)
            if arrived is not None and not _is_ours(here, there, new_name, found, arrived):
                raise self._error(f"another {new_name} is in {there.path}")
            if there.origin(new_name) != _origin(here, found):
                there.mark(new_name, _origin(here, found))
            there.sync()
            linked = arrived is not None and os.path.samestat(found, arrived)
            if not linked and not (arrived is None and directories.link(here, name, there, new_name)):
                self._move_by_clone(here, name, there, new_name)
            with there.file(new_name, os.O_RDONLY) as fd:
                os.fsync(fd)
            there.sync()
            progress(found.st_size, found.st_size)

    def _move_by_clone(self, here: Directory, name: str, there: Directory, new_name: str) -> None:
        with here.file(name, os.O_RDONLY) as reader, there.temporary(new_name) as writer:
            if not directories.clone(reader, writer.fd):
                raise self._error(f"{here.path} and {there.path} no longer share a file system that can move {name}")
            # One that is there already was cloned from the same file by an earlier attempt.
            writer.replace()

    def unmove(self, pool: str, name: str, destination: dict[str, Any], new_name: str) -> None:
        check_name(new_name)
        with self._at(pool, f"taking back {check_name(name)}", missing=name) as here, ExitStack() as stack:
            if destination.get("driver") != "file":
                return
            try:
                there = stack.enter_context(self._there(destination))
            except DriverError:
                if self._is_out_of_reach(here, name, destination):
                    return
                raise
            if there.identity == here.identity:
                return
            arrived = there.find(new_name)
            if arrived is None:
                there.remove(new_name)
                return
            found = here.get(name)
            if os.path.samestat(found, arrived) and arrived.st_nlink < 2:
                raise self._error(f"{new_name} in {there.path} is the last name of its file")
            if _is_ours(here, there, new_name, found, arrived):
                there.remove(new_name)

    def _is_out_of_reach(self, here: Directory, name: str, destination: dict[str, Any]) -> bool:
        """Tell whether a directory that is not found here is another machine's, so that nothing was moved to it.

        It might be of an earlier boot of this one and not be mounted yet, but then the file has its second name there.
        """
        found = here.find(name)
        return destination["machine"] != machine.boot_id() and found is not None and found.st_nlink == 1

    @contextmanager
    def _there(self, destination: dict[str, Any]) -> Iterator[Directory]:
        """Open the destination of a move; the boot may be another than when the location was reported."""
        with ExitStack() as stack:
            try:
                there = stack.enter_context(Directory.open(destination["directory"]))
            except OSError as error:
                raise self._error(f"the directory {destination['directory']}: {error.strerror}") from error
            if destination["place"].rpartition(":")[2] != str(there.identity.inode):
                raise self._error(f"{there.path} is not the directory that the pool had")
            yield there

    # --- inside ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _at(self, pool: str, doing: str, *, missing: str | None = None) -> Iterator[Directory]:
        """Open the pool's directory for one call; ``missing`` is the object without which there is nothing to do."""
        if pool not in self._paths:
            raise self._error(f"there is no pool {pool!r}")
        path = self._paths[pool]
        with ExitStack() as stack:
            try:
                here = stack.enter_context(Directory.open(path))
            except OSError as error:
                raise self._error(f"the directory {path} of pool {pool} is gone: {error.strerror}") from error
            if self._identities.get(pool, here.identity) != here.identity:
                raise self._error(f"the directory {path} of pool {pool} is not the one found at start; was it mounted?")
            with self._translate_failures(pool, here, doing, missing):
                yield here

    @contextmanager
    def _translate_failures(self, pool: str, here: Directory, doing: str, missing: str | None) -> Iterator[None]:
        """Turn what the operating system reports into errors of ours, once and only here."""
        try:
            yield
        except OSError as error:
            where = f"{self.backend}#{pool}"
            if error.errno in _FULL:
                raise NoSpace(where=where, reason=f"{doing}: {error.strerror}, {_free(here)} bytes free") from error
            if error.errno == errno.ENOENT and missing is not None and error.filename == missing:
                raise VolumeMissing(backend=where, name=missing) from error
            path = os.path.join(here.path, error.filename if isinstance(error.filename, str) else "")
            raise self._error(f"{doing}: {path}: {error.strerror}") from error

    def _require_room(self, pool: str, here: Directory, needed: int) -> None:
        """Raise NoSpace unless the pool's quota is not used up and ``needed`` bytes can be allocated now.

        Asked before the file system is, because one that is asked for too much fills up before it refuses.
        """
        free = _free(here)
        if self._quota is not None:
            left = self._quota - _allocated_in(here)
            free = min(free, left)
            if left <= 0:
                self._refuse(pool, f"its quota of {self._quota} bytes is used up")
        if needed > free:
            self._refuse(pool, f"{needed} bytes are needed, {free} are free")

    def _refuse(self, pool: str, reason: str) -> NoReturn:
        raise NoSpace(where=f"{self.backend}#{pool}", reason=reason)

    def _location(self, here: Directory) -> dict[str, Any]:
        boot, identity = machine.boot_id(), here.identity
        return {
            "driver": "file",
            "machine": boot,
            "directory": here.path,
            "fs": str(identity.device),
            "thin": self._thin,
            "place": f"file:{boot}:{identity.device}:{identity.inode}",
        }

    def _error(self, reason: str) -> DriverError:
        return DriverError(backend=self.backend, reason=reason)


def _misconfigured(reason: str) -> ConfigError:
    return ConfigError(option="file_pools", reason=reason)


def _free(here: Directory) -> int:
    system = os.fstatvfs(here.fd)
    return system.f_bavail * system.f_frsize


def _allocated_in(here: Directory) -> int:
    return sum(found.st_blocks for found in here.objects().values()) * _STAT_BLOCK


def _differs(here: dict[str, Any], there: dict[str, Any]) -> str:
    """Say why the pool at one location cannot move a file to another by itself; empty if nothing is against it."""
    reasons = [
        ("driver", "the destination is not of the file driver"),
        ("machine", "the destination is on another machine"),
        ("fs", "the destination is on another file system"),
        ("thin", "one pool is thin and the other is not, so the blocks must be written anew"),
    ]
    for key, reason in reasons:
        if here[key] != there.get(key):
            return reason
    return "source and destination are the same place" if here["place"] == there["place"] else ""


def _origin(here: Directory, found: os.stat_result) -> str:
    """What the destination's mark of a moved file says: it must name the source also after the next boot."""
    return f"{found.st_ino} {here.path}"


def _is_ours(here: Directory, there: Directory, name: str, found: os.stat_result, arrived: os.stat_result) -> bool:
    """Tell whether what lies at the destination was put there by an earlier move of the file here."""
    return os.path.samestat(found, arrived) or there.origin(name) == _origin(here, found)
