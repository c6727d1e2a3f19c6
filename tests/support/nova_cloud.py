"""Block storage with file backends, the stand-in for Nova, and what a test sees of a volume that moves in use."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.nova import Disk, Nova, Plan
from tests.support.processes import AllInOne
from tests.support.rest import Rest
from tests.support.waiting import until

FIRST, SECOND = "node@file1#pool1", "node@file2#pool2"
OPTIONS = """compute_service = nova
nova_poll_seconds = 0.2
migration_retry_seconds = 0.05
"""


def section(nova: Nova) -> str:
    """What block storage is told of Nova."""
    where = f"endpoint = {nova.url}\nendpoint_override = {nova.url}"
    return f"[nova]\nauth_type = admin_token\n{where}\ntoken = {nova.service_user}\n"


class Cloud:
    """Block storage, compute and the volumes of this test."""

    def __init__(self, rest: Rest, nova: Nova, backends: Path, places: tuple[str, str] = (FIRST, SECOND)) -> None:
        """``backends`` is the directory of the pools; ``places``: two of them, between which volumes move."""
        self.rest, self.nova, self.places, self.backends = rest, nova, places, backends
        #: Where block storage is one process.
        self.running: AllInOne

    def disk(self, server: str | None = None, **values: Any) -> Disk:
        """A volume of a server, with a guest that has begun to write."""
        volume = self.rest.create(1, availability_zone="nova")["id"]
        host = self.rest.volume(volume)["os-vol-host-attr:host"]
        disk = self.nova.attach(server or str(uuid.uuid4()), volume, **values)
        until(lambda: not disk.guest.writes or len(disk.guest.acknowledged) > 5, "the guest writes")
        assert host in self.places
        return disk

    def plan(self, disk: Disk) -> Plan:
        return self.nova.plans.setdefault(disk.volume, Plan())

    def other(self, disk: Disk) -> str:
        first, second = self.places
        return second if self.rest.volume(disk.volume)["os-vol-host-attr:host"] == first else first

    def migrate(self, disk: Disk) -> None:
        status, answer = self.rest.migrate(disk.volume, self.other(disk))
        assert status == 202, answer

    def order(self, disk: Disk, order: str) -> None:
        migration = self.rest.migration_of(disk.volume)["id"]
        self.rest.ok("POST", f"/migrations/{migration}/action", {order: None})

    def files(self, disk: Disk) -> list[Path]:
        """What there is on the backends for a volume: itself, and what its migrations made."""
        listed = self.rest.ok("GET", f"/migrations?volume_id={disk.volume}")["migrations"]
        ids = {disk.volume, *(row["destination_volume_id"] for row in listed)}
        return [path for path in self.backends.glob("*/*/volume-*") if path.name[7:] in ids]

    def moved(self, disk: Disk) -> None:
        """See that the volume lives at the new place with all that was acknowledged, and that nothing else is left."""
        until(lambda: disk.guest.mirror is None, "the guest has one disk")
        volume = self.rest.volume(disk.volume)
        assert (volume["status"], volume["migration_status"]) == ("in-use", "success")
        (attachment,) = volume["attachments"]
        assert (attachment["server_id"], attachment["device"]) == (disk.server, disk.device)
        assert attachment["volume_id"] == disk.volume
        assert disk.guest.path.endswith(str(volume["os-vol-mig-status-attr:name_id"]))
        self._settled(disk)

    def stayed(self, disk: Disk) -> None:
        """See that the volume is where it was, as it was, and that nothing else is left."""
        volume = self.rest.volume(disk.volume)
        assert (volume["status"], volume["migration_status"]) == ("in-use", "error")
        assert [each["attachment_id"] for each in volume["attachments"]] == [disk.attachment]
        assert disk.guest.path.endswith(disk.volume)
        self._settled(disk)

    def _settled(self, disk: Disk) -> None:
        before = max(disk.guest.acknowledged.values(), default=0)
        until(lambda: not disk.guest.writes or max(disk.guest.acknowledged.values()) > before, "the guest goes on")
        until(lambda: self.files(disk) == [Path(disk.guest.path)], "one object is left")
        disk.guest.check()
        assert self.nova.strange == [], self.nova.strange


@contextlib.contextmanager
def open_cloud(directory: Path, nova: Nova, patience: float = 60, begin: float = 2) -> Iterator[Cloud]:
    """Both services, which know of each other; swap_timeout_seconds and swap_begin_seconds."""
    times = f"swap_timeout_seconds = {patience}\nswap_begin_seconds = {begin}\nmigration_sweep_interval = 1\n"
    running = AllInOne(directory, f"{OPTIONS}{times}{section(nova)}")
    nova.block_url = running.url
    try:
        cloud = Cloud(running.rest(), nova, running.state / "backends")
        cloud.running = running
        yield cloud
    finally:
        running.process.end()
