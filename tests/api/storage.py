"""One backend's service with its storage on the API's bus, for tests of what lies on storage already."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from migrator import rpc
from migrator.drivers.base import VolumeDriver
from migrator.drivers.memory import Fault, MemoryDriver
from migrator.volume.manager import VolumeManager
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.api.conftest import Answer, Api

BACKEND, PLACE = "a@file1", "a@file1#pool1"


def ignore(*_args: Any) -> None:
    """What the manager asks of others is not looked at here."""


class Storage:
    """A backend's service with its storage, on the API's bus."""

    def __init__(self, api: Api, driver: VolumeDriver) -> None:
        driver.start()
        self.api, self.driver = api, driver
        self.manager = VolumeManager(api.conf, api.db, driver, ignore, ignore)
        self.server = rpc.server(api.bus, rpc.VOLUME_TOPIC, driver.backend, [self.manager])
        self.server.start()

    def stop(self) -> None:
        """Not waited for, which takes a second: each test has waited for what it asked for."""
        self.server.stop()

    def manage(self, reference: dict[str, Any], **more: Any) -> Answer:
        body = {"host": PLACE, "ref": reference, **more}
        return self.api("POST", "/manageable_volumes", {"volume": body}, version="3.8")

    def settled(self, volume_id: str) -> Any:
        """The volume, once it is neither managing nor unmanaging."""
        until(lambda: self.api.get_volume(volume_id).status not in ("managing", "unmanaging"), "the volume settled")
        return self.api.get_volume(volume_id)

    def listed(self, query: str = "", kind: str = "/detail") -> list[dict[str, Any]]:
        answer = self.api("GET", f"/manageable_volumes{kind}?host=a@file1%23pool1{query}", version="3.8")
        assert answer.status == 200, answer.text
        return list(answer.json["manageable-volumes"])


def lay(path: Path, content: bytes = b"old data", size: int | None = None) -> Path:
    path.write_bytes(content)
    if size is not None:
        os.truncate(path, size)
    return path


def begin(path: Path) -> bytes:
    """The first bytes of a file that is a GiB or two of zeros otherwise."""
    with path.open("rb") as file:
        return file.read(8)


def fail(storage: Storage, call: str, error: Exception, times: int | None = 1) -> None:
    assert isinstance(storage.driver, MemoryDriver)
    storage.driver.faults.order(call, Fault.error(error), times=times)
