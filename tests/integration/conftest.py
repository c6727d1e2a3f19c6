"""Whole deployments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.deployment import SERVERS, Deployment, database
from tests.support.processes import AllInOne


@pytest.fixture(params=["mariadb", "postgresql"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path, broker: str) -> Iterator[Deployment]:
    """Separate processes on RabbitMQ and each database in turn."""
    require(request.param, SERVERS[request.param])
    with database(request.param) as url:
        running = Deployment(tmp_path, url, "copy_checkpoint_seconds = 0.2", broker)
        try:
            yield running
        finally:
            running.end()


@pytest.fixture
def all_in_one(tmp_path: Path) -> Iterator[AllInOne]:
    """migrator-all with its defaults."""
    running = AllInOne(tmp_path)
    try:
        yield running
    finally:
        running.process.end()
