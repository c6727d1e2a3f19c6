"""Notifications: what begins and ends with volumes, snapshots and migrations, told to whoever listens on a bus.

Switched on by oslo.messaging's own options, ``[oslo_messaging_notifications]``; off, as by default, a call costs a
comparison.  They never delay or fail the work they tell of: a thread of their own sends them, from a queue that drops
what does not fit.  A twin is part of its migration and never told of (LP1922920).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import oslo_messaging as messaging
import sqlalchemy as sa
from oslo_messaging import opts

from migrator import errors
from migrator.conf import Conf
from migrator.context import RequestContext, current
from migrator.db import migrations, volumes
from migrator.db.api import Database
from migrator.db.models import Migration, Snapshot, Volume

LOG = logging.getLogger(__name__)

Json = dict[str, Any]

_GROUP = "oslo_messaging_notifications"
#: Notifications that wait while the bus is slow or away; at a kilobyte each, a megabyte.
MAX_WAITING = 1000
#: Seconds between two log lines about what was dropped.
SAY_DROPPED_SECONDS = 10.0
#: Seconds that the end of a service waits for what was not sent yet.
CLOSE_SECONDS = 1.0


class _Item(NamedTuple):
    event: str
    is_error: bool
    #: A function is called by the sending thread: what it reads delays nobody.
    payload: Json | Callable[[], Json | None]
    #: The request that it follows from; empty for what a service does by itself.
    context: RequestContext | Json


class _Contexts(messaging.NoOpSerializer):  # type: ignore[misc]
    """A request's ids and whose it is, and nothing else of it."""

    def serialize_context(self, context: RequestContext | Json) -> Json:
        if not isinstance(context, RequestContext):  # nobody's
            return {}
        return {key: getattr(context, key) for key in ("request_id", "global_request_id", "user_id", "project_id")}


class Notifications:
    """What one publisher (``volume.host@backend``, ``scheduler.host``) tells; ``OFF`` tells nothing."""

    def __init__(self, conf: Conf | None, publisher_id: str) -> None:
        """Open nothing when no driver is configured; raises ConfigError for a bus that cannot be meant."""
        self._waiting: queue.Queue[_Item | None] | None = None
        self._dropped, self._said_dropped = 0, -SAY_DROPPED_SECONDS
        if conf is None or not _is_on(conf):
            return
        try:
            transport = messaging.get_notification_transport(conf)
        except messaging.MessagingException as error:
            raise errors.ConfigError(option=f"[{_GROUP}] transport_url", reason=str(error)) from error
        self._notifier = messaging.Notifier(transport, publisher_id, serializer=_Contexts())
        self._waiting = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._send_forever, name="notifications", daemon=True)
        self._thread.start()

    @property
    def is_on(self) -> bool:
        return self._waiting is not None

    def send(self, event: str, payload: Json | Callable[[], Json | None], *, is_error: bool = False) -> None:
        """Send soon, or not at all; a function that returns None has nothing to tell."""
        if self._waiting is None:
            return
        try:
            self._waiting.put_nowait(_Item(event, is_error, payload, current() or {}))
        except queue.Full:
            self._drop(event)

    def _drop(self, event: str) -> None:
        self._dropped += 1
        if time.monotonic() - self._said_dropped >= SAY_DROPPED_SECONDS:
            self._said_dropped = time.monotonic()
            LOG.warning(
                "%d notifications dropped so far, the last was %s: %d wait for a bus that is slow or away",
                self._dropped,
                event,
                MAX_WAITING,
            )

    def send_of(self, event: str, db: Database, volume_id: str) -> None:
        """Tell of a volume as it is when that is sent; of a twin never."""

        def payload() -> Json | None:
            volume = db.read(lambda session: volumes.find(session, volume_id))
            return of_volume(volume) if volume is not None and volume.twin_of is None else None

        self.send(event, payload)

    @contextlib.contextmanager
    def around(self, event: str, thing: Volume | Snapshot, done: Json, failed: str) -> Iterator[None]:
        """Tell ``.start`` and, behind the block, ``.end`` with the values ``done``, or ``.error`` with ``failed``."""
        if self._waiting is None:
            yield
            return
        payload = of_snapshot(thing) if isinstance(thing, Snapshot) else of_volume(thing)
        self.send(f"{event}.start", payload)
        try:
            yield
        except Exception as error:
            self.send(f"{event}.error", payload | {"status": failed, "error": str(error)}, is_error=True)
            raise
        self.send(f"{event}.end", payload | done)

    def close(self) -> None:
        """Give what waits a moment to be sent; what is left then is lost."""
        if self._waiting is None:
            return
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
            self._thread.join(CLOSE_SECONDS)

    def _send_forever(self) -> None:
        assert self._waiting is not None
        while (item := self._waiting.get()) is not None:
            try:
                payload = item.payload() if callable(item.payload) else item.payload
                if payload is not None:
                    (self._notifier.error if item.is_error else self._notifier.info)(item.context, item.event, payload)
            except Exception:  # the top of the thread: the next notification may be luckier
                LOG.exception("Notification %s not sent", item.event)


def _is_on(conf: Conf) -> bool:
    for group, options in opts.list_opts():
        if group == _GROUP:
            conf.register_opts(options, group=group)
    return any(driver != "noop" for driver in conf[_GROUP].driver)


OFF = Notifications(None, "")


# --- payloads --------------------------------------------------------------------------------------------------------


def _time(moment: Any) -> str | None:
    return moment.isoformat(timespec="microseconds") if moment is not None else None


def of_volume(volume: Volume) -> Json:
    """The keys that consumers of block storage's notifications know."""
    return {
        "volume_id": volume.id,
        "tenant_id": volume.project_id,
        "user_id": volume.user_id,
        "display_name": volume.display_name,
        "size": volume.size,
        "status": volume.status,
        "host": volume.host,
        "availability_zone": volume.availability_zone,
        "volume_type": volume.volume_type_id,
        "snapshot_id": volume.snapshot_id,
        "replication_status": volume.replication_status,
        "created_at": _time(volume.created_at),
        "launched_at": _time(volume.launched_at),
    }


def of_snapshot(snapshot: Snapshot) -> Json:
    return {
        "snapshot_id": snapshot.id,
        "volume_id": snapshot.volume_id,
        "tenant_id": snapshot.project_id,
        "user_id": snapshot.user_id,
        "display_name": snapshot.display_name,
        "volume_size": snapshot.volume_size,
        "status": snapshot.status,
        "created_at": _time(snapshot.created_at),
        "deleted": "",
    }


def of_migration(row: Migration) -> Json:
    """How far a migration is; told together with its volume."""
    return {
        "migration_id": row.id,
        "migration_status": migrations.status(row),
        "source_host": row.source_host,
        "destination_host": row.destination_host or row.requested_host,
        "plan": row.plan,
        "step": row.step,
        "direction": row.direction,
        "force_host_copy": row.force_host_copy,
        "new_type_id": row.new_type_id,
        "bytes_total": row.bytes_total,
        "bytes_done": row.bytes_done,
        "bytes_verified": row.bytes_verified,
        "bytes_allocated": row.bytes_allocated,
        "rate_bytes_per_second": row.rate,
        "checksum": row.checksum,
        "error_step": row.error_step,
        "error_code": row.error_code,
        "error_message": row.error_message,
        "requested_by": {"user_id": row.user_id, "project_id": row.project_id, "request_id": row.request_id},
        "finished_at": _time(row.finished_at),
    }


# --- migrations ------------------------------------------------------------------------------------------------------


class MigrationNews:
    """Tells of migrations; what it has to look up is looked up by the sending thread."""

    def __init__(self, db: Database, notifications: Notifications) -> None:
        self._db = db
        self._notifications = notifications

    def began(self, row: Migration) -> None:
        """Tell that the source's service begins with a migration; again where it begins anew."""
        self._send("migrate.start", row)

    def ended(self, row: Migration) -> None:
        """Tell how a migration ended: ``migrate.end`` is said of success alone, and a cancel is no error."""
        event = "migrate.end" if row.end == "success" else "migrate.error"
        is_error = row.end not in ("success", "cancelled")
        self._send(event, row, is_error=is_error)

    def progress(self, migration_ids: Sequence[str]) -> None:
        """Tell how far these migrations are."""
        for migration_id in migration_ids:
            self._notifications.send("migrate.progress", functools.partial(self._progress, migration_id))

    def _progress(self, migration_id: str) -> Json | None:
        query = sa.select(Migration).where(Migration.id == migration_id, Migration.end.is_(None))
        row = self._db.read(lambda session: session.scalar(query))
        return self._with_volume(row.volume_id, of_migration(row)) if row is not None else None

    def _send(self, event: str, row: Migration, *, is_error: bool = False) -> None:
        """Keep what the row says now; only its volume is looked up later."""
        if self._notifications.is_on:
            told = functools.partial(self._with_volume, row.volume_id, of_migration(row))
            self._notifications.send(event, told, is_error=is_error)

    def _with_volume(self, volume_id: str, migration: Json) -> Json:
        volume = self._db.read(lambda session: volumes.get(session, volume_id, deleted=True))
        return of_volume(volume) | migration
