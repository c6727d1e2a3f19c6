"""Helpers for the file driver's own tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator.drivers.base import VolumeDriver
from migrator.drivers.directory import OBJECTS
from migrator.drivers.file import FileDriver
from tests.contract.worlds import new_name, options, write


def make(backend: str = "hosta@files", *, start: bool = True, **values: Any) -> FileDriver:
    """Return a driver; pools are given as ``pools={name: directory}``."""
    pools = {pool: str(path) for pool, path in values.pop("pools").items()}
    driver = FileDriver(backend, options(file_pools=pools, **values))
    if start:
        driver.start()
    return driver


def volume(driver: VolumeDriver, content: bytes, pool: str = "pool1") -> str:
    name = new_name()
    driver.create(pool, name, len(content))
    write(driver.export(pool, name, writable=True), 0, content)
    return name


def files(directory: Path) -> set[str]:
    """Names of what lies in a pool, the marks left out."""
    return set(os.listdir(directory)) - {OBJECTS}


def refused(error: type[Exception], said: str, *calls: Callable[[], object]) -> None:
    """Make each call and see it refused."""
    for call in calls:
        with pytest.raises(error, match=said):
            call()
