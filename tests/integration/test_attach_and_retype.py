"""Volumes that servers use, and types that change, in a whole deployment on files."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from tests.support.data import GIB, digest, write_pattern
from tests.support.processes import AllInOne
from tests.support.rest import Rest
from tests.support.waiting import until

FIRST, SECOND = "node@file1#pool1", "node@file2#pool2"
CONNECTOR = {"host": "compute1", "ip": "127.0.0.1", "mountpoint": "/dev/vdb"}


def make_type(rest: Rest, name: str, **specs: str) -> str:
    body = {"volume_type": {"name": name, "extra_specs": specs}}
    return str(rest.ok("POST", "/types", body)["volume_type"]["id"])


def retype(rest: Rest, volume_id: str, new_type: str, policy: str = "on-demand") -> tuple[int, Any]:
    body = {"os-retype": {"new_type": new_type, "migration_policy": policy}}
    return rest.request("POST", f"/volumes/{volume_id}/action", body)


def made_at(rest: Rest, backend: str) -> dict[str, Any]:
    """A volume of a type that only that backend does for."""
    volume = rest.create(1, volume_type=f"at-{backend}", metadata={"k": "v"})
    assert rest.volume(volume["id"])["os-vol-host-attr:host"].startswith(f"node@{backend}#")
    return volume


def test_attach_extend_in_use_and_detach(all_in_one: AllInOne) -> None:
    rest = all_in_one.rest()
    for name in ("file1", "file2"):
        make_type(rest, f"at-{name}", volume_backend_name=name)
    volume_id = made_at(rest, "file1")["id"]
    wanted = {"volume_uuid": volume_id, "instance_uuid": str(uuid.uuid4()), "connector": CONNECTOR, "mode": "rw"}
    attachment = rest.ok("POST", "/attachments", {"attachment": wanted})["attachment"]
    path = Path(attachment["connection_info"]["device_path"])
    assert attachment["connection_info"]["driver_volume_type"] == "gpfs"
    assert path == all_in_one.path("file1", "pool1", volume_id)
    rest.ok("POST", f"/attachments/{attachment['id']}/action", {"os-complete": None})
    with path.open("r+b") as used:
        rest.ok("POST", f"/volumes/{volume_id}/action", {"os-extend": {"new_size": 2}})
        until(lambda: rest.volume(volume_id)["size"] == 2, "the volume is extended")
        assert rest.volume(volume_id)["status"] == "in-use"
        used.seek(2 * GIB - 4)
        used.write(b"tail")
    assert path.stat().st_size == 2 * GIB
    assert "it is in-use" in str(retype(rest, volume_id, "at-file2"))
    assert rest.ok("DELETE", f"/attachments/{attachment['id']}") == {"attachments": []}
    assert rest.volume(volume_id)["status"] == "available"
    assert retype(rest, volume_id, "at-file2")[0] == 202
    assert rest.wait_migration(volume_id)["status"] == "success"
    moved_to = all_in_one.path("file2", "pool2", rest.volume(volume_id)["os-vol-mig-status-attr:name_id"] or volume_id)
    with moved_to.open("rb") as moved:
        assert moved.seek(-4, os.SEEK_END) == 2 * GIB - 4
        assert moved.read() == b"tail"


def test_a_members_retype_really_moves_the_volume_there_and_back(all_in_one: AllInOne) -> None:
    """field.md bugs 10, 11, 12 and 19 (LP1652802, LP1657806, LP1597247, LP1487952).

    Success without a move; the type; extend, snapshot and delete after the way there and back.
    """
    rest, member = all_in_one.rest(), all_in_one.rest("joe")
    types = {name: make_type(rest, f"at-{name}", volume_backend_name=name) for name in ("file1", "file2")}
    plain = make_type(rest, "plain")
    volume_id = member.create(1, volume_type="at-file1")["id"]
    write_pattern(all_in_one.path("file1", "pool1", volume_id), GIB, seed=3, data_share=0.02)
    wanted = digest(all_in_one.path("file1", "pool1", volume_id))

    status, refusal = retype(member, volume_id, types["file2"], "never")
    assert status == 400
    assert "volume_backend_name: wanted 'file2', found 'file1'" in refusal["badRequest"]["message"]
    for name, host, pool in (("file2", SECOND, "pool2"), ("file1", FIRST, "pool1")):
        assert retype(member, volume_id, types[name])[0] == 202
        assert rest.wait_migration(volume_id)["status"] == "success"
        volume = rest.volume(volume_id)
        assert (volume["status"], volume["volume_type"], volume["os-vol-host-attr:host"]) == (
            "available",
            f"at-{name}",
            host,
        )
        place = all_in_one.path(name, pool, volume["os-vol-mig-status-attr:name_id"] or volume_id)
        assert digest(place) == wanted
    assert [path.name for path in all_in_one.path("file2", "pool2", "x").parent.glob("volume-*")] == []

    newest = rest.migration_of(volume_id)["id"]
    assert retype(member, volume_id, plain, "never")[0] == 202
    assert (rest.volume(volume_id)["volume_type"], rest.migration_of(volume_id)["id"]) == ("plain", newest)
    snapshot = member.ok("POST", "/snapshots", {"snapshot": {"volume_id": volume_id}})["snapshot"]["id"]
    until(lambda: member.ok("GET", f"/snapshots/{snapshot}")["snapshot"]["status"] == "available", "a snapshot")
    member.ok("POST", f"/volumes/{volume_id}/action", {"os-extend": {"new_size": 2}})
    member.wait_volume(volume_id, "available")
    assert member.request("DELETE", f"/volumes/{volume_id}")[0] == 400
    member.ok("DELETE", f"/volumes/{volume_id}?cascade=true")
    until(lambda: member.request("GET", f"/volumes/{volume_id}")[0] == 404, "the volume is gone")
    assert list(all_in_one.state.glob("backends/*/*/[vs]*-*")) == []


def test_no_pool_does_and_the_volume_is_as_it_was(all_in_one: AllInOne) -> None:
    rest, member = all_in_one.rest(), all_in_one.rest("joe")
    gold = make_type(rest, "gold", metal="gold")
    volume_id = member.create(1)["id"]
    assert retype(member, volume_id, gold)[0] == 202
    assert rest.wait_migration(volume_id)["status"] == "error"
    volume = rest.volume(volume_id)
    assert (volume["status"], volume["volume_type"]) == ("available", None)
    (message,) = member.ok("GET", f"/messages?resource_uuid={volume_id}")["messages"]
    assert "metal: wanted 'gold'" in message["user_message"]
