"""When pools are reported: at a service's start, again and again, and when a scheduler that knows nothing asks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oslo_messaging.rpc import expose

from migrator import conf as config
from migrator import rpc, service
from migrator.context import RequestContext, service_context
from migrator.db import api as db_api
from migrator.db import schema
from tests.support.waiting import until

POOLS = {"node@one#a", "node@one#b", "node@two#c"}


class Ear:
    """A scheduler that only listens to reports."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    @expose
    def update_pools(self, context: RequestContext, report: dict[str, Any]) -> None:
        self.heard.append(report)

    def of(self, host: str) -> list[dict[str, Any]]:
        return [report for report in self.heard if report["host"] == host]


Start = Callable[[service.Service], None]


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[float], config.Conf]:
    """A configuration of two backends with three pools, on a bus and a database of its own, for a report interval."""

    def make(report_interval: float) -> config.Conf:
        path = tmp_path / "all.conf"
        path.write_text(
            f"[DEFAULT]\nhost = node\nstate_path = {tmp_path}\ntransport_url = local://{uuid.uuid4().hex}\n"
            f"report_interval = {report_interval}\nservice_down_time = 20000\n"
            f"[database]\nconnection = sqlite:///{tmp_path}/all.sqlite\n"
            f"[one]\nvolume_driver = file\nfile_pools = a:{tmp_path}/a,b:{tmp_path}/b\n"
            f"[two]\nvolume_driver = file\nfile_pools = c:{tmp_path}/c\n"
        )
        conf = config.load("migrator-all", [], [str(path)])
        db = db_api.connect(conf)
        schema.sync(db.engine)
        db.dispose()
        return conf

    return make


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts services, and ends them with the test."""
    running: list[service.Service] = []

    def begin(one: service.Service) -> None:
        running.append(one)
        one.start()

    yield begin
    for one in running:
        one.stop()


def test_a_scheduler_that_starts_last_asks_for_what_it_missed(
    configured: Callable[[float], config.Conf], start: Start
) -> None:
    """Reports come once in an hour here: without asking it would know no pool, and refuse every migration."""
    conf = configured(3600)
    for backend in ("one", "two"):
        start(service.VolumeService(conf, backend))
    start(service.SchedulerService(conf))
    client = rpc.SchedulerClient(rpc.transport(conf), conf)

    def names() -> set[str]:
        return {pool["name"] for pool in client.get_pools(service_context(), detail=False)}

    until(lambda: names() == POOLS, "the pools of both backends", 30)


def test_a_service_reports_all_its_pools_at_its_start_and_periodically(
    configured: Callable[[float], config.Conf], start: Start
) -> None:
    conf = configured(1)
    ear = Ear()
    server = rpc.server(rpc.transport(conf), rpc.SCHEDULER_TOPIC, "ear", [ear])
    server.start()
    try:
        start(service.VolumeService(conf, "one"))
        until(lambda: len(ear.of("node@one")) >= 3, "a report at the start and two more", 30)
    finally:
        server.stop()
    times = [report["reported_at"] for report in ear.of("node@one")]
    assert times == sorted(times)
    assert all({pool["pool"] for pool in report["pools"]} == {"a", "b"} for report in ear.heard)
