"""Exports to other hosts, by real servers: what the peer gets, who gets in, and what cannot be exported."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import mmap
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator import errors, machine
from migrator.volume import export_server
from migrator.volume.exports import accepted
from migrator.volume.files import FileEndpoint
from tests.support.data import MIB, digest
from tests.support.exports import BLOCK, SERVICE, SIZE, Make, local, maker, opened, server_of
from tests.support.nbd import make_secrets
from tests.support.needs import missing


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with maker(tmp_path) as made:
        yield made


# --- what the peer gets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", ["psk", "x509", "off"])
@pytest.mark.parametrize("server", export_server.PROGRAMS)
def test_the_peer_writes_to_the_volume_and_sees_all_of_it(make: Make, tmp_path: Path, server: str, tls: str) -> None:
    directory = str(make_secrets(tmp_path / "secrets")) if tls == "x509" else None
    exports = make(server, tls=tls, tls_directory=directory)
    volume = local(tmp_path / "volume", is_zero=True)
    answer = exports.offer("m", volume, "another machine")
    assert (answer.kind, answer.machine, answer.size, answer.is_zero) == ("nbd", "another machine", SIZE, True)
    answer = accepted(exports._conf, answer)
    endpoint = opened(answer)
    assert endpoint.size == SIZE
    assert endpoint.pwrite(SIZE - 512, BLOCK[:512]) == 512
    endpoint.flush()
    endpoint.close()
    exports.revoke("m")
    content = (tmp_path / "volume").read_bytes()
    assert content[-512:] == bytes(BLOCK[:512])
    assert content.count(b"x") == 512


def test_who_is_on_this_machine_is_answered_as_the_driver_did(make: Make, tmp_path: Path) -> None:
    exports, volume = make(), local(tmp_path / "volume")
    assert exports.offer("m", volume, machine.boot_id()) is volume
    assert exports.offer("m", volume, None) is volume
    in_memory = dataclasses.replace(volume, kind="memory")
    assert exports.offer("m", in_memory, "another machine") is in_memory


@pytest.mark.parametrize("server", export_server.PROGRAMS)
def test_a_device_is_served_no_further_than_its_volume(make: Make, tmp_path: Path, server: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"o" * 4 * MIB)
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        missing("loop devices need root and losetup")
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, check=True, text=True)
    device = Path(made.stdout.strip())
    try:
        exports = make(server, tls="off")
        endpoint = opened(exports.offer("m", local(device), "another machine"))
        assert endpoint.size == SIZE
        with pytest.raises(OSError, match="busy"):
            FileEndpoint(str(device), writable=True)
        endpoint.zero(0, SIZE)
        with pytest.raises(OSError, match="ends at"):
            endpoint.pwrite(SIZE, BLOCK[:512])
        endpoint.flush()
        endpoint.close()
        exports.revoke("m")
        FileEndpoint(str(device), writable=True).close()
        content = device.read_bytes()
        assert content.count(0) == SIZE
        assert content.count(b"o", SIZE) == 4 * MIB - SIZE
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


@pytest.mark.parametrize("server", export_server.PROGRAMS)
def test_zeroing_keeps_what_a_thick_pool_allocated(make: Make, tmp_path: Path, server: str) -> None:
    path = tmp_path / "volume"
    for may_punch, kept in ((False, True), (True, False)):
        path.write_bytes(b"x" * 4 * MIB)
        endpoint = opened(make(server).offer("m", local(path, 4 * MIB, may_punch=may_punch), "another machine"))
        endpoint.zero(0, 4 * MIB)
        endpoint.flush()
        endpoint.close()
        assert path.read_bytes().count(0) == 4 * MIB
        assert (path.stat().st_blocks * 512 >= 4 * MIB) is kept, may_punch


def test_zeroing_a_thick_file_of_this_machine_keeps_it_allocated(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    for may_punch, kept in ((False, True), (True, False)):
        path.write_bytes(b"x" * 4 * MIB)
        endpoint = FileEndpoint(str(path), writable=True, may_punch=may_punch)
        endpoint.zero(0, 4 * MIB)
        endpoint.close()
        assert path.read_bytes().count(0) == 4 * MIB
        assert (path.stat().st_blocks * 512 >= 4 * MIB) is kept, may_punch


def test_what_is_compared_is_read_from_where_it_is_stored(make: Make, tmp_path: Path) -> None:
    exports, path = make(), tmp_path / "volume"
    volume = local(path, 4 * MIB)
    endpoint = opened(exports.offer("m", volume, "another machine"))
    endpoint.pwrite(0, memoryview(b"y" * 4 * MIB))
    endpoint.flush()
    path.read_bytes()
    assert resident(path), "its pages are in memory"
    exports.uncache("m")
    assert not resident(path)
    endpoint.close()
    exports.revoke("m")
    with pytest.raises(errors.DriverError, match="nothing is exported"):
        exports.uncache("m")


def resident(path: Path) -> int:
    """How many pages of the file are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * (len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        assert libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages) == 0
        del start
        return sum(page & 1 for page in pages)


# --- who gets in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", export_server.PROGRAMS)
def test_nobody_gets_in_without_the_key_and_the_name(make: Make, tmp_path: Path, server: str) -> None:
    exports = make(server)
    answer = exports.offer("m", local(tmp_path / "volume"), "another machine")
    another = exports.offer("another", local(tmp_path / "other"), "another machine")
    assert answer.nbd is not None
    assert another.nbd is not None
    strangers = [
        {"key": another.nbd["key"], "user": another.nbd["user"]},
        {"key": "00" * 32},
        {"tls": "off"},
        {"export": another.nbd["export"]},
        {"export": ""},
    ]
    for changes in strangers:
        with pytest.raises(OSError, match=r"NBD|TLS|export") as refused:
            opened(answer, **changes)
        assert answer.nbd["export"] not in str(refused.value)
    opened(answer).close()
    assert digest(tmp_path / "volume") == digest(tmp_path / "other"), "nothing was written"


def test_no_more_connections_than_allowed(make: Make, tmp_path: Path) -> None:
    answer = make(connections=1).offer("m", local(tmp_path / "volume"), "another machine")
    first = opened(answer)
    with pytest.raises(OSError, match="NBD server"):
        opened(answer)
    first.close()


def test_secrets_are_shown_to_nobody_and_go_with_the_export(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    exports = make()
    answer = exports.offer("m", local(tmp_path / "volume"), "another machine")
    assert answer.nbd is not None
    (folder,) = (tmp_path / "state" / "nbd" / SERVICE).iterdir()
    keys = folder / "keys.psk"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    command_line = Path(f"/proc/{server_of(exports).pid}/cmdline").read_text(encoding="utf-8")
    assert answer.nbd["key"] in keys.read_text(encoding="utf-8")
    with contextlib.suppress(OSError):
        opened(answer, export="wrong")
    exports.revoke("m")
    shown = [repr(answer), str(answer), answer.path, caplog.text]
    assert "serves its destination" in caplog.text
    for text in shown:
        assert [name for name in ("export", "user", "key") if answer.nbd[name] in text] == []
    assert answer.nbd["key"] not in command_line
    assert not folder.exists()
    again = exports.offer("m", local(tmp_path / "volume"), "another machine")
    assert again.nbd is not None
    assert again.nbd["key"] != answer.nbd["key"], "each export has its own"


def test_a_host_that_wants_tls_takes_part_in_no_plain_export(make: Make, tmp_path: Path) -> None:
    plain = make(tls="off").offer("m", local(tmp_path / "volume"), "another machine")
    with pytest.raises(errors.Unreachable, match="plain text"):
        accepted(make()._conf, plain)
    assert accepted(make(tls="off")._conf, plain) == plain
    certified = dataclasses.replace(plain, nbd={"tls": "x509"})
    with pytest.raises(errors.Unreachable, match="nbd_tls_directory"):
        accepted(make()._conf, certified)
    assert accepted(make(tls_directory="/pki")._conf, certified).nbd == {"tls": "x509", "certificates": "/pki"}


# --- what cannot be exported -----------------------------------------------------------------------------------------


def test_a_volume_of_another_size_or_kind_is_not_served(make: Make, tmp_path: Path) -> None:
    exports = make()
    path = tmp_path / "volume"
    for wrong in (SIZE - 512, SIZE + 512):
        with pytest.raises(errors.SizeMismatch):
            exports.offer("m", dataclasses.replace(local(path), size=wrong), "another machine")
    (tmp_path / "link").symlink_to(path)
    for name in ("link", "missing"):
        with pytest.raises(errors.DriverError, match="cannot serve"):
            exports.offer("m", dataclasses.replace(local(path), path=str(tmp_path / name)), "another machine")
    with pytest.raises(errors.ExportImpossible, match="neither a regular file"):
        exports.offer("m", dataclasses.replace(local(path), path=str(tmp_path)), "another machine")
    assert list((tmp_path / "state" / "nbd" / SERVICE).iterdir()) == []


def test_without_a_free_port_it_says_so_and_may_be_tried_again(make: Make, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        exports = make(ports=f"{port}-{port}", tls="off")
        with pytest.raises(errors.DriverError, match=f"every port of nbd_ports {port}-{port} is in use") as refused:
            exports.offer("m", local(tmp_path / "volume"), "another machine")
    assert not refused.value.final
    exports.offer("m", local(tmp_path / "volume"), "another machine")


def test_a_port_that_is_taken_at_the_last_moment_is_left_to_who_has_it(make: Make, tmp_path: Path) -> None:
    spec = make(tls="off")._spec(local(tmp_path / "volume"))
    for name in export_server.PROGRAMS:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            programs = export_server.find_programs(name)
            server = export_server.Server(programs, spec, taken.getsockname()[1], tmp_path / name)
            with pytest.raises(export_server.PortTaken):
                server.wait_ready()
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"server": "/nowhere/nbdkit"}, "/nowhere/nbdkit cannot be run"),
        ({"server": "cat"}, "nbd_server must be one of nbdkit, qemu-nbd"),
        ({"export_address": "192.0.2.1"}, "nbd_export_address 192.0.2.1"),
        ({"tls": "x509"}, "nbd_tls_directory is not set"),
    ],
    ids=str,
)
def test_a_host_that_is_not_set_up_says_what_is_missing(
    make: Make, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    exports = make()
    for name, value in values.items():
        exports._conf.set_override(f"nbd_{name}", value)
    with pytest.raises(errors.ExportImpossible, match=words) as refused:
        exports.offer("m", local(tmp_path / "volume"), "another machine")
    assert refused.value.final
    assert exports.are_possible is ("server" not in values)


def test_a_wrong_range_of_ports_is_a_wrong_configuration(make: Make, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="nbd_ports"):
        make(ports="20-10").offer("m", local(tmp_path / "volume"), "another machine")
