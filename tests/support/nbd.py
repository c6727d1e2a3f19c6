"""Real NBD servers, qemu-nbd and nbdkit, and the keys and certificates that they want."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.needs import missing
from tests.support.processes import free_port
from tests.support.waiting import until

#: How the servers are told to speak TLS, by program and by what proves who is who.
TLS_ARGUMENTS = {
    ("nbdkit", "x509"): ["--tls=require", "--tls-certificates={folder}", "--tls-verify-peer"],
    ("nbdkit", "psk"): ["--tls=require", "--tls-psk={folder}/keys.psk"],
    ("qemu-nbd", "x509"): [
        "--object",
        "tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir={folder}",
        "--tls-creds=t",
    ],
    ("qemu-nbd", "psk"): ["--object", "tls-creds-psk,id=t,endpoint=server,dir={folder}", "--tls-creds=t"],
}
USER = "mover"


class Server:
    """One server process; killed at the end of its context, its socket removed with its folder."""

    def __init__(self, command: Sequence[str], folder: Path, query: dict[str, str], *, tcp: bool, user: str) -> None:
        for program in (command[0], "setpriv"):
            if shutil.which(program) is None:
                missing(f"{program} is not installed: tests/prepare does it")
        self._folder, self._tcp, self._query, self._user = folder, tcp, query, user
        self._port = free_port() if tcp else 0
        self._command = list(command)
        self._log = folder / "log"
        self.start()

    def start(self) -> None:
        """Start it, also again, and wait until it listens."""
        ready = self._folder / "pid"
        for left in (ready, self._socket):
            left.unlink(missing_ok=True)
        program, *arguments = self._command
        with self._log.open("ab") as log:
            # Killed when the tests are: a server that is left over would keep its files busy.
            die = ["setpriv", "--pdeathsig", "KILL", program]
            self.popen = subprocess.Popen(
                [*die, *self._where(program, ready), *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        until(lambda: self._is_ready(ready), f"{program} listens", pause=0.005)

    def _is_ready(self, ready: Path) -> bool:
        assert self.popen.poll() is None, self._log.read_text(encoding="utf-8")
        return ready.exists() and ready.stat().st_size > 0

    def _where(self, program: str, ready: Path) -> list[str]:
        if program == "nbdkit":
            place = ["-i", "127.0.0.1", "-p", str(self._port)] if self._tcp else ["-U", str(self._socket)]
            return ["-f", "-P", str(ready), *place]
        place = ["-b", "127.0.0.1", "-p", str(self._port)] if self._tcp else ["-k", str(self._socket)]
        return ["--persistent", "--pid-file", str(ready), *place]

    @property
    def _socket(self) -> Path:
        return self._folder / "socket"

    def uri(self, export: str = "", user: str = "", **query: str) -> str:
        """How to reach it, with TLS if it wants that; ``query`` changes parameters."""
        words = {**self._query, **{name.replace("_", "-"): value for name, value in query.items()}}
        scheme = ("nbds" if self._query else "nbd") + ("" if self._tcp else "+unix")
        user = user or self._user
        place = (f"{user}@" if user else "") + (f"127.0.0.1:{self._port}" if self._tcp else "")
        if not self._tcp:
            words["socket"] = str(self._socket)
        return f"{scheme}://{place}/{export}?" + "&".join(f"{name}={value}" for name, value in words.items())

    def kill(self) -> None:
        """As a crash of its machine does; ``start`` may follow."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(10)

    def suspend(self) -> None:
        """It neither answers nor hangs up, as a host that lost its network."""
        self.popen.send_signal(signal.SIGSTOP)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


@contextlib.contextmanager
def serve(*command: str, tcp: bool = False, tls: str | None = None, secrets: Path | None = None) -> Iterator[Server]:
    """Run ``nbdkit`` or ``qemu-nbd`` with these arguments; ``tls``: x509 or psk, out of ``secrets``."""
    arguments, query, user = list(command), {}, ""
    if tls is not None:
        own = [argument.format(folder=secrets) for argument in TLS_ARGUMENTS[(command[0], tls)]]
        arguments[1:1] = own
        query = {"tls-certificates": str(secrets)} if tls == "x509" else {"tls-psk-file": f"{secrets}/keys.psk"}
        user = USER if tls == "psk" else ""
    # The path of a unix socket has at most 107 bytes, and a test's own folder often more.
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nbd-"))
        yield stack.enter_context(Server(arguments, Path(folder), query, tcp=tcp, user=user))


# --- keys and certificates -------------------------------------------------------------------------------------------


def make_secrets(folder: Path, authority: Path | None = None, name: str = "localhost") -> Path:
    """Fill a folder with what both ends need; ``authority``: a folder with another one's, which signs then."""
    folder.mkdir()
    if authority is None:
        _certificate(folder, "ca", ["cn = tests", "ca", "cert_signing_key"], [])
    else:
        for file in ("ca-key.pem", "ca-cert.pem"):
            shutil.copy(authority / file, folder)
    signed = [f"--load-ca-certificate={folder}/ca-cert.pem", f"--load-ca-privkey={folder}/ca-key.pem"]
    own = [f"dns_name = {name}", *(["ip_address = 127.0.0.1"] if name == "localhost" else [])]
    _certificate(folder, "server", ["cn = server", *own, "tls_www_server", "signing_key"], signed)
    _certificate(folder, "client", ["cn = client", "tls_www_client", "signing_key"], signed)
    _run("psktool", "-u", USER, "-p", str(folder / "keys.psk"))
    return folder


def _certificate(folder: Path, who: str, template: list[str], signed: list[str]) -> None:
    key, description = folder / f"{who}-key.pem", folder / f"{who}.template"
    description.write_text("\n".join([*template, "expiration_days = 2", ""]), encoding="utf-8")
    _run("certtool", "--generate-privkey", "--key-type=ecdsa", f"--outfile={key}")
    kind = "--generate-certificate" if signed else "--generate-self-signed"
    arguments = [f"--load-privkey={key}", f"--template={description}", f"--outfile={folder}/{who}-cert.pem"]
    _run("certtool", kind, *arguments, *signed)


def _run(*command: str) -> None:
    if shutil.which(command[0]) is None:
        missing(f"{command[0]} is not installed: tests/prepare does it")
    done = subprocess.run(command, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    assert done.returncode == 0, done.stderr.decode()
