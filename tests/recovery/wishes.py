"""What others may want of a world at any instant: orders to its migration, and the wishes of the volume's owner.

Each is written as the API writes it, in one transaction, and tells whether it was accepted.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from migrator.db import migrations, orders, volumes
from migrator.db.api import now_seconds
from migrator.db.models import Volume
from migrator.db.orders import Order
from migrator.drivers.memory import MemoryDriver
from migrator.volume.states import End
from tests.recovery.checks import Wanted
from tests.recovery.world import World
from tests.support import rows

#: Where the owner writes: inside the volume's first data, and behind its end.
OFFSET = 3000


def pause(world: World) -> bool:
    return world.db.run(lambda session: orders.pause(session, world.migration_id))


def resume(world: World) -> bool:
    return world.db.run(lambda session: orders.resume(session, world.migration_id))


def set_rate(world: World, bytes_per_second: int | None) -> bool:
    return world.db.run(lambda session: orders.set_rate(session, world.migration_id, bytes_per_second))


def retry(world: World) -> bool:
    """Begin anew what was taken back; try to take back what is stuck."""

    def work(session: Session) -> bool:
        row = migrations.get(session, world.migration_id)
        if not orders.may(Order.RETRY, row):
            return False
        if row.end == End.STUCK:
            return orders.take_back_again(session, row)
        volume = volumes.get(session, row.volume_id)
        return orders.begin_again(session, row, volume, Volume.status == "available")

    return world.db.run(work)


def undo(world: World) -> str | None:
    """Put the volume back on its kept source; return what stands against that."""

    def work(session: Session) -> str | None:
        row = migrations.get(session, world.migration_id)
        if not orders.may(Order.UNDO, row):
            return orders.refusal(row, Order.UNDO)
        volume, twin = (volumes.find(session, found) for found in (row.volume_id, row.destination_volume_id))
        reason = orders.obstacle_to_undo(session, row, volume, twin)
        if reason is None and volume is not None and twin is not None:
            orders.undo(session, row, volume, twin)
        return reason

    return world.db.run(work)


# --- the owner -------------------------------------------------------------------------------------------------------


def take(world: World, **values: Any) -> bool:
    """Change the volume for its owner, whose wishes win over a migration before the line."""

    def work(session: Session) -> bool:
        volume = volumes.get(session, world.volume_id)
        moving = volume.migration_status not in (None, *volumes.AT_REST)
        if volume.status != "available":
            return False
        if moving and not migrations.request_cancel(session, str(volume.migration_id)):
            return False
        return volumes.update_where(session, volume.id, Volume.status == volume.status, **values)

    return world.db.run(work)


def attach(world: World) -> bool:
    """Attach the volume to a server, which writes to it at once."""
    if not take(world, status="in-use", attach_status="attached", writable_at=now_seconds()):
        return False
    write(world)
    return True


def detach(world: World) -> None:
    changes = {"status": "available", "attach_status": "detached"}
    world.db.run(lambda session: volumes.update_where(session, world.volume_id, Volume.status == "in-use", **changes))


def write_if_attached(world: World) -> None:
    """Write once more, if a server uses the volume."""
    if rows.volume(world.db, world.volume_id).status == "in-use":
        write(world)


def write(world: World) -> None:
    """Write to the volume where it lives now; it must never be without these bytes from here on."""
    volume = rows.volume(world.db, world.volume_id)
    driver = world.plant.driver(str(volume.host))
    assert isinstance(driver, MemoryDriver)
    world.written += 1
    data = world.written.to_bytes(2, "big") * 700
    content = driver._get("pool1", f"volume-{volume.object_id}").content
    content.write(OFFSET, data)
    content.flush()
    world.wanted.write(OFFSET, data)
    world.checker.wanted[world.volume_id] = Wanted(world.wanted)
