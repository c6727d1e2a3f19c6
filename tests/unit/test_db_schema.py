"""The tables come from alembic alone, and are what the models say: on every database."""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from migrator.db import schema
from migrator.db.api import Database
from migrator.db.models import Base


def test_the_migrations_make_what_the_models_say(any_db: Database) -> None:
    with any_db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_second_sync_changes_nothing(any_db: Database) -> None:
    schema.sync(any_db.engine)
    assert schema.version(any_db.engine) == schema.HEAD


def test_head_names_the_newest_revision() -> None:
    scripts = ScriptDirectory(str(Path(schema.__file__).parent / "alembic"))
    assert scripts.get_current_head() == schema.HEAD


def test_sqlite_flushes_every_commit(db: Database) -> None:
    """Invariant 1: a switch that was told to be done must be done, also after a power cut."""
    with db.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_the_clock_of_mariadb_knows_no_summer_time(any_db: Database) -> None:
    """Where the server's zone puts its clocks back, an hour of local time comes twice: no lease may be judged by it."""
    if any_db.engine.dialect.name not in ("mysql", "mariadb"):
        return
    with any_db.engine.connect() as connection:
        zone = connection.exec_driver_sql("SELECT @@session.time_zone").scalar()
        seconds = connection.exec_driver_sql("SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), SYSDATE())").scalar()
    assert (zone, seconds) == ("+00:00", 0)
