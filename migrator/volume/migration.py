"""What each step of a migration does, in the order of the plans, and how it is taken back.

Every function may be run again after any interruption: create of what exists, delete of what is gone, revoke of what
never was all succeed.  Intent is in the row before the effect; nothing here decides what comes next (states.py).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from migrator import errors, machine
from migrator.backend_name import BackendName
from migrator.compute.base import Compute, Hypervisor
from migrator.conf import Conf
from migrator.context import service_context
from migrator.db import attachments, fences, migrations, transitions, volumes
from migrator.db.api import Database
from migrator.db.models import Attachment, Migration
from migrator.db.transitions import Outcome
from migrator.drivers.base import Capability, Connection, VolumeDriver
from migrator.rpc import VolumeClient
from migrator.volume import copiers, exports
from migrator.volume.attached import Attached
from migrator.volume.move_record import MoveRecord
from migrator.volume.runner import Function, Interrupted
from migrator.volume.states import HOST_COPY, Direction, Event
from migrator.volume.watch import Watch

if TYPE_CHECKING:
    from migrator.volume.driven import Driven

LOG = logging.getLogger(__name__)

DONE = Outcome(Event.DONE)
UNDONE = Outcome(Event.UNDONE)

#: What the history says of a verification that was not wanted.
_NOT_READ_BACK = {
    "inline": "not read back: verify is inline, so the checksum is that of what passed by, if it passed in one go",
    "none": "not verified: verify is none",
}


def nothing(migration: Migration) -> Outcome:
    """Take back a step that leaves nothing."""
    return UNDONE


def committed_by_advance(migration: Migration) -> Outcome:
    """Do a step whose whole work is the transaction that advances the row (db/twins.py)."""
    return DONE


class Steps:
    """The steps of migrations whose source is one backend; calls the destination's service for what is done there."""

    def __init__(
        self,
        conf: Conf,
        db: Database,
        driver: VolumeDriver,
        volume_client: VolumeClient,
        pool: copiers.CopierPool,
        compute: Compute | None = None,
    ) -> None:
        self._conf = conf
        self._db = db
        self._driver = driver
        self._peer = volume_client
        self._copiers = pool
        self._attached: Attached | Driven = Attached(conf, db, compute, self._opened)
        if isinstance(compute, Hypervisor):
            from migrator.volume.driven import Driven  # only where one is led: it needs QEMU's library

            self._attached = Driven(conf, db, compute, volume_client, driver.options.volume_copy_bps_limit or None)
        #: Both ends of the copies under way, from copy_data to disconnect, by the twin's id: a retry has another.
        self._connections: dict[str, tuple[Connection, Connection]] = {}
        #: What the creation of a destination answered, until its copy begins.
        self._exports: dict[str, Connection] = {}
        #: Given by the runner: set when the service ends.
        self.stopping = threading.Event()

    def functions(self) -> dict[tuple[str, Direction], Function]:
        """Every step in both directions."""
        forward: dict[str, Function] = {
            "create_destination": self.create_destination,
            "copy_data": self.copy_data,
            "verify_copy": self.verify_copy,
            "disconnect": self.disconnect,
            "assisted_move": self.assisted_move,
            "swap_by_compute": self._attached.swap,
            "switch_volume": committed_by_advance,
            "record_move": committed_by_advance,
            "delete_source": self.delete_source,
        }
        back: dict[str, Function] = {
            "pick_destination": nothing,  # the reservation is the row itself, and ends with it
            "create_destination": self.delete_destination,
            "copy_data": self.stop_copy,
            "verify_copy": nothing,
            "disconnect": nothing,
            "assisted_move": self.take_back_move,
            "swap_by_compute": self._attached.take_back,
            "switch_volume": nothing,  # it was not committed
            "record_move": nothing,
        }
        table = {(step, Direction.FORWARD): function for step, function in forward.items()}
        return table | {(step, Direction.BACK): function for step, function in back.items()}

    # --- host copy ---

    def create_destination(self, migration: Migration) -> Outcome:
        """Have the destination's service create the twin's object; for a copy it answers with the export."""
        here = machine.boot_id()
        made = self._peer.create_destination(service_context(), _destination(migration), migration.id, here)
        if made:
            self._exports[migration.destination_volume_id] = Connection.from_dict(made)
        return DONE

    def delete_destination(self, migration: Migration) -> Outcome:
        """Have the twin's object deleted, now or, where that cannot be, by the destination's own service later.

        The twin's row stays until then and names it, so nothing is forgotten and no migration waits for a backend
        that is busy, dead or gone.
        """
        self._exports.pop(migration.destination_volume_id, None)
        try:
            gone = self._peer.delete_destination(service_context(), _destination(migration), migration.id)
        except errors.ServiceUnavailable as error:
            return _deferred(str(error))
        except errors.DriverError as error:
            if migration.attempts < self._conf.migration_attempts:
                raise
            return _deferred(str(error))
        return UNDONE if gone else _deferred("its service is busy with it")

    def copy_data(self, migration: Migration) -> Outcome:
        """Copy what is not recorded as copied yet; every record follows a flush of the destination."""
        self._fence(migration)
        self._refuse_used(migration)
        if migration.attempts > 1:  # cut off whoever may still hold the export of an earlier attempt
            self._peer.revoke_destination(service_context(), _destination(migration), migration.id)
        source, destination = self._connect(migration)
        done = self._copied(migration)
        watch = self._watch(migration)
        record = _CopyRecord(watch, source.size, done, self._driver.allocated(*self._source(migration)))
        options = {
            "checkpoint_seconds": self._conf.copy_checkpoint_seconds,
            "bytes_per_second": watch.rate,
            "hash": migration.verify != "none",
            **self._patience(),
        }
        try:
            with self._writer(migration, watch, source, destination) as copier:
                watch.limit(copier, watch.rate)
                result = copier.copy(source.as_dict(), destination.as_dict(), done, options, record, watch.stop)
        except copiers.CopyStopped as stopped:
            return self._stopped(migration, stopped)
        values = record.end(result) | {"rate": None, "worker": None, "stalled_since": None}
        return Outcome(Event.DONE, bytes=result["bytes_written"], values=values)

    def _copied(self, migration: Migration) -> list[list[int]]:
        """What is recorded as copied: nothing of a copy that begins, since each record of ranges counts them too."""
        if not migration.bytes_done:
            return []
        return self._db.read(lambda session: migrations.copied(session, migration.id))

    def stop_copy(self, migration: Migration) -> Outcome:
        """Make sure that no copier writes any more, then end the export."""
        self._fence(migration)
        self._connections.pop(migration.destination_volume_id, None)
        self._driver.revoke(*self._source(migration))
        try:
            self._peer.revoke_destination(service_context(), _destination(migration), migration.id)
        except errors.ServiceUnavailable as error:
            # Only a copier of ours could write there, and it is gone; a dead service exports nothing.
            return Outcome(Event.UNDONE, str(error), values={"worker": None})
        return Outcome(Event.UNDONE, values={"worker": None})

    def verify_copy(self, migration: Migration) -> Outcome:
        """Read the destination back, past the cache, and compare; or say why that is left out."""
        if migration.verify != "readback":
            return Outcome(Event.DONE, _NOT_READ_BACK[migration.verify])
        self._fence(migration)
        source, destination = self._connected(migration)
        if destination.kind == "nbd":  # a copier gets past the caches of its own machine only
            self._peer.uncache_destination(service_context(), _destination(migration), migration.id)
        watch = self._watch(migration)

        def record(event: dict[str, Any]) -> None:
            if watch.is_due:
                values = {"bytes_verified": event["bytes_done"], "rate": event.get("rate")}
                watch.record(**values, **watch.stalled(event))

        try:
            with self._reader(watch, source, destination) as copier:
                watch.limit(copier, watch.rate)
                options = {"bytes_per_second": watch.rate, **self._patience()}
                checksum = copier.verify(source.as_dict(), destination.as_dict(), watch.stop, options, record)
        except copiers.CopyStopped as stopped:
            return self._stopped(migration, stopped)
        values = {"checksum": checksum, "bytes_verified": source.size, "rate": None, "stalled_since": None}
        return Outcome(Event.DONE, bytes=source.size, values=values)

    def disconnect(self, migration: Migration) -> Outcome:
        """Fence off any late writer: kill a copier that is recorded, and end the export at the destination."""
        self._fence(migration)
        self._connections.pop(migration.destination_volume_id, None)
        self._driver.revoke(*self._source(migration))
        self._peer.revoke_destination(service_context(), _destination(migration), migration.id)
        self._refuse_used(migration)
        return Outcome(Event.DONE, values={"worker": None})

    # --- assisted ---

    def assisted_move(self, migration: Migration) -> Outcome:
        """Ask the backend whether it can move the volume itself, and if so let it; the old place stays valid."""
        if migration.attempts > 1:
            self._begin_anew(migration)
        answer = self._can_assist(migration)
        if not answer[0]:
            return Outcome(Event.NOT_MOVED, answer[1])
        self._refuse_used(migration)
        watch = self._watch(migration)
        try:
            self._driver.move(*self._move(migration), MoveRecord(watch))
        except copiers.CopyStopped as stopped:
            return self._stopped(migration, stopped)
        except errors.DriverError as error:
            self._driver.unmove(*self._move(migration))
            return Outcome(Event.NOT_MOVED, f"the backend could not: {error}")
        self._refuse_used(migration)
        values = {"bytes_done": migration.bytes_total, "rate": None}
        return Outcome(Event.DONE, answer[1], bytes=0, values=values)

    def take_back_move(self, migration: Migration) -> Outcome:
        """Remove what an assisted move made at the destination."""
        if Capability.ASSIST in self._driver.capabilities:
            self._driver.unmove(*self._move(migration))
        return UNDONE

    def _begin_anew(self, migration: Migration) -> None:
        """Take back what an attempt may have moved that never reported, and give this one a name of its own.

        Whoever made that attempt may only stand still, and move or take back under the former name when he wakes.
        """
        if Capability.ASSIST in self._driver.capabilities:
            self._driver.unmove(*self._move(migration))
            new_id = str(uuid.uuid4())
            self._db.run(lambda session: migrations.hold(session, migration, destination_volume_id=new_id))
            migration.destination_volume_id = new_id

    def _move(self, migration: Migration) -> tuple[str, str, dict[str, Any], str]:
        """What an assisted move is made from and to: pool, name, location and new name."""
        location = migration.destination_location or {}
        return *self._source(migration), location, self._name(migration.destination_volume_id)

    def _can_assist(self, migration: Migration) -> tuple[bool, str]:
        if Capability.ASSIST not in self._driver.capabilities:
            return False, "the source's driver cannot move volumes itself"
        answer = self._driver.can_assist(*self._source(migration), migration.destination_location or {})
        return answer.yes, answer.reason

    # --- behind the line ---

    def delete_source(self, migration: Migration) -> Outcome:
        """Delete the old object; the volume lives at its new place and is usable meanwhile."""

        def look(session: Session) -> tuple[tuple[str | None, str], list[Attachment]]:
            return volumes.lies_at(session, migration.volume_id), attachments.unended(session, migration.volume_id)

        place, left = self._db.read(look)
        if place == (migration.source_host, migration.source_object_id):
            raise errors.VolumeChanged(volume_id=migration.volume_id)  # never the place that the volume lives at
        if migration.keep_source_seconds and migration.plan == HOST_COPY.name:
            values = {"keep_source_until": self._db.now() + migration.keep_source_seconds}
            return Outcome(Event.DONE, f"kept for {migration.keep_source_seconds} s", values=values)
        self._end_connections(migration, left)
        self._driver.delete(*self._source(migration))
        return DONE

    def _end_connections(self, migration: Migration, left: list[Attachment]) -> None:
        """Cut off from the old place the hosts whose detach was lost in a swap."""
        for row in left:
            if row.connector:
                self._driver.terminate_connection(*self._source(migration), row.connector)
            self._db.run(lambda session, row_id=row.id: attachments.ended(session, row_id))  # type: ignore[misc]

    # --- helpers ---

    def _refuse_used(self, migration: Migration) -> None:
        """Raise SourceInUse where a hypervisor has open what is moved as a volume that nobody uses.

        Attachments that were reset, or a host that was never cut off: the rows know nothing of it, the backend does.
        """
        if self._driver.is_open(*self._source(migration)):
            raise errors.SourceInUse(volume_id=migration.volume_id, host=migration.source_host)

    def _opened(self, migration: Migration) -> tuple[bool | None, bool | None]:
        """Tell whether a hypervisor has the old and the new place open; None where that cannot be told."""
        new_id = migration.destination_volume_id
        try:
            old = self._driver.is_open(*self._source(migration))
            return old, self._peer.is_open(service_context(), _destination(migration), new_id)
        except errors.MigratorError as error:
            LOG.warning("Migration %s: it cannot be told who uses the volume: %s", migration.id, error)
            return None, None

    def _name(self, object_id: str) -> str:
        return str(self._conf.volume_name_template % object_id)

    def _source(self, migration: Migration) -> tuple[str, str]:
        """Pool and name of the source's object; behind the switch, of what it left there."""
        return _pool(migration.source_host), self._name(migration.source_object_id)

    def _connect(self, migration: Migration) -> tuple[Connection, Connection]:
        """Both ends, exported; raises Unreachable when this machine has no way to the destination."""
        source = self._driver.export(*self._source(migration), writable=False)
        destination = self._exports.pop(migration.destination_volume_id, None)
        if destination is None or migration.attempts > 1:
            here = machine.boot_id()
            exported = self._peer.export_destination(service_context(), _destination(migration), migration.id, here)
            destination = Connection.from_dict(exported)
        if destination.machine != machine.boot_id():
            raise errors.Unreachable(
                what=f"{destination.kind} export of {migration.destination_host}", reason="it is on another machine"
            )
        destination = exports.accepted(self._conf, destination)
        self._connections[migration.destination_volume_id] = source, destination
        return source, destination

    def _connected(self, migration: Migration) -> tuple[Connection, Connection]:
        """The ends that copy_data used a moment ago, or anew after an interruption."""
        known = self._connections.get(migration.destination_volume_id)
        return known if known is not None and migration.attempts == 1 else self._connect(migration)

    def _reader(
        self, watch: Watch, source: Connection, destination: Connection
    ) -> contextlib.AbstractContextManager[copiers.Copier]:
        """A copier for a job that only reads."""
        return copiers.open_copier(self._copiers, source, destination, watch.stop)

    @contextlib.contextmanager
    def _writer(
        self, migration: Migration, watch: Watch, source: Connection, destination: Connection
    ) -> Iterator[copiers.Copier]:
        """A copier that may write: recorded in the row before its first byte, taken out again when its job failed.

        A job that ended in any way has closed both ends, unless its process hangs in a device: then that stays
        recorded.  A row that is no longer ours is left as it is: its new owner kills what it finds recorded there.
        """
        with copiers.open_copier(self._copiers, source, destination, watch.stop) as copier:
            if copier.identity is not None:
                worker = copier.identity
                if destination.kind == "nbd":  # tells the destination's service that it can shut it out
                    worker = worker | {"writes_by": "nbd"}
                self._db.run(lambda session: migrations.hold(session, migration, worker=worker))
                migration.worker = worker
            try:
                yield copier
            except (errors.MigratorError, copiers.CopyStopped) as error:
                if not isinstance(error, (errors.LostOwnership, errors.CopierHangs)):
                    self._db.run(lambda session: migrations.hold(session, migration, worker=None))
                    migration.worker = None
                raise

    def _fence(self, migration: Migration) -> None:
        """Make sure that the copier which an earlier owner left writes nothing any more.

        On this machine it is killed; one of another machine is cut off by the destination's service.  Where neither is
        possible the migration waits, without using up its attempts: going on would have two write, and going back
        would give up a place that is still written to.
        """
        worker = migration.worker
        if worker is None or copiers.kill_worker(worker) or self._cut_off(migration):
            return
        error = errors.NotFenced(
            pid=worker["pid"],
            machine=worker.get("host") or "another machine",
            service=_destination(migration),
            migration_id=migration.id,
        )
        LOG.warning("Migration %s waits at %s: %s", migration.id, migration.step, error)
        now = self._db.now()
        self._db.run(lambda session: fences.wait(session, migration, now, error.message))
        raise Interrupted(error.message)

    def _cut_off(self, migration: Migration) -> bool:
        """Have the destination's service end its exports; tell whether that stops a copier of another machine."""
        try:
            return self._peer.revoke_destination(service_context(), _destination(migration), migration.id)
        except errors.MigratorError as error:
            LOG.warning("Migration %s: the export of its destination is not ended: %s", migration.id, error)
            return False

    def _watch(self, migration: Migration) -> Watch:
        usual_rate = self._driver.options.volume_copy_bps_limit or None
        return Watch(self._db, migration, self.stopping, usual_rate)

    def _patience(self) -> dict[str, Any]:
        """The option of a copier that says when a read or write hangs."""
        return {"io_timeout_seconds": self._driver.options.io_timeout_seconds}

    def _stopped(self, migration: Migration, stopped: copiers.CopyStopped) -> Outcome:
        """What becomes of a step that stopped half way: it goes back if cancelled, and later goes on if paused."""
        if self.stopping.is_set():
            raise Interrupted
        if stopped.reason == "pause":
            self._withdraw(migration)
            raise Interrupted(transitions.PAUSED)
        return Outcome(Event.FAILED, "cancelled on request")

    def _withdraw(self, migration: Migration) -> None:
        """End both exports while a migration rests, so that nothing can be written, and both ends may be serviced."""
        self._connections.pop(migration.destination_volume_id, None)
        try:
            self._driver.revoke(*self._source(migration))
            self._peer.revoke_destination(service_context(), _destination(migration), migration.id)
        except (errors.DriverError, errors.ServiceUnavailable) as error:
            LOG.warning("Migration %s rests with an export that could not be ended: %s", migration.id, error)


class _CopyRecord:
    """Writes down what a copier reports of its copy."""

    def __init__(self, watch: Watch, size: int, done: list[list[int]], allocated: int) -> None:
        self._watch = watch
        self._size = size
        self._allocated = allocated
        self._before = self._flushed = sum(length for _, length in done)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "started" or event["bytes_done"] >= self._size:
            return  # all of it: the end of the step says so a moment later
        values = self._columns(event["bytes_done"]) | {"rate": event.get("rate")} | self._watch.stalled(event)
        ranges = event["ranges"] if event["event"] == "checkpoint" else None
        flushed = sum(length for _, length in ranges or ())
        if flushed > self._flushed:
            # A copy that gets on has not used up its attempts: only one that never does shall end.  What was
            # written and not flushed counts for nothing: it is written again after each crash.
            values["attempts"], self._flushed = 1, flushed
        self._watch.record(ranges, **values)

    def end(self, result: dict[str, Any]) -> dict[str, Any]:
        """Columns of a copy that is complete."""
        checksum = result.get("checksum")
        return self._columns(self._size) | ({"checksum": checksum} if checksum else {})

    def _columns(self, done: int) -> dict[str, Any]:
        return {"bytes_done": done, "bytes_allocated": self._allocated, **self._watch.moved(done - self._before)}


def _deferred(why: str) -> Outcome:
    return Outcome(Event.UNDONE, f"left to the destination's service: {why}", deferred=True)


def _destination(migration: Migration) -> str:
    assert migration.destination_host is not None, "a step behind pick_destination knows it"
    return migration.destination_host


def _pool(host: str) -> str:
    pool = BackendName.parse(host).pool
    assert pool is not None, "a volume's host always names the pool"
    return pool
