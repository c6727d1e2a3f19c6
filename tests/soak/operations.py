"""What users do: one row of the table each.  An operation asks for one thing and notes in the model what that promises.

A request that is accepted must come true; one that is refused must change nothing; where no answer came, either may be.
To add one, write a function and a row.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.soak.model import Snapshot, User, Volume
from tests.soak.plants import Plant
from tests.support.audit import content
from tests.support.data import GIB, MIB
from tests.support.rest import Rest

#: So many volumes of one user, and so many GiB of one volume.
MOST_VOLUMES, MOST_GIB = 4, 3
#: Answers that say why not; 500 and whatever else is a violation.
REFUSALS = (400, 404, 409, 503)


class Violation(AssertionError):
    """Something that must not be."""


@dataclass(frozen=True)
class Bench:
    """What an operation works with."""

    plant: Plant
    rest: Rest
    user: User


Act = Callable[[Bench, Volume], str]
"""Does it and says what came of it."""


def ask(bench: Bench, method: str, path: str, body: Any = None) -> tuple[int | None, Any]:
    """Return status and answer; no status where the connection broke and nobody knows what came of it."""
    try:
        status, answer = bench.rest.request(method, path, body)
    except (OSError, http.client.HTTPException, ValueError):
        return None, None
    if status >= 300 and status not in REFUSALS:
        raise Violation(f"{method} {path} {body}: {status} {answer}")
    return status, answer


def word(status: int | None) -> str:
    return "not answered" if status is None else "accepted" if status < 300 else f"refused {status}"


def is_uncertain(status: int | None) -> bool:
    """Tell whether the request may have been done all the same: a database that went away says nothing certain."""
    return status in (None, 503)


# --- volumes ---------------------------------------------------------------------------------------------------------


def create(bench: Bench, volume: Volume) -> str:
    """Make another one; ``volume`` is of no interest."""
    new = Volume(bench.user.new_name())
    status, answer = ask(bench, "POST", "/volumes", {"volume": {"size": 1, "name": new.name}})
    if status is not None and status < 300:
        new.id = answer["volume"]["id"]
    elif not is_uncertain(status):
        return word(status)
    new.is_unknown = is_uncertain(status)
    bench.user.volumes.append(new)
    return word(status)


def delete(bench: Bench, volume: Volume) -> str:
    status, _ = ask(bench, "DELETE", f"/volumes/{volume.id}")
    if status is not None and status < 300:
        volume.is_gone = True
    volume.is_unknown = is_uncertain(status)
    return word(status)


def extend(bench: Bench, volume: Volume) -> str:
    size = volume.size + 1
    status, _ = ask(bench, "POST", f"/volumes/{volume.id}/action", {"os-extend": {"new_size": size}})
    if status is not None and status < 300:
        volume.size = size
    elif is_uncertain(status):
        volume.perhaps_size = size
    return word(status)


def write(bench: Bench, volume: Volume) -> str:
    """Write into the object as its only writer, while nothing is under way on the volume."""
    row = bench.plant.audit.volume(str(volume.id))
    resting = row["status"] == "available" and row["migration_status"] in (None, "success", "error")
    if not resting or volume.perhaps_size is not None or any(not each.id for each in volume.snapshots):
        return "not now"
    if bench.plant.audit.rows(_UNFINISHED, id=volume.id):
        return "not now"
    path = bench.plant.audit.path(str(volume.id))
    chance = bench.user.chance
    with path.open("r+b") as file:
        for _ in range(chance.choice((1, 3, 20))):
            length = chance.randrange(1, 4 * MIB)
            file.seek(chance.randrange(0, volume.size * GIB - length))
            file.write(chance.randbytes(length))
        file.flush()
        os.fsync(file.fileno())
    volume.data = content(path).partition(":")[2]
    return "written"


_UNFINISHED = "SELECT 1 FROM snapshots WHERE volume_id = :id AND deleted_at IS NULL AND status = 'creating'"


# --- snapshots -------------------------------------------------------------------------------------------------------


def create_snapshot(bench: Bench, volume: Volume) -> str:
    new = Snapshot(bench.user.new_name(), volume.content)
    body = {"snapshot": {"volume_id": volume.id, "name": new.name}}
    status, answer = ask(bench, "POST", "/snapshots", body)
    if status is not None and status < 300:
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
    if status is not None and status < 300:
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


def on_newest(order: str) -> Act:
    """Give an order to the volume's newest migration: POST /migrations/{id}/action."""

    def act(bench: Bench, volume: Volume) -> str:
        status, answer = ask(bench, "GET", f"/migrations?volume_id={volume.id}&limit=1")
        if status != 200:
            return word(status)
        if not answer["migrations"]:
            return "none there"
        path = f"/migrations/{answer['migrations'][0]['id']}/action"
        return word(ask(bench, "POST", path, {order: {}})[0])

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


OPERATIONS = (
    Operation("migrate", 40, migrate),
    Operation("cancel", 8, on_newest("cancel")),
    Operation("write", 30, write),
    Operation("create", 6, create, has_room),
    Operation("extend", 3, extend, may_grow),
    Operation("delete", 3, delete),
    Operation("create snapshot", 3, create_snapshot, is_unsnapped),
    Operation("delete snapshot", 10, delete_snapshot, is_snapped),
)
