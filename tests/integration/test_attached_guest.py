"""A volume in use moves under a real QEMU: Nova's calls around QEMU's own mirror, with a program that never stops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.guest import RealGuest, StorageDaemon
from tests.support.nova import Died, Disk, Failed, Fault, Nova
from tests.support.nova_cloud import Cloud, open_cloud
from tests.support.nova_guest import QemuGuest
from tests.support.waiting import until


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    nova = Nova(QemuGuest)
    with open_cloud(tmp_path_factory.mktemp("guests"), nova) as running:
        yield running
    nova.end()


@pytest.fixture
def disk(cloud: Cloud) -> Iterator[Disk]:
    made = cloud.disk()
    yield made
    made.guest.end()


def shown(cloud: Cloud, disk: Disk) -> dict[str, object]:
    """What must be the same before and after."""
    volume = cloud.rest.volume(disk.volume)
    (row,) = volume["attachments"]
    attachment = cloud.rest.ok("GET", f"/attachments/{row['attachment_id']}")["attachment"]
    of_volume = {key: volume[key] for key in ("id", "name", "size", "status", "volume_type", "created_at")}
    of_server = {key: row[key] for key in ("server_id", "device", "host_name", "volume_id")}
    return {**of_volume, **of_server, "mode": attachment["attach_mode"], "instance": attachment["instance"]}


@pytest.mark.parametrize("program", [StorageDaemon, RealGuest])
def test_every_acknowledged_write_is_at_the_new_place(cloud: Cloud, program: type[StorageDaemon]) -> None:
    """field.md bugs 8, 31, 32 and 33, with QEMU's data path: ids, mode and mountpoint are kept, writes go on."""
    made: list[QemuGuest] = []

    def guest(path: str, pause: float) -> QemuGuest:
        made.append(QemuGuest(path, pause, program))
        return made[-1]

    cloud.nova.make_guest = guest
    try:
        disk = cloud.disk()
    finally:
        cloud.nova.make_guest = QemuGuest
    before, old = shown(cloud, disk), disk.attachment
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    until(lambda: disk.attachment != old, "the compute service has its answer")
    assert shown(cloud, disk) == before
    made[0].writer.goes_on()
    cloud.moved(disk)
    disk.guest.end()


def test_a_copy_that_fails_leaves_the_guest_where_it_was(cloud: Cloud, disk: Disk) -> None:
    cloud.plan(disk).faults["copy"] = Failed("on purpose")
    before = shown(cloud, disk)
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "error"
    assert shown(cloud, disk) == before
    cloud.stayed(disk)


@pytest.mark.parametrize("call", ["copy", "complete", "completion"])
def test_a_volume_service_that_is_killed_while_the_guest_is_moved(cloud: Cloud, disk: Disk, call: str) -> None:
    """kill -9 while the mirror runs, before Nova's os-complete, and before its report: it goes on when it is back."""
    reached, go = cloud.plan(disk).hold(call)
    cloud.migrate(disk)
    assert reached.wait(20)
    cloud.running.process.kill_all()
    disk.guest.writer.goes_on()
    cloud.running.process.start()
    cloud.running.process.wait_ready()
    go.set()
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    cloud.moved(disk)


@pytest.mark.parametrize("fault", [Fault.BROKEN, Fault.GATEWAY, Died()], ids=repr)
def test_a_guest_that_changed_over_is_not_left_behind(cloud: Cloud, disk: Disk, fault: Fault | Died) -> None:
    """os-complete is lost, so Nova reports a failure or nothing, although the guest writes to the new place."""
    cloud.plan(disk).faults["complete"] = fault
    cloud.migrate(disk)
    if isinstance(fault, Died):  # nobody will ever report: then a look decides, after a cancel or when time is over
        until(cloud.plan(disk).over.is_set, "the compute service is dead")
        cloud.order(disk, "cancel")
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    cloud.moved(disk)
