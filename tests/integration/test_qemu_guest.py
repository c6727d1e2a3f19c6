"""Volumes of guests of plain QEMU: the whole service, a real QEMU, and a program that writes all the while."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.guest import RealGuest, StorageDaemon
from tests.support.processes import AllInOne
from tests.support.waiting import until

SLOW, FAST = 1 << 20, 1 << 40
FIRST, SECOND = "node@file1#pool1", "node@file2#pool2"
OPTIONS = """compute_service = qemu
swap_timeout_seconds = 120
migration_retry_seconds = 0.05
migration_sweep_interval = 1
[qemu]
qmp_timeout_seconds = 2
"""


class Host:
    """Block storage, and guests with a volume each."""

    def __init__(self, running: AllInOne, sockets: Path) -> None:
        self.running, self.sockets, self.rest = running, sockets, running.rest()
        self.guests: list[Disk] = []

    def volume(self, **values: Any) -> dict[str, Any]:
        return self.rest.create(1, availability_zone="nova", **values)

    def attach(self, volume: str, server: str, mode: str = "rw") -> dict[str, Any]:
        """Attach as the tools of a plain host do; returns the attachment."""
        connector = {"host": "here", "mountpoint": "/dev/vdb", "mode": mode}
        body = {"attachment": {"volume_uuid": volume, "instance_uuid": server, "connector": connector, "mode": mode}}
        made = dict(self.rest.ok("POST", "/attachments", body)["attachment"])
        self.rest.ok("POST", f"/attachments/{made['id']}/action", {"os-complete": None})
        return made

    def disk(self, kind: type[StorageDaemon] = StorageDaemon, mode: str = "rw") -> Disk:
        volume, server = self.volume()["id"], str(uuid.uuid4())
        path = self.attach(volume, server, mode)["connection_info"]["device_path"]
        guest = kind(path, read_only=mode == "ro", qmp_path=self.sockets / server)
        disk = Disk(self, volume, server, guest)
        self.guests.append(disk)
        return disk


class Disk:
    """A volume and the guest that has it."""

    def __init__(self, host: Host, volume: str, server: str, guest: StorageDaemon) -> None:
        self.rest, self.host, self.volume, self.server, self.guest = host.rest, host, volume, server, guest
        self.kept = guest.folder / "kept"
        if os.stat(guest.folder).st_dev == os.stat(guest.path).st_dev:
            os.link(guest.path, self.kept)

    def migrate(self, **options: Any) -> None:
        here = self.rest.volume(self.volume)["os-vol-host-attr:host"]
        status, answer = self.rest.migrate(self.volume, SECOND if here == FIRST else FIRST, **options)
        assert status == 202, answer

    def order(self, order: str, value: Any = None) -> None:
        self.rest.ok("POST", f"/migrations/{self.row()['id']}/action", {order: value})

    def row(self) -> dict[str, Any]:
        return self.rest.migration_of(self.volume)

    def job(self) -> dict[str, Any] | None:
        return next(iter(self.guest.qmp("query-block-jobs")), None)

    def mirrors(self) -> None:
        until(self.job, "the mirror has begun")

    def size(self) -> int:
        """What the guest sees, bytes."""
        (inserted,) = (each["inserted"] for each in self.guest.qmp("query-block") if each.get("inserted"))
        return int(inserted["image"]["virtual-size"])

    def files(self) -> list[Path]:
        listed = self.rest.ok("GET", f"/migrations?volume_id={self.volume}")["migrations"]
        ids = {self.volume, *(row["destination_volume_id"] for row in listed)}
        return [path for path in self.host.running.state.glob("backends/*/*/volume-*") if path.name[7:] in ids]

    def path(self) -> Path:
        return self.path_of(self.host, self.volume)

    @staticmethod
    def path_of(host: Host, volume_id: str) -> Path:
        """Where a volume is by its record."""
        shown = host.rest.volume(volume_id)
        pool = {FIRST: ("file1", "pool1"), SECOND: ("file2", "pool2")}[shown["os-vol-host-attr:host"]]
        return host.running.path(*pool, str(shown.get("os-vol-mig-status-attr:name_id") or volume_id))

    def moved(self) -> None:
        """See that guest and record are at the new place, with all that was acknowledged, and nothing else is left."""
        migration = self.rest.wait_migration(self.volume)
        assert migration["status"] == "success", migration
        assert migration["bytes_done"] == migration["bytes_total"] == 1 << 30
        volume = self.rest.volume(self.volume)
        assert (volume["status"], volume["migration_status"]) == ("in-use", "success")
        (attachment,) = volume["attachments"]
        assert (attachment["server_id"], attachment["device"]) == (self.server, "/dev/vdb")
        new = self.path()
        assert new != Path(self.guest.path)
        until(lambda: self.files() == [new], "one object is left")
        if self.guest.popen.poll() is None:
            assert str(new) in self.guest.files()
            assert not any(self.guest.path in each for each in self.guest.files()), "the source is closed"
        for writer in self.guest.writers:
            if self.guest.popen.poll() is None:
                writer.goes_on()
            writer.check(new, self.kept if self.kept.exists() else None)

    def stayed(self, status: str) -> dict[str, Any]:
        """See that guest and record are where they were, that the guest writes on, and that nothing else is left."""
        migration = self.rest.wait_migration(self.volume)
        assert migration["status"] == status, migration
        until(lambda: self.files() == [Path(self.guest.path)], "one object is left")
        assert self.path() == Path(self.guest.path)
        if self.guest.popen.poll() is None:
            assert self.job() is None
            assert not any("deleted" in each for each in self.guest.files()), "the destination is closed"
        for writer in self.guest.writers:
            if self.guest.popen.poll() is None:
                writer.goes_on()
            writer.check(self.guest.path)
        return migration


@contextlib.contextmanager
def started(directory: Path, extra: str = "") -> Iterator[Host]:
    sockets = Path(tempfile.mkdtemp(prefix="qmp-"))
    options = OPTIONS + f"qmp_socket_template = {sockets}/%s\n" + extra
    running = AllInOne(directory, options)
    host = Host(running, sockets)
    try:
        yield host
    finally:
        for disk in host.guests:
            disk.guest.__exit__(None, None, None)
        running.process.end()
        shutil.rmtree(sockets)


@pytest.fixture(scope="module")
def slow_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Its copies take minutes unless another rate is ordered."""
    limit = "".join(f"[{name}]\nvolume_copy_bps_limit = {SLOW}\n" for name in ("file1", "file2"))
    with started(tmp_path_factory.mktemp("slow"), limit) as running:
        yield running


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with started(tmp_path_factory.mktemp("host")) as running:
        yield running


# --- it goes well ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [StorageDaemon, RealGuest])
def test_a_guest_keeps_writing_while_its_volume_moves(host: Host, kind: type[StorageDaemon]) -> None:
    disk = host.disk(kind)
    disk.guest.start_writer()
    disk.migrate()
    disk.moved()
    assert [step["step"] for step in disk.row()["steps"]].count("swap_by_compute") <= 3


def test_it_moves_there_and_back_and_is_detached(host: Host) -> None:
    disk = host.disk()
    disk.guest.start_writer()
    disk.migrate()
    assert disk.rest.wait_migration(disk.volume)["status"] == "success"
    disk.guest.writers[0].goes_on()
    disk.migrate()
    assert disk.rest.wait_migration(disk.volume)["status"] == "success"
    disk.guest.writers[0].goes_on()
    disk.guest.writers[0].check(disk.path())
    disk.guest.kill()
    (attachment,) = disk.rest.volume(disk.volume)["attachments"]
    assert disk.rest.ok("DELETE", f"/attachments/{attachment['attachment_id']}") == {"attachments": []}
    assert disk.rest.volume(disk.volume)["status"] == "available"


def test_a_read_only_disk_stays_read_only(host: Host) -> None:
    """field.md bug 15 (LP1802155)."""
    disk = host.disk(RealGuest, mode="ro")
    disk.migrate()
    disk.moved()
    nodes = disk.guest.qmp("query-named-block-nodes", flat=True)
    assert [node["ro"] for node in nodes if node["node-name"] == disk.guest.root()] == [True]


def test_a_limit_is_ordered_while_it_runs_and_progress_is_shown(slow_host: Host) -> None:
    disk = in_the_mirror(slow_host)
    assert (disk.job() or {})["speed"] == SLOW
    until(lambda: disk.row()["rate_bytes_per_second"] is not None, "progress is shown")
    assert 0 < disk.row()["bytes_done"] < 1 << 30
    disk.order("set_rate", {"bytes_per_second": 2 * SLOW})
    until(lambda: (disk.job() or {})["speed"] == 2 * SLOW, "the limit is set")
    assert disk.row()["status"] == "running"
    disk.order("set_rate", {"bytes_per_second": FAST})
    disk.moved()


def test_of_two_disks_of_one_guest_one_waits_for_the_other(slow_host: Host) -> None:
    """field.md bug 36 (LP1896621): parallel swaps in one server fail."""
    disk, rest = in_the_mirror(slow_host), slow_host.rest
    second = slow_host.volume()["id"]
    path = slow_host.attach(second, disk.server)["connection_info"]["device_path"]
    writer = disk.guest.add_disk(path, "second")
    here = rest.volume(second)["os-vol-host-attr:host"]
    assert rest.migrate(second, SECOND if here == FIRST else FIRST)[0] == 202

    def waits() -> bool:
        messages = [str(step["message"]) for step in rest.migration_of(second)["steps"]]
        return any("another volume of server" in message for message in messages)

    until(waits, "the second waits for the first")
    assert len(disk.guest.qmp("query-block-jobs")) == 1
    for volume_id in (disk.volume, second):
        rate = {"set_rate": {"bytes_per_second": FAST}}
        rest.ok("POST", f"/migrations/{rest.migration_of(volume_id)['id']}/action", rate)
    for volume_id in (disk.volume, second):
        assert rest.wait_migration(volume_id, 30)["status"] == "success"
    for volume_id, each in ((disk.volume, disk.guest.writers[0]), (second, writer)):
        each.goes_on()
        moved = Disk.path_of(slow_host, volume_id)
        assert str(moved) in disk.guest.files()
        each.check(moved)


def extend(disk: Disk) -> None:
    disk.rest.ok("POST", f"/volumes/{disk.volume}/action", {"os-extend": {"new_size": 2}})
    until(lambda: disk.rest.volume(disk.volume)["status"] == "in-use", "it is extended")
    assert disk.rest.volume(disk.volume)["size"] == 2


def test_a_guest_sees_that_its_disk_has_grown_and_the_disk_can_be_moved(host: Host) -> None:
    disk = host.disk(RealGuest)
    disk.guest.qmp("block-export-del", id="e0")  # QEMU lets no disk grow that it offers to others, too
    extend(disk)
    until(lambda: disk.size() == 2 << 30, "the guest is told")
    disk.migrate()
    assert disk.rest.wait_migration(disk.volume)["status"] == "success"
    assert (disk.size(), disk.path().stat().st_size) == (2 << 30, 2 << 30)
    assert str(disk.path()) in disk.guest.files()


def test_a_guest_that_cannot_be_told_of_it_is_said_to_be_none(host: Host) -> None:
    """Its export is in the way: the log tells, and a move is refused while the guest sees the former size."""
    disk = host.disk(RealGuest)
    extend(disk)
    wanted = f"Server {disk.server} does not know that volume {disk.volume} has grown"
    until(lambda: wanted in host.running.process.text(), "the log tells")
    assert disk.size() == 1 << 30
    disk.migrate()
    failed = disk.rest.wait_migration(disk.volume)
    assert "the guest's disk has 1073741824 bytes and its destination 2147483648" in failed["error"]["message"]
    assert disk.path() == Path(disk.guest.path)


# --- it is refused ---------------------------------------------------------------------------------------------------


def test_a_volume_of_several_guests_is_refused(host: Host) -> None:
    """field.md bugs 7 (LP1775418) and 16 (LP1790840): what the other guest writes would be lost."""
    rest = host.rest
    specs = {"volume_type": {"name": "shared", "extra_specs": {"multiattach": "<is> True"}}}
    rest.ok("POST", "/types", specs)
    volume = rest.create(1, volume_type="shared")["id"]
    target = SECOND if rest.volume(volume)["os-vol-host-attr:host"] == FIRST else FIRST
    for reason in ("it is multiattach", "attached 2 times, 2 of them for writing"):
        host.attach(volume, str(uuid.uuid4()))
        before = rest.volume(volume)
        status, answer = rest.migrate(volume, target)
        assert (status, reason in str(answer)) == (400, True), answer
        assert rest.volume(volume) == before


def test_a_guest_that_does_not_run(host: Host) -> None:
    """field.md bug 35 (LP1673090): that it does not is said."""
    disk = host.disk()
    disk.guest.kill()
    disk.migrate()
    assert disk.stayed("error")["error"]["code"] == "ComputeUnreachable"


def test_a_guest_that_has_another_disk(host: Host) -> None:
    disk = host.disk()
    other = host.disk()
    disk.guest.kill()
    disk.guest.path, kept = other.guest.path, disk.guest.path
    other.guest.kill()
    disk.guest.start()
    disk.migrate()
    disk.guest.path = kept
    failed = disk.rest.wait_migration(disk.volume)
    assert (failed["status"], failed["error"]["code"]) == ("error", "ComputeRefused")
    assert "0 disks of the guest are on" in failed["error"]["message"]
    assert disk.files() == [Path(kept)]


# --- it goes wrong ---------------------------------------------------------------------------------------------------


def in_the_mirror(host: Host) -> Disk:
    """A disk whose migration is in the middle of its mirror, and does not get to its end soon."""
    disk = host.disk()
    with open(disk.guest.path, "r+b") as file:
        file.seek(4 << 20)
        file.write(os.urandom(1 << 20) * 64)
    disk.guest.start_writer()
    disk.migrate()
    disk.mirrors()
    return disk


def test_a_cancel_leaves_the_source_and_nothing_else(slow_host: Host) -> None:
    disk = in_the_mirror(slow_host)
    disk.order("cancel")
    disk.stayed("cancelled")


def test_the_hypervisor_dies_before_the_change_over(slow_host: Host) -> None:
    disk = in_the_mirror(slow_host)
    disk.guest.kill()
    assert "ended before" in disk.stayed("error")["error"]["message"]


def bring_to(disk: Disk, status: str) -> None:
    """Do to the mirror, while no service runs, what one had done that was killed a moment later."""

    def shown() -> str:
        (job,) = disk.guest.qmp("query-jobs")
        return str(job["status"])

    if status == "running":
        return
    job = disk.guest.qmp("query-jobs")[0]["id"]
    disk.guest.qmp("block-job-set-speed", device=job, speed=0)
    until(lambda: shown() == "ready", "all is copied")
    for command, then in (("job-complete", "pending"), ("job-finalize", "concluded")):
        if shown() == status:
            break
        disk.guest.qmp(command, id=job)
        until(lambda want=then: shown() == want, then)  # type: ignore[misc]


def test_the_service_is_killed_at_each_stage_of_the_mirror(slow_host: Host) -> None:
    """In the mirror, between READY and the change-over, and behind that before anything of it is recorded."""
    disks = {status: in_the_mirror(slow_host) for status in ("running", "ready", "pending", "concluded")}
    slow_host.running.process.kill_all()
    for status, disk in disks.items():
        bring_to(disk, status)
    slow_host.running.process.start()
    slow_host.running.process.wait_ready()
    disks["running"].order("set_rate", {"bytes_per_second": FAST})
    for disk in disks.values():
        disk.moved()


def test_the_monitor_is_held_by_somebody_else_and_then_free_again(slow_host: Host) -> None:
    disk = in_the_mirror(slow_host)
    held = disk.guest.hold_monitor()
    message = "the monitor"
    until(lambda: any(message in (step["message"] or "") for step in disk.row()["steps"]), "it waits")
    disk.order("set_rate", {"bytes_per_second": FAST})
    held.close()
    disk.moved()
