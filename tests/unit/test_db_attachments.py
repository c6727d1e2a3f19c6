"""Attachments and what they make of a volume's status: on SQLite, MariaDB and PostgreSQL."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import attachments, migrations, volumes
from migrator.db.api import Database
from migrator.db.models import Attachment, Migration, Volume
from tests.support import rows

SERVER = "5c1f2cf6-0000-4000-8000-000000000001"


def attach(db: Database, volume_id: str, status: str = "attached", **values: Any) -> str:
    row = {"id": str(uuid.uuid4()), "volume_id": volume_id, "instance_uuid": SERVER, "attach_status": status, **values}
    db.run(lambda session: attachments.insert(session, **row))
    return str(row["id"])


def detach(db: Database, attachment_id: str) -> None:
    db.run(lambda session: attachments.detach(session, attachments.get(session, attachment_id)))


def states(db: Database, volume_id: str) -> tuple[str, str]:
    volume = rows.volume(db, volume_id)
    return volume.status, volume.attach_status


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], ("available", "detached")),
        (["reserved"], ("reserved", "reserved")),
        (["reserved", "attaching"], ("attaching", "attaching")),
        (["attaching", "attached", "reserved"], ("in-use", "attached")),
        (["reserved", "detaching"], ("detaching", "detaching")),
        (["error_attaching"], ("available", "detached")),
    ],
)
def test_what_is_left_decides(db: Database, words: list[str], status: tuple[str, str]) -> None:
    volume_id = rows.add_volume(db, status="in-use", attach_status="attached")
    for word in words:
        attach(db, volume_id, word)
    detach(db, attach(db, volume_id, "attached"))
    assert states(db, volume_id) == status


@pytest.mark.parametrize("work", ["extending", "deleting", "retyping", "error", "maintenance"])
def test_work_on_the_volume_is_left_alone(db: Database, work: str) -> None:
    volume_id = rows.add_volume(db, status=work, attach_status="attached")
    one = attach(db, volume_id, "reserved")
    assert db.run(lambda session: attachments.connected(session, one, volume_id, "attached", mountpoint="/dev/vdb"))
    assert states(db, volume_id) == (work, "attached")
    detach(db, one)
    assert states(db, volume_id) == (work, "detached")
    assert not db.run(lambda session: attachments.connected(session, one, volume_id, "attached"))
    with pytest.raises(errors.NotFound):
        db.read(lambda session: attachments.get(session, one))


def test_the_whole_swap(any_db: Database) -> None:
    rows.add_services(any_db)
    volume_id = rows.add_volume(any_db, status="in-use", attach_status="attached")
    old = attach(any_db, volume_id)
    row = rows.add_migration(any_db, volume_id, plan="attached")
    twin_id = row.destination_volume_id
    rows.add_volume(any_db, id=twin_id, twin_of=volume_id, migration_id=row.id, host=rows.DESTINATION)

    def awaited() -> bool:
        return any_db.read(lambda session: attachments.awaits_compute(session, volumes.get(session, twin_id)))

    assert not awaited()
    set_row(any_db, row.id, step="swap_by_compute")
    assert awaited()
    new = attach(any_db, twin_id, "attaching", connection_info={"volume_id": twin_id, "lun": 1})
    assert any_db.run(lambda session: attachments.connected(session, new, twin_id, "attached"))
    detach(any_db, old)
    assert states(any_db, volume_id) == ("in-use", "attached")
    assert any_db.read(lambda session: attachments.of_volume(session, volume_id)) == []

    began = any_db.now()
    any_db.run(lambda session: attachments.move(session, twin_id, volume_id))
    assert (rows.volume(any_db, volume_id).writable_at or 0.0) >= began
    (moved,) = any_db.read(lambda session: attachments.of_volume(session, volume_id))
    assert (moved.id, moved.connection_info) == (new, {"volume_id": volume_id, "lun": 1})
    assert states(any_db, volume_id) == ("in-use", "attached")
    assert any_db.read(lambda session: session.get_one(Attachment, old)).deleted_at is not None
    set_row(any_db, row.id, cancel_requested=True)
    assert not awaited()
    any_db.run(lambda session: attachments.forget_detached(session, volume_id))
    assert states(any_db, volume_id) == ("in-use", "attached")


def test_a_cancel_leaves_no_ghost(db: Database) -> None:
    """The compute service let go of both, and the migration ends: the volume is nobody's."""
    rows.add_services(db)
    volume_id = rows.add_volume(db, status="in-use", attach_status="attached")
    old = attach(db, volume_id)
    row = rows.add_migration(db, volume_id, plan="attached")
    rows.add_volume(db, id=row.destination_volume_id, twin_of=volume_id, migration_id=row.id)
    new = attach(db, row.destination_volume_id)
    detach(db, old)
    detach(db, new)
    assert states(db, volume_id)[0] == "in-use"
    db.run(lambda session: attachments.forget_detached(session, volume_id))
    assert states(db, volume_id) == ("available", "detached")


def test_an_extended_volume_has_the_status_of_its_attachments(any_db: Database) -> None:
    used, free = (rows.add_volume(any_db, status="extending") for _ in range(2))
    attach(any_db, used)
    status = sa.case((volumes.has_attachments(), "in-use"), else_="available")
    for volume_id in (used, free):
        any_db.run(lambda s, v=volume_id: volumes.update_where(s, v, Volume.status == "extending", status=status))  # type: ignore[misc]
    assert (rows.volume(any_db, used).status, rows.volume(any_db, free).status) == ("in-use", "available")


def set_row(db: Database, migration_id: str, **values: Any) -> None:
    def work(session: Session) -> None:
        session.execute(sa.update(Migration).where(Migration.id == migration_id).values(**values))
        migrations.get(session, migration_id)

    db.run(work)
