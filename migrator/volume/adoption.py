"""What a backend's service does with what lies on its storage already: list it, take it over, give it up again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import oslo_messaging as messaging
from oslo_messaging.rpc import expose
from sqlalchemy.orm import Session

from migrator import errors
from migrator.backend_name import BackendName
from migrator.conf import GIB
from migrator.context import RequestContext
from migrator.db import messages, volumes
from migrator.db.models import Volume, utcnow
from migrator.drivers.base import Adoptable, VolumeDriver, find_adoptable

if TYPE_CHECKING:
    from migrator.conf import Conf
    from migrator.db.api import Database
    from migrator.volume.manager import ObjectLocks

LOG = logging.getLogger(__name__)


def whole_gib(size: int) -> int:
    """Return how many GiB a volume needs to have to hold ``size`` bytes."""
    return -(-size // GIB)


class Adoption:
    """Messages about managing and unmanaging, for the endpoint of a backend to inherit."""

    _conf: Conf
    _db: Database
    _driver: VolumeDriver
    _locks: ObjectLocks
    _report: Callable[[], None]

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def manageable(self, context: RequestContext, pool: str | None) -> list[dict[str, Any]]:
        """Return what lies in a pool, or in all; raises InvalidHost, DriverError."""
        found = []
        for name in self._driver.pools() if pool is None else [self._known(pool)]:
            ids = self._ids(name)
            found += [_entry(name, each, ids) for each in self._driver.adoptable(name)]
        return found

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def find_manageable(self, context: RequestContext, pool: str, reference: dict[str, Any]) -> dict[str, Any]:
        """Return what a reference refers to; raises InvalidInput for what is not there, InvalidHost, DriverError."""
        return _entry(pool, find_adoptable(self._driver, self._known(pool), reference), self._ids(pool))

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
        pool, name = _place(volume), self._object_name(volume)
        # Two volumes may be asked for of one file.
        with self._locks.hold(f"{pool}/{volume.adoption}"), self._locks.hold(name):
            if self._still(volume_id, "managing") is None:
                return
            try:
                size = self._take(pool, volume.adoption, name)
            except (errors.MigratorError, OSError) as error:
                self._give_back(volume, pool, name, error)
                return
            settled = {"status": "available", "size": size, "adoption": None, "launched_at": utcnow()}
            self._db.run(lambda s: volumes.update_where(s, volume_id, Volume.status == "managing", **settled))
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
        text = str(error)
        try:
            if self._driver.exists(pool, name):
                text += f"; the data lies untouched under the name {name} now"
                self._driver.disown(pool, name)
        except errors.MigratorError as failure:
            if not failure.final:
                LOG.error("Volume %s: its storage does not answer, it is tried again: %s", volume.id, failure)
                return
            # The row goes on naming what is ours.
            del values["host"]
            text += f" and cannot be given back ({failure}): deleting the volume deletes it"

        def work(session: Session) -> None:
            if volumes.update_where(session, volume.id, Volume.status == "managing", **values):
                _tell(session, volume, "manage", text)

        self._db.run(work)

    @expose
    def unmanage_volume(self, context: RequestContext, volume_id: str) -> None:
        """Forget a volume ``unmanaging``; what it is on the storage stays there, under its name."""
        volume = self._still(volume_id, "unmanaging")
        if volume is None:
            return
        pool, name = _place(volume), self._object_name(volume)
        with self._locks.hold(name):
            try:
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

    def _ids(self, pool: str) -> dict[str, str]:
        """The id of each volume of the pool by the name of its object."""
        host = f"{self._driver.backend}#{pool}"
        rows = self._db.read(lambda session: volumes.living(session, self._driver.backend, Volume.host == host))
        return {self._object_name(row): row.id for row in rows}


def _entry(pool: str, found: Adoptable, ids: dict[str, str]) -> dict[str, Any]:
    gib = whole_gib(found.size)
    grown = f"; it will be grown with zeros to {gib} GiB" if gib * GIB > found.size and found.reason is None else ""
    return {
        "pool": pool,
        "reference": found.reference,
        "id": found.id,
        "size": gib,
        "reason": found.reason,
        "volume_id": ids.get(found.name or ""),
        "extra_info": f"{found.size} bytes{grown}",
    }


def _place(volume: Volume) -> str:
    pool = BackendName.parse(volume.host or "").pool
    assert pool is not None, "a volume's host always names the pool"
    return pool


def _not_given_up(session: Session, volume: Volume, text: str) -> None:
    if volumes.update_where(session, volume.id, Volume.status == "unmanaging", status="error_unmanaging"):
        _tell(session, volume, "unmanage", text)


def _tell(session: Session, volume: Volume, event: str, text: str) -> None:
    messages.add(
        session, project_id=volume.project_id, request_id=None, resource_uuid=volume.id, event=event, text=text
    )
