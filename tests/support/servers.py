"""A broker and a database of a test's own: real ones, which it may kill and start again, data and all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.needs import missing
from tests.support.processes import die_with_the_tests, free_port
from tests.support.waiting import until

#: A server of its kind is up within this, seconds, on a machine that is busy.
START_SECONDS = 90
#: Debian's own script on the path changes the user; this one runs as who calls it.
_RABBIT = "/usr/lib/rabbitmq/bin/rabbitmq-server"


class Server:
    """One server process; its port and its data are the same behind each start."""

    def __init__(self, command: list[str], port: int, log: Path, environment: dict[str, str] | None = None) -> None:
        self.port = port
        self._command = command
        self._log = log
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it takes connections."""
        with self._log.open("ab") as log:
            self._process = process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
                preexec_fn=die_with_the_tests,
            )

        def answers() -> bool:
            assert process.poll() is None, f"it ended: {self._log.read_text(errors='replace')[-2000:]}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
            return False

        until(answers, f"{self._command[0]} takes connections", START_SECONDS, pause=0.05)

    def kill(self) -> None:
        """Kill it as a power cut would, with all that it started."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def rabbitmq(directory: Path) -> Iterator[tuple[Server, str]]:
    """A broker with the usual guest; gives it and its URL."""
    if not Path(_RABBIT).exists():
        missing(f"{_RABBIT} is not there")
    directory.mkdir()
    (directory / "plugins").write_text("[].")
    port = free_port()
    environment = {
        "HOME": str(directory),
        "RABBITMQ_NODENAME": f"migrator-test-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(directory / "none.conf"),
    }
    server = Server([_RABBIT], port, directory / "out.log", environment)
    yield from _run(server, f"rabbit://guest:guest@127.0.0.1:{port}/", directory / "data")


@contextlib.contextmanager
def mariadb(directory: Path) -> Iterator[tuple[Server, str]]:
    """A server with an empty database; gives it and the database's URL."""
    install, daemon = (shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in _MARIADB)
    if install is None or daemon is None:
        missing(f"{' or '.join(_MARIADB)} is not there")
    directory.mkdir()
    data, user = directory / "data", ["--user=root"] if os.geteuid() == 0 else []
    make = [str(install), "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal", *user]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    port = free_port()
    options = [f"--datadir={data}", f"--socket={directory}/s", "--bind-address=127.0.0.1", f"--port={port}", *user]
    command = [str(daemon), "--no-defaults", *options, "--innodb-buffer-pool-size=32M", "--skip-name-resolve"]
    # Every installation has this database, and nobody's tables are in it.
    yield from _run(Server(command, port, directory / "out.log"), f"mysql+pymysql://root@127.0.0.1:{port}/test", data)


_MARIADB = ("mariadb-install-db", "mariadbd")


def _run(server: Server, url: str, data: Path) -> Iterator[tuple[Server, str]]:
    try:
        server.start()
        yield server, url
    finally:
        server.kill()
        shutil.rmtree(data, ignore_errors=True)  # more than a hundred MiB that tell nothing
