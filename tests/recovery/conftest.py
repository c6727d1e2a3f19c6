"""A plant per process that runs tests, and a clean world on it for each test."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recovery.world import Plant, World


@pytest.fixture(scope="package", autouse=True)
def little_garbage() -> Iterator[None]:
    """Collect garbage seldom: schedules make much of it, and what has been imported is looked through each time."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory in memory where there is one: schedules commit thousands of times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def plant(directory: Path) -> Iterator[Plant]:
    """Two backends of the memory driver."""
    running = Plant(directory)
    yield running
    running.end()


@pytest.fixture(scope="module")
def file_plant(directory: Path) -> Iterator[Plant]:
    """Two backends of the file driver, with a copier in a process of its own."""
    running = Plant(directory, "file")
    yield running
    running.end()


@pytest.fixture
def world(plant: Plant) -> World:
    return World(plant)
