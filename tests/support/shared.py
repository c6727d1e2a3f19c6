"""A deployment in which two volume services have one directory as their pool."""

from __future__ import annotations

from pathlib import Path

from tests.support.deployment import Deployment
from tests.support.processes import Process
from tests.support.rest import Rest
from tests.support.waiting import until

#: The shared pool by its owner's and by the other one's name, and the destination.
OWNERS, OTHERS, THERE = "hosta@file1#pool1", "hostc@file1#pool1", "hostb@file2#pool2"
#: Bytes per second at which volumes leave the shared pool.
RATE = 80 * 1024**2
OPTIONS = """
report_interval = 1
service_down_time = 2
migration_lease_seconds = 3
copy_checkpoint_seconds = 0.2
"""


class SharedStorage(Deployment):
    """hosta and hostc serve pool1 of file1 together; hostb serves pool2 of file2.

    ``cluster`` False: they are no cluster, but hostc is told that it has what hosta has.
    """

    def __init__(
        self, directory: Path, database_url: str, broker: str, options: str = "", *, cluster: bool = True
    ) -> None:
        self.database_url = database_url
        self._cluster = cluster
        super().__init__(directory, database_url, OPTIONS + options, broker)
        self.processes["hostc"] = self._volume("hostc", "file1", "pool1")
        self.processes["hostc"].wait_ready(seconds=60)

    def _volume(self, host: str, backend: str, pool: str) -> Process:
        section = (
            f"[{backend}]\nvolume_driver = file\nvolume_backend_name = {backend}\n"
            f"file_pools = {pool}:{self.pool(backend, pool)}\nvolume_copy_bps_limit = {RATE}\n"
        )
        general = f"host = {host}\nenabled_backends = {backend}\n"
        if self._cluster:
            general += "cluster = vault\n"
        elif host == "hostc":
            section += "shared_access = hosta@file1\n"
        config = self._config(host, general, section)
        return Process("volume", ["--config-file", str(config)], self.directory / f"{host}.log")

    def manage(self, *arguments: str) -> Process:
        """Start migrator-manage; its log is what it printed."""
        log = self.directory / f"manage-{len(list(self.directory.glob('manage-*.log')))}.log"
        return Process("manage", ["--config-file", str(self._config("manage")), *arguments], log)

    def create(self, rest: Rest, count: int) -> list[str]:
        """Volumes of 1 GiB on the shared pool, by its owner's name."""
        others = ("hostb@file2", "hostc@file1")
        for host in others:
            rest.ok("PUT", "/os-services/disable", {"host": host, "binary": "migrator-volume"})
        made = [rest.create(1) for _ in range(count)]
        assert {volume["os-vol-host-attr:host"] for volume in made} == {OWNERS}
        for host in others:
            rest.ok("PUT", "/os-services/enable", {"host": host, "binary": "migrator-volume"})
        return [volume["id"] for volume in made]

    def wait_down(self, rest: Rest, service: str) -> None:
        self._wait_state(rest, service, "down")

    def wait_up(self, rest: Rest, service: str) -> None:
        self._wait_state(rest, service, "up")

    @staticmethod
    def _wait_state(rest: Rest, service: str, state: str) -> None:
        def told() -> bool:
            found = rest.ok("GET", f"/os-services?host={service}")["services"]
            return [row["state"] for row in found] == [state]

        until(told, f"{service} is {state}", 20, pause=0.1)
