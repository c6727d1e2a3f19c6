"""Rows for tests of the database: a service, a volume, a migration."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy.orm import Session

from migrator.db import migrations, services, volumes
from migrator.db.api import Database
from migrator.db.models import Migration, Volume

SOURCE = "hosta@file1#pool1"
DESTINATION = "hostb@file2#pool2"


def add_services(db: Database) -> None:
    """Both backends' services, up."""
    services.beat(db, "hosta@file1", services.VOLUME, "zone1")
    services.beat(db, "hostb@file2", services.VOLUME, "zone2")


def add_volume(db: Database, **values: Any) -> str:
    """An available volume of 1 GiB on SOURCE; returns its id."""
    volume_id = str(uuid.uuid4())
    row = {
        "id": volume_id,
        "project_id": "p",
        "user_id": "u",
        "host": SOURCE,
        "availability_zone": "zone1",
        "size": 1,
        "status": "available",
        "attach_status": "detached",
        "bootable": False,
        "multiattach": False,
        "readonly": False,
        **values,
    }
    db.run(lambda session: volumes.insert(session, **row))
    return str(row["id"])


def add_migration(db: Database, volume_id: str, **values: Any) -> Migration:
    """A migration just asked for; the volume must be at rest."""
    columns = {
        "user_id": "admin",
        "project_id": "p",
        "request_id": "req-1",
        "source_host": SOURCE,
        "requested_host": DESTINATION,
        "plan": "host_copy",
        "force_host_copy": False,
        "lock_volume": False,
        **values,
    }

    def work(session: Session) -> Migration:
        migration_id = migrations.start(session, volumes.get(session, volume_id), **columns)
        assert migration_id is not None
        return migrations.get(session, migration_id)

    return db.run(work)


def volume(db: Database, volume_id: str) -> Volume:
    """The row as it is now, dead or alive."""
    return db.read(lambda session: volumes.get(session, volume_id, deleted=True))


def migration(db: Database, migration_id: str) -> Migration:
    """The row as it is now."""
    return db.read(lambda session: migrations.get(session, migration_id))
