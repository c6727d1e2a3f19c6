"""Deployments to be maltreated."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.bed import Bed, bed
from tests.support.deployment import SERVERS


@pytest.fixture
def running(tmp_path: Path, broker: str) -> Iterator[Bed]:
    """A deployment for one test, checked once more at its end."""
    require("mariadb", SERVERS["mariadb"])
    with bed(tmp_path, broker) as opened:
        yield opened
        opened.settle()


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, broker: str) -> Iterator[Bed]:
    """A deployment that lives as long as the tests of one file, since each of them leaves it at rest.

    On MariaDB, unless a test asks for another database by an indirect parameter.
    """
    kind = getattr(request, "param", "mariadb")
    require(kind, SERVERS[kind])
    with bed(tmp_path_factory.mktemp("shared"), broker, kind=kind) as opened:
        yield opened


@pytest.fixture
def chance() -> random.Random:
    """The dice of one test; MIGRATOR_FAULT_SEED throws the same again."""
    seed = int(os.environ.get("MIGRATOR_FAULT_SEED") or random.randrange(2**32))
    print(f"MIGRATOR_FAULT_SEED={seed}")
    return random.Random(seed)
