"""Each program says in one line what is wrong with its configuration, serves, and ends cleanly."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from migrator.db import schema
from tests.support.processes import ROOT, AllInOne


def run(program: str, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", f"migrator.cmd.{program}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=env, check=False)


def config(directory: Path, text: str) -> list[str]:
    path = directory / "migrator.conf"
    path.write_text(f"[DEFAULT]\nstate_path = {directory}\ntransport_url = local://\n{text}")
    return ["--config-file", str(path)]


FILE = "[a]\nvolume_driver = file\nfile_pools = p:{directory}/p\n"

WRONG = {
    "no backend": ("volume", "", "enabled_backends"),
    "a backend twice": ("volume", "enabled_backends = a,a\n" + FILE, "enabled_backends"),
    "an unknown driver": ("volume", "enabled_backends = a\n[a]\nvolume_driver = floppy\n", "volume_driver"),
    "no driver": ("volume", "enabled_backends = a\n[a]\n", "volume_driver"),
    "no pools": ("volume", "enabled_backends = a\n[a]\nvolume_driver = file\n", "file_pools"),
    "no tables": ("volume", "enabled_backends = a\n" + FILE, "migrator-manage db sync"),
    "a number that is none": ("api", "osapi_volume_workers = many\n", "osapi_volume_workers"),
    "noauth for all the world": ("api", "auth_strategy = noauth\nosapi_volume_listen = 0.0.0.0\n", "auth_strategy"),
    "an unknown auth strategy": ("api", "auth_strategy = trust\n", "auth_strategy"),
    "a database that is not there": (
        "scheduler",
        "[database]\nconnection = mysql+pymysql://root@127.0.0.1:1/none\nmax_retries = 0\n",
        "127.0.0.1",
    ),
}


@pytest.mark.parametrize(("program", "text", "told"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_configuration_ends_the_process_with_one_clear_line(
    tmp_path: Path, program: str, text: str, told: str
) -> None:
    if program == "api":
        assert run("manage", *config(tmp_path, ""), "db", "sync").returncode == 0
    done = run(program, *config(tmp_path, text.format(directory=tmp_path)))
    assert done.returncode not in (0, None)
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"migrator-{program}: ")]
    assert len(lines) == 1, done.stderr
    assert told in lines[0]
    assert "Traceback" not in done.stderr


def test_a_missing_configuration_file_is_named(tmp_path: Path) -> None:
    done = run("volume", "--config-file", str(tmp_path / "none.conf"))
    assert done.returncode != 0
    assert "none.conf" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("all", "--state-dir", str(tmp_path), "--listen", f"127.0.0.1:{port}")
    assert done.returncode != 0
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("listen", ["here", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, listen: str) -> None:
    done = run("all", "--state-dir", str(tmp_path), "--listen", listen)
    assert done.returncode != 0
    assert "--listen" in done.stderr


def test_manage_makes_the_tables_and_tells_their_version(tmp_path: Path) -> None:
    arguments = config(tmp_path, "")
    assert run("manage", *arguments, "db", "version").stdout.strip() == "none"
    assert run("manage", *arguments, "db", "sync").stdout.strip() == schema.HEAD
    assert run("manage", *arguments, "db", "version").stdout.strip() == schema.HEAD
    check = run("status", *arguments, "upgrade", "check")
    assert (check.returncode, check.stdout.startswith("Success")) == (0, True)


def test_migrator_all_tells_where_it_listens_and_what_to_try(all_in_one: AllInOne) -> None:
    text = all_in_one.process.text()
    assert all_in_one.url in text
    assert "migrator migrate" in text
    assert len([line for line in text.splitlines() if " ready " in line]) == 1


def test_migrator_all_ends_cleanly_and_keeps_its_volumes(all_in_one: AllInOne) -> None:
    volume = all_in_one.rest().create(1, name="kept")
    assert all_in_one.process.terminate(10) == 0
    all_in_one.process.start()
    all_in_one.process.wait_ready()
    assert all_in_one.rest().volume(volume["id"])["name"] == "kept"
    host = volume["os-vol-host-attr:host"]
    other = "node@file2#pool2" if "file1" in host else "node@file1#pool1"
    all_in_one.rest().moved(volume["id"], other)
