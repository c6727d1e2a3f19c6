"""A volume in use moves while the volume services alone are killed: the API goes on answering the compute service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.deployment import SERVERS, Deployment, database
from tests.support.nova import Nova
from tests.support.nova_cloud import OPTIONS, Cloud, section
from tests.support.nova_guest import QemuGuest

PLACES = ("hosta@file1#pool1", "hostb@file2#pool2")


@pytest.fixture
def deployment(tmp_path: Path, broker: str) -> Iterator[tuple[Deployment, Cloud]]:
    require("postgresql", SERVERS["postgresql"])
    nova = Nova(QemuGuest)
    options = f"{OPTIONS}swap_begin_seconds = 60\nrpc_step_timeout_seconds = 2\n"
    with database("postgresql") as url:
        running = Deployment(tmp_path, url, options, broker, section(nova))
        nova.block_url = f"http://127.0.0.1:{running.port}"
        try:
            yield running, Cloud(running.rest(), nova, tmp_path / "backends", PLACES)
        finally:
            running.end()
            nova.end()


def test_the_volume_services_alone_are_killed_while_swaps_run(deployment: tuple[Deployment, Cloud]) -> None:
    """kill -9 before the end of one copy, and before the report of the other swap: both reports are taken.

    The old place's connection cannot be ended meanwhile: that is left to the migration, else Nova would not report.
    """
    running, cloud = deployment
    disks = {call: cloud.disk() for call in ("copy", "completion")}
    for call, disk in disks.items():
        reached, _ = cloud.plan(disk).hold(call)
        cloud.migrate(disk)
        assert reached.wait(60), call
    services = [running.processes[name] for name in ("hosta", "hostb")]
    for service in services:
        service.kill_all()
    for call, disk in disks.items():
        cloud.plan(disk).gates[call].set()
        assert cloud.plan(disk).over.wait(60), call
        disk.guest.writer.goes_on()
    reports = {volume for volume, call, status in cloud.nova.calls if (call, status) == ("completion", 200)}
    assert reports == {disk.volume for disk in disks.values()}
    for service in services:
        service.start()
        service.wait_ready()
    for call, disk in disks.items():
        assert cloud.rest.wait_migration(disk.volume)["status"] == "success", call
        cloud.moved(disk)
        cloud.nova.detach(disk)
        assert cloud.rest.volume(disk.volume)["status"] == "available"
