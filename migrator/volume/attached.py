"""The step of the attached plan that waits: the compute service moves a running server to the twin, data and all.

    called       the intent is in the row, then Nova is asked, once
    reserved     Nova has an attachment on the twin; nobody writes there yet
    connected    a host may be copying into the twin
    attached     the server lives on the twin: there is no way back
    reported     os-migrate_volume_completion has come, or will never come

The twin's attachments are the truth, since every call that changes what a host may do goes through our API; a report
only says sooner what they say.  Nova's own list shows the old volume until the end and, if its last call to us was
lost, for ever: it decides where our own rows do not.

A report of failure is no proof that the server stayed: Nova also sends it, and removes its attachment on the twin, when
the server lives there already and only os-complete was lost.  So before the twin of a host that was connected is
removed, both backends are asked who has what open: the server lives at the place that is open alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from migrator import errors
from migrator.compute.base import Compute, Uses
from migrator.conf import Conf
from migrator.db import attachments, swaps
from migrator.db.api import Database
from migrator.db.models import Migration
from migrator.db.swaps import Use
from migrator.db.transitions import Outcome
from migrator.volume.states import Event

LOG = logging.getLogger(__name__)

Opened = Callable[[Migration], tuple[bool | None, bool | None]]


class Attached:
    """swap_by_compute, both ways; without a compute service only what was begun before can be taken back."""

    def __init__(self, conf: Conf, db: Database, compute: Compute | None, opened: Opened) -> None:
        """``opened`` tells whether a hypervisor has the old and the new place open, None where that is not known."""
        self._conf = conf
        self._db = db
        self._compute = compute
        self._opened = opened

    # --- forward ---

    def swap(self, migration: Migration) -> Outcome:
        """Ask the compute service once, then look how far it is until it has done it or certainly will not."""
        if self._compute is None:
            raise errors.SwapFailed(
                server="of the volume", volume_id=migration.volume_id, reason="compute_service is not configured here"
            )
        if migration.swap_called_at is None:
            return self._begin(migration, self._compute)
        return self._look(migration)

    def _begin(self, migration: Migration, compute: Compute) -> Outcome:
        server = self._server(migration)
        if server is None:
            raise self._failed(migration, "nobody uses the volume any more")
        if not swaps.begin(self._db, migration, server):
            return self._wait(f"another volume of server {server} is being swapped")
        try:
            compute.swap(server, migration.volume_id, migration.destination_volume_id)
        except errors.ComputeUnreachable:
            swaps.forget(self._db, migration)
            raise
        except errors.ComputeSilent as error:
            LOG.warning("Migration %s: %s", migration.id, error)
            return self._wait(error.message)
        except (errors.ComputeFailed, errors.ComputeRefused) as error:
            if self._use(migration) in (Use.CONNECTED, Use.ATTACHED):
                # It has begun all the same: a proxy gave up waiting, say.
                return self._wait(error.message)
            raise
        return self._wait("the compute service was asked")

    def _look(self, migration: Migration) -> Outcome:
        """Find out how far the compute service is, from its report, from the twin, or by asking it."""
        use = self._use(migration)
        if use is Use.ATTACHED:
            return self._arrived(migration)
        if migration.swap_result == swaps.FAILED:
            raise self._failed(migration, "the compute service reported an error; its log says more")
        uses = self._ask(migration)
        if uses is Uses.NEW:
            return _moved(migration, "the compute service names the new volume")
        if uses is Uses.GONE:
            raise self._failed(migration, "the server is gone")
        age = self._age(migration)
        if use is Use.NONE and age > self._begin_seconds:
            raise self._failed(migration, f"the compute service has not begun within {age:.0f} s; {_known(uses)}")
        if age > self._conf.swap_timeout_seconds:
            raise self._failed(migration, f"no end within swap_timeout_seconds ({self._conf.swap_timeout_seconds})")
        return self._wait(f"{_known(uses)}; the new one is {use.value}")

    def _arrived(self, migration: Migration) -> Outcome:
        """The server lives on the twin; the report is waited for, since the compute service goes on until then."""
        if migration.swap_result is not None:
            return _moved(migration, "the compute service has reported")
        now = self._db.now()
        if migration.swap_seen_at is not None and now - migration.swap_seen_at >= self._conf.nova_poll_seconds:
            return _moved(migration, "the server uses the new place; the compute service's report was lost")
        seen = {"swap_seen_at": now} if migration.swap_seen_at is None else {}
        return Outcome(
            Event.WAITING,
            "the server uses the new place",
            values=seen,
            wait_seconds=self._conf.nova_poll_seconds,
        )

    # --- back ---

    def take_back(self, migration: Migration) -> Outcome:
        """Wait until no host can write to the twin any more; once the server lives there, go forward instead."""
        use = self._use(migration)
        if use is Use.ATTACHED:
            return _moved(migration, "the server uses the new place already", Event.SWAPPED)
        old, new = self._opened(migration) if self._was_connected(migration) else (None, None)
        if new and old is False:
            return _moved(migration, "the new place alone is open in a hypervisor", Event.SWAPPED)
        if use is Use.CONNECTED:
            return self._connected(migration, old, new)
        if new:
            return self._patient(migration, "a hypervisor has the new place open")
        shut = self._db.run(lambda session: swaps.let_go(session, migration.destination_volume_id))
        return Outcome(Event.UNDONE) if shut else self._wait("the new place was given to a host just now", 0.1)

    def _connected(self, migration: Migration, old: bool | None, new: bool | None) -> Outcome:
        """What to do while an attachment lets a host write to the twin."""
        uses = self._ask(migration)
        if uses is Uses.NEW:
            return _moved(migration, "the compute service names the new volume", Event.SWAPPED)
        failed = migration.swap_result == swaps.FAILED and old and new is False
        if failed or (uses is Uses.GONE and not new):
            self._db.run(lambda session: swaps.forget_attachments(session, migration.destination_volume_id))
            return self._wait("the server is gone" if not failed else "the compute service has given up", 0.0)
        return self._patient(migration, f"a host may still write to the new place; {_known(uses)}")

    def _patient(self, migration: Migration, message: str) -> Outcome:
        """Wait as long as a swap may take; raises SwapUndecided then."""
        if self._age(migration) <= self._conf.swap_timeout_seconds:
            return self._wait(message)
        row = self._db.read(lambda session: swaps.last_connected(session, migration.destination_volume_id))
        if row is None:
            raise errors.SwapUndecided(attachment_id="unknown", server=self._server(migration), host="its host")
        raise errors.SwapUndecided(attachment_id=row.id, server=row.instance_uuid, host=row.attached_host)

    # --- helpers ---

    @property
    def _begin_seconds(self) -> float:
        """By then a request that was sent has been answered and its first effect is there."""
        return float(self._conf.swap_begin_seconds)

    def _age(self, migration: Migration) -> float:
        called = migration.swap_called_at
        return self._db.now() - called if called is not None else 0.0

    def _use(self, migration: Migration) -> Use:
        return self._db.read(lambda session: swaps.use(session, migration.destination_volume_id))

    def _was_connected(self, migration: Migration) -> bool:
        return self._db.read(lambda session: swaps.last_connected(session, migration.destination_volume_id)) is not None

    def _server(self, migration: Migration) -> str | None:
        """The server whose volume is moved, by the attachments of the volume or of the twin."""
        if migration.swap_server is not None:
            return migration.swap_server
        for volume_id in (migration.volume_id, migration.destination_volume_id):
            rows = self._db.read(lambda session, of=volume_id: attachments.of_volume(session, of))  # type: ignore[misc]
            server = next((row.instance_uuid for row in rows if row.instance_uuid is not None), None)
            if server is not None:
                return str(server)
        return None

    def _ask(self, migration: Migration) -> Uses | str:
        """Ask which volume the server has; a sentence where that cannot be known now, which decides nothing."""
        server = self._server(migration)
        if server is None:
            return Uses.NEITHER
        if self._compute is None:
            return "no compute service is configured that could be asked"
        try:
            return self._compute.uses(server, migration.volume_id, migration.destination_volume_id)
        except errors.MigratorError as error:
            LOG.warning("Migration %s waits: %s", migration.id, error)
            return error.message

    def _failed(self, migration: Migration, reason: str) -> errors.SwapFailed:
        server = self._server(migration) or "of the volume"
        return errors.SwapFailed(server=server, volume_id=migration.volume_id, reason=reason)

    def _wait(self, message: str, seconds: float | None = None) -> Outcome:
        wait = self._conf.nova_poll_seconds if seconds is None else seconds
        return Outcome(Event.WAITING, message, wait_seconds=wait)


def _moved(migration: Migration, message: str, event: Event = Event.DONE) -> Outcome:
    """The server lives at the new place: whatever the compute service had to copy is there."""
    return Outcome(event, message, values={"bytes_done": migration.bytes_total})


def _known(uses: Uses | str) -> str:
    return f"the compute service names the {uses.value} volume" if isinstance(uses, Uses) else uses
