"""What the owner of a volume does through an attachment: take it, write to it where it is offered, let it go.

A volume that may be attached is marked in the model before it is asked for, and tidied up before a quiet point: nobody
else ends what a client left halfway.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from tests.soak.asking import Bench, ask, is_accepted, word
from tests.soak.model import Volume
from tests.support.audit import content
from tests.support.data import GIB, MIB

CONNECTOR = {"host": "compute1", "ip": "127.0.0.1", "initiator": "iqn.2026-01.test:one", "mountpoint": "/dev/vdb"}
#: What copies the volume as it was when it was asked for: it must have done so before anybody writes.
_COPIERS = (
    "SELECT 1 FROM snapshots WHERE volume_id = :id AND deleted_at IS NULL AND status = 'creating'",
    "SELECT 1 FROM volumes WHERE source_volid = :id AND deleted_at IS NULL AND status = 'creating'",
)
_PAUSED = "SELECT id FROM migrations WHERE volume_id = :id AND paused AND {end} IS NULL"


def is_being_copied(bench: Bench, volume: Volume) -> bool:
    """Tell whether a snapshot or another volume is made of this one, or may be."""
    if any(not each.id for each in volume.snapshots) or any(each.is_unknown for each in bench.user.volumes):
        return True
    return any(bench.plant.audit.rows(query, id=volume.id) for query in _COPIERS)


def scribble(bench: Bench, volume: Volume, path: Path) -> None:
    """Write here and there, durably, and note what the volume holds now."""
    chance = bench.user.chance
    with path.open("r+b") as file:
        for _ in range(chance.choice((1, 3, 20))):
            length = chance.randrange(1, 4 * MIB)
            file.seek(chance.randrange(0, volume.size * GIB - length))
            file.write(chance.randbytes(length))
        file.flush()
        os.fsync(file.fileno())
    volume.data = content(path).partition(":")[2]


def write_attached(bench: Bench, volume: Volume) -> str:
    """Attach, write where the service says that the volume is, and detach.  The owner's wish ends a migration."""
    if volume.perhaps_size is not None or is_being_copied(bench, volume):
        return "not now"
    if volume.is_perhaps_attached:
        return tidy_attachments(bench, volume)
    volume.is_perhaps_attached = True
    body = {"volume_uuid": volume.id, "instance_uuid": str(uuid.UUID(int=bench.user.chance.getrandbits(128)))}
    status, answer = ask(bench, "POST", "/attachments", {"attachment": {**body, "connector": None}})
    if not is_accepted(status):
        return word(status)
    made = answer["attachment"]["id"]
    status, answer = ask(bench, "PUT", f"/attachments/{made}", {"attachment": {"connector": CONNECTOR}})
    if not is_accepted(status):
        return f"connection {word(status)}"
    scribble(bench, volume, Path(answer["attachment"]["connection_info"]["device_path"]))
    ask(bench, "POST", f"/attachments/{made}/action", {"os-complete": None})
    return f"written, detach {tidy_attachments(bench, volume)}"


def tidy_attachments(bench: Bench, volume: Volume) -> str:
    """Let go of whatever the volume is attached by."""
    status, answer = ask(bench, "GET", f"/attachments?volume_id={volume.id}")
    if status != 200:
        return word(status)
    for each in answer["attachments"]:
        status, _ = ask(bench, "DELETE", f"/attachments/{each['id']}")
        if not is_accepted(status) and status != 404:
            return word(status)
    volume.is_perhaps_attached = False
    return word(200)


def tidy(bench: Bench, volume: Volume) -> bool:
    """Leave nothing that waits for its user: attachments, pauses.  False: to be tried again."""
    if volume.is_gone or volume.id is None:
        return True
    if volume.is_perhaps_attached:
        tidy_attachments(bench, volume)
    paused: list[dict[str, Any]] = bench.plant.audit.rows(_PAUSED, id=volume.id)
    for row in paused:
        ask(bench, "POST", f"/migrations/{row['id']}/action", {"resume": {}})
    return not paused and not volume.is_perhaps_attached
