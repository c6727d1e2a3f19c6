"""The loop that works on migrations: claim a row, run one function, advance; until the row is no longer ours.

A crash needs no rule of its own: it is an attempt that never reported.  Whoever next finds the row free (a message,
the sweep, a restart) claims it and calls the same function again, so start and recovery come through one door.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import sqlalchemy as sa
from oslo_db import exception as db_exc
from sqlalchemy.orm import Session

from migrator import errors, machine
from migrator.context import RequestContext
from migrator.db import migrations, transitions
from migrator.db.api import Database, clock
from migrator.db.models import Migration
from migrator.db.transitions import Outcome
from migrator.volume import states
from migrator.volume.states import Direction, Event

LOG = logging.getLogger(__name__)

#: Seconds between two looks whether a row that is worked on has been silent, and for how long it may have been: it is
#: never older than two seconds, also while a backend takes minutes to create or to delete.
LOOK_SECONDS, SILENT_SECONDS = 0.5, 1.2

Function = Callable[[Migration], Outcome]
"""Does a step, or takes it back; may be run again after any interruption."""


def new_owner() -> str:
    """A name for this process that tells, on this machine, whether it still lives: boot, pid, start time, a nonce."""
    pid = os.getpid()
    return f"{machine.boot_id()}:{pid}:{machine.process_started(pid)}:{uuid.uuid4().hex[:8]}"


def is_dead(owner: str | None) -> bool:
    """Tell whether the process behind ``owner`` certainly is gone; False for one of another machine."""
    if owner is None:
        return False
    boot, pid, started, _nonce = owner.rsplit(":", 3)
    return boot == machine.boot_id() and not machine.is_alive(int(pid), int(started))


class Interrupted(Exception):
    """The step stopped where it was, because its service ends or it was paused; whoever comes next goes on there."""

    def __init__(self, why: str = "its service ended") -> None:
        super().__init__(why)


def claim(db: Database, migration_id: str, owner: str, lease_seconds: float) -> Migration | None:
    """Take the migration for ``owner``, who does not work on it; None when it is not to be had. Raises NotFound."""

    def work(session: Session) -> Migration | None:
        seen = migrations.glance(session, migration_id)
        let_go = seen.owner == owner or is_dead(seen.owner)
        took = migrations.claim(session, seen, owner, lease_seconds, owner_is_dead=let_go)
        return migrations.get(session, migration_id) if took else None

    return db.run(work)


def unowned(db: Database, *expected: sa.ColumnElement[bool], ours: str | None = None) -> list[migrations.Waiting]:
    """Due migrations that nobody works on: free, out of lease, or of a process that is gone.

    Those of the owner ``ours``, who asks, are among them: he knows which of them he works on.
    """
    rows, now = db.read(lambda session: (migrations.waiting(session, *expected), clock(session)))
    return [row for row in rows if row.owner in (None, ours) or row.lease_until < now or is_dead(row.owner)]


def _is_beginning(row: Migration) -> bool:
    """Tell whether this is the first attempt of the first step behind the scheduler's."""
    at = migrations.position(row)
    first = states.PLANS[at.plan].steps[1].name
    return row.attempts == 1 and at.step == first and at.direction is Direction.FORWARD


@dataclass(frozen=True)
class Settings:
    """Seconds and counts that the runner goes by; see the options of the same names in conf.py."""

    lease_seconds: float
    sweep_seconds: float
    attempts: int
    retry_seconds: float
    parallel: int


class Runner:
    """Works on the migrations of one service; ``functions`` has one for every (step, direction) that it may meet."""

    def __init__(
        self,
        db: Database,
        functions: Mapping[tuple[str, Direction], Function],
        mine: Callable[[], sa.ColumnElement[bool]],
        settings: Settings,
        handed_over: Callable[[Migration], None] = lambda migration: None,
        began: Callable[[Migration], None] = lambda migration: None,
    ) -> None:
        """``mine`` says which rows the sweep looks for; ``handed_over`` is told of rows that others go on with.

        ``began`` is told of migrations whose first step here begins.
        """
        self.owner = new_owner()
        self._db = db
        self._functions = functions
        self._mine = mine
        self._settings = settings
        self._handed_over = handed_over
        self._began = began
        self._pool = ThreadPoolExecutor(settings.parallel, thread_name_prefix="migration")
        self._lock = threading.Lock()
        self._active: set[str] = set()
        #: Of these, those that somebody asked for since: whoever leaves one looks at it again.
        self._nudged: set[str] = set()
        self._due: list[float] = []
        self._wake = threading.Event()
        #: Set when the service ends; long steps look at it.
        self.stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._sweep_forever, name="migration-sweep", daemon=True),
            threading.Thread(target=self._renew_forever, name="migration-lease", daemon=True),
            threading.Thread(target=self._beat_forever, name="migration-sign", daemon=True),
        ]

    def start(self) -> None:
        """Begin to sweep; the first sweep is the recovery after a restart."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take on nothing more; what runs is given up by the end of the process and resumed by the next."""
        self.stopping.set()
        self._wake.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def active(self) -> list[str]:
        """Migrations that are worked on, or about to be."""
        with self._lock:
            return list(self._active)

    def submit(self, migration_id: str) -> None:
        """Work on a migration soon; one that is worked on is looked at again behind that."""
        with self._lock:
            if self.stopping.is_set():
                return
            if migration_id in self._active:
                self._nudged.add(migration_id)
                return
            self._active.add(migration_id)
        try:
            self._pool.submit(self._work, migration_id)
        except RuntimeError:  # the pool was shut down in between
            self._leave(migration_id)

    # --- one migration ---

    def _work(self, migration_id: str) -> None:
        RequestContext(overwrite=True)  # the thread had the last migration's
        try:
            self.run(migration_id)
        except errors.NotFound:
            LOG.info("Migration %s is gone", migration_id)
        except errors.LostOwnership as error:
            LOG.warning("%s Another runner goes on with it", error)
        except db_exc.DBError as error:
            LOG.error("Migration %s interrupted, the database does not answer: %s", migration_id, error)
        except Exception:
            LOG.exception("Migration %s interrupted by a fault of the runner", migration_id)
        finally:
            self._leave(migration_id)

    def _leave(self, migration_id: str) -> None:
        with self._lock:
            self._active.discard(migration_id)
            nudged = migration_id in self._nudged
            self._nudged.discard(migration_id)
        if nudged:  # a resume, say, that came while the pause was being written down
            self.submit(migration_id)

    def run(self, migration_id: str) -> None:
        """Claim the migration and do its steps until it is over or no longer ours."""
        row = claim(self._db, migration_id, self.owner, self._settings.lease_seconds)
        if row is not None:  # its lines, and what it asks of other services, are of the request that began it
            whose = {"user_id": row.user_id, "project_id": row.project_id, "request_id": row.request_id}
            RequestContext(overwrite=True, **whose)
        if row is not None and _is_beginning(row):
            self._began(row)
        while row is not None:
            try:
                outcome = self._attempt(row)
            except Interrupted as interrupted:
                self._release(row, str(interrupted))
                return
            row = self._settle(self._advance(row, outcome))

    def _release(self, row: Migration, why: str) -> None:
        """Give back a row that was interrupted; the attempt does not count."""
        self._db.run(lambda session: migrations.release(session, row, why))

    def _attempt(self, row: Migration) -> Outcome:
        """Run the function of the row's step, and make of every failure an outcome."""
        if self.stopping.is_set():
            raise Interrupted
        at = migrations.position(row)
        step = states.PLANS[at.plan].step(at.step)
        if row.cancel_requested and at.direction is Direction.FORWARD and states.may_cancel(at):
            return Outcome(Event.FAILED, "cancelled on request")
        if row.attempts > self._settings.attempts and not step.forever:
            return Outcome(Event.FAILED, error=errors.TooManyAttempts(step=at.step, attempts=row.attempts - 1))
        began = time.monotonic()
        try:
            outcome = self._functions[at.step, at.direction](row)
        except (Interrupted, errors.LostOwnership, db_exc.DBError):
            raise
        except errors.MigratorError as error:
            outcome = Outcome(Event.FAILED, error=error)
        except Exception as error:  # a driver's fault must end in the row, not in a thread
            LOG.exception("Migration %s: unexpected fault in %s", row.id, at.step)
            outcome = Outcome(
                Event.FAILED, error=errors.DriverError(backend=row.source_host, reason=f"unexpected fault: {error!r}")
            )
        self._log(row, outcome, time.monotonic() - began)
        return outcome

    def _advance(self, row: Migration, outcome: Outcome) -> Migration:
        settings = self._settings

        def write(what: Outcome) -> Migration:
            return self._db.run(
                lambda session: transitions.advance(
                    session, row, what, attempts_allowed=settings.attempts, retry_seconds=settings.retry_seconds
                )
            )

        try:
            return write(outcome)
        except errors.LostOwnership:
            raise
        except errors.MigratorError as error:  # the switch found the volume changed, say: that is the step's failure
            return write(Outcome(Event.FAILED, error=error))

    def _settle(self, row: Migration) -> Migration | None:
        """Return the row if it still is ours to go on with."""
        if row.end is not None:
            level = logging.INFO if row.end in ("success", "cancelled") else logging.ERROR
            LOG.log(
                level, "Migration %s of volume %s ended: %s %s", row.id, row.volume_id, row.end, row.error_message or ""
            )
            self._handed_over(row)
            return None
        if row.owner == self.owner:
            return row
        if row.attempts or row.not_before:  # to be tried or looked at again
            with self._lock:
                self._due.append(time.monotonic() + max(0.0, row.not_before - self._db.now()))
            self._wake.set()
        else:
            self._handed_over(row)
        return None

    @staticmethod
    def _log(row: Migration, outcome: Outcome, seconds: float) -> None:
        what = "failed" if outcome.event is Event.FAILED else outcome.event.value
        LOG.log(
            logging.WARNING if outcome.error is not None else logging.INFO,
            "Migration %s: %s %s (%s, attempt %d) %s in %.3f s%s%s",
            row.id,
            row.step,
            row.direction,
            row.plan,
            row.attempts,
            what,
            seconds,
            f", {outcome.bytes} bytes" if outcome.bytes is not None else "",
            f": {outcome.error or outcome.message}" if outcome.error or outcome.message else "",
        )

    # --- all of them ---

    def sweep(self) -> None:
        """Submit every row of ours that nobody works on, also what a lost database connection made us let go of."""
        active = set(self.active())
        for row in unowned(self._db, self._mine(), ours=self.owner):
            if row.id not in active:
                self.submit(row.id)

    def _sweep_forever(self) -> None:
        while not self.stopping.is_set():
            try:
                self.sweep()
            except db_exc.DBError as error:
                LOG.error("Cannot look for migrations, the database does not answer: %s", error)
            self._wake.wait(self._pause())
            self._wake.clear()

    def _pause(self) -> float:
        """Seconds until the next sweep: the interval, or less where a retry is due."""
        now = time.monotonic()
        with self._lock:
            first = min(self._due, default=now + self._settings.sweep_seconds)
            self._due = [due for due in self._due if due > now]
        return max(0.01, min(self._settings.sweep_seconds, first - now + 0.01))

    def _renew_forever(self) -> None:
        while not self.stopping.wait(self._settings.lease_seconds / 3):
            with self._lock:
                active = list(self._active)
            if not active:
                continue
            try:
                self._db.run(
                    lambda session, ids=active: migrations.renew(  # type: ignore[misc]
                        session, self.owner, ids, self._settings.lease_seconds
                    )
                )
            except db_exc.DBError as error:
                LOG.error("Cannot renew %d leases, the database does not answer: %s", len(active), error)

    def _beat_forever(self) -> None:
        """Give the signs of life of steps that wait for a call; those that copy give their own."""
        while not self.stopping.wait(LOOK_SECONDS):
            active = self.active()
            if not active:
                continue
            try:
                self._beat(active)
            except db_exc.DBError as error:
                LOG.debug("No sign of life, the database does not answer: %s", error)

    def _beat(self, active: list[str]) -> None:
        found = self._db.read(lambda session: migrations.silent(session, self.owner, active, SILENT_SECONDS))
        for each in found:
            self._db.run(lambda session, each=each: migrations.beat(session, self.owner, each, SILENT_SECONDS))  # type: ignore[misc]
