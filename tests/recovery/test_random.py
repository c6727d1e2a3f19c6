"""Crashes, failures, cancels and lost leases at random instants, any number of them in one migration."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oslo_db import exception as db_exc

from migrator import errors
from migrator.drivers.faults import Died
from migrator.volume.states import End
from tests.recovery.instants import failure
from tests.recovery.test_ownership import is_the_runners, take_over
from tests.recovery.world import Plant, World

#: Instants of a host copy that goes well are about eighty; what lies behind the end never comes.
FARTHEST = 90


@dataclass(frozen=True)
class Blow:
    """What happens, that many instants after the blow before it."""

    kind: str
    after: int


BLOWS = st.builds(
    Blow,
    st.sampled_from(["crash", "power cut", "fail", "fail for good", "cancel", "lost lease"]),
    st.integers(0, FARTHEST),
)


def strike(world: World, blows: list[Blow]) -> None:
    """Lay the first blow; each one lays the next when it falls."""
    if not blows:
        return
    blow, rest = blows[0], blows[1:]

    def act() -> None:
        strike(world, rest)
        hit(world, blow.kind, trap.label)

    trap = world.instants.trap(None, act, after=blow.after, only=is_outside_transactions)


def is_outside_transactions(label: str) -> bool:
    """A takeover inside one would wait for its end; and what fails there is tried again by the database's own retry."""
    return label not in ("commit inside", "scheduler inside")


def hit(world: World, kind: str, label: str) -> None:
    if kind in ("crash", "power cut"):
        world.power_cut = kind == "power cut"
        world.die()
    if kind in ("fail", "fail for good"):
        raise failure(label, final=kind == "fail for good")
    if kind == "cancel":
        world.cancel()
    if kind == "lost lease" and is_the_runners(label):
        take_over(world)


def live(world: World) -> None:
    """Go on in new processes, and where one lives but the database failed it, once its lease is over."""
    for _ in range(20):
        try:
            world.go()
            return
        except Died:
            world.bury()
        except (db_exc.DBError, errors.LostOwnership):
            pass
        world.expire_lease()
    raise AssertionError(world.history())


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(st.sampled_from(["host_copy", "assisted"]), st.booleans(), st.lists(BLOWS, min_size=1, max_size=6))
def test_whatever_happens_the_volume_is_safe_and_the_migration_ends(
    plant: Plant, plan: str, assists: bool, blows: list[Blow]
) -> None:
    world = World(plant)
    plant.drivers[0].assists = assists  # type: ignore[attr-defined]
    world.ask(plan)
    strike(world, blows)
    live(world)
    world.instants.traps.clear()
    world.checker.ended(world.migration_id, *End, left=True)
    if world.row().end != End.STUCK:
        world.sweep_until_clean()
        world.checker.nothing_left()
