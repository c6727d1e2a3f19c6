"""What stands behind the API in one process: a real scheduler, and real volume services of files."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from migrator import conf as config
from migrator import rpc
from migrator.context import service_context
from migrator.db.models import MigrationStep, utcnow
from migrator.drivers.file import FileDriver
from migrator.scheduler.manager import SchedulerManager
from migrator.volume.manager import VolumeManager

if TYPE_CHECKING:
    from tests.api.conftest import Api

SOURCE, DESTINATION = "a@file1#pool1", "b@file2#pool2"
MIB, GIB = 1 << 20, 1 << 30
#: The volume services: pool and zone of each.
PLACES = {"a@file1": ("pool1", "nova"), "b@file2": ("pool2", "nova")}


class Plant:
    """A scheduler and two volume services on the application's bus; migrations are placed and go no further."""

    def __init__(self, api: Api, directory: Path) -> None:
        self.api = api
        self.scheduler = SchedulerManager(api.conf, api.db, api.volume)
        self.drivers: dict[str, FileDriver] = {}
        self.ran: list[str] = []
        self._servers = [rpc.server(api.bus, rpc.SCHEDULER_TOPIC, "s", [self.scheduler])]
        for host, (pool, _) in PLACES.items():
            backend = host.partition("@")[2]
            options = config.backend(api.conf, backend)
            api.conf.set_override("file_pools", {pool: str(directory / backend)}, backend)
            driver = self.drivers[host] = FileDriver(host, options)
            driver.start()
            manager = VolumeManager(api.conf, api.db, driver, self.ran.append, lambda: None)
            self._servers.append(rpc.server(api.bus, rpc.VOLUME_TOPIC, host, [manager]))
        for server in self._servers:
            server.start()
        for host in PLACES:
            self.report(host)

    def report(self, host: str, **values: Any) -> None:
        """Send what the pool is like, 100 GiB of which 40 are free unless ``values`` say otherwise."""
        reported = self.drivers[host].report()[0].__dict__
        pool = {**reported, "total_gib": 100.0, "free_gib": 40.0, **values}
        self.scheduler.update_pools(
            service_context(),
            report={
                "host": host,
                "reported_at": self.api.db.now(),
                "availability_zone": values.get("zone", PLACES[host][1]),
                "volume_backend_name": host,
                "reserved_percentage": 10,
                "max_over_subscription_ratio": 20.0,
                "driver": "file",
                "pools": [pool, *values.get("more", ())],
            },
        )

    def volume(self, data: int = 0, **values: Any) -> str:
        """A volume of 1 GiB with ``data`` bytes written to it."""
        volume_id = self.api.make_volume(**values)
        self.drivers["a@file1"].create("pool1", f"volume-{volume_id}", GIB)
        path = self.drivers["a@file1"].export("pool1", f"volume-{volume_id}", writable=True).path
        with open(path, "r+b") as file:
            file.write(os.urandom(data))
            os.fsync(file.fileno())
        return volume_id

    def copied(self, rate: int, *, source: str = SOURCE, destination: str = DESTINATION, **values: Any) -> str:
        """A copy of 100 MiB that has ended well, at ``rate`` bytes per second, and was compared at twice that."""
        columns = {
            "end": "success",
            "plan": "host_copy",
            "source_host": source,
            "destination_host": destination,
            "bytes_allocated": 100 * MIB,
            "bytes_moved": GIB,
            "moved_seconds": 100 * MIB / rate,
            "finished_at": utcnow(),
            **values,
        }
        migration_id = self.api.make_migration(self.api.make_volume(), **columns)
        began = utcnow()
        step = {
            "migration_id": migration_id,
            "step": "verify_copy",
            "direction": "forward",
            "attempt": 1,
            "started_at": began,
            "finished_at": began + datetime.timedelta(seconds=50 * MIB / rate),
            "result": "done",
            "bytes": GIB,
        }
        self.api.db.run(lambda session: session.execute(sa.insert(MigrationStep).values(**step)))
        return migration_id

    def replace_scheduler(self, scheduler: SchedulerManager) -> None:
        self._servers[0].stop()
        self._servers[0] = rpc.server(self.api.bus, rpc.SCHEDULER_TOPIC, "s", [scheduler])
        self._servers[0].start()

    def stop(self) -> None:
        for server in self._servers:
            server.stop()
