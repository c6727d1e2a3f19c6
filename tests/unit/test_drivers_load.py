"""Finding a driver by its name, with real entry points in an environment of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import migrator

ROOT = Path(migrator.__file__).parents[1]

LOAD = """
import sys
from migrator import drivers, errors
try:
    found = drivers.load(sys.argv[1])
    print(found.__module__, found.__name__)
except errors.ConfigError as error:
    print(error)
"""

PAPER = """
from migrator.drivers.memory import MemoryDriver
class PaperDriver(MemoryDriver): pass
def not_a_driver(): pass
"""

ENTRY_POINTS = """
[migrator.drivers]
paper = paper:PaperDriver
function = paper:not_a_driver
broken = paper_that_is_not_installed:Driver
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A directory with an installed package that brings drivers."""
    (tmp_path / "paper.py").write_text(PAPER)
    info = tmp_path / "paper-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paper\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return tmp_path


def load(name: str, packages: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{packages}:{ROOT}", "XDG_CACHE_HOME": str(packages / "cache")}
    argv = [sys.executable, "-c", LOAD, name]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_a_driver_of_another_package_is_found(packages: Path) -> None:
    assert load("paper", packages) == "paper PaperDriver"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "volume_driver: there is no driver 'nothing'; installed are "),
        ("function", "volume_driver: the entry point 'function' of migrator.drivers is not a driver"),
        ("broken", "volume_driver: the driver 'broken' needs something that is not installed"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(packages: Path, name: str, said: str) -> None:
    answer = load(name, packages)
    assert answer.startswith(said)
    assert "\n" not in answer


def test_the_drivers_that_exist_are_named(packages: Path) -> None:
    answer = load("nothing", packages)
    assert all(name in answer for name in ("paper", "function", "broken"))


def test_every_driver_that_setup_names_can_be_imported() -> None:
    from configparser import ConfigParser
    from importlib import import_module

    from migrator.drivers.base import VolumeDriver

    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["migrator.drivers"].split("\n")
    points = dict(line.split(" = ") for line in lines if line)
    assert set(points) >= {"file", "memory"}
    for point in points.values():
        module, _, name = point.partition(":")
        assert issubclass(getattr(import_module(module), name), VolumeDriver)
