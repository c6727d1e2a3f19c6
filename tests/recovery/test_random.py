"""Crashes, failures, lost leases, orders and the owner's wishes at random instants, any number in one migration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oslo_db import exception as db_exc

from migrator import errors
from migrator.drivers.faults import Died
from migrator.volume.states import End
from tests.recovery import wishes
from tests.recovery.instants import failure
from tests.recovery.test_ownership import is_the_runners, take_over
from tests.recovery.world import Plant, World
from tests.support import rows

#: Instants of a host copy that goes well are about eighty; what lies behind the end never comes.
FARTHEST = 90


#: Orders and the owner's wishes, by name; whether they are accepted is for the machine to say.
ORDERS: dict[str, Callable[[World], object]] = {
    "cancel": World.cancel,
    "pause": wishes.pause,
    "resume": wishes.resume,
    "set_rate": lambda world: wishes.set_rate(world, 1 << 40),
    "retry": wishes.retry,
    "undo": wishes.undo,
    "attach": wishes.attach,
    "detach": wishes.detach,
    "write": wishes.write_if_attached,
    "sweep": lambda world: world.sweep(1),
}


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
#: What others want, and accidents among it.
WISHES = st.builds(
    Blow,
    st.sampled_from([*ORDERS, *ORDERS, "crash", "power cut", "fail", "fail for good", "lost lease"]),
    st.integers(0, FARTHEST // 2),
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
    if kind in ORDERS:
        ORDERS[kind](world)
    if kind == "lost lease" and is_the_runners(label):
        take_over(world)


def live(world: World) -> None:
    """Go on in new processes, and where one lives but the database failed it, once its lease is over."""
    for _ in range(20):
        try:
            world.go()
            if not world.row().paused:
                return
            wishes.resume(world)
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


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.sampled_from(["host_copy", "assisted"]),
    st.booleans(),
    st.lists(WISHES, min_size=1, max_size=8),
    st.lists(st.sampled_from(["retry", "undo", "attach", "write", "detach", "expire", "sweep"]), max_size=6),
)
def test_whatever_is_wanted_at_the_same_time_no_write_is_lost_and_the_migration_ends(
    plant: Plant, plan: str, keep: bool, blows: list[Blow], afterwards: list[str]
) -> None:
    world = World(plant)
    world.ask(plan, keep_source_seconds=3600 * keep, force_host_copy=plan == "host_copy")
    strike(world, blows)
    live(world)
    for wish in afterwards:
        if wish == "expire":
            world.expire_kept_source()
        else:
            ORDERS[wish](world)
        live(world)
    world.instants.traps.clear()
    status = rows.volume(world.db, world.volume_id).status
    world.checker.ended(world.migration_id, *End, left=True, status=status)
    world.expire_kept_source()
    if world.row().end != End.STUCK:
        world.sweep_until_clean()
        world.checker.nothing_left()
