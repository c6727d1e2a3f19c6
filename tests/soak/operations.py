"""What users do: one row of the table each.  An operation asks for one thing and notes in the model what that promises.

A request that is accepted must come true; one that is refused must change nothing; where no answer came, either may be.
To add one, write a function and a row.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.soak.asking import Act, Bench, ask, is_accepted, is_uncertain, word
from tests.soak.model import Snapshot, User, Volume
from tests.soak.owners import is_being_copied, scribble, write_attached
from tests.support.rest import Rest
from tests.support.waiting import until

#: So many volumes of one user, and so many GiB of one volume.
MOST_VOLUMES, MOST_GIB = 4, 3
#: Seconds for which a source is kept behind the switch: some are gone when the undo comes, some are not.
KEPT_SECONDS = (0, 2, 6)
#: Bytes per second of a copy; None: as fast as it goes.
RATES = (None, 10_000_000, 200_000_000)
#: What a user waits for the end of a migration that is to be undone.
PATIENCE_SECONDS = 5.0
#: Volume types by name, with what they ask of a backend; the first fits everywhere.
TYPES: dict[str, dict[str, str]] = {
    "soak-any": {},
    "soak-one": {"volume_backend_name": "file1"},
    "soak-two": {"volume_backend_name": "file2"},
}


# --- volumes ---------------------------------------------------------------------------------------------------------


def create(bench: Bench, volume: Volume) -> str:
    """Make another one; ``volume`` is of no interest."""
    return _create(bench, Volume(bench.user.new_name()))


def _create(bench: Bench, new: Volume, **origin: Any) -> str:
    status, answer = ask(bench, "POST", "/volumes", {"volume": {"size": new.size, "name": new.name, **origin}})
    if is_accepted(status):
        new.id = answer["volume"]["id"]
    elif not is_uncertain(status):
        return word(status)
    new.is_unknown = is_uncertain(status)
    bench.user.volumes.append(new)
    return word(status)


def clone(bench: Bench, volume: Volume) -> str:
    """Make a volume of a volume: it holds what that held."""
    if volume.perhaps_size is not None:
        return "not now"
    return _create(bench, Volume(bench.user.new_name(), volume.size, data=volume.data), source_volid=volume.id)


def create_from_snapshot(bench: Bench, volume: Volume) -> str:
    known = [each for each in volume.snapshots if each.id and not each.is_gone and not each.is_unknown]
    if not known:
        return "none there"
    snapshot = bench.user.chance.choice(known)
    data = snapshot.content.partition(":")[2]
    new = Volume(bench.user.new_name(), min(volume.size + bench.user.chance.randrange(2), MOST_GIB), data=data)
    return _create(bench, new, snapshot_id=snapshot.id)


def delete(bench: Bench, volume: Volume) -> str:
    status, _ = ask(bench, "DELETE", f"/volumes/{volume.id}")
    if is_accepted(status):
        volume.is_gone = True
    volume.is_unknown = is_uncertain(status)
    return word(status)


def extend(bench: Bench, volume: Volume) -> str:
    size = volume.size + 1
    status, _ = ask(bench, "POST", f"/volumes/{volume.id}/action", {"os-extend": {"new_size": size}})
    if is_accepted(status):
        volume.size = size
    elif is_uncertain(status):
        volume.perhaps_size = size
    return word(status)


def write(bench: Bench, volume: Volume) -> str:
    """Write into the object as its only writer, while nothing is under way on the volume."""
    row = bench.plant.audit.volume(str(volume.id))
    resting = row["status"] == "available" and row["migration_status"] in (None, "success", "error")
    if not resting or volume.perhaps_size is not None or volume.is_perhaps_attached:
        return "not now"
    if is_being_copied(bench, volume) or bench.plant.audit.rows(_KEPT, id=volume.id):
        return "not now"
    scribble(bench, volume, bench.plant.audit.path(str(volume.id)))
    return "written"


#: A source that an undo may put back: what is written past the service would be lost by it.
_KEPT = "SELECT 1 FROM volumes WHERE twin_of = :id AND deleted_at IS NULL"


# --- snapshots -------------------------------------------------------------------------------------------------------


def create_snapshot(bench: Bench, volume: Volume) -> str:
    new = Snapshot(bench.user.new_name(), volume.content)
    body = {"snapshot": {"volume_id": volume.id, "name": new.name}}
    status, answer = ask(bench, "POST", "/snapshots", body)
    if is_accepted(status):
        new.id = answer["snapshot"]["id"]
    elif not is_uncertain(status):
        return word(status)
    new.is_unknown = is_uncertain(status)
    volume.snapshots.append(new)
    return word(status)


def delete_snapshot(bench: Bench, volume: Volume) -> str:
    known = [each for each in volume.snapshots if each.id and not each.is_gone and not each.is_unknown]
    if not known:
        return "none there"
    snapshot = bench.user.chance.choice(known)
    status, _ = ask(bench, "DELETE", f"/snapshots/{snapshot.id}")
    if is_accepted(status):
        snapshot.is_gone = True
    snapshot.is_unknown = is_uncertain(status)
    return word(status)


# --- migrations ------------------------------------------------------------------------------------------------------


def migrate(bench: Bench, volume: Volume) -> str:
    """Ask for a move, now and then to the place where it is: that must be refused."""
    chance = bench.user.chance
    here = bench.plant.audit.volume(str(volume.id))["host"]
    others = [host for host in bench.plant.hosts if host != here]
    host = chance.choice(others) if chance.random() < 0.9 else here or others[0]
    options = {"force_host_copy": chance.random() < 0.7, "lock_volume": chance.random() < 0.25}
    body = {"os-migrate_volume": {"host": host, **options}}
    return word(ask(bench, "POST", f"/volumes/{volume.id}/action", body)[0])


def migrate_keeping(bench: Bench, volume: Volume) -> str:
    """Ask for a copy by its own resource: with a rate, and a source that is kept for a while."""
    chance = bench.user.chance
    here = bench.plant.audit.volume(str(volume.id))["host"]
    host = chance.choice([*(host for host in bench.plant.hosts if host != here), None])
    options = {"keep_source_seconds": chance.choice(KEPT_SECONDS), "bytes_per_second": chance.choice(RATES)}
    wanted = {"volume_id": volume.id, "host": host, "force_host_copy": True, **options}
    return word(ask(bench, "POST", "/migrations", {"migration": wanted})[0])


def undo(bench: Bench, volume: Volume) -> str:
    """Move the volume, keep its source, and go back to that: it must hold what the volume holds."""
    if migrate_keeping(bench, volume) != word(202):
        return "not moved"
    over = time.monotonic() + PATIENCE_SECONDS
    with contextlib.suppress(AssertionError):
        until(lambda: bench.plant.audit.newest(str(volume.id))["end"] or time.monotonic() > over, "it ended", 30)
    return on_newest("undo")(bench, volume)


def retype(bench: Bench, volume: Volume) -> str:
    """Ask for a type, and for a move where the volume's backend does not do for it."""
    wanted = {"new_type": bench.user.chance.choice(["soak-any", *TYPES]), "migration_policy": "on-demand"}
    return word(ask(bench, "POST", f"/volumes/{volume.id}/action", {"os-retype": wanted})[0])


def make_types(rest: Rest) -> None:
    """Make the volume types that are not there yet."""
    there = {each["name"] for each in rest.ok("GET", "/types")["volume_types"]}
    for name in set(TYPES) - there:
        rest.ok("POST", "/types", {"volume_type": {"name": name, "extra_specs": TYPES[name]}})


def on_newest(order: str, values: Callable[[User], dict[str, Any]] = lambda user: {}) -> Act:
    """Give an order to the volume's newest migration: POST /migrations/{id}/action."""

    def act(bench: Bench, volume: Volume) -> str:
        status, answer = ask(bench, "GET", f"/migrations?volume_id={volume.id}&limit=1")
        if status != 200:
            return word(status)
        if not answer["migrations"]:
            return "none there"
        path = f"/migrations/{answer['migrations'][0]['id']}/action"
        return word(ask(bench, "POST", path, {order: values(bench.user)})[0])

    return act


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """One thing that users do, so often beside the others; ``fits`` says whether it makes sense for a volume."""

    name: str
    weight: int
    act: Act
    fits: Callable[[User, Volume], bool] = lambda user, volume: True


def has_room(user: User, volume: Volume) -> bool:
    return len(user.volumes) < MOST_VOLUMES


def may_grow(user: User, volume: Volume) -> bool:
    return volume.size < MOST_GIB and volume.perhaps_size is None


def is_unsnapped(user: User, volume: Volume) -> bool:
    return not volume.snapshots


def is_snapped(user: User, volume: Volume) -> bool:
    return bool(volume.snapshots)


def has_room_and_snapshot(user: User, volume: Volume) -> bool:
    return has_room(user, volume) and is_snapped(user, volume)


def a_rate(user: User) -> dict[str, Any]:
    return {"bytes_per_second": user.chance.choice(RATES)}


OPERATIONS = (
    Operation("migrate", 40, migrate),
    Operation("migrate and keep", 15, migrate_keeping),
    Operation("retype", 8, retype),
    Operation("cancel", 8, on_newest("cancel")),
    Operation("pause", 8, on_newest("pause")),
    Operation("resume", 8, on_newest("resume")),
    Operation("retry", 8, on_newest("retry")),
    Operation("set rate", 5, on_newest("set_rate", a_rate)),
    Operation("undo", 10, undo),
    Operation("write", 25, write),
    Operation("write attached", 12, write_attached),
    Operation("create", 6, create, has_room),
    Operation("create from volume", 3, clone, has_room),
    Operation("create from snapshot", 6, create_from_snapshot, has_room_and_snapshot),
    Operation("extend", 3, extend, may_grow),
    Operation("delete", 4, delete),
    Operation("create snapshot", 4, create_snapshot, is_unsnapped),
    Operation("delete snapshot", 10, delete_snapshot, is_snapped),
)
