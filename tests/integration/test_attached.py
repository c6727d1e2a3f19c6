"""Volumes in use: the whole service, a compute service that calls back, and a guest that writes all the while."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nova import Died, Disk, Failed, Nova, Plan
from tests.support.processes import AllInOne
from tests.support.waiting import until

FIRST, SECOND = "node@file1#pool1", "node@file2#pool2"
OPTIONS = """compute_service = nova
nova_poll_seconds = 0.2
swap_begin_seconds = 2
swap_timeout_seconds = 5
migration_retry_seconds = 0.05
migration_sweep_interval = 1
[nova]
auth_type = none
"""


class Cloud:
    """Block storage, compute and the volumes of this test."""

    def __init__(self, running: AllInOne, nova: Nova) -> None:
        self.running, self.nova, self.rest = running, nova, running.rest()

    def disk(self, server: str | None = None, **values: Any) -> Disk:
        """A volume of a server, with a guest that has begun to write."""
        volume = self.rest.create(1, availability_zone="nova")["id"]
        host = self.rest.volume(volume)["os-vol-host-attr:host"]
        disk = self.nova.attach(server or str(uuid.uuid4()), volume, **values)
        until(lambda: len(disk.guest.acknowledged) > 20, "the guest writes")
        assert host in (FIRST, SECOND)
        return disk

    def plan(self, disk: Disk) -> Plan:
        return self.nova.plans.setdefault(disk.volume, Plan())

    def other(self, disk: Disk) -> str:
        return SECOND if self.rest.volume(disk.volume)["os-vol-host-attr:host"] == FIRST else FIRST

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
        return [path for path in self.running.state.glob("backends/*/*/volume-*") if path.name[7:] in ids]

    def moved(self, disk: Disk) -> None:
        """See that the volume lives at the new place with all that was acknowledged, and that nothing else is left."""
        until(lambda: disk.guest.mirror is None, "the guest has one disk")
        volume = self.rest.volume(disk.volume)
        assert (volume["status"], volume["migration_status"]) == ("in-use", "success")
        (attachment,) = volume["attachments"]
        assert (attachment["server_id"], attachment["device"]) == (disk.server, "/dev/vdb")
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
        before = max(disk.guest.acknowledged.values())
        until(lambda: max(disk.guest.acknowledged.values()) > before, "the guest goes on")
        until(lambda: self.files(disk) == [Path(disk.guest.path)], "one object is left")
        disk.guest.check()


@pytest.fixture(scope="module")
def nova() -> Iterator[Nova]:
    running = Nova()
    yield running
    running.end()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, nova: Nova) -> Iterator[Cloud]:
    directory = tmp_path_factory.mktemp("cloud")
    running = AllInOne(directory, f"{OPTIONS}endpoint_override = {nova.url}\n")
    nova.block_url = running.url
    try:
        yield Cloud(running, nova)
    finally:
        running.process.end()


# --- it goes well ----------------------------------------------------------------------------------------------------


def test_a_server_keeps_writing_while_its_volume_moves(cloud: Cloud) -> None:
    """field.md bugs 8, 31, 32 and 33 (LP2112187, LP1614371, LP1803961, LP1943431)."""
    disk = cloud.disk()
    old = disk.attachment
    seen: list[tuple[Any, ...]] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            volume = cloud.rest.volume(disk.volume)
            seen.append((volume["status"], len(volume["attachments"]), volume["migration_status"]))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    over.set()
    looking.join(10)
    assert {(status, count) for status, count, _ in seen} == {("in-use", 1)}, "nobody sees a gap"
    until(lambda: disk.attachment != old, "the compute service has its answer")
    cloud.moved(disk)
    calls = [call for volume, call, _ in cloud.nova.calls if volume == disk.volume and not call.startswith("attach")]
    assert calls == [
        *("get_old", "get_new", "begin", "reserve", "compute_get_old", "compute_get_new"),
        *("connect", "complete", "detach", "completion"),
    ]
    history = cloud.rest.migration_of(disk.volume)["steps"]
    assert len([step for step in history if step["step"] == "swap_by_compute"]) <= 4
    shown = cloud.rest.ok("GET", f"/attachments/{disk.attachment}")["attachment"]
    assert shown["volume_id"] == disk.volume
    assert cloud.rest.ok("DELETE", f"/attachments/{disk.attachment}") == {"attachments": []}
    assert cloud.rest.volume(disk.volume)["status"] == "available"


def test_a_read_only_attachment_stays_read_only(cloud: Cloud) -> None:
    """field.md bug 15 (LP1802155)."""
    disk = cloud.disk(mode="ro")
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    assert cloud.nova.answers[-1]["access_mode"] == "ro"
    (row,) = cloud.rest.volume(disk.volume)["attachments"]
    shown = cloud.rest.ok("GET", f"/attachments/{row['attachment_id']}")["attachment"]
    assert shown["attach_mode"] == "ro"
    cloud.moved(disk)


def test_two_volumes_of_a_server_go_one_after_the_other(cloud: Cloud) -> None:
    """field.md bug 36 (LP1896621): parallel swaps in one server fail."""
    server = str(uuid.uuid4())
    disks = [cloud.disk(server), cloud.disk(server)]
    reached, go = cloud.plan(disks[0]).hold("copy")
    cloud.migrate(disks[0])
    assert reached.wait(20)
    cloud.migrate(disks[1])

    def queues() -> bool:
        steps = cloud.rest.migration_of(disks[1].volume)["steps"]
        return "another volume of server" in str([step["message"] for step in steps])

    until(queues, "the second one waits")
    go.set()
    for disk in disks:
        assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
        cloud.moved(disk)
    assert cloud.nova.most_at_once == 1


# --- it does not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 404, 409, 500, 503])
def test_a_refusal_is_rolled_back_with_its_reason(cloud: Cloud, code: int) -> None:
    """field.md bug 35 (LP1673090): a stopped server's swap failed silently."""
    disk = cloud.disk()
    cloud.plan(disk).refuse = code
    puts = len(cloud.nova.puts)
    cloud.migrate(disk)
    ended = cloud.rest.wait_migration(disk.volume)
    assert ended["status"] == "error"
    assert ended["error"]["step"] == "swap_by_compute"
    assert f"refused with {code} on purpose" in ended["error"]["message"]
    assert len(cloud.nova.puts) == puts + 1, "it is asked once"
    cloud.stayed(disk)


@pytest.mark.parametrize(
    "call",
    ["get_old", "get_new", "begin", "reserve", "compute_get_old", "compute_get_new", "connect", "copy", "complete"],
)
def test_a_call_that_fails_is_rolled_back(cloud: Cloud, call: str) -> None:
    """field.md bug 34 (LP1489744): both volumes as they were."""
    disk = cloud.disk()
    cloud.plan(disk).faults[call] = Failed(f"{call} on purpose")
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "error"
    cloud.stayed(disk)


@pytest.mark.parametrize("call", ["detach", "completion"])
def test_a_report_that_is_lost_is_made_up_for(cloud: Cloud, call: str) -> None:
    """field.md hazard d: the guest lives at the new place, and nobody says so."""
    disk = cloud.disk()
    cloud.plan(disk).faults[call] = Failed(f"{call} on purpose")
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    cloud.moved(disk)
    assert cloud.nova.calls[-1][1] != "completion"
    del cloud.plan(disk).faults[call]
    new = cloud.nova.puts[-1][1]
    assert [cloud.nova.complete(disk.volume, new, error=False) for _ in range(2)] == [disk.volume] * 2, "late, twice"


def test_a_compute_service_that_dies_before_it_copies_is_given_up(cloud: Cloud) -> None:
    disk = cloud.disk()
    cloud.plan(disk).faults["connect"] = Died()
    cloud.migrate(disk)
    ended = cloud.rest.wait_migration(disk.volume)
    assert (ended["status"], ended["error"]["code"]) == ("error", "SwapFailed")
    assert "swap_timeout_seconds" in ended["error"]["message"]
    cloud.stayed(disk)


def test_a_host_that_may_still_write_keeps_the_destination(cloud: Cloud) -> None:
    """Nothing is removed that a guest may be moved to; what is left is named, and a retry ends it."""
    disk = cloud.disk()
    cloud.plan(disk).faults["copy"] = Died()
    cloud.migrate(disk)
    ended = cloud.rest.wait_migration(disk.volume)
    assert (ended["status"], ended["error"]["code"]) == ("stuck", "SwapUndecided")
    assert len(cloud.files(disk)) == 2
    assert "a host may still copy" in str(cloud.rest.migrate(disk.volume, cloud.other(disk))[1])
    new = cloud.nova.puts[-1][1]
    disk.guest.abort()
    (left,) = cloud.rest.ok("GET", f"/attachments?volume_id={new}&all_tenants=1")["attachments"]
    assert left["id"] in ended["error"]["message"]
    cloud.rest.ok("DELETE", f"/attachments/{left['id']}")
    cloud.order(disk, "retry")
    assert cloud.rest.wait_migration(disk.volume)["status"] == "error"
    cloud.stayed(disk)


@pytest.mark.parametrize(("fails", "end"), [(False, "success"), (True, "cancelled")])
def test_a_cancel_during_the_copy_is_decided_by_its_end(cloud: Cloud, fails: bool, end: str) -> None:
    disk = cloud.disk()
    if fails:
        cloud.plan(disk).faults["copy"] = Failed("on purpose")
    reached, go = cloud.plan(disk).hold("copy")
    cloud.migrate(disk)
    assert reached.wait(20)
    cloud.order(disk, "cancel")
    until(lambda: cloud.rest.migration_of(disk.volume)["direction"] == "back", "it turns back")
    go.set()
    assert cloud.rest.wait_migration(disk.volume)["status"] == end
    (cloud.stayed if fails else cloud.moved)(disk)


@pytest.mark.parametrize("call", ["copy", "completion"])
def test_a_service_that_is_killed_goes_on_afterwards(cloud: Cloud, call: str) -> None:
    """kill -9 while the swap runs; held at ``completion``, the report comes before the service is back."""
    disk = cloud.disk()
    reached, go = cloud.plan(disk).hold(call)
    cloud.migrate(disk)
    assert reached.wait(20)
    cloud.running.process.kill_all()
    if call == "completion":
        go.set()
        until(lambda: disk.server not in cloud.nova.running, "the report is lost")
    cloud.running.process.start()
    cloud.running.process.wait_ready()
    go.set()
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    cloud.moved(disk)
    assert [old for old, _ in cloud.nova.puts].count(disk.volume) == 1, "it is asked once"


# --- what is refused, and what is told -------------------------------------------------------------------------------


def test_a_volume_of_several_servers_is_refused(cloud: Cloud) -> None:
    """field.md bug 7 (LP1775418) and 16 (LP1790840): the other server's data would be lost."""
    rest = cloud.rest
    specs = {"volume_type": {"name": "shared", "extra_specs": {"multiattach": "<is> True"}}}
    rest.ok("POST", "/types", specs)
    volume = rest.create(1, volume_type="shared")["id"]
    host = rest.volume(volume)["os-vol-host-attr:host"]
    target = SECOND if host == FIRST else FIRST
    cloud.nova.attach(str(uuid.uuid4()), volume).guest.stop()
    status, answer = rest.migrate(volume, target)
    assert (status, "it is multiattach" in str(answer)) == (400, True)
    cloud.nova.attach(str(uuid.uuid4()), volume).guest.stop()
    status, answer = rest.migrate(volume, target)
    assert (status, "attached 2 times, 2 of them for writing" in str(answer)) == (400, True)
    assert rest.volume(volume)["multiattach"] is True


def test_a_plain_swap_of_two_volumes_keeps_the_new_one(cloud: Cloud) -> None:
    disk, rest = cloud.disk(), cloud.rest
    new = rest.create(1)["id"]
    body = {"attachment": {"volume_uuid": new, "connector": None, "instance_uuid": disk.server}}
    made = cloud.nova.call("POST", "/attachments", body, "3.44")[1]["attachment"]["id"]
    cloud.nova.call("POST", f"/attachments/{made}/action", {"os-complete": None}, "3.44")
    cloud.nova.call("DELETE", f"/attachments/{disk.attachment}", None, "3.44")
    assert [cloud.nova.complete(disk.volume, new, error=False) for _ in range(2)] == [new, new]
    assert (rest.volume(disk.volume)["status"], rest.volume(new)["status"]) == ("available", "in-use")
    disk.guest.stop()
    with pytest.raises(Failed, match="400"):
        cloud.nova.complete(new, disk.volume, error=False)


def test_servers_are_told_of_a_volume_that_grew(cloud: Cloud) -> None:
    disk, rest = cloud.disk(), cloud.rest
    rest.ok("POST", f"/volumes/{disk.volume}/action", {"os-extend": {"new_size": 2}})
    wanted = {"name": "volume-extended", "server_uuid": disk.server, "tag": disk.volume}
    until(lambda: wanted in cloud.nova.events, "the server's host is told")
    disk.guest.stop()


def test_success_is_not_believed_before_the_server_is_there(cloud: Cloud) -> None:
    disk = cloud.disk()
    reached, go = cloud.plan(disk).hold("copy")
    cloud.migrate(disk)
    assert reached.wait(20)
    with pytest.raises(Failed, match="no server is attached"):
        cloud.nova.complete(disk.volume, cloud.nova.puts[-1][1], error=False)
    go.set()
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    cloud.moved(disk)


def test_a_compute_service_that_cannot_be_reached(cloud: Cloud) -> None:
    """Last: the compute service is gone for good."""
    disk = cloud.disk()
    cloud.nova.go_away()
    cloud.migrate(disk)
    ended = cloud.rest.wait_migration(disk.volume)
    assert (ended["status"], ended["error"]["code"]) == ("error", "ComputeUnreachable")
    cloud.stayed(disk)
