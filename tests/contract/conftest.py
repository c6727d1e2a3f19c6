"""Fixtures of the contract suite: each test runs once per driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.drivers import memory
from migrator.drivers.base import VolumeDriver
from tests.contract.worlds import WORLDS, World


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    memory.reset()
    world = WORLDS[request.param](tmp_path)
    yield world
    world.close()
    memory.reset()


@pytest.fixture
def driver(world: World) -> VolumeDriver:
    return world.driver()
