"""The step of the attached plan that waits, where a hypervisor is led and nobody calls back (compute/qemu.py).

    swap_called_at   nothing was done before it was written
    connected        the twin's attachment names the hypervisor's process; from here on it may write to the twin
    attached         written while the guest's writes wait between the mirror's last byte and the change-over

The hypervisor does the copying, and each look does the one thing that is next and gives the lease back, so that whoever
looks after a crash goes on.  While the recorded process lives, what it says is the truth.  Once it is gone, the record
is: ``attached`` is committed before the order to change over and refused behind a cancel, when both places hold the
same and are flushed; so without it the guest never left the source, and with it the destination lacks nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections import deque
from typing import Any

import sqlalchemy as sa
from oslo_db import exception as db_exc
from sqlalchemy.orm import Session

from migrator import errors, machine
from migrator.compute.base import Hypervisor, Uses
from migrator.compute.qemu import Guest, Job, Move
from migrator.conf import Conf
from migrator.context import service_context
from migrator.db import attachments, migrations, swaps, volumes
from migrator.db.api import Database
from migrator.db.models import Attachment, Migration, utcnow
from migrator.db.transitions import Outcome
from migrator.rpc import VolumeClient
from migrator.volume.states import Event

LOG = logging.getLogger(__name__)

#: Between two looks, seconds: progress is never older than two.
LOOK_SECONDS = 1.0
#: The rate that is shown is that of so many seconds.
RATE_SECONDS = 10.0
#: How long a look waits for what takes milliseconds, seconds; the next one goes on with it.
PIVOT_SECONDS = 5.0
#: How long a look tries to record the change-over while the guest's writes wait, seconds.
RECORD_SECONDS = 10.0


class _Cancelled(Exception):
    """The migration was cancelled before the change-over could be recorded."""


class Driven:
    """swap_by_compute, both ways, by leading a hypervisor of this host."""

    def __init__(
        self, conf: Conf, db: Database, hypervisor: Hypervisor, peer: VolumeClient, usual_rate: int | None
    ) -> None:
        """``usual_rate``: bytes per second where none was ordered for a migration, None: no limit."""
        self._conf = conf
        self._db = db
        self._hypervisor = hypervisor
        self._peer = peer
        self._usual_rate = usual_rate
        #: When which migration had copied how much, as the last looks saw it.
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    # --- forward ---

    def swap(self, migration: Migration) -> Outcome:
        """Do what is next; raises SwapFailed, ComputeRefused or, before anything was done, ComputeUnreachable."""
        row = self._row(migration)
        if row is None:
            return self._begin(migration)
        if _is_gone(row):
            return self._ended(migration, row)
        try:
            with self._hypervisor.guest(str(row.instance_uuid)) as guest:
                _recognize(guest, row)
                return self._look(guest, migration, row)
        except (errors.ComputeUnreachable, errors.ComputeSilent) as error:
            if row.attach_status != attachments.ATTACHED and self._is_late(migration):
                raise
            return self._wait(error.message)

    def _begin(self, migration: Migration) -> Outcome:
        """Record that the guest's hypervisor is to get the twin, once it is there and has the volume."""
        own = self._own(migration)
        server = str(own.instance_uuid)
        with self._hypervisor.guest(server) as guest:
            guest.check(_path(own))
            process = guest.process
        if migration.swap_called_at is None and not swaps.begin(self._db, migration, server):
            return self._wait(f"another volume of server {server} is being moved")
        connector = {"host": own.attached_host, **(own.connector or {}), "hypervisor": process}
        offered = self._peer.initialize_connection(
            service_context(),
            str(migration.destination_host),
            migration.destination_volume_id,
            connector,
            writable=True,
        )
        values = _attachment(own, offered, connector) | {"volume_id": migration.destination_volume_id}
        self._db.run(lambda session: self._give(session, migration, values))
        return self._wait("the hypervisor is to mirror the volume", 0.0)

    def _own(self, migration: Migration) -> Attachment:
        """The volume's only attachment, to a server; raises SwapFailed with what speaks against moving that."""

        def work(session: Session) -> tuple[str | None, list[Attachment]]:
            volume = volumes.get(session, migration.volume_id)
            return swaps.obstacle(session, volume), attachments.of_volume(session, volume.id)

        reason, rows = self._db.read(work)
        if reason is not None:
            raise _failed(migration, rows[0] if rows else None, reason)
        return rows[0]

    @staticmethod
    def _give(session: Session, migration: Migration, values: dict[str, Any]) -> None:
        migrations.hold(session, migration)
        twin = volumes.get(session, migration.destination_volume_id)
        if not attachments.awaits_compute(session, twin):
            return  # cancelled: the next look goes back
        attachments.insert(session, **values)
        volumes.update_where(session, twin.id, status="attaching", attach_status=attachments.ATTACHING)

    def _look(self, guest: Guest, migration: Migration, row: Attachment) -> Outcome:
        move = self._move(migration, row)
        job = guest.job(move)
        if job is None or job.status == "concluded":
            return self._at_rest(guest, migration, row, move, job)
        if job.status == "ready":
            return self._pivot(guest, migration, row, move)
        if job.status == "pending":
            return self._finalize(guest, migration, row, move)
        if self._is_late(migration):
            raise _failed(migration, row, f"no end within swap_timeout_seconds ({self._conf.swap_timeout_seconds})")
        speed = self._speed(migration)
        if job.speed != speed:
            guest.limit(move, speed)
        return self._wait(f"the mirror is {job.status}", values=self._progress(migration, job))

    def _at_rest(self, guest: Guest, migration: Migration, row: Attachment, move: Move, job: Job | None) -> Outcome:
        """No mirror runs: it has not begun, has failed, or the guest has changed over."""
        if guest.uses(move) is Uses.NEW:
            return self._arrived(guest, migration, row, move)
        if job is not None and job.status != "concluded":
            return self._wait(f"the mirror is {job.status}", 0.1)
        if job is not None or row.attach_status == attachments.ATTACHED:
            self._mark(migration, row, attachments.ATTACHING)
            reason = job.error if job is not None else None
            raise _failed(migration, row, f"its hypervisor's mirror ended: {reason or 'somebody else has ended it'}")
        guest.begin(move, self._speed(migration))
        return self._wait("the mirror has begun", 0.1)

    def _pivot(self, guest: Guest, migration: Migration, row: Attachment, move: Move) -> Outcome:
        """Bring the mirror to where the guest's writes wait, and change over; a cancel that has come is obeyed."""
        if self._is_cancelled(migration):
            return self._wait("cancelled on request", 0.0)
        guest.complete(move)
        job = guest.wait(move, ("pending", "concluded"), PIVOT_SECONDS)
        if job is None or job.status != "pending":
            return self._wait("the mirror copies the rest", 0.1)
        return self._finalize(guest, migration, row, move)

    def _finalize(self, guest: Guest, migration: Migration, row: Attachment, move: Move) -> Outcome:
        """Record the change-over and have it done; the guest's writes wait meanwhile."""
        try:
            self._record(migration, row)
        except _Cancelled:
            return self._wait("cancelled on request", 0.0)
        guest.finalize(move)
        return self._at_rest(guest, migration, row, move, guest.wait(move, ("concluded",), PIVOT_SECONDS))

    def _record(self, migration: Migration, row: Attachment) -> None:
        """Write ``attached``, for some seconds again and again if the database does not answer.

        Raises LostOwnership or _Cancelled; after a DBError nobody knows, and the mirror stays as it is until the
        database says it.
        """
        deadline = time.monotonic() + RECORD_SECONDS
        while True:
            try:
                self._mark(migration, row, attachments.ATTACHED)
                return
            except db_exc.DBError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _mark(self, migration: Migration, row: Attachment, status: str) -> None:
        def work(session: Session) -> None:
            migrations.hold(session, migration)
            if status == attachments.ATTACHED and row.attach_status != status and _cancelled(session, migration):
                raise _Cancelled
            attachments.connected(session, row.id, row.volume_id, status)

        self._db.run(work)
        row.attach_status = status

    def _arrived(self, guest: Guest, migration: Migration, row: Attachment, move: Move) -> Outcome:
        """The guest is on the destination: nothing may have the source open when it is given up."""
        self._mark_arrived(migration, row)
        if not guest.close_old(move):
            return self._wait("the server uses the new place, but its hypervisor still has the old one open")
        self._seen.pop(migration.id, None)
        values = {"bytes_done": migration.bytes_total, "rate": None}
        return Outcome(Event.DONE, "the server uses the new place", bytes=migration.bytes_total, values=values)

    def _mark_arrived(self, migration: Migration, row: Attachment) -> None:
        """What has happened is written whether or not somebody has cancelled it."""
        self._db.run(lambda session: migrations.hold(session, migration))
        self._db.run(lambda session: attachments.connected(session, row.id, row.volume_id, attachments.ATTACHED))
        row.attach_status = attachments.ATTACHED

    def _ended(self, migration: Migration, row: Attachment) -> Outcome:
        """The hypervisor's process is gone: the record says where the guest was."""
        if row.attach_status != attachments.ATTACHED:
            raise _failed(migration, row, "its hypervisor ended before the server was moved")
        move = self._move(migration, row)
        with contextlib.suppress(errors.ComputeUnreachable), self._hypervisor.guest(str(row.instance_uuid)) as guest:
            if guest.has_open(move.old):
                return self._wait(f"the server was moved to {move.new}, and begun again with {move.old}: stop it")
        values = {"bytes_done": migration.bytes_total, "rate": None}
        return Outcome(Event.DONE, "the server used the new place when its hypervisor ended", values=values)

    # --- back ---

    def take_back(self, migration: Migration) -> Outcome:
        """End the mirror and close the destination; once the guest is there, go forward instead."""
        row = self._row(migration)
        if row is None:
            self._forget_connection(migration)
            return self._undone(migration)
        if _is_gone(row):
            if row.attach_status == attachments.ATTACHED:
                return Outcome(Event.SWAPPED, "the server used the new place when its hypervisor ended")
            return self._let_go(migration, row)
        try:
            with self._hypervisor.guest(str(row.instance_uuid)) as guest:
                _recognize(guest, row)
                return self._back(guest, migration, row)
        except (errors.ComputeUnreachable, errors.ComputeSilent, errors.ComputeRefused) as error:
            if self._is_late(migration):
                raise errors.SwapUndecided(
                    attachment_id=row.id, server=row.instance_uuid, host=row.attached_host
                ) from error
            return self._wait(f"the hypervisor may still write to the new place; {error.message}")

    def _back(self, guest: Guest, migration: Migration, row: Attachment) -> Outcome:
        move = self._move(migration, row)
        job = guest.job(move)
        if job is not None and job.status == "pending" and row.attach_status == attachments.ATTACHED:
            guest.finalize(move)  # recorded, so that only forward is left
            job = guest.wait(move, ("concluded",), PIVOT_SECONDS)
        elif job is not None and job.status != "concluded":
            guest.cancel(move)
            job = guest.wait(move, ("concluded",), PIVOT_SECONDS)
        if job is not None and job.status != "concluded":
            return self._wait("the mirror is being ended", 0.1)
        if guest.uses(move) is Uses.NEW:
            done = self._arrived(guest, migration, row, move)
            return Outcome(Event.SWAPPED, done.message, values=done.values) if done.event is Event.DONE else done
        guest.close_new(move)
        return self._let_go(migration, row)

    def _let_go(self, migration: Migration, row: Attachment) -> Outcome:
        """Nobody writes to the twin any more, and nobody will: end its attachment, and it with the next step."""
        host = str(migration.destination_host)
        self._peer.terminate_connection(service_context(), host, row.volume_id, row.connector or {})

        def work(session: Session) -> None:
            migrations.hold(session, migration)
            swaps.forget_attachments(session, row.volume_id)
            attachments.settle(session, row.volume_id)

        self._db.run(work)
        return self._undone(migration)

    def _forget_connection(self, migration: Migration) -> None:
        """Take back what was offered to the host when a crash came before the twin had an attachment."""
        owns = self._db.read(lambda session: attachments.of_volume(session, migration.volume_id))
        if migration.swap_called_at is None or not owns:
            return
        host, connector = str(migration.destination_host), owns[0].connector or {}
        self._peer.terminate_connection(service_context(), host, migration.destination_volume_id, connector)

    def _undone(self, migration: Migration) -> Outcome:
        self._seen.pop(migration.id, None)
        shut = self._db.run(lambda session: swaps.let_go(session, migration.destination_volume_id))
        return Outcome(Event.UNDONE) if shut else self._wait("the new place was given to a host just now", 0.1)

    # --- helpers ---

    def _row(self, migration: Migration) -> Attachment | None:
        rows = self._db.read(lambda session: attachments.of_volume(session, migration.destination_volume_id))
        return rows[0] if rows else None

    def _move(self, migration: Migration, row: Attachment) -> Move:
        """Which file goes where, as both attachments say; the volume's own may be gone once the guest is moved."""
        old = str((row.connector or {})["old_path"])
        return Move(migration.destination_volume_id, old, _path(row), row.attach_mode == "ro")

    def _speed(self, migration: Migration) -> int:
        wanted = self._usual_rate if migration.bytes_per_second is None else migration.bytes_per_second
        return int(wanted or 0)

    def _progress(self, migration: Migration, job: Job) -> dict[str, Any]:
        """Columns that tell how far the mirror is: what the guest writes meanwhile is still to be copied."""
        left = job.length - job.offset if job.length else migration.bytes_total  # 0: it has not looked yet
        done = max(0, migration.bytes_total - left)
        now = time.monotonic()
        seen = self._seen.setdefault(migration.id, deque([(now, done)]))
        passed = now - seen[-1][0]
        seen.append((now, done))
        while len(seen) > 2 and seen[1][0] < now - RATE_SECONDS:
            seen.popleft()
        since, before = seen[0]
        return {
            "bytes_done": done,
            "bytes_moved": job.offset,
            "moved_seconds": (migration.moved_seconds or 0.0) + passed,
            "rate": max(0, done - before) / (now - since) if now > since else migration.rate,
        }

    def _is_cancelled(self, migration: Migration) -> bool:
        return self._db.read(lambda session: _cancelled(session, migration))

    def _is_late(self, migration: Migration) -> bool:
        called = migration.swap_called_at
        return called is not None and self._db.now() - called > float(self._conf.swap_timeout_seconds)

    @staticmethod
    def _wait(message: str, seconds: float = LOOK_SECONDS, values: dict[str, Any] | None = None) -> Outcome:
        return Outcome(Event.WAITING, message, wait_seconds=seconds, values=values or {})


def _cancelled(session: Session, migration: Migration) -> bool:
    query = sa.select(Migration.cancel_requested).where(Migration.id == migration.id)
    return bool(session.scalar(query))


def _is_gone(row: Attachment) -> bool:
    """Tell whether the hypervisor that was given the twin certainly has ended."""
    process = (row.connector or {})["hypervisor"]
    if machine.is_here(process):
        return not machine.is_alive(process["pid"], process["started"])
    return machine.ended_with_its_boot(process)


def _recognize(guest: Guest, row: Attachment) -> None:
    """Raise ComputeUnreachable where another process answers than the one that was given the twin."""
    known = (row.connector or {})["hypervisor"]
    same = ("boot_id", "pid", "started")
    if [guest.process[key] for key in same] != [known[key] for key in same]:
        raise errors.ComputeUnreachable(reason=f"process {guest.process['pid']} answers in place of {known['pid']}")


def _path(row: Attachment) -> str:
    """The path under which a host has the volume; raises ComputeRefused."""
    path = (row.connection_info or {}).get("device_path")
    if not isinstance(path, str) or not path.startswith("/"):
        raise errors.ComputeRefused(code="qemu", reason=f"attachment {row.id} says no path of the volume on its host")
    return path


def _attachment(own: Attachment, offered: dict[str, Any], connector: dict[str, Any]) -> dict[str, Any]:
    """Columns of the twin's attachment, which takes the place of the volume's own."""
    new_id = str(uuid.uuid4())
    kind = {"driver_volume_type": offered["driver_volume_type"], "attachment_id": new_id}
    return {
        "id": new_id,
        "instance_uuid": own.instance_uuid,
        "attached_host": own.attached_host,
        "mountpoint": own.mountpoint,
        "attach_mode": own.attach_mode,
        "attach_status": attachments.ATTACHING,
        "attach_time": utcnow(),
        "connector": {**connector, "old_path": _path(own)},
        "connection_info": {**(own.connection_info or {}), **offered["data"], **kind},
    }


def _failed(migration: Migration, row: Attachment | None, reason: str) -> errors.SwapFailed:
    server = (row.instance_uuid if row is not None else None) or "of the volume"
    return errors.SwapFailed(server=server, volume_id=migration.volume_id, reason=reason)
