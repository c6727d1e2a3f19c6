"""Bugs of others that are met in the API and in its rows: what a twin is, and requests that come together."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from migrator.db import attachments, snapshots, volumes
from migrator.db.models import Migration, Volume
from tests.api.conftest import DESTINATION, SOURCE, Answer, Api, Peers
from tests.api.test_attach_and_migrate import swap
from tests.api.test_attachments import CONNECTOR, post, put
from tests.api.test_retype import DONE, NO_ROOM, advance, make_type, picked, retype

#: Requests that come together.
MANY = 24


# --- the twin --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["host_copy", "attached"])
def test_a_twin_is_born_empty_and_unattached(api: Api, plan: str) -> None:
    """field.md bugs 29 and 30 (LP1433019, LP1580013): it inherited attachments, and the snapshot to be made from."""
    origin = {"snapshot_id": str(uuid.uuid4()), "source_volid": str(uuid.uuid4())}
    used = {"status": "in-use", "attach_status": "attached"} if plan == "attached" else {}
    volume_id = api.make_volume({"k": "v"}, image_metadata={"os": "debian"}, **origin, **used)
    if used:
        api.attach(volume_id)
    row = picked(api, api.migration(api.make_migration(volume_id, plan=plan)))
    twin = api.get_volume(row.destination_volume_id)
    assert (twin.snapshot_id, twin.source_volid, twin.name_id) == (None, None, None)
    assert (twin.attach_status, twin.size, twin.host) == ("detached", 1, DESTINATION)
    assert api.db.read(lambda session: attachments.of_volume(session, twin.id)) == []
    volume = api.get_volume(volume_id)
    assert (volume.snapshot_id, volume.source_volid) == tuple(origin.values())


def test_a_twin_belongs_to_the_cluster_that_has_to_remove_it(api: Api) -> None:
    """field.md bug 28 (LP1660750): without its cluster's name it could not be deleted."""
    api.beat("a@file1", cluster="east")
    api.beat("b@file2", cluster="west")
    volume_id = api.make_volume(cluster_name="east")
    row = picked(api, api.migration(api.make_migration(volume_id)))
    assert api.get_volume(row.destination_volume_id).cluster_name == "west"
    while row.step != "delete_source":
        row = advance(api, row, DONE)
    twin = api.get_volume(row.destination_volume_id)
    assert (api.get_volume(volume_id).cluster_name, twin.cluster_name, twin.host) == ("west", "east", SOURCE)
    doomed = api.db.read(lambda session: volumes.living(session, "a@file1", Volume.status == "deleting"))
    assert [each.id for each in doomed] == [twin.id]


@pytest.mark.parametrize("multipath", [True, False])
def test_a_connector_reaches_the_backend_as_it_is(api: Api, peers: Peers, multipath: bool) -> None:
    """field.md bug 45 (LP1735674): whether paths are to be many was not passed on, for the destination least of all."""
    wanted = {**CONNECTOR, "multipath": multipath}
    volume_id, _, twin_id, _ = swap(api)
    for each, service in ((api.make_volume(), "a@file1"), (twin_id, "b@file2")):
        attachment = post(api, each, token="admin").json["attachment"]["id"]
        assert put(api, attachment, token="admin", multipath=multipath, enforce_multipath=multipath).status == 200
        told = {**wanted, "enforce_multipath": multipath, "mode": "rw"}
        peers.wait_for(service, "initialize_connection", volume_id=each, connector=told, writable=True)
    assert api.get_volume(volume_id).status == "in-use"


# --- many at once ----------------------------------------------------------------------------------------------------


def at_once(api: Api, volume_id: str, kinds: list[str]) -> list[Answer]:
    """Retype to each of these types, all at the same time."""
    together = threading.Barrier(len(kinds))

    def ask(kind: str) -> Answer:
        together.wait(30)
        return retype(api, volume_id, kind, "on-demand")

    with ThreadPoolExecutor(len(kinds)) as pool:
        return list(pool.map(ask, kinds))


def test_of_many_retypes_that_move_exactly_one_wins(api: Api, peers: Peers) -> None:
    """field.md bug 40 (LP1494466): a retype looked first and wrote afterwards, so that several began."""
    peers.against_staying = NO_ROOM
    volume_id = api.make_volume()
    kinds = [make_type(api) for _ in range(MANY)]
    answers = at_once(api, volume_id, kinds)
    assert sorted(answer.status for answer in answers) == [202] + [400] * (MANY - 1), [each.text for each in answers]
    volume = api.get_volume(volume_id)
    row = api.migration(str(volume.migration_id))
    assert (volume.status, volume.volume_type_id) == ("retyping", None)
    assert row.new_type_id == kinds[[answer.status for answer in answers].index(202)]
    assert api.db.read(lambda session: session.scalar(sa.select(sa.func.count()).select_from(Migration))) == 1


def test_of_many_retypes_in_place_the_last_one_holds_for_snapshots_too(api: Api, peers: Peers) -> None:
    """field.md bugs 40 and 42 (LP1494466, LP1877164): volume and snapshots of one type, whoever came when."""
    volume_id = api.make_volume()
    snapshot_id = api.make_snapshot(volume_id)
    kinds = [make_type(api) for _ in range(MANY)]
    answers = at_once(api, volume_id, kinds)
    assert {answer.status for answer in answers} <= {202, 409}, [answer.text for answer in answers]
    won = [kind for kind, answer in zip(kinds, answers, strict=True) if answer.status == 202]
    kind = api.get_volume(volume_id).volume_type_id
    assert kind in won
    assert api.db.read(lambda session: snapshots.get(session, snapshot_id)).volume_type_id == kind
