"""One migrator-all for the clients of each test file, and the clients' programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import AllInOne

A, B = "node@file1#pool1", "node@file2#pool2"


class Failed(AssertionError):
    """A program that ended with another code than 0; says what it told."""


@dataclass(frozen=True)
class Program:
    """A client's program as its package installs it, with an environment that says where and who."""

    name: str
    environment: dict[str, str]
    options: tuple[str, ...] = ()

    def __call__(self, *arguments: str) -> str:
        """Return what it prints; raises Failed."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
        command = [str(Path(sys.executable).with_name(self.name)), *self.options, *arguments]
        environment = {**clean, "PYTHONWARNINGS": "ignore", "COLUMNS": "400", **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise Failed(f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Do so with the program's own JSON."""
        return json.loads(self(*arguments, "-f", "json"))


def table(text: str) -> list[list[str]]:
    """Return the cells of a table in a terminal, the head first."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def properties(text: str) -> dict[str, str]:
    """Return a table of two columns as a dictionary."""
    return {row[0]: row[1] for row in table(text)[1:]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AllInOne]:
    """migrator-all with its defaults, which believes every caller."""
    running = AllInOne(tmp_path_factory.mktemp("all"))
    try:
        yield running
    finally:
        running.process.end()
