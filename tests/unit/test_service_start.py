"""The garbage collector around the start of a service: off while everything is loaded, on for all that follows."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from migrator import conf as config
from migrator.service import Service


def test_a_program_that_will_serve_loads_without_the_collector() -> None:
    told = "import gc; from migrator.cmd import common; common.begin_service(); print(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_service_collects_from_its_start_on() -> None:
    """Also while it waits for a broker that does not answer, which may take hours."""

    class Waits(Service):
        def _open(self) -> None:
            assert gc.isenabled()
            raise KeyboardInterrupt

    gc.disable()
    try:
        with pytest.raises(KeyboardInterrupt):
            Waits(config.load("tests", [], [])).start()
    finally:
        gc.enable()
