"""Separate processes on a real broker and a real database, two volume services as on two hosts."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from tests.support.processes import Process, free_port
from tests.support.rest import Rest

#: Where the tests find the services; each can be named by the environment variable.
BROKER = os.environ.get("MIGRATOR_TEST_BROKER", "rabbit://guest:guest@127.0.0.1:5672/")
SERVERS = {
    "mariadb": os.environ.get("MIGRATOR_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1/"),
    "postgresql": os.environ.get("MIGRATOR_TEST_POSTGRESQL", "postgresql+psycopg2://postgres@127.0.0.1/"),
}
_MAINTENANCE = {"mariadb": "mysql", "postgresql": "postgres"}


@contextlib.contextmanager
def database(kind: str) -> Iterator[str]:
    """A database of its own on the server; gives its URL and drops it at the end."""
    name = f"migrator_{uuid.uuid4().hex[:12]}"
    admin = sa.create_engine(SERVERS[kind] + _MAINTENANCE[kind], isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield SERVERS[kind] + name
    finally:
        force = " WITH (FORCE)" if kind == "postgresql" else ""
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")
        admin.dispose()


class Deployment:
    """migrator-api, migrator-scheduler and two migrator-volume, as an operator runs them."""

    def __init__(
        self, directory: Path, database_url: str, options: str = "", broker: str = BROKER, sections: str = ""
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self._common = (
            f"transport_url = {broker}\nauth_strategy = noauth\nosapi_volume_listen_port = {self.port}\n"
            f"state_path = {directory}/state\nreport_interval = 2\nmigration_sweep_interval = 1\n"
            f"{options}\n"
        )
        self._database = f"[database]\nconnection = {database_url}\n{sections}"
        manage = Process(
            "manage", ["--config-file", str(self._config("manage")), "db", "sync"], directory / "manage.log"
        )
        assert manage.popen is not None
        assert manage.popen.wait(60) == 0, manage.text()
        self.processes = {
            "api": Process("api", ["--config-file", str(self._config("api"))], directory / "api.log"),
            "scheduler": Process(
                "scheduler", ["--config-file", str(self._config("sched"))], directory / "scheduler.log"
            ),
            "hosta": self._volume("hosta", "file1", "pool1"),
            "hostb": self._volume("hostb", "file2", "pool2"),
        }
        for process in self.processes.values():
            process.wait_ready(seconds=60)

    def _config(self, name: str, extra: str = "", sections: str = "") -> Path:
        path = self.directory / f"{name}.conf"
        path.write_text(f"[DEFAULT]\n{self._common}{extra}\n{self._database}{sections}")
        return path

    def _volume(self, host: str, backend: str, pool: str) -> Process:
        section = (
            f"[{backend}]\nvolume_driver = file\nvolume_backend_name = {backend}\n"
            f"file_pools = {pool}:{self.pool(backend, pool)}\n"
        )
        config = self._config(host, f"host = {host}\nenabled_backends = {backend}\n", section)
        return Process("volume", ["--config-file", str(config)], self.directory / f"{host}.log")

    def pool(self, backend: str, pool: str) -> Path:
        return self.directory / "backends" / backend / pool

    def path(self, backend: str, pool: str, object_id: str) -> Path:
        """The file of a volume."""
        return self.pool(backend, pool) / f"volume-{object_id}"

    def rest(self, user: str = "admin", project: str = "p") -> Rest:
        return Rest(f"http://127.0.0.1:{self.port}", user, project)

    def end(self) -> None:
        for process in self.processes.values():
            process.end()
