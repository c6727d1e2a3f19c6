"""Whole deployments; those that share the broker run one after another, whatever runs the tests."""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.deployment import BROKER, SERVERS, Deployment, database
from tests.support.processes import AllInOne


@contextlib.contextmanager
def broker_alone() -> Iterator[None]:
    """Wait until no other test uses the broker: deployments with equal host names would take each other's messages."""
    with (Path(tempfile.gettempdir()) / "migrator-tests-broker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(params=["mariadb", "postgresql"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    """Separate processes on RabbitMQ and each database in turn."""
    require("rabbitmq", BROKER)
    require(request.param, SERVERS[request.param])
    with broker_alone(), database(request.param) as url:
        running = Deployment(tmp_path, url, "copy_checkpoint_seconds = 0.2")
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
