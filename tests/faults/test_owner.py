"""The owner's own requests in the middle of a copy: they win before the switch, and nothing of theirs is lost."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.support.audit import content
from tests.support.bed import A, Bed
from tests.support.data import GIB

DATA_MIB = 200


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
