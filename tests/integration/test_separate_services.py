"""The main job with real processes, RabbitMQ and a real database: what an operator runs in production."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.support.data import GIB, MIB, allocated, digest, write_pattern
from tests.support.deployment import SERVERS, Deployment, database
from tests.support.rest import Rest
from tests.support.waiting import until

A, B = "hosta@file1#pool1", "hostb@file2#pool2"


@pytest.fixture(scope="module", params=["mariadb", "postgresql"])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, broker: str) -> Iterator[Any]:
    """Separate processes on RabbitMQ and each database in turn; every test leaves both pools empty."""
    require(request.param, SERVERS[request.param])
    with database(request.param) as url:
        running = Deployment(tmp_path_factory.mktemp("separate"), url, "copy_checkpoint_seconds = 0.2", broker)
        try:
            yield running
        finally:
            running.end()


def on_a(rest: Rest) -> dict[str, Any]:
    """A volume on hosta: of two empty pools the scheduler takes the first by name."""
    volume = rest.create(1, name="mine")
    assert volume["os-vol-host-attr:host"] == A
    return volume


def test_a_volume_moves_between_hosts_and_back_with_every_byte(deployment: Deployment) -> None:
    """field.md bugs 1 and 2 (LP1454835, LP1218054): a unit slip copied a part of the data."""
    rest = deployment.rest()
    volume = on_a(rest)
    before = deployment.path("file1", "pool1", volume["id"])
    write_pattern(before, GIB, seed=7, data_share=0.1)
    content, occupied = digest(before), allocated(before)

    there = rest.moved(volume["id"], B, force_host_copy=True)
    now = deployment.path("file2", "pool2", there["destination_volume_id"])
    assert digest(now) == content
    assert allocated(now) <= occupied + MIB, "thin stays thin"
    assert list(before.parent.glob("volume-*")) == []
    assert [step["step"] for step in there["steps"]] == [
        "pick_destination",
        "create_destination",
        "copy_data",
        "verify_copy",
        "disconnect",
        "switch_volume",
        "delete_source",
    ]
    assert there["checksum"]

    # Both pools lie on one file system here, so the way back needs no copy.
    back = rest.moved(volume["id"], A)
    assert back["plan"] == "assisted"
    home = deployment.path("file1", "pool1", back["destination_volume_id"])
    assert digest(home) == content
    assert list(now.parent.glob("volume-*")) == []
    rest.delete(volume["id"])
    assert list(home.parent.glob("volume-*")) == []


def test_a_copy_survives_kill_9_of_its_service_and_resumes_from_its_last_flushed_range(deployment: Deployment) -> None:
    """field.md pain 1, part 5, bug 38 (LP1278035): a killed service left the volume migrating for ever."""
    rest = deployment.rest()
    volume_id = on_a(rest)["id"]
    before = deployment.path("file1", "pool1", volume_id)
    write_pattern(before, GIB, seed=8, data_share=0.4)
    content = digest(before)
    wanted = {"volume_id": volume_id, "host": B, "force_host_copy": True, "bytes_per_second": 128 * MIB}
    rest.ok("POST", "/migrations", {"migration": wanted})

    def half_way() -> dict[str, Any] | None:
        migration = rest.migration_of(volume_id)
        assert migration["status"] in ("queued", "running"), migration
        return migration if migration["step"] == "copy_data" and migration["bytes_done"] > 256 * MIB else None

    until(half_way, "some of it is copied and flushed", 60, pause=0.005)
    deployment.processes["hosta"].kill_all()
    interrupted = rest.migration_of(volume_id)
    assert interrupted["step"] == "copy_data"
    deployment.processes["hosta"].start()
    deployment.processes["hosta"].wait_ready()

    ended = rest.wait_migration(volume_id)
    assert ended["status"] == "success", ended
    attempts = [step for step in ended["steps"] if step["step"] == "copy_data"]
    assert [step["result"] for step in attempts] == ["lost", "done"]
    assert attempts[1]["bytes"] < ended["bytes_allocated"], "the second attempt wrote only the rest"
    assert digest(deployment.path("file2", "pool2", ended["destination_volume_id"])) == content
    rest.delete(volume_id)


def test_the_destinations_service_may_die_and_come_back(deployment: Deployment) -> None:
    rest = deployment.rest()
    volume_id = on_a(rest)["id"]
    write_pattern(deployment.path("file1", "pool1", volume_id), GIB, seed=9, data_share=0.3)
    content = digest(deployment.path("file1", "pool1", volume_id))
    assert rest.migrate(volume_id, B, force_host_copy=True)[0] == 202
    until(lambda: rest.migration_of(volume_id)["step"] != "pick_destination", "it is under way")
    deployment.processes["hostb"].kill()
    deployment.processes["hostb"].start()
    deployment.processes["hostb"].wait_ready()
    ended = rest.wait_migration(volume_id)
    place = ("file2", "pool2", ended["destination_volume_id"]) if ended["status"] == "success" else None
    place = place or ("file1", "pool1", volume_id)
    assert ended["status"] in ("success", "error"), ended
    assert digest(deployment.path(*place)) == content
    until(lambda: len(objects(deployment)) == 1, "one object is left in all")
    rest.delete(volume_id)
    assert objects(deployment) == []


def objects(deployment: Deployment) -> list[Path]:
    """What lies in both pools."""
    pools = (deployment.pool("file1", "pool1"), deployment.pool("file2", "pool2"))
    return [path for pool in pools for path in pool.glob("volume-*")]


def test_every_service_ends_cleanly_on_sigterm(deployment: Deployment) -> None:
    """The last test: nothing runs behind it."""
    for name, process in deployment.processes.items():
        assert process.terminate(10) == 0, f"{name}:\n{process.text()}"
