"""Real processes of migrator, started as an operator would and always stopped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.rest import Rest
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_the_tests() -> None:
    """Have the kernel kill this process when the tests are: a left-over service would answer for the next ones."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Process:
    """One program with its log; killed with its children when the test ends."""

    def __init__(self, program: str, arguments: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self._command = [sys.executable, "-m", f"migrator.cmd.{program}", *arguments]
        self.log = log
        self._env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **(env or {})}
        self.popen: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._from = log.tell()
            self.popen = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self._env,
                start_new_session=True,
                preexec_fn=die_with_the_tests,
            )

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def text(self) -> str:
        """What it logged since its last start."""
        with self.log.open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")

    def wait_ready(self, seconds: float = 90.0) -> None:
        """Wait for the one line that says so."""

        def ready() -> bool:
            assert self.popen is not None
            if self.popen.poll() is not None:
                raise AssertionError(f"{self._command} ended with {self.popen.returncode}:\n{self.text()}")
            return re.search(r"\bready\b", self.text()) is not None

        until(ready, f"{self._command} ready; log:\n{self.text()}", seconds)

    def kill(self) -> None:
        """SIGKILL to the process alone: its children must notice by themselves."""
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()

    def kill_all(self) -> None:
        """SIGKILL to the process and all its children at once."""
        assert self.popen is not None
        os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()

    def terminate(self, seconds: float = 10.0) -> int:
        """SIGTERM; return the exit code, which must come within ``seconds``."""
        assert self.popen is not None
        self.popen.terminate()
        return self.popen.wait(seconds)

    def end(self) -> None:
        """Leave nothing of it running."""
        assert self.popen is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()


class AllInOne:
    """migrator-all in a directory of its own."""

    def __init__(self, directory: Path, config: str = "", **options: Any) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = directory / "state"
        arguments = ["--state-dir", str(self.state), "--listen", f"127.0.0.1:{self.port}"]
        config_file = directory / "extra.conf"
        config_file.write_text(f"[DEFAULT]\nhost = node\n{config}")
        arguments += ["--config-file", str(config_file)]
        self.process = Process("all", arguments, directory / "all.log", **options)
        self.process.wait_ready()

    def rest(self, user: str = "admin", project: str = "p") -> Rest:
        return Rest(self.url, user, project)

    def path(self, backend: str, pool: str, object_id: str) -> Path:
        """The file that a volume with the default backends lies in."""
        return self.state / "backends" / backend / pool / f"volume-{object_id}"
