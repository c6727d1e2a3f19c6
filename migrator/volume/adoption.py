"""What a backend's service does with what lies on its storage already: list it, take it over, give it up again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import oslo_messaging as messaging
from oslo_messaging.rpc import expose
from sqlalchemy.orm import Session

from migrator import errors
from migrator.backend_name import BackendName
from migrator.conf import GIB
from migrator.context import RequestContext, current_request_id
from migrator.db import messages, snapshots, volumes
from migrator.db.models import Volume, utcnow
from migrator.drivers.base import Adoptable, Capability, VolumeDriver, find_adoptable

if TYPE_CHECKING:
    from migrator.conf import Conf
    from migrator.db.api import Database
    from migrator.notifications import Notifications
    from migrator.volume.manager import ObjectLocks

LOG = logging.getLogger(__name__)

#: Of whom something is that is not ours.
_NOBODYS: dict[str, Any] = {"volume_id": None, "snapshot_id": None, "source_reference": None}


def whole_gib(size: int) -> int:
    """Return how many GiB a volume needs to have to hold ``size`` bytes."""
    return -(-size // GIB)


class _Left(NamedTuple):
    """What became of storage that was not to be had."""

    given_back: bool
    #: For whom it concerns, behind the reason.
    told: str


class Adoption:
    """Messages about managing and unmanaging, for the endpoint of a backend to inherit."""

    _conf: Conf
    _db: Database
    _driver: VolumeDriver
    _locks: ObjectLocks
    _report: Callable[[], None]
    _news: Notifications

    def _snapshot_name(self, snapshot_id: str) -> str:
        """Return the name of a snapshot's object."""
        raise AssertionError("the endpoint has its own")

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def manageable(self, context: RequestContext, pool: str | None) -> list[dict[str, Any]]:
        """Return what lies in a pool, or in all; raises InvalidHost, DriverError."""
        found = []
        for name in self._driver.pools() if pool is None else [self._known(pool)]:
            owners = self._owners(name)
            found += [self._entry(name, each, owners) for each in self._driver.adoptable(name)]
        return found

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def find_manageable(self, context: RequestContext, pool: str, reference: dict[str, Any]) -> dict[str, Any]:
        """Return what a reference refers to; raises InvalidInput for what is not there, InvalidHost, DriverError."""
        return self._entry(pool, find_adoptable(self._driver, self._known(pool), reference), self._owners(pool))

    def _known(self, pool: str) -> str:
        """Return the name of a pool; raises InvalidHost for one that there is not."""
        if pool not in self._driver.pools():
            raise errors.InvalidHost(host=f"{self._driver.backend}#{pool}", reason="there is no such pool")
        return pool

    @expose
    def manage_volume(self, context: RequestContext, volume_id: str) -> None:
        """Take over what a volume ``managing`` refers to; where that fails the storage is as it was."""
        volume = self._still(volume_id, "managing")
        if volume is None or volume.adoption is None:
            return
        pool, name = place(volume), self._object_name(volume)
        # Two volumes may be asked for of one file.
        with self._locks.hold(f"{pool}/{volume.adoption}"), self._locks.hold(name):
            if self._still(volume_id, "managing") is None:
                return
            done: dict[str, Any] = {"status": "available"}
            try:
                with self._news.around("volume.manage_existing", volume, done, failed="error_managing"):
                    done["size"] = self._take(pool, volume.adoption, name)
                    settled = {**done, "adoption": None, "launched_at": utcnow()}
                    self._db.run(lambda s: volumes.update_where(s, volume_id, Volume.status == "managing", **settled))
            except (errors.MigratorError, OSError) as error:
                self._give_back(volume, pool, name, error)
                return
        LOG.info("Volume %s is %s of %s now", volume_id, volume.adoption, volume.host)
        self._report()

    def _take(self, pool: str, reference: dict[str, Any], name: str) -> int:
        """Adopt, and grow to whole GiB, in which volumes are counted; return how many."""
        size = self._driver.adopt(pool, reference, name)
        gib = whole_gib(size)
        if gib * GIB > size:
            LOG.info("%s: grown from %d bytes to %d GiB with zeros", name, size, gib)
            self._driver.extend(pool, name, gib * GIB)
        return gib

    def _give_back(self, volume: Volume, pool: str, name: str, error: Exception) -> None:
        """Leave somebody's data to them; a volume in error without a host is deleted without touching any storage."""
        LOG.error("Volume %s: managing %s failed: %s", volume.id, volume.adoption, error)
        values: dict[str, Any] = {"status": "error_managing", "host": None, "adoption": None}
        left = self._hand_back(pool, name, "volume")
        if left is None:
            return  # the sweep tries it again
        if not left.given_back:
            del values["host"]  # the row goes on naming what is ours
        text = f"{error}{left.told}"

        def work(session: Session) -> None:
            if volumes.update_where(session, volume.id, Volume.status == "managing", **values):
                _tell(session, volume, "manage", text)

        self._db.run(work)

    def _hand_back(self, pool: str, name: str, kind: str) -> _Left | None:
        """Disown what may lie under ``name`` after a failed ``adopt``; None while the storage does not answer.

        ``kind`` is what it should have become.
        """
        told = ""
        try:
            if self._driver.exists(pool, name):
                told = f"; the data lies untouched under the name {name} now"
                self._driver.disown(pool, name)
        except errors.MigratorError as failure:
            if not failure.final:
                LOG.error("%s: its storage does not answer, it is tried again: %s", name, failure)
                return None
            told += f" and cannot be given back ({failure}): deleting the {kind} deletes it"
            return _Left(False, told)
        return _Left(True, told)

    @expose
    def unmanage_volume(self, context: RequestContext, volume_id: str) -> None:
        """Forget a volume ``unmanaging``; what it is on the storage stays there, under its name."""
        volume = self._still(volume_id, "unmanaging")
        if volume is None:
            return
        pool, name = place(volume), self._object_name(volume)
        with self._locks.hold(name):
            try:
                with self._news.around("volume.unmanage", volume, {"status": "deleted"}, failed="error_unmanaging"):
                    self._driver.revoke(pool, name)
                    self._driver.disown(pool, name)
            except errors.MigratorError as error:
                LOG.error("Volume %s: unmanaging failed: %s", volume_id, error)
                text = str(error)
                self._db.run(lambda session: _not_given_up(session, volume, text))
                return
            self._db.run(lambda session: volumes.bury(session, volume_id))
        LOG.info("Volume %s is managed no longer; it stays on %s as %s", volume_id, volume.host, name)
        self._report()

    def _still(self, volume_id: str, status: str) -> Volume | None:
        volume = self._db.read(lambda session: volumes.find(session, volume_id))
        return volume if volume is not None and volume.status == status and volume.host is not None else None

    def _object_name(self, volume: Volume) -> str:
        return str(self._conf.volume_name_template % volume.object_id)

    def _owners(self, pool: str) -> dict[str, dict[str, Any]]:
        """Of whom each object of the pool is, by its name: a volume, or a snapshot with its volume's object."""
        host = f"{self._driver.backend}#{pool}"

        def work(session: Session) -> dict[str, dict[str, Any]]:
            found: dict[str, dict[str, Any]] = {}
            rows = {row.id: row for row in volumes.living(session, self._driver.backend, Volume.host == host)}
            for row in rows.values():
                found[self._object_name(row)] = {"volume_id": row.id}
            for snapshot in snapshots.on(session, host):
                if snapshot.volume_id not in rows:  # made since
                    continue
                source = {"source-name": self._object_name(rows[snapshot.volume_id])}
                found[self._snapshot_name(snapshot.id)] = {"snapshot_id": snapshot.id, "source_reference": source}
            return found

        return self._db.read(work)

    def _entry(self, pool: str, found: Adoptable, owners: dict[str, dict[str, Any]]) -> dict[str, Any]:
        gib = whole_gib(found.size)
        grown = f"; it will be grown with zeros to {gib} GiB" if gib * GIB > found.size and found.reason is None else ""
        return {
            "pool": pool,
            "reference": found.reference,
            "id": found.id,
            "size": gib,
            "reason": found.reason,
            "extra_info": f"{found.size} bytes{grown}",
            "snapshots": Capability.SNAPSHOTS in self._driver.capabilities,
            **_NOBODYS,
            **owners.get(found.name or "", {}),
        }


def place(volume: Volume) -> str:
    """Return the pool that a volume lies in."""
    pool = BackendName.parse(volume.host or "").pool
    assert pool is not None, "a volume's host always names the pool"
    return pool


def _not_given_up(session: Session, volume: Volume, text: str) -> None:
    if volumes.update_where(session, volume.id, Volume.status == "unmanaging", status="error_unmanaging"):
        _tell(session, volume, "unmanage", text)


def _tell(session: Session, volume: Volume, event: str, text: str) -> None:
    messages.add(
        session,
        project_id=volume.project_id,
        request_id=current_request_id(),
        resource_uuid=volume.id,
        event=event,
        text=text,
    )
