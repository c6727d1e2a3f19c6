"""os-migrate_volume and os-retype of a volume in use: which plan is begun, and what is refused."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from migrator.db import services
from tests.api.conftest import DESTINATION, Api, Peers
from tests.api.conftest import peers as peers_of_api


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    """The application with a compute service configured."""
    made = make_api(compute_service="nova")
    made.beat("a@file1")
    made.beat("b@file2")
    made.beat("s", services.SCHEDULER)
    return made


@pytest.fixture
def peers(api: Api) -> Iterator[Peers]:
    yield from peers_of_api.__wrapped__(api)  # type: ignore[attr-defined]


def used(api: Api, *modes: str, **values: Any) -> str:
    volume_id = api.make_volume(status="in-use", attach_status="attached", **values)
    for mode in modes or ("rw",):
        api.attach(volume_id, attach_mode=mode)
    return volume_id


def migrate(api: Api, volume_id: str, **options: Any) -> Any:
    body = {"os-migrate_volume": {"host": DESTINATION, **options}}
    return api("POST", f"/volumes/{volume_id}/action", body)


@pytest.mark.parametrize("force", [False, True])
def test_only_the_compute_service_moves_a_volume_in_use(api: Api, force: bool) -> None:
    """field.md bug 3 (LP2019190): a backend's own way was taken for an attached volume, and lost its data."""
    volume_id = used(api)
    assert migrate(api, volume_id, force_host_copy=force, lock_volume=True).status == 202
    volume = api.get_volume(volume_id)
    row = api.migration(str(volume.migration_id))
    assert (row.plan, row.previous_status, volume.status) == ("attached", "in-use", "in-use")


def test_a_retype_of_a_volume_in_use_is_left_to_it_too(api: Api, peers: Peers) -> None:
    """field.md bug 3 (LP2019190): the entry was a retype."""
    peers.against_staying = "it does not fit"
    volume_id = used(api)
    kind = api("POST", "/types", {"volume_type": {"name": "gold"}}).json["volume_type"]["id"]
    body = {"os-retype": {"new_type": kind, "migration_policy": "on-demand"}}
    assert api("POST", f"/volumes/{volume_id}/action", body).status == 202
    volume = api.get_volume(volume_id)
    row = api.migration(str(volume.migration_id))
    assert (row.plan, row.new_type_id, volume.status) == ("attached", kind, "in-use")


@pytest.mark.parametrize(
    ("modes", "values", "reason"),
    [
        (("rw", "rw"), {}, "attached 2 times, 2 of them for writing"),
        (("rw", "ro"), {}, "attached 2 times, 1 of them for writing"),
        (("rw",), {"multiattach": True}, "it is multiattach"),
        (("rw",), {"group_id": str(uuid.uuid4())}, "it belongs to group"),
    ],
)
def test_what_cannot_be_moved_in_use(api: Api, modes: tuple[str, ...], values: dict[str, Any], reason: str) -> None:
    """field.md bug 7 (LP1775418)."""
    volume_id = used(api, *modes, **values)
    before = api.contents()
    answer = migrate(api, volume_id)
    assert (answer.status, reason in answer.fault) == (400, True), answer.fault
    assert api.contents() == before


def test_an_attachment_to_a_host_alone(api: Api) -> None:
    volume_id = api.make_volume(status="in-use", attach_status="attached")
    api.attach(volume_id, instance_uuid=None)
    assert "to no server" in migrate(api, volume_id).fault
