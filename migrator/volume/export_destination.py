"""What a backend's service does as the destination of migrations: create, export and revoke, for copiers anywhere."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import oslo_messaging as messaging
import sqlalchemy as sa
from oslo_messaging.rpc import expose

from migrator import errors
from migrator.backend_name import BackendName
from migrator.conf import GIB
from migrator.context import RequestContext
from migrator.db import migrations, volumes
from migrator.db.api import execute
from migrator.db.models import Migration, Volume
from migrator.drivers.base import Capability, PoolReport
from migrator.volume import exports
from migrator.volume.states import HOST_COPY, Direction
from migrator.volume.worker_copier import kill_worker

if TYPE_CHECKING:
    from migrator.db.api import Database
    from migrator.drivers.base import VolumeDriver
    from migrator.volume.manager import ObjectLocks

LOG = logging.getLogger(__name__)

#: A deletion waits this long, in seconds, for a creation of the same object before it is left to that creation's end.
BUSY_SECONDS = 2.0

_TWIN = (
    sa.select(
        Volume.id,
        sa.func.coalesce(Volume.name_id, Volume.id).label("object_id"),
        Volume.host,
        Volume.size,
        Volume.status,
        Migration.plan,
        Migration.step,
        Migration.direction,
        Migration.end,
        Migration.cancel_requested,
        Migration.worker,
    )
    .join(Volume, Volume.id == Migration.destination_volume_id)
    .where(Migration.id == sa.bindparam("migration"), Volume.deleted_at.is_(None))
)
_WORKER = sa.select(Migration.worker).where(Migration.id == sa.bindparam("migration"))


class Destinations:
    """Messages of the source's service, for the endpoint of a backend to inherit."""

    _db: Database
    _driver: VolumeDriver
    _locks: ObjectLocks
    _exports: exports.Exports

    if TYPE_CHECKING:

        def _name(self, volume: Volume) -> str: ...

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def create_destination(
        self, context: RequestContext, migration_id: str, machine: str | None = None
    ) -> dict[str, Any]:
        """Create the twin's object and, for a copy, make it writable for the copier; returns a Connection or nothing.

        If the migration gave up meanwhile, the object is removed again (field.md, hazard b).
        """
        with self._locks.hold(self._name(self._twin(migration_id))):
            twin = self._twin_wanted(migration_id)
            self._driver.create(_pool(twin), self._name(twin), twin.size * GIB)
            try:
                self._twin_wanted(migration_id)
            except errors.MigratorError:
                if self._gave_up(migration_id, twin.id):
                    LOG.warning("Migration %s gave up while its destination was created; removing it", migration_id)
                    self._driver.delete(_pool(twin), self._name(twin))
                raise
            if twin.plan != HOST_COPY.name:
                return {}
            return self._exported(twin, migration_id, machine)

    def _gave_up(self, migration_id: str, twin_id: str) -> bool:
        """Tell whether a migration goes back, or went, or began again with another destination.

        One that went on instead was served by another process of this service, while this one was being replaced or
        stood still: what lies there is in use, and behind the switch it is the volume.
        """
        migration = self._db.read(lambda session: session.get(Migration, migration_id))
        if migration is None:
            return False
        return migration.direction == Direction.BACK.value or migration.destination_volume_id != twin_id

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def delete_destination(self, context: RequestContext, migration_id: str) -> bool:
        """Delete the twin's object; False when it is busy: whoever is busy with it, or the sweep, removes it then."""
        migration = self._db.read(lambda session: migrations.get(session, migration_id))
        if migration.direction != Direction.BACK.value:
            raise errors.Conflict(reason=f"migration {migration_id} does not go back")
        twin = self._db.read(lambda session: volumes.find(session, migration.destination_volume_id))
        if twin is None:
            return True
        with self._locks.hold(self._name(twin), timeout=BUSY_SECONDS) as free:
            if free:
                self._exports.revoke(migration_id)
                self._driver.revoke(_pool(twin), self._name(twin))
                self._driver.delete(_pool(twin), self._name(twin))
        return free

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def export_destination(
        self, context: RequestContext, migration_id: str, machine: str | None = None
    ) -> dict[str, Any]:
        """Make the twin's object writable for a copier on ``machine``; returns a Connection."""
        return self._exported(self._twin_to_write(migration_id), migration_id, machine)

    def _exported(self, twin: Any, migration_id: str, machine: str | None) -> dict[str, Any]:
        """Export the twin's object to ``machine``; raises Conflict if the migration gave up meanwhile."""
        connection = self._driver.export(_pool(twin), self._name(twin), writable=True)
        offered = self._exports.offer(migration_id, connection, machine)
        if offered is not connection:
            try:
                self._twin_to_write(migration_id)  # whoever ended the exports may have come too early for this one
            except errors.MigratorError:
                self._exports.revoke(migration_id)
                raise
        return offered.as_dict()

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def uncache_destination(self, context: RequestContext, migration_id: str) -> None:
        """Have the exported twin read from where it is stored."""
        self._exports.uncache(migration_id)

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def revoke_destination(self, context: RequestContext, migration_id: str) -> bool:
        """End every export of the twin's object; tell whether that also stops a process that has one open."""
        self._exports.revoke(migration_id)
        try:
            twin = self._twin(migration_id)
        except errors.NotFound:  # no twin, nothing of the driver's to end
            worker = self._db.read(lambda session: execute(session, _WORKER, migration=migration_id).scalar())
        else:
            self._driver.revoke(_pool(twin), self._name(twin))
            worker = twin.worker
        return Capability.FENCED_EXPORT in self._driver.capabilities or _is_shut_out(worker)

    def _twin(self, migration_id: str) -> Any:
        """The twin as it is now, and where its migration stands (columns of ``_TWIN``); raises NotFound."""
        found = self._db.read(lambda session: execute(session, _TWIN, migration=migration_id).one_or_none())
        if found is None:
            raise errors.NotFound(kind="Destination of migration", id=migration_id)
        return found

    def _twin_to_write(self, migration_id: str) -> Any:
        """The twin, if a copier of its migration may write to it now; raises Conflict or NotFound."""
        twin = self._twin(migration_id)
        if twin.end is not None or twin.direction != Direction.FORWARD.value or twin.step not in exports.STEPS:
            raise errors.Conflict(reason=f"migration {migration_id} is at {twin.step}, nothing is to be written")
        return twin

    def _twin_wanted(self, migration_id: str) -> Any:
        """The twin, if its migration still wants it created; raises Conflict or NotFound."""
        twin = self._twin(migration_id)
        wanted = twin.end is None and (twin.step, twin.direction) == ("create_destination", "forward")
        if not wanted or twin.cancel_requested or twin.status != "creating":
            raise errors.Conflict(reason=f"migration {migration_id} no longer wants its destination created")
        return twin

    # --- the service ---

    def report(self) -> list[PoolReport]:
        """The pools; a copier of another machine can be shut out where exports to other machines can be made."""
        reports = self._driver.report()
        if self._exports.are_possible:
            for pool in reports:
                pool.capabilities[Capability.FENCED_EXPORT.value] = True
        return reports

    def close(self) -> None:
        """End what other hosts' copiers have open here."""
        self._exports.close()


def _is_shut_out(worker: dict[str, Any] | None) -> bool:
    """Tell whether the copier on record had no way here but the export that is ended, or is killed here.

    It may be read before the driver's export is ended: nobody but who asks for this end could record another.
    """
    return worker is not None and (worker.get("writes_by") == "nbd" or kill_worker(worker))


def _pool(volume: Volume) -> str:
    pool = BackendName.parse(str(volume.host)).pool
    assert pool is not None, "a twin's host always names the pool"
    return pool
