"""Whole deployments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import AllInOne


@pytest.fixture
def all_in_one(tmp_path: Path) -> Iterator[AllInOne]:
    """migrator-all with its defaults."""
    running = AllInOne(tmp_path)
    try:
        yield running
    finally:
        running.process.end()
