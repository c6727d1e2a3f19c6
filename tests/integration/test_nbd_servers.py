"""The NBD endpoint and the copy engine against qemu-nbd and nbdkit: contents, TLS, faults, death of the server."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import ssl
import tempfile
import threading
import time
from pathlib import Path

import pytest

from migrator.volume.control import Control
from migrator.volume.copy import Checkpoint, CopyOptions, copy
from migrator.volume.endpoints import CopyError, Endpoint, ReadFailed, WriteFailed
from migrator.volume.extents import Extent, Ranges
from migrator.volume.files import FileEndpoint
from migrator.volume.nbd import gnutls
from migrator.volume.nbd.endpoint import NbdEndpoint
from migrator.volume.nbd.tls import TlsError, is_supported_with_keys
from tests.support.data import MIB, allocated, digest, write_pattern
from tests.support.nbd import Server, make_secrets, serve
from tests.support.waiting import until

SIZE = 12 * MIB


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_secrets(tmp_path_factory.mktemp("tls") / "good")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sparse volume with random contents; its size is a whole number of sectors, as qemu-nbd wants it."""
    return volume(tmp_path / "source", SIZE + 512, seed=4)


def volume(path: Path, size: int, seed: int | None = None) -> Path:
    path.touch()
    os.truncate(path, size)
    if seed is not None:
        write_pattern(path, size, seed)
    return path


def dirty(path: Path, size: int) -> Path:
    path.write_bytes(b"old data" * (size // 8 + 1))
    os.truncate(path, size)
    return path


def server_of(program: str, path: Path, *arguments: str) -> list[str]:
    """The command that exports a file, without where to."""
    if program == "nbdkit":
        return ["nbdkit", *arguments, "file", str(path)]
    return ["qemu-nbd", "-f", "raw", "-e", "8", "-x", "vol", "--discard=unmap", *arguments, str(path)]


def export_of(program: str) -> str:
    return "vol" if program == "qemu-nbd" else ""


def run(
    source: Endpoint, destination: Endpoint, *, is_zero: bool = False, done: Ranges | None = None
) -> list[Checkpoint]:
    """Copy with four threads; close both; return the checkpoints."""
    checkpoints: list[Checkpoint] = []
    try:
        copy(
            source,
            destination,
            done=done or Ranges(),
            destination_is_zero=is_zero,
            options=CopyOptions(threads=4),
            control=Control(),
            on_checkpoint=checkpoints.append,
        )
    finally:
        source.close()
        destination.close()
    return checkpoints


def reading(server: Server, export: str = "", timeout: float = 10.0) -> NbdEndpoint:
    return NbdEndpoint(server.uri(export), writable=False, timeout=timeout)


def writing(server: Server, export: str = "", timeout: float = 10.0) -> NbdEndpoint:
    return NbdEndpoint(server.uri(export), writable=True, timeout=timeout)


def file(path: Path, *, writable: bool = False) -> FileEndpoint:
    return FileEndpoint(str(path), writable=writable)


# --- contents --------------------------------------------------------------------------------------------------------

WAYS = [
    (program, tcp, tls)
    for program in ("nbdkit", "qemu-nbd")
    for tcp, tls in ((False, None), (True, None), (True, "x509"), (False, "psk"), (True, "psk"))
]


@pytest.mark.parametrize(("program", "tcp", "tls"), WAYS)
def test_a_volume_goes_there_and_back(
    tmp_path: Path, secrets: Path, source: Path, program: str, tcp: bool, tls: str | None
) -> None:
    if tls == "psk":
        assert is_supported_with_keys()
    there, back = dirty(tmp_path / "there", SIZE + 512), volume(tmp_path / "back", SIZE + 512)
    export = export_of(program)
    with serve(*server_of(program, there), tcp=tcp, tls=tls, secrets=secrets) as server:
        checkpoints = run(file(source), writing(server, export))
        assert checkpoints[-1].ranges == [[0, SIZE + 512]]
        assert digest(there) == digest(source)
        run(reading(server, export), file(back, writable=True), is_zero=True)
    assert digest(back) == digest(source)
    # What was zeroed is free again, and holes were recognised on the way back.
    assert allocated(there) < SIZE * 0.75
    assert allocated(back) < SIZE * 0.75


@pytest.mark.parametrize("size", [1, 511, 4097, 3 * MIB + 77])
def test_odd_sizes(tmp_path: Path, size: int) -> None:
    """nbdkit serves them to the byte; qemu-nbd cuts off what is no whole sector."""
    data = random.Random(size).randbytes(size)
    (tmp_path / "source").write_bytes(data)
    with serve(*server_of("nbdkit", dirty(tmp_path / "there", size))) as server:
        run(file(tmp_path / "source"), writing(server))
        with_server = reading(server)
        assert with_server.size == size
        run(with_server, file(volume(tmp_path / "back", size), writable=True))
    assert (tmp_path / "there").read_bytes() == (tmp_path / "back").read_bytes() == data


@pytest.mark.parametrize("minimum", [512, 4096])
def test_a_server_that_insists_on_blocks(tmp_path: Path, source: Path, minimum: int) -> None:
    filters = ["--filter=blocksize-policy"]
    sizes = [f"blocksize-minimum={minimum}", "blocksize-maximum=65536", "blocksize-error-policy=error"]
    size = SIZE + minimum
    os.truncate(source, size)
    there = dirty(tmp_path / "there", size)
    with serve("nbdkit", *filters, "file", str(there), *sizes) as server:
        run(file(source), writing(server))
        assert digest(there) == digest(source)
        endpoint = writing(server)
        assert endpoint.pwrite(minimum + 5, memoryview(b"in the middle")) == 13
        endpoint.zero(2 * minimum - 1, 2)
        endpoint.flush()
        endpoint.close()
    with there.open("rb") as stream, source.open("rb") as original:
        expected = bytearray(original.read(4 * minimum))
        expected[minimum + 5 : minimum + 18] = b"in the middle"
        expected[2 * minimum - 1 : 2 * minimum + 1] = bytes(2)
        assert stream.read(4 * minimum) == expected


@pytest.mark.parametrize("program", ["nbdkit", "qemu-nbd"])
def test_holes_zeros_and_trimming(tmp_path: Path, program: str) -> None:
    there = dirty(tmp_path / "there", 8 * MIB)
    with serve(*server_of(program, there)) as server:
        endpoint = writing(server, export_of(program))
        assert endpoint.capabilities.zeroes_cheaply
        endpoint.zero(MIB, 2 * MIB)
        endpoint.zero(5 * MIB + 3, 100)
        endpoint.trim(6 * MIB, MIB)
        endpoint.flush()
        extents = list(endpoint.extents(0, 8 * MIB))
        assert extents[:3] == [Extent(0, MIB, True), Extent(MIB, 2 * MIB, False), Extent(3 * MIB, 3 * MIB, True)]
        endpoint.close()
    content = there.read_bytes()
    assert not any(content[MIB : 3 * MIB])
    assert not any(content[5 * MIB + 3 : 5 * MIB + 103])
    assert content[:8] == content[3 * MIB : 3 * MIB + 8] == b"old data"
    assert allocated(there) <= 5 * MIB + 64 * 1024


@pytest.mark.parametrize("arguments", [[], ["--filter=noextents"], ["--no-sr"], ["--filter=noparallel"]])
def test_poorer_servers(tmp_path: Path, source: Path, arguments: list[str]) -> None:
    there = dirty(tmp_path / "there", SIZE + 512)
    extra = ["serialize=connections"] if "--filter=noparallel" in arguments else []
    with serve("nbdkit", *arguments, "file", str(there), *extra) as server:
        run(file(source), writing(server))
        run(reading(server), file(volume(tmp_path / "back", SIZE + 512), writable=True))
    assert digest(there) == digest(tmp_path / "back") == digest(source)


def test_a_server_with_room_for_fewer_connections(tmp_path: Path, source: Path) -> None:
    """qemu-nbd lets a connection too many wait until another one ends; nbdkit's filter hangs up."""
    there = dirty(tmp_path / "there", SIZE + 512)
    with serve("qemu-nbd", "-f", "raw", "-e", "2", str(there)) as server:
        run(file(source), writing(server, timeout=1.0))
    assert digest(there) == digest(source)
    dirty(there, SIZE + 512)
    with serve("nbdkit", "--filter=limit", "file", str(there), "limit=2") as server:
        run(file(source), writing(server))
    assert digest(there) == digest(source)


def test_a_read_only_export_is_not_opened_for_writing(tmp_path: Path, source: Path) -> None:
    for program in ("nbdkit", "qemu-nbd"):
        with serve(*server_of(program, source, "-r")) as server:
            reading(server, export_of(program)).close()
            with pytest.raises(OSError, match="read-only") as caught:
                writing(server, export_of(program))
            assert caught.value.errno == errno.EROFS


def test_an_export_that_does_not_exist(tmp_path: Path, source: Path) -> None:
    with serve(*server_of("qemu-nbd", source)) as server, pytest.raises(OSError, match="no such export") as caught:
        reading(server, "secret-name")
    assert caught.value.errno == errno.ENOENT


def test_one_export_reached_twice_is_not_copied_onto_itself(tmp_path: Path, source: Path) -> None:
    with serve(*server_of("nbdkit", source)) as server, pytest.raises(WriteFailed, match="source itself"):
        run(reading(server), writing(server))


# --- TLS -------------------------------------------------------------------------------------------------------------


def test_a_server_must_prove_who_it_is(tmp_path: Path, secrets: Path, source: Path) -> None:
    """Another authority, a certificate for another host, no client certificate."""
    others = make_secrets(tmp_path / "others")
    elsewhere = make_secrets(tmp_path / "elsewhere", secrets, "elsewhere.example")
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    shutil.copy(secrets / "ca-cert.pem", nameless)
    with serve(*server_of("nbdkit", source), tcp=True, tls="x509", secrets=secrets) as server:
        for changed in ({"tls_certificates": str(others)}, {"tls_hostname": "elsewhere.example"}):
            with pytest.raises(TlsError, match="certificate is not accepted"):
                NbdEndpoint(server.uri(**changed), writable=True, timeout=5)
        with pytest.raises(OSError, match=r"TLS|closed|lost"):
            NbdEndpoint(server.uri(tls_certificates=str(nameless)), writable=True, timeout=5)
        with pytest.raises(TlsError, match=r"cannot use .*ca-cert.pem"):
            NbdEndpoint(server.uri(tls_certificates=str(tmp_path)), writable=True, timeout=5)
    with serve(*server_of("nbdkit", source), tcp=True, tls="x509", secrets=elsewhere) as server:
        with pytest.raises(TlsError, match="certificate is not accepted"):
            NbdEndpoint(server.uri(), writable=True, timeout=5)
        NbdEndpoint(server.uri(tls_hostname="elsewhere.example"), writable=True, timeout=5).close()


@pytest.mark.parametrize("program", ["nbdkit", "qemu-nbd"])
def test_a_wrong_key_is_refused_by_both_ends(tmp_path: Path, secrets: Path, source: Path, program: str) -> None:
    """The other way round too: a server that has certificates, but not the key, is not believed."""
    keys = tmp_path / "keys"
    keys.write_text("mover:" + "00" * 32 + "\nbroken:xyz\n", encoding="utf-8")
    wrong = {"tls_psk_file": str(keys)}
    with serve(*server_of(program, source), tcp=True, tls="psk", secrets=secrets) as server:
        cases = {server.uri(**wrong): r"TLS|lost|closed", server.uri(user="nobody"): "has no key for the user"}
        cases[server.uri(user="broken", **wrong)] = "not hexadecimal"
        cases[server.uri(tls_psk_file=str(tmp_path / "none"))] = "cannot read"
        for uri, words in cases.items():
            with pytest.raises(OSError, match=words) as caught:
                NbdEndpoint(uri, writable=True, timeout=5)
            assert "0000" not in str(caught.value)
    with serve(*server_of(program, source), tcp=True, tls="x509", secrets=secrets) as server:
        place = server.uri().partition("?")[0].replace("//", "//mover@")
        with pytest.raises(OSError, match=r"TLS|lost|closed"):
            NbdEndpoint(f"{place}?tls-psk-file={keys}", writable=True, timeout=5)


@pytest.mark.parametrize(
    ("processor", "cipher"),
    [
        ("flags\t\t: fpu aes sse2\n", "AES-128-GCM"),
        ("Features\t: fp asimd aes pmull\n", "AES-128-GCM"),
        ("flags\t\t: fpu vaes_like\nmodel name: aes\n", "CHACHA20-POLY1305"),
        ("", "CHACHA20-POLY1305"),
    ],
)
@pytest.mark.parametrize("program", ["nbdkit", "qemu-nbd"])
def test_the_cipher_is_that_which_the_processor_is_good_at(
    secrets: Path, source: Path, program: str, processor: str, cipher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to itself GnuTLS takes the one that costs seven times as much on a processor with AES."""
    monkeypatch.setattr(gnutls, "_priorities", lambda: gnutls.priorities(processor))
    monkeypatch.delattr(ssl.SSLContext, "set_psk_client_callback", raising=False)
    with serve(*server_of(program, source), tcp=True, tls="psk", secrets=secrets) as server:
        end = reading(server, export_of(program))
        try:
            transport = end._pool._all[0]._transport
            assert isinstance(transport, gnutls.GnutlsTransport)
            assert transport.cipher == cipher
        finally:
            end.close()


def test_plain_text_where_one_end_wants_tls(secrets: Path, source: Path) -> None:
    with serve(*server_of("nbdkit", source), tcp=True, tls="psk", secrets=secrets) as server:
        plain = server.uri().partition("?")[0].replace("nbds://mover@", "nbd://")
        with pytest.raises(OSError, match="wants TLS"):
            NbdEndpoint(plain, writable=True, timeout=5)
    with serve(*server_of("nbdkit", source), tcp=True) as server:
        wanting = server.uri().replace("nbd://", "nbds://") + f"tls-certificates={secrets}"
        with pytest.raises(TlsError, match="TLS is wanted, but"):
            NbdEndpoint(wanting, writable=True, timeout=5)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_errors_of_the_server_end_the_copy_with_their_errno(tmp_path: Path, source: Path) -> None:
    trigger, there = tmp_path / "trigger", dirty(tmp_path / "there", SIZE + 512)
    names = {"pread": "EIO", "pwrite": "ENOSPC", "zero": "ENOSPC", "extents": "ENOMEM"}
    faults = [f"error-{call}={name}" for call, name in names.items()]
    faults += [f"error-{call}-rate=100%" for call in names]
    faults += [f"error-{call}-file={trigger}-{call}" for call in names]
    with serve("nbdkit", "--filter=error", "file", str(there), *faults) as server:
        for call, name in names.items():
            mark = Path(f"{trigger}-{call}")
            mark.touch()
            is_source = call in ("pread", "extents")
            back = file(volume(tmp_path / "back", SIZE + 512), writable=True)
            ends = (reading(server), back) if is_source else (file(source), writing(server))
            with pytest.raises(CopyError) as caught:
                run(*ends)
            back.close()
            assert caught.value.errno == getattr(errno, name)
            assert isinstance(caught.value, ReadFailed) == is_source
            mark.unlink()
        run(file(source), writing(server))
    assert digest(there) == digest(source)


def test_a_slow_server_is_waited_for(tmp_path: Path, source: Path) -> None:
    there = dirty(tmp_path / "there", SIZE + 512)
    with serve("nbdkit", "--filter=delay", "file", str(there), "wdelay=5ms", "rdelay=5ms") as server:
        run(file(source), writing(server))
    assert digest(there) == digest(source)


@pytest.mark.parametrize("tls", [None, "x509", "psk"])
def test_a_silent_server_is_given_up_and_a_new_endpoint_goes_on(
    tmp_path: Path, secrets: Path, source: Path, tls: str | None
) -> None:
    """A host without its network: no end of the connection comes, ever."""
    there = dirty(tmp_path / "there", SIZE + 512)
    with serve(*server_of("nbdkit", there), tcp=True, tls=tls, secrets=secrets) as server:
        endpoint = writing(server, timeout=0.3)
        endpoint.pwrite(0, memoryview(b"before"))
        server.suspend()
        began = time.monotonic()
        with pytest.raises(CopyError) as caught:
            run(file(source), endpoint)
        assert caught.value.errno == errno.ETIMEDOUT
        with pytest.raises(TimeoutError):
            writing(server, timeout=0.3)
        assert time.monotonic() - began < 8
        server.kill()
        server.start()
        run(file(source), writing(server))
    assert digest(there) == digest(source)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("copy-")]


def test_a_pause_shorter_than_the_time_out_is_waited_for(tmp_path: Path, source: Path) -> None:
    there = dirty(tmp_path / "there", SIZE + 512)
    with tempfile.TemporaryDirectory(prefix="nbd-") as folder:
        command = ["nbdkit", "--filter=pause", "file", str(there), f"pause-control={folder}/control"]
        with serve(*command) as server, socket.socket(socket.AF_UNIX) as control:
            endpoint = writing(server)
            control.connect(f"{folder}/control")
            control.sendall(b"p")
            assert control.recv(1) == b"P"
            copying = threading.Thread(target=lambda: run(file(source), endpoint))
            copying.start()
            copying.join(0.3)
            assert copying.is_alive()
            control.sendall(b"r")
            copying.join(20)
    assert digest(there) == digest(source)


@pytest.mark.parametrize(
    ("program", "tls"), [("nbdkit", None), ("qemu-nbd", None), ("nbdkit", "x509"), ("nbdkit", "psk")]
)
def test_a_killed_server_ends_the_copy_and_what_was_flushed_is_not_copied_again(
    tmp_path: Path, secrets: Path, program: str, tls: str | None
) -> None:
    there, source = dirty(tmp_path / "there", SIZE + 512), tmp_path / "source"
    source.write_bytes(random.Random(9).randbytes(SIZE + 512))
    flushed: list[Checkpoint] = []
    with serve(*server_of(program, there), tcp=tls is not None, tls=tls, secrets=secrets) as server:
        endpoint = writing(server, export_of(program))
        assert killed_in_the_middle(server, file(source), endpoint, flushed).errno == errno.ECONNRESET
        server.start()
        with pytest.raises(OSError, match="before"):
            endpoint.flush()
        endpoint.close()
        done = Ranges(flushed[-1].ranges)
        last = run(file(source), writing(server, export_of(program)), done=done)[-1]
    assert last.progress.bytes_read < SIZE
    assert digest(there) == digest(source)


def killed_in_the_middle(
    server: Server, source: Endpoint, destination: Endpoint, flushed: list[Checkpoint]
) -> CopyError:
    """Kill the server when something is flushed and much is not; return how the copy ended."""

    def kill() -> None:
        until(lambda: flushed and flushed[-1].progress.bytes_done > MIB, "a checkpoint")
        server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    options = CopyOptions(threads=4, checkpoint_seconds=0.05)
    with pytest.raises(CopyError) as caught:
        copy(
            source,
            destination,
            done=Ranges(),
            destination_is_zero=False,
            options=options,
            control=Control(bytes_per_second=20e6),
            on_checkpoint=flushed.append,
        )
    killer.join()
    source.close()
    return caught.value
