"""Hosts on one machine: network, mount and process id namespaces of their own, joined by a bridge.

They count as different machines: none can signal another's processes, reach its loopback or, where a folder is hidden,
open its files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests.support.needs import missing
from tests.support.processes import Process
from tests.support.waiting import until

#: The first process of a host: takes over and forgets whoever lost its parent; ends with the tests.
_INIT = "import signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
_ETH_P_ALL = 3


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False, timeout=30)
    assert done.returncode == 0, (command, done.stderr.decode())


def require_namespaces() -> None:
    """Skip, or fail in CI, where hosts cannot be made."""
    for program in ("ip", "unshare", "nsenter", "mount"):
        if shutil.which(program) is None:
            missing(f"{program} is not installed: tests/prepare does it")
    if os.geteuid() != 0:
        missing("only root may make network namespaces")
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=False).returncode:
        missing("this kernel gives no namespaces")


class Host:
    """One host; ``hidden`` folders are empty for its processes."""

    def __init__(self, name: str, address: str, hidden: Sequence[Path]) -> None:
        self.name, self.address = name, address
        kinds = ["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
        self._popen = subprocess.Popen(
            ["unshare", *kinds, sys.executable, "-c", _INIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._popen.stdout is not None
        assert self._popen.stdout.readline(), "the host's first process runs"
        pid = self._popen.pid
        self.init = int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0])
        for folder in hidden:
            folder.mkdir(parents=True, exist_ok=True)
            _run(*self.enter("--mount"), "mount", "-t", "tmpfs", "none", str(folder))

    def enter(self, *kinds: str) -> list[str]:
        """What to put before a command that is to run there."""
        return ["nsenter", "-t", str(self.init), *(kinds or ("--net", "--mount", "--pid")), "--"]

    def pids(self, *words: str) -> list[int]:
        """Its processes, as this machine numbers them, whose command line holds one of the words."""
        place, found = os.readlink(f"/proc/{self.init}/ns/pid"), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == place:
                    text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    found += [int(entry.name)] if any(word in text for word in words) else []
        return found

    def kill(self, *words: str) -> None:
        """SIGKILL to just those processes; returns when they are gone."""
        pids = self.pids(*words)
        assert pids, f"{words} runs on {self.name}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not set(pids) & set(self.pids(*words)), f"{words} on {self.name} is gone")

    def close(self) -> None:
        """End the first process, and with it, by the kernel, all others."""
        self._popen.kill()
        self._popen.communicate()


class HostProcess(Process):
    """A program of migrator on a host."""

    def __init__(self, host: Host, program: str, arguments: list[str], log: Path) -> None:
        self._host = host
        super().__init__(program, arguments, log)

    def start(self) -> None:
        prefix = self._host.enter()
        if self._command[: len(prefix)] != prefix:
            self._command = [*prefix, *self._command]
        super().start()


class Network:
    """A bridge with hosts on it; this machine's own end is ``address``."""

    def __init__(self) -> None:
        require_namespaces()
        self._stack = contextlib.ExitStack()
        self._tag = secrets.token_hex(3)
        self._prefix = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}"
        self.address = f"{self._prefix}.1"
        self.bridge = f"br{self._tag}"
        self.hosts: list[Host] = []
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        self._stack.callback(_run, "ip", "link", "del", self.bridge)
        _run("ip", "addr", "add", f"{self.address}/24", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")

    def add(self, name: str, hidden: Sequence[Path] = ()) -> Host:
        number = len(self.hosts)
        host = Host(name, f"{self._prefix}.{number + 2}", hidden)
        self._stack.callback(host.close)
        self.hosts.append(host)
        link = self.link(host)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(host.init))
        _run("ip", "link", "set", link, "master", self.bridge, "up")
        inside = host.enter("--net")
        _run(*inside, "ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run(*inside, "ip", "link", "set", device, "up")
        return host

    def link(self, host: Host) -> str:
        """This machine's end of the host's cable."""
        return f"v{self._tag}{self.hosts.index(host)}"

    def forwarded(self, url: str) -> str:
        """Let the hosts reach a server of this machine's loopback; returns its URL as they see it."""
        parts = urlsplit(url)
        assert parts.port or parts.scheme.partition("+")[0] == "mysql", url
        port = self._stack.enter_context(_forwarder(self.address, parts.hostname or "", parts.port or 3306))
        login = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{login}@{self.address}:{port}"))

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def _forwarder(address: str, host: str, port: int) -> Iterator[int]:
    """Pass what comes to a port of ``address`` on to a server that listens to its own loopback only."""
    listener = socket.create_server((address, 0))

    def accept() -> None:
        while True:
            try:
                incoming, _ = listener.accept()
            except OSError:  # closed
                return
            outgoing = socket.create_connection((host, port))
            for one, other in ((incoming, outgoing), (outgoing, incoming)):
                threading.Thread(target=_pump, args=(one, other), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    for end in (one, other):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Capture:
    """Reads all that passes a network device, and looks for a word in it."""

    def __init__(self, device: str, word: bytes) -> None:
        self._word = word
        #: Bytes that were seen, and how many packets had the word.
        self.seen = self.found = 0
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.bind((device, 0))
        self._socket.settimeout(0.1)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        buffer = memoryview(bytearray(1 << 17))
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                count = self._socket.recv_into(buffer)
                self.seen += count
                self.found += self._word in bytes(buffer[:count])

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close()
