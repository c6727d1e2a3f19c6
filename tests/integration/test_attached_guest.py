"""A volume in use moves under a real QEMU: Nova's calls around QEMU's own mirror, with a program that never stops."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.support.guest import RealGuest, StorageDaemon
from tests.support.nova import SWAP, Died, Disk, Failed, Fault, Nova
from tests.support.nova_cloud import SECOND, Cloud, open_cloud
from tests.support.nova_guest import QemuGuest
from tests.support.waiting import until


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    nova = Nova(QemuGuest)
    with open_cloud(tmp_path_factory.mktemp("guests"), nova, begin=60) as running:
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
    kept = ("id", "name", "size", "status", "volume_type", "created_at", "bootable", "multiattach", "metadata")
    of_volume = {key: volume[key] for key in kept}
    of_server = {key: row[key] for key in ("server_id", "device", "host_name", "volume_id")}
    return {**of_volume, **of_server, "mode": attachment["attach_mode"], "instance": attachment["instance"]}


@pytest.mark.parametrize("program", [StorageDaemon, RealGuest])
def test_every_acknowledged_write_is_at_the_new_place(cloud: Cloud, program: type[StorageDaemon]) -> None:
    """field.md bugs 8, 31, 32 and 33, with QEMU's data path: ids, mode and mountpoint are kept, writes go on."""
    disk = cloud.disk(guest=lambda path, pause: QemuGuest(path, pause, program))
    cloud.rest.ok("POST", f"/volumes/{disk.volume}/action", {"os-set_bootable": {"bootable": True}})
    cloud.rest.ok("POST", f"/volumes/{disk.volume}/metadata", {"metadata": {"role": "root"}})
    before, old = shown(cloud, disk), disk.attachment
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    until(lambda: disk.attachment != old, "the compute service has its answer")
    assert shown(cloud, disk) == before
    assert (before["bootable"], before["device"]) == ("true", "/dev/vdb")
    disk.guest.writer.goes_on()
    cloud.moved(disk)
    cloud.nova.detach(disk)
    assert cloud.rest.volume(disk.volume)["status"] == "available"


@pytest.mark.parametrize("program", [StorageDaemon, RealGuest])
def test_a_read_only_disk_is_the_same_at_the_new_place(cloud: Cloud, program: type[StorageDaemon]) -> None:
    """field.md bug 15 (LP1802155): it is never opened for writing, and neither is its destination given so."""
    volume = cloud.rest.create(1, availability_zone="nova")["id"]
    (path,) = cloud.backends.glob(f"*/*/volume-{volume}")
    content = os.urandom(1 << 20)
    with path.open("r+b") as file:
        file.seek(5 << 20)
        file.write(content)
    cloud.rest.ok("POST", f"/volumes/{volume}/action", {"os-update_readonly_flag": {"readonly": True}})
    server = str(uuid.uuid4())
    disk = cloud.nova.attach(server, volume, guest=lambda path, _: QemuGuest(path, 0.0, program, read_only=True))
    before, old = shown(cloud, disk), disk.attachment
    assert before["mode"] == "ro"
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    until(lambda: disk.attachment != old, "the compute service has its answer")
    assert shown(cloud, disk) == before
    assert cloud.nova.answers[-1]["access_mode"] == "ro"
    cloud.moved(disk)
    with open(disk.guest.path, "rb") as file:
        file.seek(5 << 20)
        assert file.read(1 << 20) == content
    disk.guest.end()


def test_a_retype_moves_the_volume_of_a_running_guest(cloud: Cloud, disk: Disk) -> None:
    """field.md bug 3 (LP2019190): of an attached volume too, and never by the backend itself."""
    name = "file2" if cloud.other(disk) == SECOND else "file1"
    body = {"volume_type": {"name": f"at-{name}", "extra_specs": {"volume_backend_name": name}}}
    cloud.rest.ok("POST", "/types", body)
    retype = {"os-retype": {"new_type": f"at-{name}", "migration_policy": "on-demand"}}
    cloud.rest.ok("POST", f"/volumes/{disk.volume}/action", retype)
    ended = cloud.rest.wait_migration(disk.volume)
    assert (ended["status"], ended["plan"]) == ("success", "attached")
    assert cloud.rest.volume(disk.volume)["volume_type"] == f"at-{name}"
    cloud.moved(disk)


def test_two_disks_of_one_guest_are_moved_one_after_the_other(cloud: Cloud) -> None:
    """field.md bug 36 (LP1896621): parallel swaps in one server fail."""
    server = str(uuid.uuid4())
    first = cloud.disk(server)
    second = cloud.disk(server, device="/dev/vdc", guest=lambda path, _: QemuGuest(path, beside=first.guest))
    reached, go = cloud.plan(first).hold("copy")
    cloud.migrate(first)
    assert reached.wait(60)
    cloud.migrate(second)

    def queues() -> bool:
        return "another volume of server" in str(cloud.rest.migration_of(second.volume)["steps"])

    until(queues, "the second one waits")
    assert len(first.guest.qemu.qmp("query-block-jobs")) == 1
    go.set()
    for disk in (first, second):
        assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
        disk.guest.writer.goes_on()
    for disk in (first, second):
        cloud.moved(disk)
    assert cloud.nova.most_at_once == 1
    first.guest.end()


def test_a_copy_that_fails_leaves_the_guest_where_it_was(cloud: Cloud, disk: Disk) -> None:
    cloud.plan(disk).faults["copy"] = Failed("on purpose")
    before = shown(cloud, disk)
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "error"
    assert shown(cloud, disk) == before
    cloud.stayed(disk)


def test_a_service_that_is_killed_at_any_call_of_a_swap(cloud: Cloud) -> None:
    """kill -9 before each call: no guest notices, Nova goes on when block storage is back, and is never asked again."""
    disks = {call: cloud.disk() for call in SWAP}
    for call, disk in disks.items():
        reached, _ = cloud.plan(disk).hold(call)
        cloud.migrate(disk)
        assert reached.wait(60), call
    cloud.running.process.kill_all()
    for disk in disks.values():
        disk.guest.writer.goes_on()
    cloud.running.process.start()
    cloud.running.process.wait_ready()
    for call, disk in disks.items():
        cloud.plan(disk).gates[call].set()
    for call, disk in disks.items():
        assert cloud.rest.wait_migration(disk.volume)["status"] == "success", call
        cloud.moved(disk)
        assert [old for old, _ in cloud.nova.puts].count(disk.volume) == 1, call
        disk.guest.end()


@pytest.mark.parametrize("call", ["compute_get_old", "compute_get_new", "connect"])
def test_a_cancel_before_a_host_is_connected(cloud: Cloud, disk: Disk, call: str) -> None:
    """It is obeyed at once; what Nova still does comes to nothing, and it does not take the old volume for the new."""
    reached, go = cloud.plan(disk).hold(call)
    cloud.migrate(disk)
    assert reached.wait(60)
    cloud.order(disk, "cancel")
    assert cloud.rest.wait_migration(disk.volume)["status"] == "cancelled"
    go.set()
    assert cloud.plan(disk).over.wait(60)
    assert disk.guest.qemu.qmp("query-block-jobs") == []
    cloud.stayed(disk)


def test_a_request_that_nova_could_not_pass_on_is_taken_back(cloud: Cloud, disk: Disk) -> None:
    """nova-api has reserved the destination, and rolls that back itself."""
    cloud.plan(disk).faults["tell_compute"] = Failed("no nova-compute hears")
    cloud.migrate(disk)
    ended = cloud.rest.wait_migration(disk.volume)
    assert (ended["status"], "no nova-compute hears" in ended["error"]["message"]) == ("error", True)
    cloud.stayed(disk)


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
