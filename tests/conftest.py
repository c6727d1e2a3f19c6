"""Fixtures that every test may ask for."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from oslo_service import backend as oslo_backend

from migrator import conf as config
from migrator.db import api, schema
from migrator.db.models import Base
from tests.support import deployment
from tests.support.needs import missing
from tests.support.vhost import own_broker

oslo_backend.init_backend(oslo_backend.BackendType.THREADING)
# How long an example takes says something of the machine alone.
settings.register_profile("migrator", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("migrator")


Kept = Callable[[str], str]


def require(name: str, url: str) -> None:
    """Skip with the reason where a service is missing; in CI a missing service is a failure."""
    where = urlsplit(url)
    try:
        socket.create_connection((where.hostname or "127.0.0.1", where.port or _PORTS[name]), timeout=5).close()
    except OSError as error:
        missing(f"{name} does not answer at {where.hostname}: {error}")


_PORTS = {"mariadb": 3306, "postgresql": 5432, "rabbitmq": 5672}


@pytest.fixture(scope="session")
def kept() -> Iterator[Kept]:
    """Gives the URL of an empty database of a kind: made once, since that takes seconds, and emptied each time."""
    urls: dict[str, str] = {}
    with contextlib.ExitStack() as stack:

        def url(kind: str) -> str:
            if kind in urls:
                _empty(urls[kind])
            else:
                require(kind, deployment.SERVERS[kind])
                urls[kind] = stack.enter_context(deployment.database(kind))
                for _ in _opened(urls[kind]):
                    pass
            return urls[kind]

        yield url


def _empty(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    engine.dispose()


def open_database(kind: str, directory: Path, kept: Kept) -> Iterator[api.Database]:
    """A synced database of that kind, for one test."""
    yield from _opened(f"sqlite:///{directory}/test.sqlite" if kind == "sqlite" else kept(kind))


def _opened(url: str) -> Iterator[api.Database]:
    conf = config.load("tests", [], [])
    conf.set_override("connection", url, "database")
    db = api.connect(conf)
    schema.sync(db.engine)
    yield db
    db.dispose()


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """The URL of a broker, or of a virtual host of it, that no other process that runs tests uses."""
    require("rabbitmq", deployment.BROKER)
    with own_broker() as url:
        yield url


@pytest.fixture
def db(tmp_path: Path) -> Iterator[api.Database]:
    """A fresh SQLite database."""
    yield from _opened(f"sqlite:///{tmp_path}/test.sqlite")


@pytest.fixture(params=["sqlite", "mariadb", "postgresql"])
def any_db(request: pytest.FixtureRequest, tmp_path: Path, kept: Kept) -> Iterator[api.Database]:
    """An empty database of each kind in turn."""
    yield from open_database(request.param, tmp_path, kept)
