"""Migrations between two hosts that share nothing but a network: over NBD with TLS, by the real programs.

Each host is a set of namespaces with a migrator-volume of its own; the API, the scheduler, the broker and the database
are on this machine.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.support.data import GIB, MIB, allocated, digest
from tests.support.deployment import SERVERS, database
from tests.support.netns import Capture, Host, HostProcess, Network
from tests.support.processes import ROOT, Process, free_port
from tests.support.rest import Rest
from tests.support.waiting import until

A, B = "hosta@file1#pool1", "hostb@file2#pool2"
#: What is looked for on the wire: once in each block of the volume's data.
MARKER = secrets.token_bytes(24)
DATA = 64 * MIB
#: At which host a sends, bytes per second: so slowly that a copy can be met in the middle.
RATE = 24 * MIB

#: A volume service's processes: as they were started, and as they may call themselves later.
SERVICE = ("migrator.cmd.volume", "volume.py: ")

#: Run on the third host: says how each attempt to open an export ends.
_INTRUDER = """
import json, sys
from migrator.volume.job import open_endpoint
for access in json.load(sys.stdin):
    try:
        endpoint = open_endpoint({"kind": "nbd", "path": "", "nbd": access}, True)
    except OSError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
    else:
        print(json.dumps(endpoint.size))
        endpoint.close()
"""


class Hosts:
    """Two hosts with volume services, a third one, and what runs beside them."""

    def __init__(self, directory: Path, network: Network, broker: str, database_url: str) -> None:
        self.directory, self.network = directory, network
        self._port = free_port()
        pools = {"hosta": directory / "file1", "hostb": directory / "file2"}
        self.a = network.add("hosta", hidden=[pools["hostb"]])
        self.b = network.add("hostb", hidden=[pools["hosta"]])
        self.third = network.add("third", hidden=list(pools.values()))
        here, there = (broker, database_url), (network.forwarded(broker), network.forwarded(database_url))
        config = self._config("here", *here)
        manage = Process("manage", ["--config-file", config, "db", "sync"], directory / "manage.log")
        assert manage.popen is not None
        assert manage.popen.wait(60) == 0, manage.text()
        limit = f"volume_copy_bps_limit = {RATE}\n"
        section_a = f"[file1]\nvolume_driver = file\nfile_pools = pool1:{pools['hosta']}\n{limit}"
        section_b = f"[file2]\nvolume_driver = file\nfile_pools = pool2:{pools['hostb']}\n"
        config_a = self._config("hosta", *there, f"enabled_backends = file1\n{_exports(self.a)}", section_a)
        config_b = self._config("hostb", *there, f"enabled_backends = file2\n{_exports(self.b)}", section_b)
        self.processes = {
            "api": Process("api", ["--config-file", config], directory / "api.log"),
            "scheduler": Process("scheduler", ["--config-file", config], directory / "scheduler.log"),
            "hosta": HostProcess(self.a, "volume", ["--config-file", config_a], directory / "hosta.log"),
            "hostb": HostProcess(self.b, "volume", ["--config-file", config_b], directory / "hostb.log"),
        }
        for process in self.processes.values():
            process.wait_ready(seconds=60)
        self.rest = Rest(f"http://127.0.0.1:{self._port}")

    def _config(self, host: str, broker: str, url: str, extra: str = "", sections: str = "") -> str:
        path = self.directory / f"{host}.conf"
        common = (
            f"host = {host}\ntransport_url = {broker}\nauth_strategy = noauth\n"
            f"osapi_volume_listen_port = {self._port}\n"
            f"state_path = {self.directory}/state-{host}\nreport_interval = 2\nmigration_sweep_interval = 1\n"
            "copy_checkpoint_seconds = 0.2\ndebug = true\ndefault_log_levels = \n"
        )
        text = f"[DEFAULT]\n{common}{extra}[database]\nconnection = {url}\n{sections}"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def volume(self) -> tuple[str, str]:
        """A volume on host a with the marker all over its data; its id and digest."""
        volume = self.rest.create(1)
        assert volume["os-vol-host-attr:host"] == A
        path = self.path(A, volume["id"])
        chance = random.Random(1)
        with path.open("r+b") as file:
            for start in [*range(0, GIB - MIB, GIB // (DATA // MIB - 1)), GIB - MIB]:
                file.seek(start)
                file.write(b"".join(MARKER + chance.randbytes(4096 - len(MARKER)) for _ in range(MIB // 4096)))
            os.fsync(file.fileno())
        return volume["id"], digest(path)

    def path(self, host: str, object_id: str) -> Path:
        return self.directory / {A: "file1", B: "file2"}[host] / f"volume-{object_id}"

    def start_copy(self, volume_id: str) -> dict[str, Any]:
        """Begin to migrate to host b; returns the migration once some of it is copied and flushed."""
        status, answer = self.rest.migrate(volume_id, B)
        assert status == 202, answer

        def half_way() -> dict[str, Any] | None:
            migration = self.rest.migration_of(volume_id)
            assert migration["status"] in ("queued", "running"), migration
            return migration if migration["step"] == "copy_data" and migration["bytes_done"] > GIB // 4 else None

        return until(half_way, "some of it is copied") or {}

    def hurry(self, migration: dict[str, Any]) -> None:
        """Let the rest go as fast as it can."""
        self.rest.ok("POST", f"/migrations/{migration['id']}/action", {"set_rate": {"bytes_per_second": GIB * 4}})

    def export(self) -> dict[str, Any]:
        """All that an export's own host knows of it: what the copier was told."""
        (pid,) = self.b.pids("exportname=")
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
        (keys,) = self.keys()
        user, _, key = keys.read_text(encoding="utf-8").strip().partition(":")
        name = next(word for word in words if word.startswith("exportname=")).partition("=")[2]
        port = int(words[words.index("-p") + 1])
        access = {"host": self.b.address, "port": port, "export": name, "tls": "psk", "connections": 1}
        return {**access, "user": user, "key": key}

    def keys(self) -> list[Path]:
        return list(self.directory.glob("state-host?/nbd/*/*/keys.psk"))

    def intrude(self, *accesses: dict[str, Any]) -> list[Any]:
        """How the third host fares with each."""
        done = subprocess.run(
            [*self.third.enter("--net"), sys.executable, "-c", _INTRUDER],
            input=json.dumps(accesses),
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def logs(self) -> str:
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in self.directory.glob("*.log"))

    def end(self) -> None:
        for process in self.processes.values():
            process.end()


def _exports(host: Host) -> str:
    return f"nbd_export_address = {host.address}\n"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, broker: str) -> Iterator[Hosts]:
    require("mariadb", SERVERS["mariadb"])
    network = Network()
    try:
        with database("mariadb") as url:
            running = Hosts(tmp_path_factory.mktemp("hosts"), network, broker, url)
            try:
                yield running
            finally:
                running.end()
    finally:
        network.close()


@pytest.fixture
def volume(hosts: Hosts) -> Iterator[tuple[str, str]]:
    made = hosts.volume()
    yield made
    hosts.rest.delete(made[0])


def send_marker(hosts: Hosts) -> None:
    """Host a sends the marker to host b in plain text."""
    say = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(bytes.fromhex(sys.argv[1]), ('{}', 9))"
    command = [sys.executable, "-c", say.format(hosts.b.address), MARKER.hex()]
    subprocess.run([*hosts.a.enter("--net"), *command], check=True)


def attempts(migration: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in migration["steps"] if step["step"] == "copy_data"]


def arrived(hosts: Hosts, migration: dict[str, Any], content: str) -> None:
    """The volume is on host b, whole, and nothing else of it anywhere."""
    assert migration["status"] == "success", migration
    assert digest(hosts.path(B, migration["destination_volume_id"])) == content
    assert len(list(hosts.directory.glob("file?/volume-*"))) == 1
    assert hosts.keys() == []
    assert hosts.b.pids("exportname=") == []


def test_a_volume_goes_to_another_host_and_back_and_nobody_on_the_way_reads_it(
    hosts: Hosts, volume: tuple[str, str]
) -> None:
    volume_id, content = volume
    capture = Capture(hosts.network.link(hosts.a), MARKER)
    try:
        migration = hosts.start_copy(volume_id)
        export = hosts.export()
        wrong = [{"key": secrets.token_hex(32)}, {"tls": "off"}, {"export": ""}]
        answers = hosts.intrude(*({**export, **changes} for changes in wrong), export)
        assert [isinstance(answer, str) for answer in answers] == [True, True, True, False], answers
        assert answers[3] == GIB, "with the key it opens: it is the key that keeps the others out"
        hosts.hurry(migration)
        there = hosts.rest.wait_migration(volume_id)
        arrived(hosts, there, content)
        assert allocated(hosts.path(B, there["destination_volume_id"])) <= DATA + 2 * MIB, "thin stays thin"
        assert there["plan"] == "host_copy"
        assert there["checksum"]

        back = hosts.rest.moved(volume_id, A)
        assert digest(hosts.path(A, back["destination_volume_id"])) == content
        assert capture.seen > DATA, "it was there that the volume passed"
        assert capture.found == 0, "the wire holds none of the volume"
        send_marker(hosts)
        until(lambda: capture.found, "the capture finds what does pass in plain text")
    finally:
        capture.close()
    logs = hosts.logs()
    for secret in ("export", "user", "key"):
        assert export[secret] not in logs, f"the {secret} is in a log"
    assert "serves its destination" in logs


def test_a_server_killed_in_the_middle_costs_no_more_than_what_was_not_flushed(
    hosts: Hosts, volume: tuple[str, str]
) -> None:
    volume_id, content = volume
    migration = hosts.start_copy(volume_id)
    hosts.b.kill("exportname=")
    hosts.hurry(migration)
    ended = hosts.rest.wait_migration(volume_id)
    arrived(hosts, ended, content)
    assert [step["result"] for step in attempts(ended)] == ["failed", "done"]
    assert attempts(ended)[1]["bytes"] < DATA, "the second attempt wrote only the rest"


def test_a_destination_whose_service_is_killed_in_the_middle_goes_on_behind_the_checkpoint(
    hosts: Hosts, volume: tuple[str, str]
) -> None:
    """The server must not outlive its service: nobody would be left to revoke the export."""
    volume_id, content = volume
    migration = hosts.start_copy(volume_id)
    hosts.b.kill(*SERVICE)
    until(lambda: not hosts.b.pids("exportname="), "the export went with its service")
    assert len(hosts.keys()) == 1
    process = hosts.processes["hostb"]
    process.end()
    process.start()
    process.wait_ready()
    hosts.hurry(migration)
    ended = hosts.rest.wait_migration(volume_id)
    arrived(hosts, ended, content)
    assert [step["result"] for step in attempts(ended)][-1] == "done"
    assert len(attempts(ended)) > 1
    assert attempts(ended)[-1]["bytes"] < DATA, "the last attempt wrote only the rest"
