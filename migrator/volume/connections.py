"""What a backend's service does for servers that use its volumes: connections of their hosts, made and ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import oslo_messaging as messaging
from oslo_messaging.rpc import expose

from migrator import errors
from migrator.backend_name import BackendName
from migrator.context import RequestContext
from migrator.db import volumes

if TYPE_CHECKING:
    from migrator.conf import Conf
    from migrator.db.api import Database
    from migrator.db.models import Volume
    from migrator.drivers.base import VolumeDriver
    from migrator.volume.manager import ObjectLocks


class Connections:
    """Messages of the API about connections, for the endpoint of a backend to inherit."""

    _conf: Conf
    _db: Database
    _driver: VolumeDriver
    _locks: ObjectLocks
    #: A caller waits this long for other work on the same object, which may be a clone of hours.
    busy_seconds = 5.0

    if TYPE_CHECKING:

        def _is_here(self, volume: Volume) -> bool: ...

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def initialize_connection(
        self, context: RequestContext, volume_id: str, connector: dict[str, Any], writable: bool
    ) -> dict[str, Any]:
        """Offer a volume, or a twin, to the host that the connector describes; returns how that host reaches it."""
        with self._object(volume_id) as (pool, name):
            return self._driver.initialize_connection(pool, name, connector, writable=writable)

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def terminate_connection(self, context: RequestContext, volume_id: str, connector: dict[str, Any]) -> None:
        """Take a volume back from a host; success where nothing is left to be taken back."""
        with contextlib.suppress(errors.NotFound), self._object(volume_id) as (pool, name):
            self._driver.terminate_connection(pool, name, connector)

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def is_open(self, context: RequestContext, volume_id: str) -> bool | None:
        """Tell whether a hypervisor has a volume, or a twin, open; None where that cannot be told."""
        with self._object(volume_id) as (pool, name):
            return self._driver.is_open(pool, name)

    @contextlib.contextmanager
    def _object(self, volume_id: str) -> Iterator[tuple[str, str]]:
        """Hold the object of a volume, and give its pool and name.

        Raises NotFound, or Conflict while it is busy, and where it lives elsewhere by now.
        """
        volume = self._db.read(lambda session: volumes.get(session, volume_id))
        name = str(self._conf.volume_name_template % volume.object_id)
        pool = BackendName.parse(volume.host).pool if volume.host is not None else None
        if pool is None:
            raise errors.NotFound(kind="Volume", id=volume_id)
        if not self._is_here(volume):
            raise errors.Conflict(
                reason=f"Volume {volume_id} has just moved to {volume.host}; try again.", retry_after=1
            )
        with self._locks.hold(name, timeout=self.busy_seconds) as free:
            if not free:
                raise errors.Conflict(reason=f"Volume {volume_id} is busy on its backend; try again.", retry_after=1)
            yield pool, name
