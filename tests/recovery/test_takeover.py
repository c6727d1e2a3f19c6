"""A copier of another machine may still write: who takes over shuts it out, knows that it is gone, or waits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors, machine
from migrator.db import fences, history, migrations, services
from migrator.db.api import Database
from migrator.db.migrations import RETRY_CEILING
from migrator.db.models import Migration, Service
from migrator.drivers.faults import Died
from migrator.volume.states import End
from tests.recovery.world import Plant, World
from tests.support import rows

#: A boot of no machine that there is.
ANOTHER_BOOT = "11111111-2222-4333-8444-555555555555"
FAR = {"machine": "f" * 32, "boot_id": ANOTHER_BOOT, "host": "far", "pid": 4711, "started": 7}
WAITING = ("copy_data", "interrupted")


def strand(world: World, worker: dict[str, Any] = FAR, *, cancelled: bool = False) -> Migration:
    """Let the runner die in the middle of a copy, as if a copier of that name were writing; return the row."""
    world.ask("host_copy")
    world.on("copy_data forward inside", world.die)
    with pytest.raises(Died):
        world.go()
    if cancelled:
        world.cancel()
    world.bury()
    world.expire_lease()
    world.set_row(worker=worker)
    return world.row()


def look(world: World, times: int = 1) -> None:
    """Let the runner look for work so many times, each when it is due."""
    for _ in range(times):
        world.set_row(not_before=0.0)
        world.runner.sweep()


def waited(world: World) -> list[Any]:
    """Attempts that ended because of the other machine."""
    steps = world.db.read(lambda session: history.steps(session, world.migration_id))
    return [step for step in steps if (step.step, step.result) == WAITING]


def is_at_the_destination(world: World) -> bool:
    return world.plant.drivers[1].exists("pool1", world.destination_name)


def declare(world: World) -> bool:
    return world.db.run(lambda session: fences.declare_dead(session, world.row(), "it was declared off"))


# --- another machine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancelled", [False, True], ids=["going on", "going back"])
def test_nothing_goes_on_while_another_machine_may_write(file_plant: Plant, cancelled: bool) -> None:
    """Neither a second copy, nor a rollback that gives up a place which is still written to; and no attempt is used."""
    world = World(file_plant)
    strand(world, cancelled=cancelled)
    look(world, times=world.allowed + 5)
    row = world.row()
    assert (row.end, row.step, row.owner, row.worker) == (None, "copy_data", None, FAR)
    assert row.attempts <= world.allowed
    assert is_at_the_destination(world)
    (step,) = waited(world)
    assert "Process 4711 on far may still write" in step.message
    assert f"migrator-manage migration fence {row.id} --i-know-the-machine-is-off" in step.message
    assert row.not_before > world.db.now(), "it does not look without a pause"

    assert declare(world)
    look(world)
    world.ended(End.CANCELLED if cancelled else End.SUCCESS)
    assert "fenced" in [result for _, _, result in world.history()]


def test_the_longer_it_waits_the_rarer_it_looks_and_the_history_keeps_the_beginning(file_plant: Plant) -> None:
    world = World(file_plant)
    strand(world)
    look(world)
    (first,) = waited(world)
    early = first.started_at.replace(year=first.started_at.year - 1)
    world.db.run(lambda s: s.execute(sa.update(type(first)).where(type(first).id == first.id).values(started_at=early)))
    look(world)
    (last,) = waited(world)
    assert last.started_at == early
    assert last.finished_at > first.finished_at
    assert RETRY_CEILING - 5 < world.row().not_before - world.db.now() <= RETRY_CEILING


def test_an_export_that_its_own_service_can_end_is_ended_and_the_copy_taken_over(plant: Plant) -> None:
    """Capability.FENCED_EXPORT: the other machine need not be asked."""
    world = World(plant)
    strand(world)
    look(world)
    world.ended(End.SUCCESS)
    assert waited(world) == []


def test_a_destination_that_does_not_answer_has_shut_out_nobody(plant: Plant) -> None:
    world = World(plant)
    strand(world)
    plant.conf.set_override("rpc_step_timeout_seconds", 1)
    world.runner = world.new_runner()
    plant.servers[plant.drivers[1].backend].stop()
    look(world)
    plant.serve(1)
    assert len(waited(world)) == 1
    world.runner = world.new_runner()
    look(world)
    world.ended(End.SUCCESS)


# --- this machine ----------------------------------------------------------------------------------------------------


def test_a_copier_of_an_earlier_boot_of_this_machine_is_gone(file_plant: Plant) -> None:
    if machine.machine_id() is None:
        pytest.skip("nothing names this machine across its boots")
    world = World(file_plant)
    strand(world, machine.identity(os.getpid()) | {"boot_id": ANOTHER_BOOT})
    look(world)
    world.ended(End.SUCCESS)
    assert waited(world) == []


def test_only_a_machine_that_is_known_for_certain_has_earlier_boots() -> None:
    ours = machine.identity(os.getpid())
    boot = machine.boot_id().partition(".")[0]
    assert not machine.ended_with_its_boot(ours), "it is this boot"
    assert not machine.ended_with_its_boot(ours | {"boot_id": f"{boot}.4026532299"}), "a container of this boot"
    assert not machine.ended_with_its_boot(ours | {"boot_id": ANOTHER_BOOT, "machine": "f" * 32}), "another machine"
    assert not machine.ended_with_its_boot(ours | {"boot_id": ANOTHER_BOOT, "machine": None}), "of unknown name"
    assert not machine.ended_with_its_boot({"machine": boot, "pid": 1, "started": 1}), "of an older version"


def test_a_machine_keeps_its_name_and_its_id_is_not_given_away() -> None:
    name = machine.machine_id()
    assert name == machine.machine_id()
    with open("/etc/machine-id", encoding="utf-8") as file:
        assert name != file.read().strip()


# --- the administrator's word ----------------------------------------------------------------------------------------


def test_a_machine_is_not_declared_off_under_a_runner_that_lives(file_plant: Plant) -> None:
    """Else the copier that works at this moment would be forgotten."""
    world = World(file_plant)
    strand(world)
    world.set_row(owner="somebody:1:1:x", lease_until=world.db.now() + 60)
    assert world.db.read(fences.unfenced) == []
    assert not declare(world)
    assert world.row().worker == FAR
    world.expire_lease()
    assert [row.id for row in world.db.read(fences.unfenced)] == [world.migration_id]
    assert declare(world)
    look(world)
    world.ended(End.SUCCESS)


def test_whoever_was_declared_off_and_wakes_up_can_record_nothing(file_plant: Plant) -> None:
    """Invariant 5: its generation is over, whether somebody has taken the row meanwhile or not."""
    world = World(file_plant)
    old = strand(world)
    assert declare(world)
    before = world.row()
    attempts: list[Callable[[Session], None]] = [
        lambda session: migrations.progress(session, old, [[0, 4096]], bytes_done=4096),
        lambda session: migrations.hold(session, old, worker=FAR),
        lambda session: migrations.release(session, old, "late"),
    ]
    for late in attempts:
        with pytest.raises(errors.LostOwnership):
            world.db.run(late)
    after = world.row()
    assert (after.generation, after.worker, after.bytes_done) == (before.generation, None, before.bytes_done)
    look(world)
    world.ended(End.SUCCESS)


# --- who stands in for whom ------------------------------------------------------------------------------------------


def silence(db: Database, *hosts: str) -> None:
    db.run(lambda s: s.execute(sa.update(Service).where(Service.host.in_(hosts)).values(heartbeat_at=1.0)))


def test_a_service_stands_in_for_those_of_its_cluster_and_those_it_was_told_of(any_db: Database) -> None:

    def beat(host: str, **values: Any) -> None:
        services.beat(any_db, host, services.VOLUME, "zone", **values)

    beat("a@shared", cluster="c")
    beat("b@shared", cluster="c")
    beat("b@own", cluster="c")
    beat("d@shared", cluster="other")
    beat("e@array", reaches=["a@shared"])
    beat("f@shared")
    services.beat(any_db, "b@shared", services.SCHEDULER, "zone", cluster="c")

    def stand_ins() -> list[str]:
        return sorted(any_db.read(lambda session: services.stand_ins(session, "a@shared", 60)))

    def away(host: str) -> list[str]:
        return sorted(any_db.read(lambda session: services.stands_in_for(session, host, 60)))

    assert stand_ins() == ["b@shared", "e@array"]
    assert away("b@shared") == []
    silence(any_db, "a@shared", "f@shared", "d@shared")
    assert away("b@shared") == ["a@shared"]
    assert away("e@array") == ["a@shared"]
    assert away("b@own") == away("nobody@here") == []
    silence(any_db, "b@shared")
    assert stand_ins() == ["e@array"]
    beat("e@array")
    assert stand_ins() == [], "it no longer says so"


def test_a_recorded_copier_is_named_by_all_that_it_takes_to_end_it(file_plant: Plant) -> None:
    """Machine, boot, process id and start; on this machine it is killed rather than waited for."""
    world = World(file_plant)
    world.ask("host_copy")
    recorded: list[dict[str, Any]] = []

    def note() -> None:
        recorded.append(rows.migration(world.db, world.migration_id).worker or {})
        world.die()

    world.on("copy_data forward inside", note)
    world.live()
    world.ended(End.SUCCESS)
    assert set(recorded[0]) == set(FAR)
    assert not machine.is_alive(recorded[0]["pid"], recorded[0]["started"])
