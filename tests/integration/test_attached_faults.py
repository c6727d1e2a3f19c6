"""A fault at every call of the compute service: the volume lives where its server writes, and nothing is left over.

The migrations of a test run at once, since most of their time is waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.nova import Died, Disk, Failed, Fault, Nova
from tests.support.nova_cloud import Cloud, open_cloud
from tests.support.nova_guest import QemuGuest
from tests.support.plain_guest import Guest
from tests.support.rest import ENDS
from tests.support.waiting import until

#: Migrations under way at once.
AT_ONCE = 8
#: swap_timeout_seconds and swap_begin_seconds: many times what a swap takes; one that lasts longer ends differently.
PATIENCE, BEGIN = 15, 8

#: The calls of nova-api and nova-compute in their order, by what becomes of a volume for which one fails.
BEFORE_THE_CHANGE = (
    *("get_old", "get_new", "begin", "versions", "reserve"),
    *("compute_get_old", "compute_get_new", "connect"),
)
BEHIND_THE_CHANGE = ("complete", "detach", "completion")
#: What is called when the copy has failed.
CLEANING_UP = ("roll", "release", "failure")
#: Faults that Nova copes with: it sends the call again, or does not read the answer.
HARMLESS = {
    *((call, Fault.LOST) for call in BEFORE_THE_CHANGE),
    *((call, Fault.GARBAGE) for call in ("begin", "versions")),
    ("connect", Fault.GATEWAY),
}
#: Faults of which block storage notices nothing, and which Nova takes alike: each call is given one of them in turn.
UNNOTICED = (Fault.REFUSED, Fault.UNAUTHORIZED, Fault.FORBIDDEN, Fault.CONFLICT, Fault.UNAVAILABLE)
#: Calls for which Nova has rules of its own about these.
SPECIAL = dict.fromkeys(("connect", "complete", "detach", "release"), (*UNNOTICED, Fault.NOT_FOUND, Fault.BROKEN))


#: Programs on whose disks the faults happen: each fault on the plain one, one at each call on that with a real QEMU.
GUESTS = {"plain": Guest, "qemu": QemuGuest}


def cells() -> list[Any]:
    """The faults of each call, each with its guest, as the parameters of a test."""
    made = []
    for number, call in enumerate((*BEFORE_THE_CHANGE, *BEHIND_THE_CHANGE, *CLEANING_UP)):
        unnoticed = SPECIAL.get(call, (UNNOTICED[number % len(UNNOTICED)],))
        plain = [(fault, "plain") for fault in (*unnoticed, Fault.LATE, Fault.GARBAGE, Fault.LOST, Fault.GATEWAY)]
        made.append(pytest.param(call, [*plain, (unnoticed[0], "qemu")], id=call))
    return made


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    nova = Nova()
    with open_cloud(tmp_path_factory.mktemp("faults"), nova, patience=PATIENCE, begin=BEGIN) as running:
        yield running
    nova.end()


@pytest.mark.parametrize(("call", "faults"), cells())
def test_faults_at_a_call_of_the_compute_service(cloud: Cloud, call: str, faults: list[tuple[Fault, str]]) -> None:
    """field.md bugs 31 and 34 (LP1614371, LP1489744): attachments lost, or both volumes in a state of neither."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        played = {each: pool.submit(play, cloud, call, *each) for each in faults}
    wrong = []
    for (fault, guest), future in played.items():
        if (error := future.exception()) is not None:
            error.add_note(f"{call}: {fault}, {guest} guest")
            wrong.append(error)
    if wrong:
        raise BaseExceptionGroup(f"{len(wrong)} of {len(faults)} faults", wrong)


def play(cloud: Cloud, call: str, fault: Fault, guest: str) -> None:
    """Migrate a volume in use with one call going wrong; look at what became of it, and end its guest."""
    disk = cloud.disk(pause=0.02, guest=GUESTS[guest])
    try:
        ended = migrated(cloud, disk, call, fault)
        moves = call in BEHIND_THE_CHANGE or (call, fault) in HARMLESS
        assert ended["status"] == ("success" if moves else "error"), ended
        (cloud.moved if moves else cloud.stayed)(disk)
        new = ended["destination_volume_id"]
        assert cloud.rest.ok("GET", f"/attachments?volume_id={new}&all_tenants=1") == {"attachments": []}
        until(lambda: cloud.rest.request("GET", f"/volumes/{new}")[0] == 404, "the destination's own row is gone")
        assert [old for old, _ in cloud.nova.puts].count(disk.volume) == 1, "it is asked once"
    finally:
        disk.guest.end()


def migrated(cloud: Cloud, disk: Disk, call: str, fault: Fault) -> dict[str, Any]:
    """Return the migration as it ended, when Nova is done with it, too."""
    plan = cloud.plan(disk)
    plan.faults[call] = fault
    if call in CLEANING_UP:
        plan.faults["copy"] = Failed("on purpose")
    cloud.migrate(disk)
    assert plan.over.wait(60)
    migration = cloud.rest.migration_of(disk.volume)["id"]

    def ended() -> dict[str, Any] | None:
        row = cloud.rest.ok("GET", f"/migrations/{migration}")["migration"]
        return row if row["status"] in ENDS else None

    return until(ended, "the migration ends", pause=0.3) or {}


# --- nobody ever reports ---------------------------------------------------------------------------------------------


def test_a_compute_service_that_dies_before_it_copies_is_given_up(cloud: Cloud) -> None:
    disk = cloud.disk(guest=QemuGuest)
    cloud.plan(disk).faults["connect"] = Died()
    cloud.migrate(disk)
    ended = cloud.rest.wait_migration(disk.volume)
    assert (ended["status"], ended["error"]["code"]) == ("error", "SwapFailed")
    assert "swap_timeout_seconds" in ended["error"]["message"]
    cloud.stayed(disk)


def test_a_host_that_may_still_write_keeps_the_destination(cloud: Cloud) -> None:
    """Nothing is removed that a guest may be moved to; what is left is named, and a retry ends it."""
    disk = cloud.disk(guest=QemuGuest)
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
    disk.guest.end()
