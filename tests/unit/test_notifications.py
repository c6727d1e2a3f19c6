"""Notifications to a real listener, in memory and on a broker; and a bus that is away, slow or off."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oslo_messaging as messaging
import pytest
import sqlalchemy as sa

from migrator import conf as config
from migrator import errors, rpc, service
from migrator.context import RequestContext, service_context
from migrator.db import api as db_api
from migrator.db import schema
from migrator.db.api import Database
from migrator.db.models import Snapshot, Volume, utcnow
from migrator.drivers import memory
from migrator.drivers.faults import Fault
from migrator.drivers.memory import MemoryDriver
from migrator.notifications import MAX_WAITING, OFF, MigrationNews, Notifications
from migrator.volume.manager import VolumeManager
from tests.contract.worlds import options
from tests.support import rows
from tests.support.waiting import until

Heard = tuple[str, str, str, dict[str, Any]]


class Listener:
    """A consumer of notifications, as other programs have one."""

    def __init__(self, conf: config.Conf, topic: str) -> None:
        self.heard: list[Heard] = []
        #: The requests that what is told follows from.
        self.requests: set[str | None] = set()
        transport = messaging.get_notification_transport(conf)
        self._server = messaging.get_notification_listener(
            transport, [messaging.Target(topic=topic)], [self], executor="threading"
        )
        self._server.start()

    def info(self, context: Any, publisher: str, event: str, payload: dict[str, Any], metadata: Any) -> None:
        self.heard.append(("INFO", publisher, event, payload))
        self.requests.add(context.get("request_id"))

    def error(self, context: Any, publisher: str, event: str, payload: dict[str, Any], metadata: Any) -> None:
        self.heard.append(("ERROR", publisher, event, payload))

    def wait(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """The payloads of an event once there are so many; and no more than that."""
        found = until(lambda: self.of(event) if len(self.of(event)) >= count else None, f"{event}: {self.events()}")
        assert found is not None
        assert len(found) == count
        return found

    def of(self, event: str) -> list[dict[str, Any]]:
        return [payload for _, _, heard, payload in list(self.heard) if heard == event]

    def events(self) -> list[str]:
        return [event for _, _, event, _ in list(self.heard)]

    def stop(self) -> None:
        self._server.stop()
        self._server.wait()


def switched_on(url: str, topic: str, driver: str = "messagingv2") -> config.Conf:
    conf = config.new()
    messaging.TransportURL(conf)
    conf([], project="migrator", default_config_files=[])
    messaging.get_notification_transport(conf, url="fake://")  # registers the options
    for name, value in {"driver": [driver], "transport_url": url, "topics": [topic]}.items():
        conf.set_override(name, value, "oslo_messaging_notifications")
    return conf


@contextlib.contextmanager
def telling(conf: config.Conf, publisher: str = "volume.hosta@file1") -> Iterator[Notifications]:
    made = Notifications(conf, publisher)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=["memory", "rabbitmq"])
def bus(request: pytest.FixtureRequest) -> str:
    return "fake://" if request.param == "memory" else str(request.getfixturevalue("broker"))


@pytest.fixture
def heard(bus: str) -> Iterator[tuple[config.Conf, Listener]]:
    topic = f"told-{uuid.uuid4().hex[:8]}"
    conf = switched_on(bus, topic)
    listener = Listener(conf, topic)
    yield conf, listener
    listener.stop()


class Backend:
    """A volume service's endpoint on a backend in memory."""

    def __init__(self, db: Database, news: Notifications = OFF) -> None:
        self.driver = MemoryDriver("hosta@file1", options(memory_pools=["pool1"]))
        self.driver.start()
        self.manager = VolumeManager(config.new(), db, self.driver, lambda _: None, lambda: None, None, news)
        self.db = db

    def create(self, **values: Any) -> str:
        volume_id = rows.add_volume(self.db, status="creating", **values)
        self.manager.create_volume(service_context(), volume_id=volume_id)
        return volume_id

    def set(self, volume_id: str, **values: Any) -> None:
        self.db.run(lambda s: s.execute(sa.update(Volume).where(Volume.id == volume_id).values(**values)))

    def snapshot(self, volume_id: str, **more: Any) -> str:
        snapshot_id = str(uuid.uuid4())
        row = {"id": snapshot_id, "volume_id": volume_id, "project_id": "p", "user_id": "u", "status": "creating"}
        values = {**row, "volume_size": 1, "meta": {}, "created_at": utcnow(), **more}
        self.db.run(lambda s: s.execute(sa.insert(Snapshot).values(**values)))
        self.manager.create_snapshot(service_context(), snapshot_id=snapshot_id)
        return snapshot_id

    def set_snapshot(self, snapshot_id: str, **values: Any) -> None:
        self.db.run(lambda s: s.execute(sa.update(Snapshot).where(Snapshot.id == snapshot_id).values(**values)))


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    memory.reset()


# --- what is told ----------------------------------------------------------------------------------------------------


def test_a_volume_is_told_of_from_its_creation_to_its_end(db: Database, heard: tuple[config.Conf, Listener]) -> None:
    conf, listener = heard
    with telling(conf) as news:
        backend = Backend(db, news)
        volume_id = backend.create(display_name="v")
        backend.set(volume_id, status="extending", wanted_size=2)
        backend.manager.extend_volume(service_context(), volume_id=volume_id)
        snapshot_id = backend.snapshot(volume_id)
        backend.set(volume_id, status="deleting")
        backend.manager.delete_volume(service_context(), volume_id=volume_id)
        listener.wait("volume.delete.end")
    assert sorted(listener.events()) == sorted(
        f"{what}.{when}"
        for what in ("volume.create", "volume.resize", "snapshot.create", "snapshot.delete", "volume.delete")
        for when in ("start", "end")
    )
    assert {(level, publisher) for level, publisher, _, _ in listener.heard} == {("INFO", "volume.hosta@file1")}
    (start,), (end,) = listener.of("volume.create.start"), listener.of("volume.create.end")
    assert (start["volume_id"], start["tenant_id"], start["user_id"], start["size"]) == (volume_id, "p", "u", 1)
    assert (start["host"], start["display_name"], start["volume_type"]) == (rows.SOURCE, "v", None)
    assert (start["status"], end["status"]) == ("creating", "available")
    assert start["created_at"].startswith("20")
    (resized,) = listener.of("volume.resize.end")
    assert (resized["size"], resized["status"]) == (2, "available")
    assert listener.of("snapshot.create.end")[0]["snapshot_id"] == snapshot_id


def test_what_is_taken_over_and_given_up_is_told_of(db: Database, heard: tuple[config.Conf, Listener]) -> None:
    """With the id of the request that it follows from."""
    conf, listener = heard
    RequestContext(request_id="req-x", overwrite=True)
    with telling(conf) as news:
        backend = Backend(db, news)
        backend.driver.lay("pool1", "stray", b"content")
        backend.driver.lay("pool1", "old", b"content")
        volume_id = rows.add_volume(db, status="managing", adoption={"source-name": "stray"})
        backend.manager.manage_volume(service_context(), volume_id=volume_id)
        snapshot_id = backend.snapshot(volume_id, status="managing", adoption={"source-name": "old"})
        backend.manager.manage_snapshot(service_context(), snapshot_id=snapshot_id)
        backend.set_snapshot(snapshot_id, status="unmanaging")
        backend.manager.unmanage_snapshot(service_context(), snapshot_id=snapshot_id)
        backend.set(volume_id, status="unmanaging")
        backend.manager.unmanage_volume(service_context(), volume_id=volume_id)
        listener.wait("volume.unmanage.end")
    assert sorted(listener.events()) == sorted(
        f"{what}.{when}.{how}"
        for what in ("volume", "snapshot")
        for when in ("manage_existing", "unmanage")
        for how in ("start", "end")
    )
    assert listener.requests == {"req-x"}
    assert listener.of("volume.manage_existing.end")[0]["status"] == "available"
    assert listener.of("snapshot.manage_existing.end")[0]["volume_size"] == 1


def test_a_failure_is_an_error_and_never_an_end(db: Database, heard: tuple[config.Conf, Listener]) -> None:
    conf, listener = heard
    with telling(conf) as news:
        backend = Backend(db, news)
        backend.driver.faults.order("create", Fault.error(errors.NoSpace(where="pool1", reason="needs 1 GiB, 0 free")))
        volume_id = backend.create()
        (payload,) = listener.wait("volume.create.error")
    assert rows.volume(db, volume_id).status == payload["status"] == "error"
    assert payload["error"]
    assert [(level, event) for level, _, event, _ in listener.heard if level == "ERROR"] == [
        ("ERROR", "volume.create.error")
    ]
    assert listener.of("volume.create.end") == []


def test_a_migration_is_told_of_with_its_volume_and_its_place(
    db: Database, heard: tuple[config.Conf, Listener]
) -> None:
    conf, listener = heard
    row = rows.add_migration(db, rows.add_volume(db))
    with telling(conf) as news:
        migration_news = MigrationNews(db, news)
        migration_news.began(row)
        migration_news.progress([row.id])
        for end in ("success", "error", "stuck", "cancelled"):
            row.end = end
            migration_news.ended(row)
        listener.wait("migrate.error", 3)
        (start,), (progress,), (end_,) = (listener.wait(f"migrate.{what}") for what in ("start", "progress", "end"))
    assert (start["volume_id"], start["migration_id"]) == (row.volume_id, row.id)
    assert (start["source_host"], start["destination_host"]) == (rows.SOURCE, rows.DESTINATION)
    assert (progress["step"], progress["bytes_total"], progress["bytes_done"]) == ("pick_destination", 1 << 30, 0)
    assert end_["tenant_id"] == "p"
    errors_ = [payload["migration_status"] for level, _, _, payload in listener.heard if level == "ERROR"]
    assert errors_ == ["error", "stuck"], "who cancels is not in error"


def test_a_migration_that_is_over_makes_no_progress(db: Database, heard: tuple[config.Conf, Listener]) -> None:
    conf, listener = heard
    with telling(conf) as news:
        MigrationNews(db, news).progress([str(uuid.uuid4())])
        news.send("last", {"a": 1})
        listener.wait("last")
    assert listener.events() == ["last"]


# --- end to end ------------------------------------------------------------------------------------------------------


def test_services_tell_of_a_migration_and_never_of_its_twin(tmp_path: Path) -> None:
    """field.md bug 43 (LP1922920): consumers counted a volume that only a migration knew."""
    topic = f"told-{uuid.uuid4().hex[:8]}"
    path = tmp_path / "all.conf"
    path.write_text(
        f"[DEFAULT]\nhost = node\nstate_path = {tmp_path}\ntransport_url = local://{topic}\n"
        f"notify_progress_seconds = 1\nmigration_sweep_interval = 1\n"
        f"[database]\nconnection = sqlite:///{tmp_path}/all.sqlite\n"
        f"[oslo_messaging_notifications]\ndriver = messagingv2\ntransport_url = fake://\ntopics = {topic}\n"
        f"[one]\nvolume_driver = file\nfile_pools = pool1:{tmp_path}/one\nvolume_copy_bps_limit = 1048576\n"
        f"[two]\nvolume_driver = file\nfile_pools = pool2:{tmp_path}/two\n"
    )
    conf = config.load("migrator-all", [], [str(path)])
    db = db_api.connect(conf)
    schema.sync(db.engine)
    listener = Listener(switched_on("fake://", topic), topic)
    running = [service.SchedulerService(conf), *(service.VolumeService(conf, name) for name in ("one", "two"))]
    for each in running:
        each.start()
    try:
        bus = rpc.transport(conf)
        scheduler = rpc.SchedulerClient(bus, conf)
        volume_id = rows.add_volume(db, status="creating", host="node@one#pool1")
        rpc.VolumeClient(bus, conf).create_volume(service_context(), "node@one#pool1", volume_id)
        listener.wait("volume.create.end")
        with open(tmp_path / "one" / f"volume-{volume_id}", "r+b") as file:
            file.write(b"\1" * (3 << 20))
        ends = {"source_host": "node@one#pool1", "verify": "none", "force_host_copy": True}
        row = rows.add_migration(db, volume_id, requested_host="node@two#pool2", **ends)
        scheduler.migrate(service_context(), row.id)
        (end,) = listener.wait("migrate.end")
        lost = rows.add_migration(db, volume_id, requested_host="node@two#nowhere", source_host="node@two#pool2")
        scheduler.migrate(service_context(), lost.id)
        (refused,) = listener.wait("migrate.error")
    finally:
        for each in running:
            each.stop()
        listener.stop()
        db.dispose()
    assert {payload["volume_id"] for *_, payload in listener.heard} == {volume_id}
    assert listener.events()[2] == "migrate.start"
    assert listener.events().count("migrate.start") == 1
    progress = listener.of("migrate.progress")
    assert progress, "the copy takes three seconds"
    assert {payload["migration_id"] for payload in progress} == {row.id}
    assert (end["host"], end["migration_status"], end["plan"]) == ("node@two#pool2", "success", "host_copy")
    assert refused["error_code"] == "NoValidBackend"
    publishers = {event: publisher for _, publisher, event, _ in listener.heard}
    assert (publishers["migrate.end"], publishers["migrate.error"]) == ("volume.node@one", "scheduler.node")


# --- a bus that is off, away or wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["", "noop"])
def test_off_no_thread_is_started_and_a_call_costs_next_to_nothing(driver: str) -> None:
    conf = switched_on("fake://", "told", driver)
    conf.set_override("driver", [driver] if driver else [], "oslo_messaging_notifications")
    before = set(threading.enumerate())
    news = Notifications(conf, "volume.a@b")
    assert not news.is_on
    assert set(threading.enumerate()) <= before
    volume = Volume()  # an attempt to make a payload of it would fail
    with news.around("volume.create", volume, {}, failed="error"):
        pass
    news.close()


def test_a_bus_that_is_away_delays_nothing_and_is_said_once(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    conf = switched_on("rabbit://guest:guest@127.0.0.1:1/", "told")
    with caplog.at_level(logging.WARNING, "migrator.notifications"):
        began = time.monotonic()
        news = Notifications(conf, "volume.hosta@file1")
        backend = Backend(db, news)
        volume_id = backend.create()
        for number in range(2 * MAX_WAITING):
            news.send("some.event", {"number": number})
        spent = time.monotonic() - began
        news.close()
        closed = time.monotonic() - began - spent
    assert rows.volume(db, volume_id).status == "available"
    assert spent < 5
    assert closed < 3
    dropped = [record for record in caplog.records if "dropped" in record.getMessage()]
    assert len(dropped) == 1


def test_a_payload_that_cannot_be_made_costs_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    topic = f"told-{uuid.uuid4().hex[:8]}"
    conf = switched_on("fake://", topic)
    listener = Listener(conf, topic)
    with caplog.at_level(logging.ERROR, "migrator.notifications"), telling(conf) as news:
        news.send("broken", lambda: {"never": 1 // 0})
        news.send("next", {})
        listener.wait("next")
    listener.stop()
    told = [record.getMessage() for record in caplog.records if record.name == "migrator.notifications"]
    assert told == ["Notification broken not sent"]


def test_a_bus_that_cannot_be_meant_is_a_mistake_of_configuration() -> None:
    with pytest.raises(errors.ConfigError, match="oslo_messaging_notifications"):
        Notifications(switched_on("pigeon://somewhere", "told"), "volume.a@b")
