"""Volumes in use: the whole service, a compute service that calls back, and a guest that writes all the while."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nova import SWAP, Failed, Nova
from tests.support.nova_cloud import FIRST, SECOND, Cloud, open_cloud
from tests.support.waiting import until


@pytest.fixture(scope="module")
def nova() -> Iterator[Nova]:
    running = Nova()
    yield running
    running.end()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, nova: Nova) -> Iterator[Cloud]:
    with open_cloud(tmp_path_factory.mktemp("cloud"), nova) as running:
        yield running


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
    calls = [call for volume, call, _ in cloud.nova.calls if volume == disk.volume]
    assert calls[calls.index("attach_done") + 1 :] == [call for call in SWAP if call != "copy"]
    history = cloud.rest.migration_of(disk.volume)["steps"]
    assert len([step for step in history if step["step"] == "swap_by_compute"]) <= 4
    shown = cloud.rest.ok("GET", f"/attachments/{disk.attachment}")["attachment"]
    assert shown["volume_id"] == disk.volume
    cloud.nova.detach(disk)
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
    assert reached.wait(60)
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


@pytest.mark.parametrize(("fails", "end"), [(False, "success"), (True, "cancelled")])
def test_a_cancel_during_the_copy_is_decided_by_its_end(cloud: Cloud, fails: bool, end: str) -> None:
    disk = cloud.disk()
    if fails:
        cloud.plan(disk).faults["copy"] = Failed("on purpose")
    reached, go = cloud.plan(disk).hold("copy")
    cloud.migrate(disk)
    assert reached.wait(60)
    cloud.order(disk, "cancel")
    until(lambda: cloud.rest.migration_of(disk.volume)["direction"] == "back", "it turns back")
    go.set()
    assert cloud.rest.wait_migration(disk.volume)["status"] == end
    (cloud.stayed if fails else cloud.moved)(disk)


def test_what_its_owner_asked_for_meanwhile_is_done_where_the_volume_lives_then(cloud: Cloud) -> None:
    """Extend and snapshot cancel the migration; the server is moved all the same, so the other backend has to do it."""
    grown, kept, rest = cloud.disk(), cloud.disk(), cloud.rest
    for disk in (grown, kept):
        reached, _ = cloud.plan(disk).hold("copy")
        cloud.migrate(disk)
        assert reached.wait(60)
    rest.ok("POST", f"/volumes/{grown.volume}/action", {"os-extend": {"new_size": 2}})
    wanted = {"snapshot": {"volume_id": kept.volume, "force": True}}
    snapshot = rest.ok("POST", "/snapshots", wanted)["snapshot"]["id"]
    for disk in (grown, kept):
        cloud.plan(disk).gates["copy"].set()
        assert rest.wait_migration(disk.volume)["status"] == "success"
    until(lambda: rest.volume(grown.volume)["status"] != "extending", "it is extended")
    assert (rest.volume(grown.volume)["status"], rest.volume(grown.volume)["size"]) == ("in-use", 2)
    assert Path(grown.guest.path).stat().st_size == 2 << 30
    until(lambda: rest.ok("GET", f"/snapshots/{snapshot}")["snapshot"]["status"] != "creating", "it is made")
    assert rest.ok("GET", f"/snapshots/{snapshot}")["snapshot"]["status"] == "available"
    for disk in (grown, kept):
        cloud.moved(disk)


def test_a_pause_keeps_the_record_and_not_the_server_from_being_switched(cloud: Cloud) -> None:
    """Nova goes on and reports; its next detach is refused before it takes the disk from the server."""
    disk = cloud.disk()
    reached, go = cloud.plan(disk).hold("copy")
    cloud.migrate(disk)
    assert reached.wait(60)
    cloud.order(disk, "pause")
    go.set()
    assert cloud.plan(disk).over.wait(60)
    assert cloud.rest.migration_of(disk.volume)["status"] == "paused"
    with pytest.raises(Failed, match="is about to complete"):
        cloud.nova.detach(disk)
    cloud.order(disk, "resume")
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    cloud.moved(disk)
    cloud.nova.detach(disk)
    assert cloud.rest.volume(disk.volume)["status"] == "available"


def test_nova_may_report_before_it_has_answered(cloud: Cloud) -> None:
    """Its whole swap happens while our request is still open: nothing of ours waits for the answer."""
    disk = cloud.disk()
    cloud.plan(disk).answer_last = True
    cloud.migrate(disk)
    assert cloud.rest.wait_migration(disk.volume)["status"] == "success"
    assert ("completion", 200) in {(call, status) for volume, call, status in cloud.nova.calls if volume == disk.volume}
    cloud.moved(disk)


@pytest.mark.parametrize("call", ["copy", "completion"])
def test_a_service_that_is_killed_goes_on_afterwards(cloud: Cloud, call: str) -> None:
    """kill -9 while the swap runs; held at ``completion``, the report comes before the service is back."""
    disk = cloud.disk()
    reached, go = cloud.plan(disk).hold(call)
    cloud.migrate(disk)
    assert reached.wait(60)
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
    """field.md bug 34 (LP1489744)."""
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
    assert reached.wait(60)
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
