"""One NBD server process: how nbdkit and qemu-nbd are told what to serve, and how the process is started and ended.

It does not outlive the service: the kernel ends it when the thread that started it ends, which is why that thread must
live as long as the service does (exports.py).  qemu-nbd is killed then; nbdkit asks the kernel for SIGTERM in place of
that, answers the requests that it has, and ends.  One that does not is killed by the next service before anything else
(``remove_leftovers``).  Keys reach a server in files, never on its command line.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from migrator import errors

#: A server that is not ready after this time never will be, seconds.
START_SECONDS = 10.0
#: A killed server that is not gone after this time waits for a device inside the kernel.
KILL_SECONDS = 10.0
#: Pause between two looks whether it is ready, milliseconds.
_LOOK_MS = 5
_PID, _KEYS = "pid", "keys.psk"
#: What both programs say of a port that somebody else has.
_IN_USE = b"Address already in use"
#: Behind the PATH: where system programs are that a service's PATH may leave out.
_SYSTEM_PATHS = "/usr/sbin:/sbin:/usr/bin"
PROGRAMS = ("nbdkit", "qemu-nbd")


class PortTaken(Exception):
    """Somebody else listens on the port."""


@dataclass(frozen=True)
class Spec:
    """What one server serves, to whom and how."""

    path: str
    #: Bytes of the volume: what of a device lies behind them is out of reach.
    size: int
    writable: bool
    address: str
    connections: int
    #: psk, x509 or off.
    tls: str
    #: Directory of certificates, for x509.
    certificates: str
    name: str = field(repr=False)
    user: str = field(repr=False)
    key: str = field(repr=False)


class Programs(NamedTuple):
    """Paths of what is run."""

    server: str
    setpriv: str


def find_programs(wanted: str | None) -> Programs:
    """Look for the programs, the server at ``wanted`` if that is given; raises ExportImpossible."""
    path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATHS}"
    server = next(filter(None, (shutil.which(name, path=path) for name in ([wanted] if wanted else PROGRAMS))), None)
    setpriv = shutil.which("setpriv", path=path)
    if server is None:
        what = f"{wanted} cannot be run" if wanted else "neither nbdkit (package nbdkit) nor qemu-nbd (qemu-utils) is"
        raise errors.ExportImpossible(reason=what if wanted else f"{what} installed")
    if os.path.basename(server) not in _COMMANDS:
        raise errors.ExportImpossible(reason=f"nbd_server must be one of {', '.join(PROGRAMS)}, not {server}")
    if setpriv is None:
        raise errors.ExportImpossible(reason="setpriv (package util-linux) is not installed")
    return Programs(server, setpriv)


# --- command lines ---------------------------------------------------------------------------------------------------


def command(programs: Programs, spec: Spec, port: int, folder: Path) -> list[str]:
    """Return the whole command; raises as ``is_device`` does."""
    serve = _COMMANDS[os.path.basename(programs.server)](spec, port, folder, is_device(spec))
    return [programs.setpriv, "--pdeathsig", "KILL", programs.server, *serve]


def is_device(spec: Spec) -> bool:
    """Tell a block device from a regular file; a symbolic link is not followed.

    Raises OSError, SizeMismatch, or ExportImpossible for anything else.
    """
    descriptor = os.open(spec.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise errors.ExportImpossible(reason=f"{spec.path} is neither a regular file nor a block device")
        size = os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)
    if size < spec.size or (size > spec.size and stat.S_ISREG(mode)):
        raise errors.SizeMismatch(path=spec.path, got=size, wanted=spec.size)
    return stat.S_ISBLK(mode)


def _nbdkit(spec: Spec, port: int, folder: Path, is_block: bool) -> list[str]:
    filters = ["exportname", "limit", *(["offset"] if is_block else [])]
    return [
        *("-f", "-P", str(folder / _PID), "-i", spec.address, "-p", str(port)),
        *({"psk": ["--tls=require", f"--tls-psk={folder / _KEYS}"]}.get(spec.tls, [])),
        *(["--tls=require", f"--tls-certificates={spec.certificates}", "--tls-verify-peer"] * (spec.tls == "x509")),
        *([] if spec.writable else ["-r"]),
        *(f"--filter={name}" for name in filters),
        *("file", f"file={spec.path}", "cache=none"),
        *(f"exportname={spec.name}", "exportname-strict=true", "exportname-list=empty"),
        f"limit={spec.connections}",
        *(["offset=0", f"range={spec.size}"] if is_block else []),
    ]


def _qemu_nbd(spec: Spec, port: int, folder: Path, is_block: bool) -> list[str]:
    credentials = {
        "psk": f"tls-creds-psk,id=tls,endpoint=server,dir={_doubled(str(folder))}",
        "x509": f"tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={_doubled(spec.certificates)}",
    }
    driver = "host_device" if is_block else "file"
    image = f"driver=raw,file.driver={driver},file.filename={_doubled(spec.path)}"
    tls = ["--object", credentials[spec.tls], "--tls-creds=tls"] if spec.tls in credentials else []
    return [
        *("--persistent", "--pid-file", str(folder / _PID), "-b", spec.address, "-p", str(port)),
        *("-e", str(spec.connections), "-x", spec.name, "--discard=unmap"),
        f"--cache={'none' if _takes_direct(spec.path) else 'writeback'}",
        *([] if spec.writable else ["-r"]),
        *tls,
        *("--image-opts", f"{image},size={spec.size}" if is_block else image),
    ]


def _doubled(text: str) -> str:
    """Write a comma so that qemu takes it for one."""
    return text.replace(",", ",,")


def _takes_direct(path: str) -> bool:
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
        return True
    return False


_COMMANDS: dict[str, Callable[[Spec, int, Path, bool], list[str]]] = {"nbdkit": _nbdkit, "qemu-nbd": _qemu_nbd}


# --- the process -----------------------------------------------------------------------------------------------------


class Server:
    """One server process with a private folder of its own, which holds its key and goes when it goes."""

    def __init__(self, programs: Programs, spec: Spec, port: int, folder: Path) -> None:
        """Start it, in a thread that lives as long as the server may; raises ExportImpossible, DriverError."""
        self.spec, self.port, self._folder = spec, port, folder
        #: True once it was ordered to end: it does not end by itself then.
        self.is_ending = False
        self._clearing = threading.Lock()
        self._claim = -1
        try:
            folder.mkdir(mode=0o700, parents=True)
            self._popen = self._spawn(programs)
        except OSError as error:
            self._clear()
            raise errors.DriverError(backend="nbd", reason=f"cannot serve {spec.path}: {error}") from error
        except BaseException:
            self._clear()
            raise

    def _spawn(self, programs: Programs) -> subprocess.Popen[bytes]:
        spec = self.spec
        _write_private(self._folder / _KEYS, f"{spec.user}:{spec.key}\n")
        argv = command(programs, spec, self.port, self._folder)
        if spec.writable and is_device(spec):
            # Not while it is mounted or anybody else claims it, and nobody can as long as it is served.
            self._claim = os.open(spec.path, os.O_RDWR | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )

    def _clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        claim, self._claim = self._claim, -1
        if claim >= 0:
            os.close(claim)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def ended(self) -> int | None:
        """Return its exit status once it is gone, None while it runs."""
        return self._popen.poll()

    def wait_ready(self) -> None:
        """Wait until it listens; raises PortTaken, DriverError, and then it is gone."""
        assert self._popen.stderr is not None
        with self._popen.stderr as stderr:  # nobody reads what it says later, and nobody can fill a disk with it
            said = self._listen(stderr.fileno())
        if said is None:
            return
        self.kill()
        if _IN_USE in said:
            raise PortTaken
        words = said.decode("utf-8", "replace").replace(self.spec.name, "...").strip() or "it said nothing"
        raise errors.DriverError(backend="nbd", reason=f"the server of {self.spec.path} did not start: {words}")

    def _listen(self, descriptor: int) -> bytes | None:
        """Return None when it is ready, what it said when it will not be."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        said, deadline = b"", time.monotonic() + START_SECONDS
        ready = self._folder / _PID
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                if ready.stat().st_size:
                    return None
            if poll.poll(_LOOK_MS):
                more = os.read(descriptor, 4096)
                said = (said + more)[-4096:]
                if not more:
                    break
        return said

    def kill(self) -> None:
        """Kill it and wait until it is gone: then nothing is written through it any more; raises DriverError."""
        self.is_ending = True
        self._popen.kill()
        try:
            self._popen.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired as error:
            reason = f"NBD server {self.pid} was killed and is not gone: it waits for a device"
            raise errors.DriverError(backend="nbd", reason=reason) from error
        with self._clearing:
            self._clear()


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def remove_leftovers(root: Path) -> int:
    """Kill the servers whose folders an earlier process left under ``root``, remove the folders, and count them.

    Raises DriverError if one is not gone.
    """
    folders = [folder for folder in root.iterdir() if folder.is_dir()] if root.is_dir() else []
    for folder in folders:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            _kill_leftover(int((folder / _PID).read_text(encoding="ascii")), folder)
        shutil.rmtree(folder, ignore_errors=True)
    return len(folders)


def _kill_leftover(pid: int, folder: Path) -> None:
    """Kill a process if it is the server of that folder: its command line names it; the id alone proves nothing."""
    descriptor = os.pidfd_open(pid)
    try:
        if os.fsencode(folder) + b"/" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(KILL_SECONDS * 1000):
            reason = f"NBD server {pid} of an earlier process was killed and is not gone: it waits for a device"
            raise errors.DriverError(backend="nbd", reason=reason)
    finally:
        os.close(descriptor)
