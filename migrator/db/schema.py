"""The tables' version: alembic migrations from the first table on."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

#: The newest revision under alembic/versions; kept equal to it by a test.
HEAD = "0003"


def version(engine: Engine) -> str | None:
    """The revision that the tables are at, or None for an empty database."""
    if not sa.inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)


def sync(engine: Engine) -> None:
    """Bring the tables to HEAD; data stays, and nothing happens when they are."""
    if version(engine) == HEAD:
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "alembic"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
