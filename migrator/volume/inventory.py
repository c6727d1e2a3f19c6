"""What a backend's service tells an audit: what lies in its pools; and how it removes what a migration left there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import oslo_messaging as messaging
from oslo_messaging.rpc import expose

from migrator import errors
from migrator.context import RequestContext
from migrator.db import audit

if TYPE_CHECKING:
    from migrator.conf import Conf
    from migrator.db.api import Database
    from migrator.drivers.base import VolumeDriver
    from migrator.volume.manager import ObjectLocks

LOG = logging.getLogger(__name__)

#: A removal waits this long, in seconds, for other work on the same object.
BUSY_SECONDS = 1.0


def take(driver: VolumeDriver) -> dict[str, Any]:
    """Return for each pool its ``objects``, ``exports`` and ``place``, or the ``error`` of one that does not answer.

    The place is that of the pool's location: pools of different services may be the same one.
    """
    places = {report.pool: report.location.get("place") for report in driver.report()}
    return {pool: _pool(driver, pool, places.get(pool)) for pool in driver.pools()}


def _pool(driver: VolumeDriver, pool: str, place: str | None) -> dict[str, Any]:
    try:
        return {"objects": sorted(driver.objects(pool)), "exports": sorted(driver.exports(pool)), "place": place}
    except errors.MigratorError as error:
        return {"error": error.message}


class Inventory:
    """Messages of an audit, for the endpoint of a backend to inherit."""

    _conf: Conf
    _db: Database
    _driver: VolumeDriver
    _locks: ObjectLocks
    _report: Callable[[], None]

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def inventory(self, context: RequestContext) -> dict[str, Any]:
        """Return what lies in the pools, as ``take`` describes it."""
        return take(self._driver)

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def remove_orphan(self, context: RequestContext, migration_id: str, pool: str, name: str) -> None:
        """Remove an object that a migration which is over left in a pool; success when it is gone.

        Whether it is such a thing is looked up here and now, whatever the caller has seen.  Raises Conflict if it is
        not, or is busy; DriverError.
        """
        with self._locks.hold(name, timeout=BUSY_SECONDS) as free:
            reason = "it is being worked on" if not free else self._why_not_removable(migration_id, pool, name)
            if reason is not None:
                raise errors.Conflict(reason=f"{name} in {pool} of {self._driver.backend} is not removed: {reason}")
            self._driver.revoke(pool, name)
            self._driver.delete(pool, name)
        LOG.warning("Removed %s from %s, which migration %s had left there", name, pool, migration_id)
        self._report()

    def _why_not_removable(self, migration_id: str, pool: str, name: str) -> str | None:
        if pool not in self._driver.pools():
            return "there is no such pool"
        names = audit.Names.of(self._conf)
        place = f"{self._driver.backend}#{pool}"
        return self._db.read(lambda session: audit.why_not_removable(session, names, migration_id, place, name))
