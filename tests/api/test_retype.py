"""os-retype: in place where the pool does for the new type, else by a migration, and the status back at every end."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from migrator import errors
from migrator.db import attachments, migrations, snapshots, transitions, types, volumes
from migrator.db.models import Migration, Volume
from migrator.db.transitions import Outcome
from migrator.volume.states import Event
from tests.api.conftest import DESTINATION, SOURCE, Answer, Api, Peers

DONE, UNDONE = Outcome(Event.DONE), Outcome(Event.UNDONE)
NO_ROOM = "a@file1#pool1: capabilities: tier: wanted '1', not reported"


def make_type(api: Api, specs: dict[str, str] | None = None, public: bool = True) -> str:
    values = {"name": f"kind-{uuid.uuid4().hex[:8]}", "description": None, "is_public": public}
    return api.db.run(lambda session: types.create(session, specs or {}, **values).id)


def retype(api: Api, volume_id: str, new_type: str, policy: str | None = None, token: str = "joe") -> Answer:
    body = {"new_type": new_type, **({"migration_policy": policy} if policy else {})}
    return api("POST", f"/volumes/{volume_id}/action", {"os-retype": body}, token=token)


def moving(api: Api, volume_id: str) -> Migration:
    migration_id = api.get_volume(volume_id).migration_id
    assert migration_id is not None
    return api.migration(migration_id)


# --- in place --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["available", "in-use"])
def test_only_the_type_changes_where_the_pool_does_for_it(api: Api, peers: Peers, status: str) -> None:
    """field.md bugs 20 and 42 (LP1901188, LP1877164): nothing moves needlessly, and snapshots have the new type too."""
    old, new = make_type(api), make_type(api)
    volume_id = api.make_volume(status=status, volume_type_id=old, bootable=True, image_metadata={"os": "debian"})
    snapshot_id = api.make_snapshot(volume_id, volume_type_id=old)
    name = api("GET", f"/types/{new}").json["volume_type"]["name"]
    assert retype(api, volume_id, name, "on-demand").status == 202
    peers.wait_for("scheduler", "check_pool", volume_id=volume_id, type_id=new)
    volume = api.get_volume(volume_id)
    assert (volume.volume_type_id, volume.status, volume.host, volume.migration_id) == (new, status, SOURCE, None)
    assert (volume.bootable, volume.image_metadata, volume.writable_at) == (True, {"os": "debian"}, None)
    assert api.db.read(lambda session: snapshots.get(session, snapshot_id)).volume_type_id == new
    assert api.contents()["migrations"] == []


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_multiattach_is_applied_to_available_volumes_alone(api: Api, peers: Peers, before: bool, after: bool) -> None:
    """field.md bug 16 (LP1790840): the flag of the new type was lost."""
    new = make_type(api, {"multiattach": "<is> True"} if after else None)
    volume_id = api.make_volume(multiattach=before)
    assert retype(api, volume_id, new).status == 202
    assert api.get_volume(volume_id).multiattach is after
    used = api.make_volume(multiattach=before, status="in-use")
    answer = retype(api, used, new)
    assert (answer.status, "another multiattach needs an available volume" in answer.fault) == (400, True)


def test_multiattach_types_have_a_rule_of_their_own(make_api: Callable[..., Api], tmp_path: Any) -> None:
    (tmp_path / "policy.yaml").write_text('"volume:multiattach": "!"\n')
    api = make_api()
    new = make_type(api, {"multiattach": "<is> True"})
    for answer in (
        retype(api, api.make_volume(), new),
        api("POST", "/volumes", {"volume": {"size": 1, "volume_type": new}}, token="joe"),
    ):
        assert (answer.status, "volume:multiattach" in answer.fault) == (403, True)


def test_a_migration_under_way_gives_way_to_a_change_in_place(api: Api, peers: Peers) -> None:
    volume_id, new = api.make_volume(), make_type(api)
    migration_id = api.make_migration(volume_id, step="copy_data")
    assert retype(api, volume_id, new).status == 202
    assert api.migration(migration_id).cancel_requested
    assert api.get_volume(volume_id).volume_type_id == new
    peers.wait_for("a@file1", "run_migration", migration_id=migration_id)


def test_a_migration_under_way_gives_way_to_a_retype_that_moves_the_volume(api: Api, peers: Peers) -> None:
    """In one transaction; the new one waits for the end of the old one, and only the new one is the volume's."""
    peers.against_staying = NO_ROOM
    volume_id, new = api.make_volume(), make_type(api)
    old = api.make_migration(volume_id, step="copy_data")
    assert retype(api, volume_id, new, "on-demand").status == 202
    volume, row = api.get_volume(volume_id), moving(api, volume_id)
    assert row.id != old
    assert api.migration(old).cancel_requested
    assert (volume.status, volume.previous_status, volume.migration_status) == ("retyping", "available", "starting")
    peers.wait_for("a@file1", "run_migration", migration_id=old)
    assert api.db.read(lambda s: migrations.under_way(s, volume_id)) == [old, row.id]
    assert not api.db.read(lambda s: migrations.is_behind_another(s, migrations.get(s, old)))
    assert api.db.read(lambda s: migrations.is_behind_another(s, migrations.get(s, row.id)))


@pytest.mark.parametrize(
    ("columns", "status", "reason"),
    [
        ({"step": "delete_source"}, 409, "can no longer be cancelled"),
        ({"plan": "attached", "step": "swap_by_compute"}, 400, "it is being migrated already"),
    ],
)
def test_a_migration_that_does_not_give_way_to_a_retype(
    api: Api, peers: Peers, columns: dict[str, Any], status: int, reason: str
) -> None:
    peers.against_staying = NO_ROOM
    volume_id, new = api.make_volume(), make_type(api)
    api.make_migration(volume_id, **columns)
    before = api.contents()
    answer = retype(api, volume_id, new, "on-demand")
    assert (answer.status, reason in answer.fault) == (status, True), answer.text
    assert api.contents() == before


# --- refused ---------------------------------------------------------------------------------------------------------


def test_never_says_which_check_the_pool_failed(api: Api, peers: Peers) -> None:
    peers.against_staying = NO_ROOM
    volume_id, new = api.make_volume(), make_type(api, {"tier": "1"})
    before = api.contents()
    for policy in ("never", None):
        answer = retype(api, volume_id, new, policy)
        assert answer.status == 400
        assert "migration_policy is never" in answer.fault
        assert NO_ROOM in answer.fault
    assert api.contents() == before


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"status": "retyping"}, "status must be available or in-use; it is retyping"),
        ({"status": "error"}, "it is error"),
        ({"status": "maintenance"}, "status is maintenance"),
        ({"group_id": "9"}, "it belongs to group 9"),
        ({"encryption_key_id": str(uuid.uuid4())}, "it is encrypted"),
        ({"host": None, "status": "available"}, "it is on no backend"),
    ],
)
def test_volumes_that_cannot_be_retyped(api: Api, values: dict[str, Any], reason: str) -> None:
    """field.md pain 10: what is encrypted did not fit, and nobody knew before."""
    volume_id, new = api.make_volume(**values), make_type(api)
    before = api.contents()
    answer = retype(api, volume_id, new)
    assert (answer.status, reason in answer.fault) == (400, True), answer.text
    assert api.contents() == before


def test_types_that_cannot_be_had(api: Api, peers: Peers) -> None:
    """field.md bug 14 (LP1883928): a type for other zones must not be ignored."""
    old = make_type(api)
    volume_id = api.make_volume(volume_type_id=old)
    assert "already" in retype(api, volume_id, old).fault
    assert retype(api, volume_id, "no such").status == 404
    private = make_type(api, public=False)
    assert retype(api, volume_id, private).status == 404
    elsewhere = make_type(api, {"RESKEY:availability_zones": "north, south"})
    answer = retype(api, volume_id, elsewhere, "on-demand")
    assert (answer.status, "is for zones north, south" in answer.fault) == (400, True)
    assert retype(api, volume_id, make_type(api, {"RESKEY:availability_zones": "north, nova"})).status == 202
    assert retype(api, volume_id, private, token="admin").status == 202


@pytest.mark.parametrize(
    "body", [{}, {"new_type": ""}, {"new_type": "t", "migration_policy": "always"}, {"new_type": "t", "x": 1}, None]
)
def test_bodies_that_are_wrong(api: Api, body: Any) -> None:
    answer = api("POST", f"/volumes/{api.make_volume()}/action", {"os-retype": body})
    assert (answer.status, "os-retype" in answer.fault) == (400, True)


def test_no_scheduler_that_answers(make_api: Callable[..., Api]) -> None:
    api = make_api(scheduler_rpc_timeout_seconds=1)
    volume_id, new = api.make_volume(), make_type(api)
    assert retype(api, volume_id, new).status == 503
    assert api.get_volume(volume_id).volume_type_id is None


# --- on demand -------------------------------------------------------------------------------------------------------


def retyping(api: Api, peers: Peers, **values: Any) -> tuple[str, str]:
    """A member's volume on its way to another type; returns ids of volume and type."""
    peers.against_staying = NO_ROOM
    new = make_type(api, {"tier": "1", "multiattach": "<is> True"})
    volume_id = api.make_volume(volume_type_id=make_type(api), **values)
    assert retype(api, volume_id, new, "on-demand").status == 202
    return volume_id, new


def test_a_member_sets_a_migration_going(api: Api, peers: Peers) -> None:
    """field.md bug 11 (LP1657806): a member's retype ended at once, since extra specs are hidden from members."""
    volume_id, new = retyping(api, peers)
    volume, row = api.get_volume(volume_id), moving(api, volume_id)
    assert (volume.status, volume.previous_status, volume.migration_status) == ("retyping", "available", "starting")
    assert (row.new_type_id, row.requested_host, row.user_id) == (new, None, "joe")
    peers.wait_for("scheduler", "migrate", migration_id=row.id)
    for action, body in (("os-extend", {"new_size": 2}), ("os-reserve", {}), ("os-retype", {"new_type": new})):
        answer = api("POST", f"/volumes/{volume_id}/action", {action: body}, token="joe")
        assert (answer.status, "retyping" in answer.fault) == (400, True)
    answer = api("DELETE", f"/volumes/{volume_id}", token="joe")
    assert (answer.status, "retyping" in answer.fault) == (400, True)
    assert api.get_volume(volume_id).volume_type_id != new


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda api, volume_id: api.make_snapshot(volume_id), "it has snapshots"),
        (lambda api, volume_id: api.silence("a@file1", 3600), "its backend cannot be read"),
    ],
)
def test_what_cannot_be_moved_cannot_be_retyped_by_moving(
    api: Api, peers: Peers, spoil: Callable[[Api, str], Any], reason: str
) -> None:
    peers.against_staying = NO_ROOM
    volume_id, new = api.make_volume(), make_type(api)
    spoil(api, volume_id)
    before = api.contents()
    answer = retype(api, volume_id, new, "on-demand")
    assert (answer.status, reason in answer.fault) == (400, True), answer.text
    assert api.contents() == before


# --- to its end ------------------------------------------------------------------------------------------------------


def advance(api: Api, row: Migration, outcome: Outcome) -> Migration:
    return api.db.run(lambda s: transitions.advance(s, row, outcome, attempts_allowed=1, retry_seconds=0.0))


def picked(api: Api, row: Migration) -> Migration:
    """The migration after its destination was picked, in our hands."""
    assert api.db.run(lambda s: migrations.claim(s, row, "me", 30.0, owner_is_dead=False))
    chosen = {"destination_host": DESTINATION, "destination_location": {"driver": "file"}}
    row = advance(api, api.migration(row.id), Outcome(Event.DONE, values=chosen))
    assert api.db.run(lambda s: migrations.claim(s, row, "me", 30.0, owner_is_dead=False))
    return api.migration(row.id)


@pytest.mark.parametrize("assisted", [True, False])
def test_the_switch_gives_the_new_type(api: Api, peers: Peers, assisted: bool) -> None:
    """field.md bugs 12, 13, 16, 18 and 49: type, multiattach, place and zone of the new one, assisted too.

    LP1597247, LP1747949, LP1790840, LP1268305; LP2104334: an assisted move was refused under the status retyping.
    """
    api.beat("b@file2", zone="south")
    volume_id, new = retyping(api, peers)
    row = picked(api, moving(api, volume_id))
    if not assisted:
        row = advance(api, row, Outcome(Event.NOT_MOVED, "it cannot"))
        twin = api.get_volume(row.destination_volume_id)
        assert (twin.volume_type_id, twin.multiattach) == (new, True)
    while row.end is None:
        row = advance(api, row, DONE)
    volume = api.get_volume(volume_id)
    assert (row.end, volume.status, volume.migration_status) == ("success", "available", "success")
    assert (volume.host, volume.volume_type_id, volume.multiattach) == (DESTINATION, new, True)
    assert (volume.availability_zone, volume.previous_status) == ("south", None)


def test_a_plain_migration_keeps_type_and_flags(api: Api, peers: Peers) -> None:
    """field.md bug 12 (LP1597247, LP1647429): the type was swapped where it should not be."""
    for kind in (make_type(api), None):
        volume_id = api.make_volume(volume_type_id=kind, multiattach=True)
        row = picked(api, api.migration(api.make_migration(volume_id)))
        while row.end is None:
            row = advance(api, row, DONE)
        volume = api.get_volume(volume_id)
        assert (volume.host, volume.volume_type_id, volume.multiattach) == (DESTINATION, kind, True)


@pytest.mark.parametrize("cancelled", [True, False])
def test_an_end_without_a_move_gives_back_status_and_type(api: Api, peers: Peers, cancelled: bool) -> None:
    volume_id, new = retyping(api, peers)
    row = picked(api, moving(api, volume_id))
    if cancelled:
        assert api("POST", f"/migrations/{row.id}/action", {"cancel": {}}).status == 202
    error = errors.DriverError(backend="b@file2", reason="it broke")
    row = advance(api, row, Outcome(Event.FAILED, error=None if cancelled else error))
    while row.end is None:
        row = advance(api, row, UNDONE)
    volume = api.get_volume(volume_id)
    assert row.end == ("cancelled" if cancelled else "error")
    assert (volume.status, volume.previous_status, volume.migration_status) == ("available", None, "error")
    assert (volume.host, volume.volume_type_id == new) == (SOURCE, False)


def test_nothing_fits(api: Api, peers: Peers) -> None:
    """The scheduler refuses: the volume is as it was, and its owner is told why."""
    volume_id, _ = retyping(api, peers)
    row = moving(api, volume_id)
    assert api.db.run(lambda s: migrations.claim(s, row, "me", 30.0, owner_is_dead=False))
    error = errors.NoValidBackend(reason="nothing fits")
    row = advance(api, api.migration(row.id), Outcome(Event.FAILED, error=error))
    while row.end is None:
        row = advance(api, row, UNDONE)
    assert api.get_volume(volume_id).status == "available"
    told = api("GET", f"/messages?resource_uuid={volume_id}", token="joe", version="3.5").json["messages"]
    assert "nothing fits" in told[0]["user_message"]


def test_a_swap_by_compute_switches_type_and_attachments_together(api: Api) -> None:
    """In use: status in-use before and after, attachments of the twin become the volume's (LP1697060)."""
    new, server = make_type(api, {"tier": "1"}), str(uuid.uuid4())
    volume_id = api.make_volume(status="in-use", attach_status="attached")
    api.attach(volume_id, instance_uuid=server)
    row = picked(api, api.migration(api.make_migration(volume_id, plan="attached", new_type_id=new)))
    api.db.run(lambda s: volumes.update_where(s, volume_id, Volume.status == "in-use", status="retyping"))
    while row.step != "swap_by_compute":
        row = advance(api, row, DONE)
    attachment_id = api.attach(row.destination_volume_id, instance_uuid=server)
    while row.end is None:
        row = advance(api, row, DONE)
    volume = api.get_volume(volume_id)
    assert (volume.status, volume.attach_status, volume.volume_type_id) == ("in-use", "attached", new)
    assert [a.id for a in api.db.read(lambda s: attachments.of_volume(s, volume_id))] == [attachment_id]
    assert api.db.read(lambda s: s.scalar(sa.select(Volume).where(Volume.twin_of.is_not(None)))) is None
