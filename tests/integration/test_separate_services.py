"""The main job with real processes, RabbitMQ and a real database: what an operator runs in production."""

from __future__ import annotations

from typing import Any

from tests.support.data import GIB, MIB, allocated, digest, write_pattern
from tests.support.deployment import Deployment
from tests.support.rest import Rest
from tests.support.waiting import until

A, B = "hosta@file1#pool1", "hostb@file2#pool2"


def on_a(rest: Rest, size: int = 1) -> dict[str, Any]:
    """A volume on hosta: of two empty pools the scheduler takes the first by name."""
    volume = rest.create(size, name="mine")
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
    volume = on_a(rest, size=4)
    volume_id = volume["id"]
    before = deployment.path("file1", "pool1", volume_id)
    write_pattern(before, 4 * GIB, seed=8, data_share=0.25)
    content = digest(before)
    status, answer = rest.migrate(volume_id, B, force_host_copy=True)
    assert status == 202, answer

    def half_way() -> dict[str, Any] | None:
        migration = rest.migration_of(volume_id)
        assert migration["status"] in ("queued", "running"), migration
        return migration if migration["step"] == "copy_data" and migration["bytes_done"] > 512 * MIB else None

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


def test_every_service_ends_cleanly_on_sigterm(deployment: Deployment) -> None:
    for name, process in deployment.processes.items():
        assert process.terminate(10) == 0, f"{name}:\n{process.text()}"


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
    until(
        lambda: (
            sum(len(list(deployment.pool(b, p).glob("volume-*"))) for b, p in [("file1", "pool1"), ("file2", "pool2")])
            == 1
        ),
        "one object is left in all",
    )
