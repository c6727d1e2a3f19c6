"""What a driver tells servers' hosts of a volume, and the service's endpoint that asks it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from oslo_messaging.rpc import dispatcher

from migrator import conf as config
from migrator import errors
from migrator.conf import GIB
from migrator.context import service_context
from migrator.db import attachments, volumes
from migrator.db.api import Database
from migrator.drivers.base import Capability, VolumeDriver
from migrator.drivers.file import FileDriver
from migrator.drivers.memory import MemoryDriver
from migrator.volume.manager import VolumeManager
from tests.support import rows
from tests.support.plain_guest import Image

CONNECTOR = {"host": "compute1", "ip": "127.0.0.1"}


def file_driver(directory: Path, **options: Any) -> FileDriver:
    conf = config.load("tests", [], [])
    section = config.backend(conf, "file1")
    for name, value in {"file_pools": {"pool1": str(directory / "pool")}, **options}.items():
        conf.set_override(name, value, "file1")
    driver = FileDriver("hosta@file1", section)
    driver.start()
    return driver


@pytest.fixture(params=["file", "memory"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> VolumeDriver:
    if request.param == "file":
        return file_driver(tmp_path)
    driver = MemoryDriver("hosta@file1", config.backend(config.load("tests", [], []), "file1"))
    driver.start()
    return driver


def test_an_offer_may_be_repeated_and_taken_back_at_any_time(driver: VolumeDriver) -> None:
    driver.create("pool1", "volume-1", GIB)
    offers = [driver.initialize_connection("pool1", "volume-1", CONNECTOR, writable=True) for _ in range(2)]
    assert offers[0] == offers[1]
    assert set(offers[0]) == {"driver_volume_type", "data"}
    for _ in range(2):
        driver.terminate_connection("pool1", "volume-1", CONNECTOR)
    driver.delete("pool1", "volume-1")
    driver.terminate_connection("pool1", "volume-1", CONNECTOR)
    with pytest.raises(errors.VolumeMissing):
        driver.initialize_connection("pool1", "volume-1", CONNECTOR, writable=True)


@pytest.mark.parametrize("kind", ["gpfs", "local"])
def test_a_file_is_told_by_its_path(tmp_path: Path, kind: str) -> None:
    """os-brick's connectors of both kinds want device_path and give it to the hypervisor as it is."""
    driver = file_driver(tmp_path, file_connection_type=kind)
    driver.create("pool1", "volume-1", GIB)
    offer = driver.initialize_connection("pool1", "volume-1", CONNECTOR, writable=True)
    assert offer["driver_volume_type"] == kind
    path = Path(offer["data"]["device_path"])
    assert (path, path.stat().st_size) == (tmp_path / "pool" / "volume-1", GIB)


def test_extending_while_a_server_has_it_open(tmp_path: Path) -> None:
    driver = file_driver(tmp_path)
    driver.create("pool1", "volume-1", GIB)
    path = driver.initialize_connection("pool1", "volume-1", CONNECTOR, writable=True)["data"]["device_path"]
    with open(path, "r+b") as opened:
        driver.extend("pool1", "volume-1", 2 * GIB)
        opened.seek(2 * GIB - 4)
        opened.write(b"tail")
        opened.flush()
        assert Path(path).stat().st_size == 2 * GIB


def test_pools_say_that_several_hosts_may_share_a_volume(driver: VolumeDriver) -> None:
    """Types with multiattach "<is> True" find pools by it."""
    assert driver.report()[0].capabilities[Capability.MULTIATTACH.value] is True


def test_a_driver_that_connects_no_servers_says_so(driver: VolumeDriver) -> None:
    with pytest.raises(errors.InvalidInput, match="the driver of hosta@file1 connects no servers"):
        VolumeDriver.initialize_connection(driver, "pool1", "volume-1", CONNECTOR, writable=True)


# --- the endpoint ----------------------------------------------------------------------------------------------------


@pytest.fixture
def manager(db: Database, driver: VolumeDriver) -> VolumeManager:
    conf = config.load("tests", [], [])
    return VolumeManager(conf, db, driver, lambda migration_id: None, lambda: None)


def test_the_service_offers_what_the_volume_is_now(manager: VolumeManager, db: Database, driver: VolumeDriver) -> None:
    """A migrated volume's object has the name that it was created under (name_id)."""
    volume_id = rows.add_volume(db, name_id="11111111-0000-4000-8000-000000000000", status="creating")
    manager.create_volume(service_context(), volume_id=volume_id)
    offer = manager.initialize_connection(service_context(), volume_id=volume_id, connector=CONNECTOR, writable=True)
    assert offer["data"]["device_path"].endswith("/volume-11111111-0000-4000-8000-000000000000")
    manager.terminate_connection(service_context(), volume_id=volume_id, connector=CONNECTOR)


def test_what_is_not_there(manager: VolumeManager, db: Database) -> None:
    homeless = rows.add_volume(db, host=None, status="creating")
    for volume_id in ("none", homeless):
        manager.terminate_connection(service_context(), volume_id=volume_id, connector=CONNECTOR)
        with pytest.raises(dispatcher.ExpectedException) as raised:
            manager.initialize_connection(service_context(), volume_id=volume_id, connector=CONNECTOR, writable=True)
        assert isinstance(raised.value.exc_info[1], errors.NotFound)


def test_an_object_that_is_busy_is_not_waited_for_for_ever(manager: VolumeManager, db: Database) -> None:
    volume_id = rows.add_volume(db, status="creating")
    manager.create_volume(service_context(), volume_id=volume_id)
    assert manager.busy_seconds < manager._conf.rpc_step_timeout_seconds
    manager.busy_seconds = 0.05
    with manager._locks.hold(f"volume-{volume_id}"), ThreadPoolExecutor(1) as other:
        asked = other.submit(manager.terminate_connection, service_context(), volume_id=volume_id, connector=CONNECTOR)
        with pytest.raises(dispatcher.ExpectedException) as raised:
            asked.result(30)
    assert "is busy on its backend" in str(raised.value.exc_info[1])


def test_only_what_is_meant_for_others_can_be_called(manager: VolumeManager) -> None:
    policy = dispatcher.ExplicitRPCAccessPolicy()
    assert policy.is_allowed(manager, "initialize_connection")
    assert policy.is_allowed(manager, "terminate_connection")
    assert not policy.is_allowed(manager, "_object")


@pytest.mark.parametrize(("attached", "status"), [(True, "in-use"), (False, "available")])
def test_an_extended_volume_is_in_use_again(
    manager: VolumeManager, db: Database, driver: VolumeDriver, attached: bool, status: str
) -> None:
    volume_id = rows.add_volume(db, status="creating")
    manager.create_volume(service_context(), volume_id=volume_id)
    if attached:
        db.run(lambda s: attachments.insert(s, id="a", volume_id=volume_id, attach_status="attached"))
    db.run(lambda s: volumes.update_where(s, volume_id, status="extending", wanted_size=2))
    manager.extend_volume(service_context(), volume_id=volume_id)
    volume = rows.volume(db, volume_id)
    assert (volume.status, volume.size, volume.wanted_size) == (status, 2, None)


def test_a_file_that_a_hypervisor_has_open_is_told_by_its_lock(tmp_path: Path) -> None:
    """QEMU holds locks for as long as it has an image open; our own reading and writing takes none."""
    driver = file_driver(tmp_path)
    driver.create("pool1", "volume-1", GIB)
    assert driver.is_open("pool1", "volume-1") is False
    path = driver.initialize_connection("pool1", "volume-1", CONNECTOR, writable=True)["data"]["device_path"]
    image = Image(path)
    assert driver.is_open("pool1", "volume-1") is True
    image.close()
    with open(path, "r+b"):
        assert driver.is_open("pool1", "volume-1") is False
    driver.delete("pool1", "volume-1")
    with pytest.raises(errors.VolumeMissing):
        driver.is_open("pool1", "volume-1")


def test_a_message_that_waited_until_the_volume_had_moved_is_left_to_its_new_service(
    manager: VolumeManager, db: Database
) -> None:
    """A delete here would find nothing, call that done, and leave the object at the new place without a row."""
    moved = rows.add_volume(db, host="hostz@elsewhere#p", status="deleting")
    grown = rows.add_volume(db, host="hostz@elsewhere#p", status="extending", wanted_size=2)
    manager.delete_volume(service_context(), volume_id=moved)
    manager.extend_volume(service_context(), volume_id=grown)
    assert (rows.volume(db, moved).status, rows.volume(db, moved).deleted_at) == ("deleting", None)
    assert rows.volume(db, grown).status == "extending"
    with pytest.raises(dispatcher.ExpectedException) as raised:
        manager.initialize_connection(service_context(), volume_id=moved, connector=CONNECTOR, writable=True)
    assert "has just moved to hostz@elsewhere#p" in str(raised.value.exc_info[1])
