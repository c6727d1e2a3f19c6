"""What each step of a migration does, in the order of the plans, and how it is taken back.

Every function may be run again after any interruption: create of what exists, delete of what is gone, revoke of what
never was all succeed.  Intent is in the row before the effect; nothing here decides what comes next (states.py).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from migrator import errors, machine
from migrator.backend_name import BackendName
from migrator.conf import Conf
from migrator.context import service_context
from migrator.db import migrations, volumes
from migrator.db.api import Database
from migrator.db.migrations import Outcome
from migrator.db.models import Migration
from migrator.drivers.base import Capability, Connection, VolumeDriver
from migrator.rpc import VolumeClient
from migrator.volume import copiers
from migrator.volume.runner import Function, Interrupted
from migrator.volume.states import Direction, Event

DONE = Outcome(Event.DONE)
UNDONE = Outcome(Event.UNDONE)

#: A copy looks this often, in seconds, whether it was cancelled; its progress is written as often at most.
LOOK_SECONDS = 0.5


def nothing(migration: Migration) -> Outcome:
    """Take back a step that leaves nothing."""
    return UNDONE


def committed_by_advance(migration: Migration) -> Outcome:
    """Do a step whose whole work is the transaction that advances the row (db/twins.py)."""
    return DONE


class Steps:
    """The steps of migrations whose source is one backend; calls the destination's service for what is done there."""

    def __init__(
        self, conf: Conf, db: Database, driver: VolumeDriver, volume_client: VolumeClient, pool: copiers.CopierPool
    ) -> None:
        self._conf = conf
        self._db = db
        self._driver = driver
        self._peer = volume_client
        self._copiers = pool
        #: Both ends of the copies under way, from copy_data to disconnect.
        self._connections: dict[str, tuple[Connection, Connection]] = {}
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
            "switch_volume": nothing,  # it was not committed
            "record_move": nothing,
        }
        table = {(step, Direction.FORWARD): function for step, function in forward.items()}
        return table | {(step, Direction.BACK): function for step, function in back.items()}

    # --- host copy ---

    def create_destination(self, migration: Migration) -> Outcome:
        """Have the destination's service create the twin's object."""
        self._peer.create_destination(service_context(), _destination(migration), migration.id)
        return DONE

    def delete_destination(self, migration: Migration) -> Outcome:
        """Have the twin's object deleted, now or, where that cannot be, by the destination's own service later.

        The twin's row stays until then and names it, so nothing is forgotten and no migration waits for a backend
        that is busy, dead or gone.
        """
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
        if migration.attempts > 1:  # cut off whoever may still hold the export of an earlier attempt
            self._peer.revoke_destination(service_context(), _destination(migration), migration.id)
        source, destination = self._connect(migration)
        done = self._db.read(lambda session: migrations.copied(session, migration.id))
        allocated = self._driver.allocated(*self._source(migration))
        options = {"checkpoint_seconds": self._conf.copy_checkpoint_seconds}
        written, recorded = 0, sum(length for _, length in done)

        def on_event(event: dict[str, Any]) -> None:
            nonlocal written, recorded
            written = event["bytes_written"]
            if event["event"] == "started" or event["bytes_done"] >= source.size:
                return  # all of it: the end of the step says so a moment later
            values = {"bytes_done": event["bytes_done"], "rate": event.get("rate"), "bytes_allocated": allocated}
            ranges = event["ranges"] if event["event"] == "checkpoint" else None
            flushed = sum(length for _, length in ranges or ())
            if flushed > recorded:
                # A copy that gets on has not used up its attempts: only one that never does shall end.  What was
                # written and not flushed counts for nothing: it is written again after each crash.
                values["attempts"], recorded = 1, flushed
            self._db.run(lambda session: migrations.progress(session, migration, ranges, **values))

        try:
            with self._writer(migration, source, destination) as copier:
                copier.copy(
                    source.as_dict(), destination.as_dict(), done, options, on_event, self._cancelled(migration)
                )
        except copiers.CopyStopped:
            return self._stopped()
        values = {"bytes_done": source.size, "bytes_allocated": allocated, "rate": None, "worker": None}
        return Outcome(Event.DONE, bytes=written, values=values)

    def stop_copy(self, migration: Migration) -> Outcome:
        """Make sure that no copier writes any more, then end the export."""
        self._fence(migration)
        self._connections.pop(migration.id, None)
        self._driver.revoke(*self._source(migration))
        try:
            self._peer.revoke_destination(service_context(), _destination(migration), migration.id)
        except errors.ServiceUnavailable as error:
            # Only a copier of ours could write there, and it is gone; a dead service exports nothing.
            return Outcome(Event.UNDONE, str(error), values={"worker": None})
        return Outcome(Event.UNDONE, values={"worker": None})

    def verify_copy(self, migration: Migration) -> Outcome:
        """Compare both ends byte by byte, past the cache."""
        self._fence(migration)
        source, destination = self._connected(migration)
        try:
            with self._reader(migration, source, destination) as copier:
                checksum = copier.verify(source.as_dict(), destination.as_dict(), self._cancelled(migration))
        except copiers.CopyStopped:
            return self._stopped()
        return Outcome(Event.DONE, bytes=source.size, values={"checksum": checksum})

    def disconnect(self, migration: Migration) -> Outcome:
        """Fence off any late writer: kill a copier that is recorded, and end the export at the destination."""
        self._fence(migration)
        self._connections.pop(migration.id, None)
        self._driver.revoke(*self._source(migration))
        self._peer.revoke_destination(service_context(), _destination(migration), migration.id)
        return Outcome(Event.DONE, values={"worker": None})

    # --- assisted ---

    def assisted_move(self, migration: Migration) -> Outcome:
        """Ask the backend whether it can move the volume itself, and if so let it; the old place stays valid."""
        pool, name = self._source(migration)
        answer = self._can_assist(migration)
        location = migration.destination_location or {}
        if not answer[0]:
            if migration.attempts > 1 and Capability.ASSIST in self._driver.capabilities:
                self._driver.unmove(pool, name, location)  # an attempt that never reported may have moved it
            return Outcome(Event.NOT_MOVED, answer[1])
        try:
            self._driver.move(pool, name, location, lambda done, total: self._progress(migration, done))
        except errors.DriverError as error:
            self._driver.unmove(pool, name, location)
            return Outcome(Event.NOT_MOVED, f"the backend could not: {error}")
        return Outcome(Event.DONE, answer[1], bytes=0, values={"bytes_done": migration.bytes_total})

    def take_back_move(self, migration: Migration) -> Outcome:
        """Remove what an assisted move made at the destination."""
        if Capability.ASSIST in self._driver.capabilities:
            self._driver.unmove(*self._source(migration), migration.destination_location or {})
        return UNDONE

    def _can_assist(self, migration: Migration) -> tuple[bool, str]:
        if Capability.ASSIST not in self._driver.capabilities:
            return False, "the source's driver cannot move volumes itself"
        answer = self._driver.can_assist(*self._source(migration), migration.destination_location or {})
        return answer.yes, answer.reason

    # --- behind the line ---

    def delete_source(self, migration: Migration) -> Outcome:
        """Delete the old object; the volume lives at its new place and is usable meanwhile."""
        volume = self._db.read(lambda session: volumes.get(session, migration.volume_id, deleted=True))
        if (volume.host, volume.object_id) == (migration.source_host, migration.source_object_id):
            raise errors.VolumeChanged(volume_id=volume.id)  # never the place that the volume lives at
        self._driver.delete(*self._source(migration))
        return DONE

    # --- helpers ---

    def _name(self, object_id: str) -> str:
        return str(self._conf.volume_name_template % object_id)

    def _source(self, migration: Migration) -> tuple[str, str]:
        """Pool and name of the source's object; behind the switch, of what it left there."""
        return _pool(migration.source_host), self._name(migration.source_object_id)

    def _connect(self, migration: Migration) -> tuple[Connection, Connection]:
        """Both ends, exported; raises Unreachable when the destination lies on another machine."""
        source = self._driver.export(*self._source(migration), writable=False)
        exported = self._peer.export_destination(service_context(), _destination(migration), migration.id)
        destination = Connection.from_dict(exported)
        if destination.machine != machine.boot_id():
            raise errors.Unreachable(
                what=f"{destination.kind} export of {migration.destination_host}", reason="it is on another machine"
            )
        self._connections[migration.id] = source, destination
        return source, destination

    def _connected(self, migration: Migration) -> tuple[Connection, Connection]:
        """The ends that copy_data used a moment ago, or anew after an interruption."""
        known = self._connections.get(migration.id)
        return known if known is not None and migration.attempts == 1 else self._connect(migration)

    def _reader(
        self, migration: Migration, source: Connection, destination: Connection
    ) -> contextlib.AbstractContextManager[copiers.Copier]:
        """A copier for a job that only reads."""
        return copiers.open_copier(self._copiers, source, destination, self._cancelled(migration))

    @contextlib.contextmanager
    def _writer(self, migration: Migration, source: Connection, destination: Connection) -> Iterator[copiers.Copier]:
        """A copier that may write: recorded in the row before its first byte, taken out again when its job failed.

        A job that ended in any way has closed both ends.  A row that is no longer ours is left as it is: its new
        owner kills what it finds recorded there.
        """
        with copiers.open_copier(self._copiers, source, destination, self._cancelled(migration)) as copier:
            if copier.identity is not None:
                self._db.run(lambda session: migrations.hold(session, migration, worker=copier.identity))
            try:
                yield copier
            except (errors.MigratorError, copiers.CopyStopped) as error:
                if not isinstance(error, errors.LostOwnership):
                    self._db.run(lambda session: migrations.hold(session, migration, worker=None))
                raise

    @staticmethod
    def _fence(migration: Migration) -> None:
        """Kill the copier that an earlier owner left, and wait until it is gone."""
        if migration.worker is not None:
            copiers.kill_worker(migration.worker)

    def _cancelled(self, migration: Migration) -> Callable[[], bool]:
        """A question for a copy to ask often; it looks into the database twice a second."""
        last = time.monotonic()

        def ask() -> bool:
            nonlocal last
            if self.stopping.is_set():
                return True
            if time.monotonic() - last < LOOK_SECONDS:
                return False
            last = time.monotonic()
            return self._db.read(lambda session: migrations.is_cancelled(session, migration))

        return ask

    def _stopped(self) -> Outcome:
        if self.stopping.is_set():
            raise Interrupted
        return Outcome(Event.FAILED, "cancelled on request")

    def _progress(self, migration: Migration, done: int) -> None:
        self._db.run(lambda session: migrations.hold(session, migration, bytes_done=done))


def _deferred(why: str) -> Outcome:
    return Outcome(Event.UNDONE, f"left to the destination's service: {why}", deferred=True)


def _destination(migration: Migration) -> str:
    assert migration.destination_host is not None, "a step behind pick_destination knows it"
    return migration.destination_host


def _pool(host: str) -> str:
    pool = BackendName.parse(host).pool
    assert pool is not None, "a volume's host always names the pool"
    return pool
