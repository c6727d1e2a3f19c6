"""What a backend's service does with snapshots that lie on its storage already: take them over, give them up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from oslo_messaging.rpc import expose
from sqlalchemy.orm import Session

from migrator import errors
from migrator.context import RequestContext, current_request_id
from migrator.db import messages, snapshots, volumes
from migrator.db.models import Snapshot, Volume
from migrator.volume.adoption import Adoption, place

if TYPE_CHECKING:
    from migrator.db.api import Database

LOG = logging.getLogger(__name__)


class SnapshotAdoption(Adoption):
    """Messages about managing and unmanaging snapshots, for the endpoint of a backend to inherit."""

    _db: Database

    def _migrating(self, volume: Volume) -> bool:
        """Tell whether a migration still works on the volume."""
        raise AssertionError("the endpoint has its own")

    def _is_here(self, volume: Volume) -> bool:
        """Tell whether the volume lives on this backend."""
        raise AssertionError("the endpoint has its own")

    def _after_migration(self, object_id: str, work: Callable[[], None]) -> None:
        """Come back to ``work`` for an object soon."""
        raise AssertionError("the endpoint has its own")

    @expose
    def manage_snapshot(self, context: RequestContext, snapshot_id: str) -> None:
        """Take over what a snapshot ``managing`` refers to, once no migration works on its volume."""
        found = self._still_snapshot(snapshot_id, "managing")
        if found is None:
            return
        snapshot, volume = found
        if self._migrating(volume):
            self._after_migration(snapshot_id, lambda: self.manage_snapshot(context, snapshot_id=snapshot_id))
            return
        pool, name = place(volume), self._snapshot_name(snapshot_id)
        with self._locks.hold(f"{pool}/{snapshot.adoption}"), self._locks.hold(name):
            if snapshot.adoption is None or self._still_snapshot(snapshot_id, "managing") is None:
                return
            done: dict[str, Any] = {"status": "available"}
            try:
                with self._news.around("snapshot.manage_existing", snapshot, done, failed="error_managing"):
                    done["volume_size"] = self._take(pool, snapshot.adoption, name)
            except (errors.MigratorError, OSError) as error:
                self._leave(snapshot, pool, name, error)
                return
            settled = {**done, "progress": "100%", "adoption": None}
            if not self._end(snapshot, None, **settled):  # forced away, with its volume, in the meantime
                self._hand_back(pool, name, "snapshot")
                return
        LOG.info("Snapshot %s is %s of %s now", snapshot_id, snapshot.adoption, volume.host)
        self._report()

    def _leave(self, snapshot: Snapshot, pool: str, name: str, error: Exception) -> None:
        """Leave somebody's data to them: while the row has its reference, deleting it touches no storage."""
        LOG.error("Snapshot %s: managing %s failed: %s", snapshot.id, snapshot.adoption, error)
        values: dict[str, Any] = {"status": "error_managing"}
        left = self._hand_back(pool, name, "snapshot")
        if left is None:
            return  # the sweep tries it again
        if not left.given_back:
            values["adoption"] = None
        self._end(snapshot, f"{error}{left.told}", "manage", **values)

    @expose
    def unmanage_snapshot(self, context: RequestContext, snapshot_id: str) -> None:
        """Forget a snapshot ``unmanaging``; what it is on the storage stays there, under its name."""
        found = self._still_snapshot(snapshot_id, "unmanaging")
        if found is None:
            return
        snapshot, volume = found
        name = self._snapshot_name(snapshot_id)
        with self._locks.hold(self._object_name(volume)), self._locks.hold(name):
            try:
                with self._news.around("snapshot.unmanage", snapshot, {"status": "deleted"}, failed="error_unmanaging"):
                    self._driver.disown(place(volume), name)
            except errors.MigratorError as error:
                LOG.error("Snapshot %s: unmanaging failed: %s", snapshot_id, error)
                self._end(snapshot, str(error), "unmanage", status="error_unmanaging")
                return
            self._db.run(lambda session: snapshots.bury(session, snapshot_id))
        LOG.info("Snapshot %s is managed no longer; it stays on %s as %s", snapshot_id, volume.host, name)
        self._report()

    def _still_snapshot(self, snapshot_id: str, status: str) -> tuple[Snapshot, Volume] | None:
        """The snapshot with its volume, if it still waits for that, and here: each place looks for its own."""

        def work(session: Session) -> tuple[Snapshot, Volume] | None:
            snapshot = snapshots.find(session, snapshot_id)
            volume = volumes.find(session, snapshot.volume_id) if snapshot is not None else None
            if snapshot is None or snapshot.status != status or volume is None or not self._is_here(volume):
                return None
            return snapshot, volume

        return self._db.read(work)

    def _end(self, snapshot: Snapshot, text: str | None, event: str = "", **values: Any) -> bool:
        """Write down what became of a snapshot that was worked on, and tell its project, if there is a text.

        False: somebody else has decided meanwhile, and nothing was written.
        """

        def work(session: Session) -> bool:
            changed = snapshots.update_where(session, snapshot.id, Snapshot.status == snapshot.status, **values)
            if changed and text is not None:
                messages.add(
                    session,
                    project_id=snapshot.project_id,
                    request_id=current_request_id(),
                    resource_uuid=snapshot.id,
                    event=event,
                    text=text,
                    resource_type="VOLUME_SNAPSHOT",
                )
            return changed

        return self._db.run(work)
