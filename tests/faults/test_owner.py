"""The owner's own requests in the middle of a copy: they win before the switch, and nothing of theirs is lost."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit import content
from tests.support.bed import A, B, Bed
from tests.support.data import GIB
from tests.support.plain_guest import Image
from tests.support.waiting import until

DATA_MIB = 200
CONNECTOR = {"host": "compute1", "ip": "127.0.0.1", "initiator": "iqn.fake", "mountpoint": "/dev/vdb"}


@pytest.fixture
def copying(shared: Bed, chance: random.Random) -> tuple[str, dict[str, Any]]:
    """A volume in the middle of its copy."""
    volume_id = shared.volume(chance, DATA_MIB)
    return volume_id, shared.copying(volume_id, done=1)


def is_cancelled(bed: Bed, volume_id: str, migration_id: str) -> None:
    ended = bed.audit.migration(migration_id)
    assert ended["end"] == "cancelled", ended
    assert bed.audit.volume(volume_id)["host"] == A


def clear(bed: Bed) -> None:
    for volume_id in list(bed.wanted):
        bed.rest.ok("DELETE", f"/volumes/{volume_id}?cascade=true")
    bed.wanted.clear()
    bed.settle()


def test_extend(shared: Bed, copying: tuple[str, dict[str, Any]]) -> None:
    """The size is the new one and the data is the old one: no extend disappears."""
    volume_id, row = copying
    shared.rest.ok("POST", f"/volumes/{volume_id}/action", {"os-extend": {"new_size": 2}})
    held = str(shared.wanted[volume_id]).partition(":")[2]
    shared.wanted[volume_id] = f"{2 * GIB}:{held}"
    shared.settle()
    is_cancelled(shared, volume_id, row["id"])
    assert shared.audit.volume(volume_id)["size"] == 2
    shared.rest.moved(volume_id, shared.other(volume_id), force_host_copy=True)
    clear(shared)


def test_delete(shared: Bed, copying: tuple[str, dict[str, Any]]) -> None:
    volume_id, row = copying
    shared.rest.ok("DELETE", f"/volumes/{volume_id}")
    del shared.wanted[volume_id]
    shared.settle()
    assert shared.audit.migration(row["id"])["end"] == "cancelled"


def test_snapshot(shared: Bed, copying: tuple[str, dict[str, Any]]) -> None:
    volume_id, row = copying
    snapshot = shared.rest.ok("POST", "/snapshots", {"snapshot": {"volume_id": volume_id}})["snapshot"]
    shared.wanted[snapshot["id"]] = shared.wanted[volume_id]
    shared.settle()
    is_cancelled(shared, volume_id, row["id"])
    assert content(shared.audit.path(volume_id)) == shared.wanted[volume_id]
    shared.wanted.pop(snapshot["id"])
    clear(shared)


def by_attachment(bed: Bed, volume_id: str) -> Path:
    """Attach as a compute service of today does; return where the volume is offered."""
    wanted = {"volume_uuid": volume_id, "instance_uuid": str(uuid.uuid4()), "connector": CONNECTOR}
    made = bed.rest.ok("POST", "/attachments", {"attachment": wanted})["attachment"]
    return Path(made["connection_info"]["device_path"])


def by_steps(bed: Bed, volume_id: str) -> Path:
    """The older way: reserve, be offered, and be written down as attached."""
    act(bed, volume_id, "os-reserve", {})
    path = by_offer(bed, volume_id)
    act(bed, volume_id, "os-attach", {"instance_uuid": str(uuid.uuid4()), "mountpoint": "/dev/vdb"})
    return path


def by_offer(bed: Bed, volume_id: str) -> Path:
    """A host that is offered the volume and says nothing else."""
    offered = act(bed, volume_id, "os-initialize_connection", {"connector": CONNECTOR})
    return Path(offered["connection_info"]["data"]["device_path"])


def act(bed: Bed, volume_id: str, action: str, body: Any) -> Any:
    return bed.rest.ok("POST", f"/volumes/{volume_id}/action", {action: body})


def let_go(bed: Bed, volume_id: str) -> None:
    """End whatever the volume is used by."""
    act(bed, volume_id, "os-terminate_connection", {"connector": CONNECTOR})
    act(bed, volume_id, "os-detach", {})


@pytest.mark.parametrize("take", [by_attachment, by_steps, by_offer])
def test_a_write_through_a_fresh_attachment(
    shared: Bed, chance: random.Random, copying: tuple[str, dict[str, Any]], take: Callable[[Bed, str], Path]
) -> None:
    """field.md part 5: the attachment was accepted, and what was written lost by a success."""
    volume_id, row = copying
    path = take(shared, volume_id)
    with path.open("r+b") as used:
        for _ in range(3):
            used.seek(chance.randrange(GIB - 5000))
            used.write(chance.randbytes(5000))
        used.flush()
        os.fsync(used.fileno())
    shared.wanted[volume_id] = content(path)
    status, refusal = shared.rest.migrate(volume_id, shared.other(volume_id))
    assert status == 400, refusal
    until(lambda: shared.audit.migration(row["id"])["end"], "the migration is over", 60)
    is_cancelled(shared, volume_id, row["id"])
    let_go(shared, volume_id)
    shared.settle()
    shared.rest.moved(volume_id, shared.other(volume_id), force_host_copy=True)
    clear(shared)


def test_a_guest_whose_attachment_was_reset_by_hand_keeps_its_volume_where_it_is(
    shared: Bed, chance: random.Random
) -> None:
    """The rows say that nobody uses it; the locks of a hypervisor say otherwise."""
    volume_id = shared.volume(chance, 4)
    guest = Image(str(by_attachment(shared, volume_id)))
    act(shared, volume_id, "os-reset_status", {"status": "available", "attach_status": "detached"})
    assert shared.rest.migrate(volume_id, shared.other(volume_id), force_host_copy=True)[0] == 202
    shared.settle()
    ended = shared.audit.newest(volume_id)
    assert (ended["end"], ended["error_code"]) == ("error", "SourceInUse"), ended
    guest.close()
    shared.rest.moved(volume_id, shared.other(volume_id), force_host_copy=True)
    clear(shared)


def test_retype_to_where_the_volume_may_lie(
    shared: Bed, chance: random.Random, copying: tuple[str, dict[str, Any]]
) -> None:
    """The copy gives way, and the volume goes where its new type allows it behind the end of that."""
    volume_id, row = copying
    specs = {"volume_backend_name": "file2"}
    made = shared.rest.ok("POST", "/types", {"volume_type": {"name": uuid.uuid4().hex, "extra_specs": specs}})
    wanted = {"new_type": made["volume_type"]["id"], "migration_policy": "on-demand"}
    act(shared, volume_id, "os-retype", wanted)
    shared.settle()
    ended, after = shared.audit.migration(row["id"]), shared.audit.newest(volume_id)
    assert (ended["end"], after["end"]) == ("cancelled", "success")
    assert after["id"] != row["id"]
    volume = shared.audit.volume(volume_id)
    assert (volume["status"], volume["volume_type_id"], volume["host"]) == ("available", wanted["new_type"], B)
    clear(shared)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/volumes/{}/action", {"os-extend": {"new_size": 2}}),
        ("DELETE", "/volumes/{}", None),
        ("POST", "/snapshots", {"snapshot": {"volume_id": "{}"}}),
    ],
    ids=["extend", "delete", "snapshot"],
)
def test_a_locked_volume_refuses_with_the_reason_and_arrives(
    shared: Bed, chance: random.Random, method: str, path: str, body: Any
) -> None:
    volume_id = shared.volume(chance, DATA_MIB)
    answer = shared.rest.migrate(volume_id, shared.other(volume_id), force_host_copy=True, lock_volume=True)
    assert answer[0] == 202, answer
    row = shared.reaches(volume_id, "copy_data", done=1)
    if body and "snapshot" in body:
        body = {"snapshot": {"volume_id": volume_id}}
    status, refusal = shared.rest.request(method, path.format(volume_id), body)
    assert status == 400, refusal
    assert row["id"] in refusal["badRequest"]["message"]
    shared.settle()
    assert shared.audit.migration(row["id"])["end"] == "success"
    clear(shared)
