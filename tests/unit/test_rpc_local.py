"""The in-process bus: what a broker does, without one."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import oslo_messaging as messaging
import pytest

from migrator import conf as config
from migrator import errors, rpc
from migrator.context import RequestContext, service_context


class Endpoint:
    """Remembers what it was told."""

    target = messaging.Target(version=rpc.VERSION)

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.heard = threading.Event()
        self.release = threading.Event()

    @messaging.expose
    def run_migration(self, context: RequestContext, migration_id: str) -> None:
        self.told.append((context.user_id, migration_id))
        self.heard.set()

    @messaging.expose
    def report_pools(self, context: RequestContext) -> None:
        self.told.append("report")
        self.heard.set()

    @messaging.expose
    def export_destination(
        self, context: RequestContext, migration_id: str, machine: str | None = None
    ) -> dict[str, Any]:
        if migration_id == "slow":
            self.release.wait(30)
        if migration_id == "full":
            raise errors.NoSpace(where="pool1", reason="needs 2 GiB, 1 GiB free")
        return {"path": migration_id}


class Bus:
    """A bus of its own with servers that are stopped at the end."""

    def __init__(self) -> None:
        self.conf = config.load("tests", [], [])
        messaging.TransportURL(self.conf)
        self.conf.set_override("transport_url", f"local://{uuid.uuid4().hex}")
        self.conf.set_override("rpc_step_timeout_seconds", 1)
        self.transport = rpc.transport(self.conf)
        self.client = rpc.VolumeClient(self.transport, self.conf)
        self.servers: list[Any] = []

    def serve(self, host: str) -> Endpoint:
        endpoint = Endpoint()
        server = rpc.server(self.transport, rpc.VOLUME_TOPIC, host, [endpoint])
        server.start()
        self.servers.append(server)
        return endpoint


@pytest.fixture
def bus() -> Iterator[Bus]:
    bus = Bus()
    yield bus
    for server in bus.servers:
        server.stop()


def test_a_cast_reaches_the_one_server_it_names_with_its_context(bus: Bus) -> None:
    a, b = bus.serve("h@a"), bus.serve("h@b")
    context = RequestContext(user_id="olga", auth_token="secret")
    bus.client.run_migration(context, "h@b#pool", "m1")
    assert b.heard.wait(10)
    assert b.told == [("olga", "m1")]
    assert a.told == []


def test_a_message_waits_for_a_server_that_starts_later(bus: Bus) -> None:
    bus.client.run_migration(service_context(), "h@late#p", "m2")
    endpoint = bus.serve("h@late")
    assert endpoint.heard.wait(10)


def test_a_fanout_reaches_every_server(bus: Bus) -> None:
    endpoints = [bus.serve(f"h@{name}") for name in "abc"]
    bus.client.report_pools()
    assert all(endpoint.heard.wait(10) for endpoint in endpoints)


def test_a_call_returns_the_answer(bus: Bus) -> None:
    bus.serve("h@a")
    assert bus.client.export_destination(service_context(), "h@a#p", "m3") == {"path": "m3"}


def test_an_error_of_the_server_arrives_as_the_same_class_with_its_fields(bus: Bus) -> None:
    bus.serve("h@a")
    with pytest.raises(errors.NoSpace, match="No space left on pool1: needs 2 GiB") as caught:
        bus.client.export_destination(service_context(), "h@a#p", "full")
    assert caught.value.code == "NoSpace"
    assert caught.value.final


def test_a_call_that_is_not_answered_in_time_says_who_was_silent(bus: Bus) -> None:
    endpoint = bus.serve("h@a")
    with pytest.raises(errors.ServiceUnavailable, match="h@a"):
        bus.client.export_destination(service_context(), "h@a#p", "slow")
    endpoint.release.set()


def test_tokens_never_travel(bus: Bus) -> None:
    sent = rpc._Serializer().serialize_context(RequestContext(user_id="u", auth_token="secret", service_token="s2"))
    assert "secret" not in str(sent)
    assert "s2" not in str(sent)
