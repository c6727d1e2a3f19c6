"""A PostgreSQL that is away, or holds the connection and says nothing: oslo.db's DBConnectionError, in bounded time."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from oslo_db import exception as db_exc

from migrator import conf as config
from migrator.db import api
from tests.conftest import require
from tests.support.deployment import SERVERS
from tests.support.processes import free_port
from tests.support.proxy import Proxy


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections, and nobody answers there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def connect(url: str) -> api.Database:
    conf = config.load("tests", [], [])
    conf.set_override("connection", url, "database")
    conf.set_override("max_retries", 0, "database")
    return api.connect(conf)


def test_a_login_that_is_not_answered_is_given_up(silent: int) -> None:
    with pytest.raises(db_exc.DBConnectionError, match="no answer in 1 s"):
        connect(f"postgresql+psycopg2://u@127.0.0.1:{silent}/d?connect_timeout=1")


def test_a_server_that_is_not_there_is_waited_for() -> None:
    """libpq's words since its release 14 are not those that oslo.db knows: API and services broke with 500 instead."""
    with pytest.raises(db_exc.DBConnectionError, match="refused"):
        connect(f"postgresql+psycopg2://u@127.0.0.1:{free_port()}/d")


def test_a_server_that_refuses_is_not_waited_for() -> None:
    """A wrong name stays wrong."""
    require("postgresql", SERVERS["postgresql"])
    with pytest.raises(db_exc.DBNonExistentDatabase):
        connect(SERVERS["postgresql"] + "migrator_that_is_not_there")


def test_a_statement_that_is_not_answered_is_given_up() -> None:
    """Its connection still stands for TCP, as behind a pooler that hangs: libpq's own options never notice."""
    require("postgresql", SERVERS["postgresql"])
    with Proxy(SERVERS["postgresql"] + "postgres") as proxy:
        database = connect(f"{proxy.url}?read_timeout=1&connect_timeout=1")
        with database.engine.connect() as connection:
            proxy.stall()
            with pytest.raises(db_exc.DBConnectionError, match="no answer in 1 s"):
                connection.execute(sa.text("SELECT 1"))
        proxy.up()
        assert database.now() > 0
        database.dispose()
