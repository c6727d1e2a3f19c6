"""A stand-in for nova-api and nova-compute: it follows the calls that a real one makes when it swaps a volume.

    PUT …/os-volume_attachments/{old}      get_old get_new begin versions reserve: inside the request, as nova-api does
    then, in a thread, as nova-compute     get_old get_new connect COPY complete detach completion
    if connect, COPY or complete fails     roll release failure, which is completion with error
    if nova-compute cannot be told         roll release, and the PUT ends with 500

COPY ends with the change to the new disk: when ``complete`` fails, the server lives there, and a failure is reported
all the same.  Where another call fails, nova-compute does nothing more, and reports nothing.  A volume that is not
``migrating`` when nova-compute looks is swapped for good: Nova keeps the new one, and never calls back.

All of these carry the token of whoever sent the PUT, that token's project in their path, and Nova's own token beside
it; attach and detach carry their user's.  ``RECORDED`` has how a real Nova sends each, and what a real block storage
answers: another answer is kept in ``Nova.strange``.

The data is moved as a hypervisor does it: what the guest writes meanwhile goes to both files, and it never stops.
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import json
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.support.plain_guest import Guest

#: Tokens of a service that believes every caller: of a tenant, and of the service user in [nova].
USER, SERVICE_USER = "tenant:p", "admin:service"


class Failed(Exception):
    """A call was refused, or fails because the test wants it to."""


class Died(Exception):
    """The compute service ends here and knows nothing afterwards."""


@dataclass
class Disk:
    """One volume of one server, as Nova remembers it."""

    server: str
    volume: str
    attachment: str
    #: A ``Guest``, or what behaves like one.
    guest: Any
    device: str = "/dev/vdb"


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


class Recorded(NamedTuple):
    """A call to block storage: how it is sent (``version`` None: no header), and the status of the answer."""

    method: str
    version: str | None
    status: int


_GET, _GET_NEWEST, _VERSIONS = Recorded("GET", None, 200), Recorded("GET", "3.69", 200), Recorded("GET", None, 300)
_ACTION, _COMPLETION = Recorded("POST", None, 202), Recorded("POST", None, 200)
_RESERVE, _CONNECT = Recorded("POST", "3.44", 200), Recorded("PUT", "3.44", 200)
_COMPLETE, _DELETE = Recorded("POST", "3.44", 204), Recorded("DELETE", "3.44", 200)

#: The calls of the real ones (nova-calls.md).
RECORDED: dict[str, Recorded] = {
    # a swap: nova-api
    "get_old": _GET,
    "get_new": _GET,
    "begin": _ACTION,
    "versions": _VERSIONS,
    "reserve": _RESERVE,
    # nova-compute
    "compute_get_old": _GET,
    "compute_get_new": _GET,
    "connect": _CONNECT,
    "complete": _COMPLETE,
    "detach": _DELETE,
    "completion": _COMPLETION,
    # where it failed
    "roll": _ACTION,
    "release": _DELETE,
    "failure": _COMPLETION,
    # attach; a mode is asked for by other clients than Nova, with 3.54
    "attach_get": _GET,
    "attach_versions": _VERSIONS,
    "attach": _RESERVE,
    "attach_mode": _RESERVE._replace(version="3.54"),
    "attach_look": _GET_NEWEST,
    "attach_connect": _CONNECT,
    "attach_done": _COMPLETE,
    # detach
    "detach_get": _GET,
    "detach_begin": _ACTION,
    "detach_versions": _VERSIONS,
    "detach_look": _GET_NEWEST,
    "detach_delete": _DELETE,
}

#: Those of a swap that goes well, in their order, with the copy between them.
SWAP = (
    *("get_old", "get_new", "begin", "versions", "reserve", "compute_get_old", "compute_get_new"),
    *("connect", "copy", "complete", "detach", "completion"),
)
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
    #: nova-api answers when nova-compute is done.
    answer_last: bool = False
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
        #: A token that may do what a swap needs, and Nova's own, which vouches for its users' requests.
        self.service_user = SERVICE_USER
        self.own_token: Callable[[], str] = lambda: "nova:service"
        #: The project of a token.
        self.project_of: Callable[[str], str] = lambda token: token.partition(":")[2]
        #: Whether a token may ask for a swap: Nova's policy wants the role ``service``.
        self.may_swap: Callable[[str], bool] = lambda token: True
        #: The token with which a volume's calls are made.
        self.tokens: dict[str, str] = defaultdict(lambda: self.service_user)
        self.disks: list[Disk] = []
        self.plans: dict[str, Plan] = {}
        self.events: list[dict[str, Any]] = []
        #: Every call of ours: volume, call, status of the answer.
        self.calls: list[tuple[str, str, int]] = []
        #: Answers that a real block storage does not give: call, status, version.
        self.strange: list[tuple[str, int, str | None]] = []
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

    def call(
        self, method: str, path: str, body: Any = None, version: str | None = None, token: str | None = None
    ) -> tuple[int, Any]:
        """One request, by default with the token of the service user; returns the status and what is said."""
        status, _, answer = self._ask(method, path, body, version, token or self.service_user)
        return status, answer

    def _ask(self, method: str, path: str, body: Any, version: str | None, token: str) -> tuple[int, str | None, Any]:
        """The same; returns the version of the answer, too."""
        connection = http.client.HTTPConnection(urlsplit(self.block_url).netloc, timeout=20)
        headers = {"X-Auth-Token": token, "X-Service-Token": self.own_token(), "Content-Type": "application/json"}
        if version is not None:
            headers["OpenStack-API-Version"] = f"volume {version}"
        try:
            path = path if path == "/" else f"/v3/{self.project_of(token)}{path}"
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, answer.headers["OpenStack-API-Version"], json.loads(text) if text else None
        finally:
            connection.close()

    def _do(self, old: str, call: str, path: str, body: Any = None) -> Any:
        """One call for a volume, with what its plan does to it."""
        self.step(old, call)
        fault = self.plans[old].faults.get(call)
        if not isinstance(fault, Fault):
            return self._sent(old, call, path, body)
        if fault in _DONE:
            answer = self._sent(old, call, path, body)
            if fault is Fault.LOST or (fault is Fault.GATEWAY and call in _REPEATED):
                return self._sent(old, call, path, body, again=True)
            if fault is Fault.GARBAGE and call not in _READ:
                return answer
        elif fault is Fault.LATE:
            how, token = RECORDED[call], self.tokens[old]
            self.plans[old].late.append(lambda: self.call(how.method, path, body, how.version, token))
        elif fault is Fault.NOT_FOUND and call in _GONE_IS_FINE:
            return None
        raise Failed(f"{call}: {fault}")

    def _sent(self, old: str, call: str, path: str, body: Any, again: bool = False) -> Any:
        how = RECORDED[call]
        try:
            status, version, answer = self._ask(how.method, path, body, how.version, self.tokens[old])
        except OSError as error:
            raise Failed(f"{call}: {error}") from error
        self.calls.append((old, call, status))
        if status == 404 and call in _GONE_IS_FINE:
            return None
        if status >= 400:
            raise Failed(f"{call}: {status} {answer}")
        if not again and (status, version) != (how.status, f"volume {how.version or '3.0'}"):
            self.strange.append((call, status, version))
        return answer

    def step(self, old: str, call: str) -> None:
        plan = self.plans.setdefault(old, Plan())
        if call in plan.gates:
            plan.reached[call].set()
            assert plan.gates[call].wait(60)
        fault = plan.faults.get(call)
        if isinstance(fault, Exception):
            raise fault

    # --- attach and detach ---

    def attach(
        self,
        server: str,
        volume: str,
        mode: str | None = None,
        device: str = "/dev/vdb",
        pause: float = 0.001,
        user: str = USER,
        guest: Callable[[str, float], Any] | None = None,
    ) -> Disk:
        """Attach a volume as Nova does for ``user``, a token, and start a guest that writes to it."""
        self.tokens[volume] = user
        self._do(volume, "attach_get", f"/volumes/{volume}")
        self._do(volume, "attach_versions", "/")
        body = {"attachment": {"volume_uuid": volume, "connector": None, "instance_uuid": server}}
        if mode is not None:
            body["attachment"]["mode"] = mode
        made = self._do(volume, "attach_mode" if mode else "attach", "/attachments", body)["attachment"]
        self._do(volume, "attach_versions", "/")
        self._do(volume, "attach_look", f"/volumes/{volume}")
        shown = self._connect(volume, made["id"], "attach_connect", device)
        self._do(volume, "attach_done", f"/attachments/{made['id']}/action", {"os-complete": None})
        program = guest or self.make_guest
        disk = Disk(server, volume, made["id"], program(shown["connection_info"]["device_path"], pause), device)
        self.disks.append(disk)
        return disk

    def _connect(self, old: str, attachment: str, call: str, device: str) -> Any:
        connector = {"ip": "127.0.0.1", "initiator": "fake", "host": "compute1", "mountpoint": device}
        body = {"attachment": {"connector": connector}}
        return self._do(old, call, f"/attachments/{attachment}", body)["attachment"]

    def detach(self, disk: Disk, user: str = USER) -> None:
        """Detach a volume as Nova does for ``user``, by the attachment that Nova remembers."""
        self.tokens[disk.volume] = user
        self._do(disk.volume, "detach_get", f"/volumes/{disk.volume}")
        self._do(disk.volume, "detach_begin", f"/volumes/{disk.volume}/action", {"os-begin_detaching": None})
        self._do(disk.volume, "detach_versions", "/")
        shown = self._do(disk.volume, "detach_look", f"/volumes/{disk.volume}")["volume"]
        assert shown["status"] == "detaching"
        assert [each["attachment_id"] for each in shown["attachments"]] == [disk.attachment]
        self._do(disk.volume, "detach_delete", f"/attachments/{disk.attachment}")
        self.disks.remove(disk)
        disk.guest.end()

    # --- the swap ---

    def begin_swap(self, server: str, old: str, new: str, token: str) -> tuple[int, Any]:
        """nova-api's part; returns the answer to the PUT."""
        self.puts.append((old, new))
        self.tokens[old] = token
        plan = self.plans.setdefault(old, Plan())
        if not self.may_swap(token):
            return 403, {"forbidden": {"code": 403, "message": "os_compute_api:os-volumes-attachments:swap"}}
        if plan.refuse is not None:
            return plan.refuse, {"fault": {"code": plan.refuse, "message": f"refused with {plan.refuse} on purpose"}}
        try:
            reason = self._against(old, new)
            if reason is not None:
                return reason
            self._do(old, "begin", f"/volumes/{old}/action", {"os-begin_detaching": None})
            self._do(old, "versions", "/")
            body = {"attachment": {"volume_uuid": new, "connector": None, "instance_uuid": server}}
            made = self._do(old, "reserve", "/attachments", body)["attachment"]["id"]
        except Failed as error:
            plan.give_up()
            return 500, {"computeFault": {"code": 500, "message": str(error)}}
        try:
            self.step(old, "tell_compute")
        except Failed as error:
            with contextlib.suppress(Failed):
                self._let_go(old, made)
            plan.give_up()
            return 500, {"computeFault": {"code": 500, "message": str(error)}}
        threading.Thread(target=self._compute, args=(server, old, new, made), daemon=True).start()
        if plan.answer_last:
            assert plan.over.wait(60)
        return 202, None

    def _against(self, old: str, new: str) -> tuple[int, Any] | None:
        """What nova-api refuses a swap with after a look at both volumes."""
        shown = self._do(old, "get_old", f"/volumes/{old}")["volume"]
        if not shown["migration_status"]:
            return 409, {"conflictingRequest": {"code": 409, "message": "the volume is not migrating"}}
        wanted = self._do(old, "get_new", f"/volumes/{new}")["volume"]
        if wanted["attachments"] or wanted["size"] < shown["size"]:
            return 400, {"badRequest": {"code": 400, "message": "the new volume is attached, or smaller"}}
        return None

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
        shown = self._do(old, "compute_get_old", f"/volumes/{old}")["volume"]
        self._do(old, "compute_get_new", f"/volumes/{new}")
        reports = shown["migration_status"] == "migrating"
        try:
            self._copy(disk, old, made)
        except Failed:
            disk.guest.abort()
            try:
                self._let_go(old, made)
            finally:
                if reports:
                    self._complete("failure", old, new, error=True)
            return
        self._do(old, "detach", f"/attachments/{disk.attachment}")
        kept = self._complete("completion", old, new, error=False) if reports else new
        disk.volume, disk.attachment = kept, made

    def _copy(self, disk: Disk, old: str, made: str) -> None:
        info = self._connect(old, made, "connect", disk.device)["connection_info"]
        self.answers.append(info)
        disk.guest.copy_to(info["device_path"])
        self.step(old, "copy")
        disk.guest.pivot()
        self._do(old, "complete", f"/attachments/{made}/action", {"os-complete": None})

    def _let_go(self, old: str, made: str) -> None:
        """What is done where a swap has failed."""
        self._do(old, "roll", f"/volumes/{old}/action", {"os-roll_detaching": None})
        self._do(old, "release", f"/attachments/{made}")

    def complete(self, old: str, new: str, error: bool) -> str:
        """Report as the service user; returns which volume is kept."""
        self.tokens[old] = self.service_user
        return self._complete("failure" if error else "completion", old, new, error)

    def _complete(self, call: str, old: str, new: str, error: bool) -> str:
        body = {"os-migrate_volume_completion": {"new_volume": new, "error": error}}
        return str(self._do(old, call, f"/volumes/{old}/action", body)["save_volume_id"])


def _unfit(headers: dict[str, str], version: str) -> tuple[int, Any] | None:
    """The answer to a request that says not who asks, or asks for an older version than the call has."""
    asked = headers.get("X-OpenStack-Nova-API-Version", "0.0")
    if not headers.get("X-Auth-Token"):
        return 401, {"unauthorized": {"code": 401, "message": "no token"}}
    if [int(part) for part in asked.split(".")] < [int(part) for part in version.split(".")]:
        return 400, {"badRequest": {"code": 400, "message": f"{asked} is less than {version}"}}
    return None


def _shown(disks: list[Disk], server: str) -> tuple[int, Any]:
    """What a server's attachments are answered with."""
    found = [{"id": disk.volume, "volumeId": disk.volume} for disk in disks if disk.server == server]
    if not found:
        return 404, {"itemNotFound": {"code": 404, "message": f"no server {server}"}}
    return 200, {"volumeAttachments": found}


def _handler(nova: Nova) -> Callable[..., BaseHTTPRequestHandler]:  # noqa: C901 (a method for each verb)
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def _answer(self, status: int, body: Any) -> None:
            text = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who asked was killed meanwhile
                self.wfile.write(text)

        def _body(self) -> Any:
            return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

        def _is_meant(self, version: str) -> bool:
            refusal = _unfit(dict(self.headers), version)
            if refusal is not None:
                self._answer(*refusal)
            return refusal is None

        def do_PUT(self) -> None:
            body = self._body()
            if self._is_meant("2.1"):
                _, _, _, server, _, old = self.path.split("/")
                token = str(self.headers["X-Auth-Token"])
                self._answer(*nova.begin_swap(server, old, body["volumeAttachment"]["volumeId"], token))

        def do_GET(self) -> None:
            if self._is_meant("2.1"):
                self._answer(*_shown(nova.disks, self.path.split("/")[3]))

        def do_POST(self) -> None:
            events = self._body()["events"]
            if self._is_meant("2.51"):
                nova.events += events
                self._answer(200, {"events": [{**event, "status": "completed", "code": 200} for event in events]})

    return Handler
