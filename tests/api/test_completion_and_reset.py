"""os-migrate_volume_completion and os-reset_status."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Answer, Api

UUID = "5c1f2cf6-0000-4000-8000-000000000000"


def complete(api: Api, volume_id: str, new_volume: str, token: str = "admin", **more: Any) -> Answer:
    body = {"os-migrate_volume_completion": {"new_volume": new_volume, **more}}
    return api("POST", f"/volumes/{volume_id}/action", body, token=token)


def reset(api: Api, volume_id: str, **wanted: Any) -> Answer:
    return api("POST", f"/volumes/{volume_id}/action", {"os-reset_status": wanted})


# --- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"step": "delete_source", "end": "success"},
        {"step": "delete_source"},
        {"step": "delete_source", "plan": "attached"},
        {"step": "delete_source", "end": "stuck"},
    ],
)
@pytest.mark.parametrize("error", [False, True, "False", None])
def test_what_is_done_is_answered_the_same_each_time(api: Api, columns: dict[str, Any], error: Any) -> None:
    """The compute service repeats a call whose answer it lost (nova-calls.md)."""
    volume_id = api.make_volume()
    row = api.migration(api.make_migration(volume_id, **columns))
    before = api.contents()
    for _ in range(2):
        answer = complete(api, volume_id, row.destination_volume_id, error=error)
        assert (answer.status, answer.json) == (200, {"save_volume_id": volume_id})
    assert api.contents() == before


@pytest.mark.parametrize("end", ["error", "cancelled"])
def test_a_migration_that_was_taken_back(api: Api, end: str) -> None:
    volume_id = api.make_volume()
    row = api.migration(api.make_migration(volume_id, direction="back", end=end))
    failed = complete(api, volume_id, row.destination_volume_id, error=True)
    assert (failed.status, failed.json) == (200, {"save_volume_id": volume_id})
    done = complete(api, volume_id, row.destination_volume_id)
    assert done.status == 400
    assert f"Migration {row.id} cannot be completed: it ended {end}" in done.fault


@pytest.mark.parametrize("error", [False, True])
def test_a_plan_that_does_not_wait_for_compute(api: Api, error: bool) -> None:
    volume_id = api.make_volume()
    row = api.migration(api.make_migration(volume_id, step="copy_data"))
    answer = complete(api, volume_id, row.destination_volume_id, error=error)
    assert answer.status == 400
    assert "its plan is host_copy, which doesn't wait for the compute service; it is at copy_data" in answer.fault


def test_a_pair_that_is_none_and_bodies_that_are_wrong(api: Api) -> None:
    volume_id, other = api.make_volume(), api.make_volume()
    answer = complete(api, volume_id, other)
    assert answer.status == 400
    assert f"volume {other} is not the destination of a migration of volume {volume_id}" in answer.fault
    assert complete(api, UUID, other).status == 404
    assert "not a 'UUID'" in complete(api, volume_id, "nonsense").fault
    assert "not a 'boolean'" in complete(api, volume_id, other, error="perhaps").fault
    assert complete(api, volume_id, other, token="joe").status == 403


#: A plain swap as the compute service has left both volumes: the status of the old and of the new one with that of its
#: attachment, what is reported, and both as they have to be afterwards.
PLAIN = {
    "done": (("available", None), ("in-use", "attached"), False, ("available", "in-use")),
    "done in the older way": (("detaching", "attached"), ("attaching", None), False, ("available", "in-use")),
    "failed": (("in-use", "attached"), ("available", None), True, ("in-use", "available")),
    "failed, and not rolled back": (("detaching", "attached"), ("reserved", "reserved"), True, ("in-use", "reserved")),
    "failed in the older way": (("detaching", "attached"), ("attaching", None), True, ("in-use", "available")),
}


@pytest.mark.parametrize("case", PLAIN)
def test_a_plain_swap_leaves_no_volume_attaching_or_detaching(api: Api, case: str) -> None:
    """field.md bug 34 (LP1489744): a swap of two volumes that no migration asked for, and its report twice."""
    *both, failed, wanted = PLAIN[case]
    made = []
    for status, attachment in both:
        volume_id = api.make_volume(status=status, attach_status=attachment or "detached")
        if attachment is not None:
            api.attach(volume_id, attach_status=attachment)
        made.append(volume_id)
    old, new = made
    for _ in range(2):
        answer = complete(api, old, new, error=failed)
        assert (answer.status, answer.json) == (200, {"save_volume_id": new}), answer.text
        seen = [api("GET", f"/volumes/{each}").json["volume"] for each in made]
        assert tuple(volume["status"] for volume in seen) == wanted
        assert [len(volume["attachments"]) for volume in seen] == [status == "in-use" for status in wanted]


# --- reset -----------------------------------------------------------------------------------------------------------


def test_every_word_is_written_and_detached_removes_attachments(api: Api) -> None:
    """field.md bug 37 (LP1308253, LP1568034): migration and attach status were not reset, attachments stayed."""
    volume_id = api.make_volume(status="error_extending", attach_status="attached", migration_status="error")
    api.attach(volume_id)
    assert reset(api, volume_id, status="available", attach_status="detached", migration_status="none").status == 202
    volume = api.get_volume(volume_id)
    assert (volume.status, volume.attach_status, volume.migration_status) == ("available", "detached", None)
    assert "'detached'" in str(api.contents()["attachments"])
    assert api("GET", f"/volumes/{volume_id}").json["volume"]["attachments"] == []
    assert reset(api, volume_id, migration_status="Success").status == 202
    assert api.get_volume(volume_id).migration_status == "success"


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({}, "os-reset_status"),
        ({"status": None}, "it needs a status"),
        ({"status": "flying"}, "status: 'flying' is not one of: available"),
        ({"status": "deleting"}, "status: 'deleting' is not one of"),
        ({"status": 5}, "os-reset_status.status"),
        ({"attach_status": "glued"}, "attach_status: 'glued' is not one of: attached, detached"),
        ({"migration_status": "migrating"}, "migration_status: 'migrating' is not one of: none, success, error"),
        ({"migration_status": "target:1"}, "migration_status"),
        ({"mood": "good"}, "'mood' was unexpected"),
        ({"status": "in-use"}, "it has no attachments"),
    ],
)
def test_what_cannot_be_reset(api: Api, wanted: dict[str, Any], reason: str) -> None:
    volume_id = api.make_volume()
    before = api.contents()
    answer = reset(api, volume_id, **wanted)
    assert answer.status == 400
    assert reason in answer.fault
    assert api.contents() == before


def test_an_attached_volume_may_be_declared_in_use(api: Api) -> None:
    volume_id = api.make_volume(status="error")
    api.attach(volume_id)
    assert reset(api, volume_id, status="in-use").status == 202
    assert api.get_volume(volume_id).status == "in-use"


def test_a_migration_that_really_runs_is_not_talked_away(api: Api) -> None:
    """field.md part 5: the incumbent takes the reset, and the copy goes on."""
    volume_id = api.make_volume()
    migration_id = api.make_migration(volume_id, step="copy_data")
    before = api.contents()
    answer = reset(api, volume_id, status="available", migration_status="none")
    assert answer.status == 409
    assert f"migration {migration_id} is running at copy_data" in answer.fault
    assert "Cancel that instead" in answer.fault
    assert api.contents() == before


def test_a_twin_is_not_reset(api: Api) -> None:
    volume_id = api.make_volume()
    twin_id = api.make_twin(volume_id, api.make_migration(volume_id, step="copy_data"))
    assert "is the destination of a migration" in reset(api, twin_id, status="available").fault
