"""Attaching, detaching and retyping are told to whoever listens; what happens to a twin never."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from migrator.api import app
from tests.api.conftest import Api, Peers
from tests.unit.test_notifications import Listener, switched_on, telling

SERVER = "5c1f2cf6-0000-4000-8000-000000000001"


@pytest.fixture
def listener(api: Api) -> Iterator[Listener]:
    """Hears what the application tells on a bus in memory."""
    topic = f"told-{uuid.uuid4().hex[:8]}"
    conf = switched_on("fake://", topic)
    listener = Listener(conf, topic)
    with telling(conf, "api.here") as news:
        api.app = app.build(api.conf, api.db, api.scheduler, api.volume, news)
        yield listener
    listener.stop()


def test_the_older_way(api: Api, peers: Peers, listener: Listener) -> None:
    path = f"/volumes/{api.make_volume()}/action"
    answers = [
        api("POST", path, {"os-attach": {"instance_uuid": SERVER, "mountpoint": "/dev/vdb"}}),
        api("POST", path, {"os-detach": {}}),
    ]
    assert [answer.status for answer in answers] == [202, 202]
    (payload,) = listener.wait("volume.detach.end")
    assert payload["status"] == "available"
    assert sorted(listener.events()) == ["volume.attach.end", "volume.detach.end"]
    assert {publisher for _, publisher, _, _ in listener.heard} == {"api.here"}
    assert listener.requests == {answer.headers["x-openstack-request-id"] for answer in answers}


def test_attachments_of_a_volume_and_of_a_twin(api: Api, peers: Peers, listener: Listener) -> None:
    volume_id = api.make_volume()
    twin_id = api.make_twin(volume_id, api.make_migration(volume_id, plan="attached", step="swap_by_compute"))
    for id_ in (twin_id, volume_id):
        body = {"attachment": {"volume_uuid": id_, "instance_uuid": SERVER, "connector": {"host": "compute1"}}}
        made = api("POST", "/attachments", body, version="3.71")
        assert made.status == 200, made.text
        path = f"/attachments/{made.json['attachment']['id']}"
        assert api("POST", f"{path}/action", {"os-complete": {}}, version="3.71").status == 204
    assert api("DELETE", path, version="3.71").status == 200
    (payload,) = listener.wait("volume.detach.end")
    assert payload["volume_id"] == volume_id
    assert [told["volume_id"] for told in listener.of("volume.attach.end")] == [volume_id]


def test_a_retype_where_it_lies(api: Api, peers: Peers, listener: Listener) -> None:
    kind = api("POST", "/types", {"volume_type": {"name": "gold"}}).json["volume_type"]["id"]
    assert api("POST", f"/volumes/{api.make_volume()}/action", {"os-retype": {"new_type": "gold"}}).status == 202
    (payload,) = listener.wait("volume.retype")
    assert payload["volume_type"] == kind
