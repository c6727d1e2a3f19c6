"""What a backend's service is asked about a migration that nobody has begun; nothing is changed by an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import oslo_messaging as messaging
from oslo_messaging.rpc import expose

from migrator import errors
from migrator.backend_name import BackendName
from migrator.context import RequestContext
from migrator.db import volumes
from migrator.drivers.base import Capability

if TYPE_CHECKING:
    from migrator.db.api import Database
    from migrator.db.models import Volume
    from migrator.drivers.base import VolumeDriver


class Questions:
    """Messages of a plan, for the endpoint of a backend to inherit."""

    _db: Database
    _driver: VolumeDriver

    def _name(self, volume: Volume) -> str:
        raise AssertionError("the endpoint has it")

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def can_assist(self, context: RequestContext, volume_id: str, location: dict[str, Any] | None) -> dict[str, Any]:
        """Tell whether the backend could move a volume itself to the pool at ``location``, and what it occupies.

        Returns ``assists`` (None without a location), ``reason`` and ``allocated`` in bytes.  Raises NotFound,
        VolumeMissing or DriverError.
        """
        volume = self._db.read(lambda session: volumes.get(session, volume_id))
        pool, name = BackendName.parse(volume.host or "").pool or "", self._name(volume)
        answer: dict[str, Any] = {"allocated": self._driver.allocated(pool, name), "assists": None, "reason": None}
        if location is None:
            return answer
        if Capability.ASSIST not in self._driver.capabilities:
            return answer | {"assists": False, "reason": "the source's driver cannot move volumes itself"}
        told = self._driver.can_assist(pool, name, location)
        return answer | {"assists": told.yes, "reason": told.reason}
