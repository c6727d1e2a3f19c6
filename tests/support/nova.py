"""A stand-in for nova-api and nova-compute: it follows the calls that a real one makes when it swaps a volume.

    PUT …/os-volume_attachments/{old}      get_old get_new begin reserve     inside the request, as nova-api does
    then, in a thread, as nova-compute     get_old get_new connect COPY complete detach completion
    if that fails                          roll, release, completion with error

The data is moved as a hypervisor does it: what the guest writes meanwhile goes to both files, and it never stops.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
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


class Guest:
    """A server's disk and a program that writes numbered, checksummed blocks to it without a pause."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.mirror: str | None = None
        self.acknowledged: dict[int, int] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write_forever, daemon=True)
        self._thread.start()

    @staticmethod
    def block(place: int, number: int) -> bytes:
        head = f"{place}:{number}:".encode()
        body = head + bytes(BLOCK - 32 - len(head))
        return body + hashlib.sha256(body).digest()

    def _write_forever(self) -> None:
        number = 0
        while not self._ending.wait(0.001):
            place, number = number % BLOCKS, number + 1
            with self._lock:
                for path in filter(None, (self.path, self.mirror)):
                    with open(path, "r+b", buffering=0) as disk:
                        os.pwrite(disk.fileno(), self.block(place, number), place * BLOCK)
                self.acknowledged[place] = number

    def copy_to(self, path: str) -> None:
        """Copy the disk while the guest writes to both."""
        with self._lock:
            self.mirror = path
        for place in range(BLOCKS):
            with self._lock, open(self.path, "rb") as old, open(path, "r+b", buffering=0) as new:
                os.pwrite(new.fileno(), os.pread(old.fileno(), BLOCK, place * BLOCK), place * BLOCK)

    def pivot(self) -> None:
        with self._lock:
            assert self.mirror is not None
            self.path, self.mirror = self.mirror, None

    def abort(self) -> None:
        with self._lock:
            self.mirror = None

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(10)

    def check(self) -> None:
        """See that every acknowledged block is on the disk that the guest has."""
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
    guest: Guest


@dataclass
class Plan:
    """What is to go wrong in the swap of one volume."""

    #: Call → what happens in its place.
    faults: dict[str, Exception] = field(default_factory=dict)
    #: nova-api answers with this and does nothing.
    refuse: int | None = None
    #: Set before the call goes on; the other is set when it is reached.
    gates: dict[str, threading.Event] = field(default_factory=dict)
    reached: dict[str, threading.Event] = field(default_factory=dict)

    def hold(self, call: str) -> tuple[threading.Event, threading.Event]:
        """Hold the swap before a call; returns the events that say it is there, and that let it go on."""
        self.reached[call], self.gates[call] = threading.Event(), threading.Event()
        return self.reached[call], self.gates[call]


class Nova:
    """Both services of it; speaks to the block-storage API at ``block_url``, once that is known."""

    def __init__(self) -> None:
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
            disk.guest.stop()

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
            connection.request(method, f"/v3/service{path}", None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def _do(self, old: str, call: str, method: str, path: str, body: Any = None, version: str | None = None) -> Any:
        self.step(old, call)
        try:
            status, answer = self.call(method, path, body, version)
        except OSError as error:
            raise Failed(f"{call}: {error}") from error
        self.calls.append((old, call, status))
        if status >= 300:
            raise Failed(f"{call}: {status} {answer}")
        return answer

    def step(self, old: str, call: str) -> None:
        plan = self.plans.setdefault(old, Plan())
        if call in plan.gates:
            plan.reached[call].set()
            assert plan.gates[call].wait(60)
        if call in plan.faults:
            raise plan.faults[call]

    def attach(self, server: str, volume: str, mode: str | None = None, device: str = "/dev/vdb") -> Disk:
        """Attach a volume as Nova does, and start a guest that writes to it."""
        wanted = {"volume_uuid": volume, "connector": None, "instance_uuid": server, "mode": mode}
        body = {"attachment": {key: value for key, value in wanted.items() if value is not None or key == "connector"}}
        version = "3.54" if mode else "3.44"
        made = self._do(volume, "attach", "POST", "/attachments", body, version)["attachment"]
        shown = self._connect(volume, made["id"], "attach_connect", device)
        self._do(volume, "attach_done", "POST", f"/attachments/{made['id']}/action", {"os-complete": None}, "3.44")
        disk = Disk(server, volume, made["id"], Guest(shown["connection_info"]["device_path"]))
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
        except Failed as error:
            return 500, {"computeFault": {"code": 500, "message": str(error)}}
        try:
            body = {"attachment": {"volume_uuid": new, "connector": None, "instance_uuid": server}}
            made = self._do(old, "reserve", "POST", "/attachments", body, "3.44")["attachment"]["id"]
        except Failed as error:
            self._do(old, "roll", "POST", f"/volumes/{old}/action", {"os-roll_detaching": None})
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

    def _swap(self, disk: Disk, old: str, new: str, made: str) -> None:
        try:
            self._copy(disk, old, new, made)
        except Failed:
            disk.guest.abort()
            self._do(old, "roll", "POST", f"/volumes/{old}/action", {"os-roll_detaching": None})
            self._do(old, "release", "DELETE", f"/attachments/{made}", None, "3.44")
            self.complete(old, new, error=True)
            return
        self._do(old, "detach", "DELETE", f"/attachments/{disk.attachment}", None, "3.44")
        kept = self.complete(old, new, error=False)
        disk.volume, disk.attachment = kept, made

    def _copy(self, disk: Disk, old: str, new: str, made: str) -> None:
        shown = self._do(old, "compute_get_old", "GET", f"/volumes/{old}")["volume"]
        self._do(old, "compute_get_new", "GET", f"/volumes/{new}")
        if shown["migration_status"] != "migrating":
            raise Failed("not a migration")
        info = self._connect(old, made, "connect", "/dev/vdb")["connection_info"]
        self.answers.append(info)
        disk.guest.copy_to(info["device_path"])
        self.step(old, "copy")
        self._do(old, "complete", "POST", f"/attachments/{made}/action", {"os-complete": None}, "3.44")
        disk.guest.pivot()

    def complete(self, old: str, new: str, error: bool) -> str:
        body = {"os-migrate_volume_completion": {"new_volume": new, "error": error}}
        answer = self._do(old, "completion", "POST", f"/volumes/{old}/action", body)
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
