"""The RPC endpoint of one backend: thin, it calls the driver and writes down what became of it.

Rows say what is wanted (``creating``, ``deleting`` …) before a message comes, so each handler may be lost or run
twice, and ``sweep`` finds what no message brought.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import oslo_messaging as messaging
import sqlalchemy as sa
from oslo_messaging.rpc import expose
from sqlalchemy.orm import Session

from migrator import errors
from migrator.backend_name import BackendName
from migrator.compute.base import Compute
from migrator.conf import GIB, Conf
from migrator.context import RequestContext, current, current_request_id, service_context
from migrator.db import attachments, messages, migrations, twins, volumes
from migrator.db.api import Database, now_seconds
from migrator.db.models import Migration, Snapshot, Volume, utcnow
from migrator.drivers.base import VolumeDriver
from migrator.notifications import OFF, Notifications
from migrator.rpc import VERSION, VolumeClient
from migrator.volume.cleanup import CleanUp
from migrator.volume.connections import Connections
from migrator.volume.export_destination import Destinations
from migrator.volume.exports import Exports
from migrator.volume.inventory import Inventory
from migrator.volume.questions import Questions
from migrator.volume.snapshot_adoption import SnapshotAdoption

LOG = logging.getLogger(__name__)

#: What waits for a migration to let go of its volume looks again after this, seconds.
LOOK_AGAIN_SECONDS = 0.1


class ObjectLocks:
    """One lock per object of the backend: calls to the driver for one object never overlap."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    def busy(self, name: str) -> bool:
        """Tell whether somebody holds the object or waits for it."""
        with self._guard:
            return name in self._locks

    @contextlib.contextmanager
    def hold(self, name: str, timeout: float = -1) -> Iterator[bool]:
        """Hold the object; False when it was not to be had within ``timeout`` seconds (-1: for ever)."""
        with self._guard:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = (lock, users + 1)
        got = lock.acquire(timeout=timeout)
        try:
            yield got
        finally:
            if got:
                lock.release()
            with self._guard:
                lock, users = self._locks.pop(name)
                if users > 1:
                    self._locks[name] = (lock, users - 1)


class VolumeManager(Destinations, Connections, SnapshotAdoption, CleanUp, Inventory, Questions):
    """Volumes and snapshots of one backend, and what migrations of others want of it as their destination."""

    target = messaging.Target(version=VERSION)

    def __init__(
        self,
        conf: Conf,
        db: Database,
        driver: VolumeDriver,
        run_migration: Callable[[str], None],
        report: Callable[[], None],
        compute: Compute | None = None,
        news: Notifications = OFF,
        peers: VolumeClient | None = None,
    ) -> None:
        """``run_migration`` takes an id to work on soon; ``report`` sends the pools to the schedulers soon.

        ``compute`` is told when a volume has grown that servers use; ``news`` what begins and ends.  By ``peers`` is
        passed on what is another service's by now; without them, that one's sweep finds it.
        """
        self._peers = peers
        self._news = news
        self._compute = compute
        self._conf = conf
        self._db = db
        self._driver = driver
        self._run_migration = run_migration
        self._report = report
        self._locks = ObjectLocks()
        #: Backends host@backend whose rows are worked on here: our own, and those of who is stood in for.
        self._served = {driver.backend}
        self._exports = Exports(conf, driver.backend)
        #: Volumes and snapshots that a timer will come back to.
        self._waiting: set[str] = set()
        #: Twins whose removal failed: said once, not at each sweep.
        self._reported: set[str] = set()

    # --- messages ---

    @expose
    def run_migration(self, context: RequestContext, migration_id: str) -> None:
        self._run_migration(migration_id)

    @expose
    def report_pools(self, context: RequestContext) -> None:
        self._report()

    @expose
    def create_volume(self, context: RequestContext, volume_id: str) -> None:
        """Make a volume ``creating`` available, or ``error`` with a message that says why."""
        volume = self._wanted(volume_id, "creating")
        if volume is None:
            return
        with self._locks.hold(self._name(volume)), self._failing(volume, "error", "create"):
            if self._wanted(volume_id, "creating") is None:
                return
            with self._news.around("volume.create", volume, {"status": "available"}, failed="error"):
                self._create(volume)
                self._settle(volume, "creating", status="available", launched_at=utcnow(), placed_at=now_seconds())
        self._report()

    def _create(self, volume: Volume) -> None:
        pool, name, size = _pool(volume), self._name(volume), volume.size * GIB
        origin = self._origin(volume)
        if origin is None:
            self._driver.create(pool, name, size)
        else:
            self._driver.clone(pool, origin, name, size)

    def _origin(self, volume: Volume) -> str | None:
        """Name of the object that the volume is a copy of, if it is one."""
        if volume.snapshot_id is not None:
            return str(self._conf.snapshot_name_template % volume.snapshot_id)
        if volume.source_volid is None:
            return None
        source_id = volume.source_volid
        return self._name(self._db.read(lambda session: volumes.get(session, source_id)))

    @expose
    def delete_volume(self, context: RequestContext, volume_id: str) -> None:
        """Delete a volume ``deleting`` with its snapshots, once no migration works on it; or what a twin names."""
        volume = self._placed(volume_id, "deleting")
        if volume is not None and volume.twin_of is not None:
            if self._is_here(volume):
                self._reap(volume)
            return
        volume = self._at_rest("delete_volume", volume_id, lambda: self._placed(volume_id, "deleting"))
        if volume is None:
            return
        with self._locks.hold(self._name(volume)), self._failing(volume, "error_deleting", "delete"):
            if self._is_still(volume, "deleting"):
                self._delete(volume)
        self._report()

    def _delete(self, volume: Volume) -> None:
        with self._news.around("volume.delete", volume, {"status": "deleted"}, failed="error_deleting"):
            for snapshot in self._snapshots(volume.id):
                self._delete_snapshot(volume, snapshot)
            if volume.adoption is None:
                self._driver.delete(_pool(volume), self._name(volume))
            else:  # forced away while managing: what it refers to is its owner's, whatever its name is by now
                self._driver.disown(_pool(volume), self._name(volume))
            self._db.run(lambda session: volumes.bury(session, volume.id))

    @expose
    def extend_volume(self, context: RequestContext, volume_id: str) -> None:
        """Bring a volume ``extending`` to its wanted size, once no migration works on it."""
        volume = self._at_rest("extend_volume", volume_id, lambda: self._placed(volume_id, "extending"))
        if volume is None or volume.wanted_size is None:
            return
        with self._locks.hold(self._name(volume)), self._failing(volume, "error_extending", "extend"):
            if not self._is_still(volume, "extending"):
                return
            self._extend(volume, volume.wanted_size)
        self._report()
        with self._locks.hold(self._name(volume)):  # no size is told beside a further extend
            self._tell_servers(volume_id)

    def _extend(self, volume: Volume, size: int) -> None:
        rest = "in-use" if volume.attach_status == "attached" else "available"
        with self._news.around("volume.resize", volume, {"size": size, "status": rest}, failed="error_extending"):
            self._driver.extend(_pool(volume), self._name(volume), size * GIB)
            status = sa.case((volumes.has_attachments(), "in-use"), else_="available")
            self._settle(volume, "extending", status=status, size=size, wanted_size=None)

    def _tell_servers(self, volume_id: str) -> None:
        """Have the servers that use a volume see its size; one that is not told sees it at its next start."""
        if self._compute is None:
            return
        volume = self._db.read(lambda session: volumes.find(session, volume_id))
        for row in self._db.read(lambda session: attachments.of_volume(session, volume_id)):
            if volume is None or row.instance_uuid is None or row.attach_status != attachments.ATTACHED:
                continue
            path = (row.connection_info or {}).get("device_path")
            known = path if isinstance(path, str) else None
            try:
                self._compute.extended(row.instance_uuid, volume_id, known, volume.size * GIB)
            except errors.MigratorError as error:
                LOG.warning("Server %s does not know that volume %s has grown: %s", row.instance_uuid, volume_id, error)

    @expose
    def create_snapshot(self, context: RequestContext, snapshot_id: str) -> None:
        """Make a snapshot ``creating`` available, once no migration works on its volume."""
        snapshot = self._snapshot(snapshot_id, "creating")
        if snapshot is None:
            return
        volume = self._at_rest("create_snapshot", snapshot_id, lambda: self._volume_of(snapshot))
        if volume is None:
            return
        with self._locks.hold(self._name(volume)):
            if not self._is_still(volume) or self._snapshot(snapshot_id, "creating") is None:
                return
            try:
                with self._news.around("snapshot.create", snapshot, {"status": "available"}, failed="error"):
                    self._driver.create_snapshot(_pool(volume), self._name(volume), self._snapshot_name(snapshot_id))
            except errors.MigratorError as error:
                self._snapshot_failed(snapshot, "error", error)
                return
            self._set_snapshot(snapshot_id, status="available", progress="100%")

    @expose
    def delete_snapshot(self, context: RequestContext, snapshot_id: str) -> None:
        """Delete a snapshot ``deleting``."""
        snapshot = self._snapshot(snapshot_id, "deleting")
        if snapshot is None:
            return
        volume = self._db.read(lambda session: volumes.get(session, snapshot.volume_id))
        with self._locks.hold(self._name(volume)):
            if not self._is_still(volume):
                return
            try:
                self._delete_snapshot(volume, snapshot)
            except errors.MigratorError as error:
                self._snapshot_failed(snapshot, "error_deleting", error)

    # --- recovery ---

    def sweep(self, service: str) -> None:
        """Do what rows of this backend ask for and no message brought: after a restart, and now and then."""
        self._served.add(service)
        self._exports.sweep(self._db)
        for twin_id in self._db.read(lambda session: twins.expired(session, service)):
            self._db.run(lambda session, twin_id=twin_id: twins.give_up_kept(session, twin_id))  # type: ignore[misc]
        context = service_context()
        handlers = {status: getattr(self, handler) for status, handler in _PENDING.items()}
        for volume_id in self._db.read(lambda session: volumes.living_ids(session, service, _is_pending())):
            volume = self._still_pending(service, volume_id)
            if volume is None or self._locks.busy(self._name(volume)):
                continue  # somebody is at it, perhaps for long
            if volume.twin_of is not None:
                self._reap(volume)
            else:
                handlers[volume.status](context, volume_id=volume_id)
        for snapshot_id, status in self._db.read(lambda session: _pending_snapshots(session, service)):
            getattr(self, _PENDING_SNAPSHOTS[status])(context, snapshot_id=snapshot_id)

    def _still_pending(self, service: str, volume_id: str) -> Volume | None:
        """The volume or twin as it is now, if it still waits here: what came before it may have taken long."""
        found = self._db.read(lambda session: volumes.living(session, service, _is_pending(), Volume.id == volume_id))
        return found[0] if found else None

    def _reap(self, twin: Volume) -> None:
        """Remove the twin of a migration that ended without it."""
        migration = self._db.read(lambda session: session.get(Migration, twin.migration_id))
        if migration is not None and migration.end is None and migration.destination_volume_id == twin.id:
            return  # it removes the twin itself, or has made it anew
        with self._locks.hold(self._name(twin), timeout=0) as free:
            # Read behind the end of the migration, which may have kept what the row named; an undo may since have put
            # the volume back on that.
            now = self._wanted(twin.id, "deleting")
            if not free or now is None or (now.host, now.object_id) != (twin.host, twin.object_id):
                return
            try:
                self._exports.revoke(twin.migration_id or "")
                self._driver.delete(_pool(twin), self._name(twin))
            except errors.MigratorError as error:
                level = logging.DEBUG if twin.id in self._reported else logging.WARNING
                LOG.log(level, "Cannot remove %s yet, it is tried again and again: %s", self._name(twin), error)
                self._reported.add(twin.id)
                return
            self._db.run(lambda session: volumes.remove(session, twin.id))
        LOG.info("Removed %s, which migration %s left on %s", self._name(twin), twin.migration_id, twin.host)
        self._report()

    # --- helpers ---

    def _name(self, volume: Volume) -> str:
        return str(self._conf.volume_name_template % volume.object_id)

    def _snapshot_name(self, snapshot_id: str) -> str:
        return str(self._conf.snapshot_name_template % snapshot_id)

    def _wanted(self, volume_id: str, status: str) -> Volume | None:
        volume = self._placed(volume_id, status)
        return volume if volume is not None and self._is_here(volume) else None

    def _placed(self, volume_id: str, status: str) -> Volume | None:
        volume = self._db.read(lambda session: volumes.find(session, volume_id))
        return volume if volume is not None and volume.status == status and volume.host is not None else None

    def _is_here(self, volume: Volume) -> bool:
        """Tell whether the volume lives here; a message may have waited until a server took it elsewhere."""
        return volume.host is not None and BackendName.parse(volume.host).service in self._served

    def _is_still(self, volume: Volume, status: str | None = None) -> bool:
        """Tell whether a volume that was read before its migration ended, say, lives where it did, with that status."""
        now = self._db.read(lambda session: volumes.find(session, volume.id))
        if now is None or not self._is_here(now) or (now.host, now.object_id) != (volume.host, volume.object_id):
            return False
        return status is None or now.status == status

    def _volume_of(self, snapshot: Snapshot) -> Volume:
        return self._db.read(lambda session: volumes.get(session, snapshot.volume_id))

    def _at_rest(self, order: str, object_id: str, look: Callable[[], Volume | None]) -> Volume | None:
        """The volume that a message is about, once no migration works on it; None where the message is to wait.

        None also where the volume is another service's by now, which is given the message: a cancelled migration ends
        at its destination all the same when a server was moved there already.
        """
        volume = look()
        if volume is not None and self._migrating(volume):
            self._after_migration(object_id, lambda: getattr(self, order)(service_context(), object_id))
            return None
        if volume is not None and volume.migration_id is not None:
            volume = look()  # what was read before the migration had ended may name the place that it has left
        if volume is None or self._is_here(volume):
            return volume
        LOG.info("%s of %s is left to the service of %s", order, object_id, volume.host)
        if self._peers is not None:
            getattr(self._peers, order)(service_context(), str(volume.host), object_id)
        return None

    def _migrating(self, volume: Volume) -> bool:
        """Tell whether a migration still works on the volume, also one that gave way to another; nudge them."""
        if volume.migration_id is None:
            return False
        lasting = self._db.read(lambda session: migrations.under_way(session, volume.id))
        for migration_id in lasting:
            self._run_migration(migration_id)
        return bool(lasting)

    def _after_migration(self, object_id: str, work: Callable[[], None]) -> None:
        """Come back to ``work`` for an object soon, when the migration may have let go of its volume."""
        if object_id in self._waiting:
            return  # a message and the sweep may both have come for it

        whose = current()

        def again() -> None:
            if whose is not None:
                whose.take_thread()
            self._waiting.discard(object_id)
            work()

        self._waiting.add(object_id)
        timer = threading.Timer(LOOK_AGAIN_SECONDS, again)
        timer.daemon = True
        timer.start()

    def _settle(self, volume: Volume, was: str, **values: Any) -> None:
        self._db.run(lambda session: volumes.update_where(session, volume.id, Volume.status == was, **values))

    @contextlib.contextmanager
    def _failing(self, volume: Volume, status: str, event: str) -> Iterator[None]:
        """Turn a failure of the block into the volume's status and a message for its users."""
        try:
            yield
        except (errors.MigratorError, OSError) as error:
            LOG.error("Volume %s: %s failed: %s", volume.id, event, error)
            text = str(error)

            def work(session: Session) -> None:
                volumes.update_where(session, volume.id, status=status)
                messages.add(
                    session,
                    project_id=volume.project_id,
                    request_id=current_request_id(),
                    resource_uuid=volume.id,
                    event=event,
                    text=text,
                )

            self._db.run(work)

    # --- snapshots ---

    def _snapshot(self, snapshot_id: str, status: str) -> Snapshot | None:
        query = sa.select(Snapshot).where(
            Snapshot.id == snapshot_id, Snapshot.deleted_at.is_(None), Snapshot.status == status
        )
        return self._db.read(lambda session: session.scalar(query))

    def _snapshots(self, volume_id: str) -> list[Snapshot]:
        query = sa.select(Snapshot).where(Snapshot.volume_id == volume_id, Snapshot.deleted_at.is_(None))
        return self._db.read(lambda session: list(session.scalars(query)))

    def _delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> None:
        with self._news.around("snapshot.delete", snapshot, {"status": "deleted"}, failed="error_deleting"):
            if snapshot.adoption is None:  # or else what it refers to, and lies under its name perhaps, is its owner's
                self._driver.delete_snapshot(_pool(volume), self._name(volume), self._snapshot_name(snapshot.id))
        self._set_snapshot(snapshot.id, status="deleted", deleted_at=utcnow())

    def _set_snapshot(self, snapshot_id: str, **values: Any) -> None:
        statement = sa.update(Snapshot).where(Snapshot.id == snapshot_id).values(updated_at=utcnow(), **values)
        self._db.run(lambda session: session.execute(statement))

    def _snapshot_failed(self, snapshot: Snapshot, status: str, error: errors.MigratorError) -> None:
        LOG.error("Snapshot %s: %s", snapshot.id, error)
        self._set_snapshot(snapshot.id, status=status)
        self._db.run(
            lambda session: messages.add(
                session,
                project_id=snapshot.project_id,
                request_id=current_request_id(),
                resource_uuid=snapshot.id,
                event="snapshot",
                text=error.message,
                resource_type="VOLUME_SNAPSHOT",
            )
        )


def _pool(volume: Volume) -> str:
    assert volume.host is not None, "a volume on a backend has a host"
    pool = BackendName.parse(volume.host).pool
    assert pool is not None, "a volume's host always names the pool"
    return pool


#: A volume's status that asks for something, and which message's handler does it.
_PENDING = {
    "creating": "create_volume",
    "deleting": "delete_volume",
    "extending": "extend_volume",
    "managing": "manage_volume",
    "unmanaging": "unmanage_volume",
}
#: The same of a snapshot's.
_PENDING_SNAPSHOTS = {
    "creating": "create_snapshot",
    "deleting": "delete_snapshot",
    "managing": "manage_snapshot",
    "unmanaging": "unmanage_snapshot",
}


def _is_pending() -> sa.ColumnElement[bool]:
    return sa.or_(
        sa.and_(Volume.twin_of.is_(None), Volume.status.in_(_PENDING)),
        sa.and_(Volume.twin_of.is_not(None), Volume.status == "deleting"),
    )


def _pending_snapshots(session: Session, service: str) -> list[tuple[str, str]]:
    """Ids and statuses."""
    query = (
        sa.select(Snapshot.id, Snapshot.status)
        .join(Volume, Volume.id == Snapshot.volume_id)
        .where(
            Volume.host.startswith(service + "#", autoescape=True),
            Snapshot.deleted_at.is_(None),
            Snapshot.status.in_(_PENDING_SNAPSHOTS),
        )
    )
    return [(snapshot_id, status) for snapshot_id, status in session.execute(query)]
