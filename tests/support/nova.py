"""A stand-in for nova-api and nova-compute: it follows the calls that a real one makes when it swaps a volume.

    PUT …/os-volume_attachments/{old}      get_old get_new begin versions reserve: inside the request, as nova-api does
    then, in a thread, as nova-compute     get_old get_new connect COPY complete detach completion
    if connect, COPY or complete fails     roll release failure, which is completion with error

COPY ends with the change to the new disk: when ``complete`` fails, the server lives there, and a failure is reported
all the same.  Where another call fails, nova-compute does nothing more, and reports nothing.

The data is moved as a hypervisor does it: what the guest writes meanwhile goes to both files, and it never stops.
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import http.client
import json
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

BLOCK = 4096
#: Blocks that a guest writes in turn, over and over.
BLOCKS = 256


class Failed(Exception):
    """A call was refused, or fails because the test wants it to."""


class Died(Exception):
    """The compute service ends here and knows nothing afterwards."""


class Image:
    """A file that a hypervisor has open, with the locks by which others see that (QEMU: bytes from 100 on)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 100, 4, 0))

    def close(self) -> None:
        """Close it, once: by then the number may be that of another guest's disk."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Guest:
    """A server's disk and a program that writes numbered, checksummed blocks to it without a pause."""

    def __init__(self, path: str, pause: float = 0.001) -> None:
        self._disk = Image(path)
        self._mirror: Image | None = None
        self._pause = pause
        self.acknowledged: dict[int, int] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write_forever, daemon=True)
        self._thread.start()

    @property
    def path(self) -> str:
        return self._disk.path

    @property
    def mirror(self) -> str | None:
        return self._mirror.path if self._mirror else None

    @staticmethod
    def block(place: int, number: int) -> bytes:
        head = f"{place}:{number}:".encode()
        body = head + bytes(BLOCK - 32 - len(head))
        return body + hashlib.sha256(body).digest()

    def _write_forever(self) -> None:
        number = 0
        while not self._ending.wait(self._pause):
            place, number = number % BLOCKS, number + 1
            with self._lock:
                for image in filter(None, (self._disk, self._mirror)):
                    os.pwrite(image.fd, self.block(place, number), place * BLOCK)
                self.acknowledged[place] = number

    def copy_to(self, path: str) -> None:
        """Copy the disk while the guest writes to both."""
        with self._lock:
            self._mirror = Image(path)
        for place in range(BLOCKS):
            with self._lock:
                os.pwrite(self._mirror.fd, os.pread(self._disk.fd, BLOCK, place * BLOCK), place * BLOCK)

    def pivot(self) -> None:
        with self._lock:
            assert self._mirror is not None
            self._disk.close()
            self._disk, self._mirror = self._mirror, None

    def abort(self) -> None:
        """End the copy, if there is one under way; what was changed over to stays."""
        with self._lock:
            if self._mirror is not None:
                self._mirror.close()
                self._mirror = None

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(10)

    def end(self) -> None:
        """Power off: nothing is open any more."""
        self.stop()
        self.abort()
        self._disk.close()

    def check(self) -> None:
        """See that every acknowledged block is on the disk that the guest has, by its path."""
        self.stop()
        with open(self.path, "rb") as disk:
            data = disk.read(BLOCK * BLOCKS)
        for place, number in self.acknowledged.items():
            found = data[place * BLOCK : (place + 1) * BLOCK]
            assert hashlib.sha256(found).digest() == hashlib.sha256(self.block(place, number)).digest(), (place, number)


@dataclass
class Disk:
    """One volume of one server, as Nova remembers it."""

    server: str
    volume: str
    attachment: str
    #: A ``Guest``, or what behaves like one.
    guest: Any


class Fault(enum.StrEnum):
    """What may happen to one call to block storage on its way, and what a client of Nova's makes of it."""

    REFUSED = "connection refused"
    UNAUTHORIZED = "401"
    FORBIDDEN = "403"
    NOT_FOUND = "404"
    CONFLICT = "409"
    BROKEN = "500"
    UNAVAILABLE = "503"
    #: Nobody waits any more when it arrives.
    LATE = "time-out"
    GARBAGE = "an answer that is none"
    #: The connection broke behind the work: the client sends it again.
    LOST = "answer lost"
    #: A proxy gave up behind the work.
    GATEWAY = "504 after the work"


#: The work is done, whatever comes back.
_DONE = (Fault.GARBAGE, Fault.LOST, Fault.GATEWAY)
#: Calls whose answer Nova reads, those that it repeats after 500 and 504, and those whose 404 it takes for success.
_READ = ("get_old", "get_new", "reserve", "compute_get_old", "compute_get_new", "connect", "completion", "failure")
_REPEATED = ("connect", "detach", "release")
_GONE_IS_FINE = ("detach", "release")


@dataclass
class Plan:
    """What is to go wrong in the swap of one volume."""

    #: Call → what happens in its place.
    faults: dict[str, Exception | Fault] = field(default_factory=dict)
    #: nova-api answers with this and does nothing.
    refuse: int | None = None
    #: Set before the call goes on; the other is set when it is reached.
    gates: dict[str, threading.Event] = field(default_factory=dict)
    reached: dict[str, threading.Event] = field(default_factory=dict)
    #: Requests that are still on their way when Nova gives up.
    late: list[Callable[[], Any]] = field(default_factory=list)
    #: Set when nova-compute does nothing more about the swap.
    over: threading.Event = field(default_factory=threading.Event)

    def give_up(self) -> None:
        """Let arrive what is late, and be done."""
        while self.late:
            self.late.pop()()
        self.over.set()

    def hold(self, call: str) -> tuple[threading.Event, threading.Event]:
        """Hold the swap before a call; returns the events that say it is there, and that let it go on."""
        self.reached[call], self.gates[call] = threading.Event(), threading.Event()
        return self.reached[call], self.gates[call]


class Nova:
    """Both services of it; speaks to the block-storage API at ``block_url``, once that is known."""

    def __init__(self, guest: Callable[[str, float], Any] = Guest) -> None:
        """``guest`` makes what runs on a disk, given its path and how long it pauses between two writes."""
        self.make_guest = guest
        self.block_url = ""
        self.disks: list[Disk] = []
        self.plans: dict[str, Plan] = {}
        self.events: list[dict[str, Any]] = []
        #: Every call of ours: volume, call, status of the answer.
        self.calls: list[tuple[str, str, int]] = []
        self.puts: list[tuple[str, str]] = []
        self.answers: list[Any] = []
        self.running: list[str] = []
        self.most_at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v2.1"

    def go_away(self) -> None:
        """Answer nobody any more."""
        self._http.shutdown()
        self._http.server_close()

    def end(self) -> None:
        self.go_away()
        for plan in self.plans.values():
            for gate in plan.gates.values():
                gate.set()
        for disk in self.disks:
            disk.guest.end()

    def disk(self, volume: str) -> Disk:
        return next(disk for disk in self.disks if disk.volume == volume)

    # --- calls to block storage ---

    def call(self, method: str, path: str, body: Any = None, version: str | None = None) -> tuple[int, Any]:
        """One request with the token and the project of the service user."""
        connection = http.client.HTTPConnection(urlsplit(self.block_url).netloc, timeout=20)
        headers = {"X-Auth-Token": "admin:service", "Content-Type": "application/json"}
        if version is not None:
            headers["OpenStack-API-Version"] = f"volume {version}"
        try:
            path = path if path == "/" else f"/v3/service{path}"
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def _do(self, old: str, call: str, method: str, path: str, body: Any = None, version: str | None = None) -> Any:
        """One call of a swap, with what the plan of the volume does to it."""
        self.step(old, call)
        fault = self.plans[old].faults.get(call)
        if not isinstance(fault, Fault):
            return self._sent(old, call, method, path, body, version)
        if fault in _DONE:
            answer = self._sent(old, call, method, path, body, version)
            if fault is Fault.LOST or (fault is Fault.GATEWAY and call in _REPEATED):
                return self._sent(old, call, method, path, body, version)
            if fault is Fault.GARBAGE and call not in _READ:
                return answer
        elif fault is Fault.LATE:
            self.plans[old].late.append(lambda: self.call(method, path, body, version))
        elif fault is Fault.NOT_FOUND and call in _GONE_IS_FINE:
            return None
        raise Failed(f"{call}: {fault}")

    def _sent(self, old: str, call: str, method: str, path: str, body: Any, version: str | None) -> Any:
        try:
            status, answer = self.call(method, path, body, version)
        except OSError as error:
            raise Failed(f"{call}: {error}") from error
        self.calls.append((old, call, status))
        if status >= 400 and not (status == 404 and call in _GONE_IS_FINE):
            raise Failed(f"{call}: {status} {answer}")
        return answer

    def step(self, old: str, call: str) -> None:
        plan = self.plans.setdefault(old, Plan())
        if call in plan.gates:
            plan.reached[call].set()
            assert plan.gates[call].wait(60)
        fault = plan.faults.get(call)
        if isinstance(fault, Exception):
            raise fault

    def attach(
        self, server: str, volume: str, mode: str | None = None, device: str = "/dev/vdb", pause: float = 0.001
    ) -> Disk:
        """Attach a volume as Nova does, and start a guest that writes to it."""
        wanted = {"volume_uuid": volume, "connector": None, "instance_uuid": server, "mode": mode}
        body = {"attachment": {key: value for key, value in wanted.items() if value is not None or key == "connector"}}
        version = "3.54" if mode else "3.44"
        made = self._do(volume, "attach", "POST", "/attachments", body, version)["attachment"]
        shown = self._connect(volume, made["id"], "attach_connect", device)
        self._do(volume, "attach_done", "POST", f"/attachments/{made['id']}/action", {"os-complete": None}, "3.44")
        disk = Disk(server, volume, made["id"], self.make_guest(shown["connection_info"]["device_path"], pause))
        self.disks.append(disk)
        return disk

    def _connect(self, old: str, attachment: str, call: str, device: str) -> Any:
        connector = {"ip": "127.0.0.1", "initiator": "fake", "host": "compute1", "mountpoint": device}
        body = {"attachment": {"connector": connector}}
        return self._do(old, call, "PUT", f"/attachments/{attachment}", body, "3.44")["attachment"]

    # --- the swap ---

    def begin_swap(self, server: str, old: str, new: str) -> tuple[int, Any]:
        """nova-api's part; returns the answer to the PUT."""
        self.puts.append((old, new))
        plan = self.plans.setdefault(old, Plan())
        if plan.refuse is not None:
            return plan.refuse, {"fault": {"code": plan.refuse, "message": f"refused with {plan.refuse} on purpose"}}
        try:
            shown = self._do(old, "get_old", "GET", f"/volumes/{old}")["volume"]
            if not shown["migration_status"]:
                return 409, {"conflictingRequest": {"code": 409, "message": "the volume is not migrating"}}
            self._do(old, "get_new", "GET", f"/volumes/{new}")
            self._do(old, "begin", "POST", f"/volumes/{old}/action", {"os-begin_detaching": None})
            self._do(old, "versions", "GET", "/")
            body = {"attachment": {"volume_uuid": new, "connector": None, "instance_uuid": server}}
            made = self._do(old, "reserve", "POST", "/attachments", body, "3.44")["attachment"]["id"]
        except Failed as error:
            plan.give_up()
            return 500, {"computeFault": {"code": 500, "message": str(error)}}
        threading.Thread(target=self._compute, args=(server, old, new, made), daemon=True).start()
        return 202, None

    def _compute(self, server: str, old: str, new: str, made: str) -> None:
        with self._lock:
            self.running.append(server)
            self.most_at_once = max(self.most_at_once, self.running.count(server))
        try:
            self._swap(self.disk(old), old, new, made)
        except (Failed, Died, StopIteration):
            return  # nova-compute logs it, and does nothing more
        finally:
            self.running.remove(server)
            self.plans[old].give_up()

    def _swap(self, disk: Disk, old: str, new: str, made: str) -> None:
        shown = self._do(old, "compute_get_old", "GET", f"/volumes/{old}")["volume"]
        self._do(old, "compute_get_new", "GET", f"/volumes/{new}")
        if shown["migration_status"] != "migrating":
            raise Failed("not a migration")
        try:
            self._copy(disk, old, made)
        except Failed:
            disk.guest.abort()
            try:
                self._do(old, "roll", "POST", f"/volumes/{old}/action", {"os-roll_detaching": None})
                self._do(old, "release", "DELETE", f"/attachments/{made}", None, "3.44")
            finally:
                self._complete("failure", old, new, error=True)
            return
        self._do(old, "detach", "DELETE", f"/attachments/{disk.attachment}", None, "3.44")
        kept = self.complete(old, new, error=False)
        disk.volume, disk.attachment = kept, made

    def _copy(self, disk: Disk, old: str, made: str) -> None:
        info = self._connect(old, made, "connect", "/dev/vdb")["connection_info"]
        self.answers.append(info)
        disk.guest.copy_to(info["device_path"])
        self.step(old, "copy")
        disk.guest.pivot()
        self._do(old, "complete", "POST", f"/attachments/{made}/action", {"os-complete": None}, "3.44")

    def complete(self, old: str, new: str, error: bool) -> str:
        return self._complete("completion", old, new, error)

    def _complete(self, call: str, old: str, new: str, error: bool) -> str:
        body = {"os-migrate_volume_completion": {"new_volume": new, "error": error}}
        answer = self._do(old, call, "POST", f"/volumes/{old}/action", body)
        return str(answer["save_volume_id"])


def _handler(nova: Nova) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def _answer(self, status: int, body: Any) -> None:
            text = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text)

        def _body(self) -> Any:
            return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

        def do_PUT(self) -> None:
            _, _, _, server, _, old = self.path.split("/")
            self._answer(*nova.begin_swap(server, old, self._body()["volumeAttachment"]["volumeId"]))

        def do_GET(self) -> None:
            server = self.path.split("/")[3]
            found = [{"id": disk.volume, "volumeId": disk.volume} for disk in nova.disks if disk.server == server]
            if found:
                self._answer(200, {"volumeAttachments": found})
            else:
                self._answer(404, {"itemNotFound": {"code": 404, "message": f"no server {server}"}})

        def do_POST(self) -> None:
            nova.events += self._body()["events"]
            self._answer(200, {"events": []})

    return Handler
