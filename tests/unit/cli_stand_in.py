"""A stand-in for the service at the edge of the command line's process: real HTTP, answers from a table."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from migrator.cli.app import main

Json = dict[str, Any]
#: Status and body; text is sent as it is.
Answer = tuple[int, Json | str]

VOLUME_ID = "11111111-1111-4111-8111-111111111111"
OTHER_ID = "22222222-2222-4222-8222-222222222222"
MIGRATION_ID = "33333333-3333-4333-8333-333333333333"
DESTINATION = "b@file2#pool2"
PROJECT = "/v3/admin"


def volume(**changes: Any) -> Json:
    return {
        "id": VOLUME_ID,
        "name": "vol1",
        "status": "available",
        "size": 1,
        "volume_type": None,
        "metadata": {"purpose": "test"},
        "attachments": [],
        "bootable": "false",
        "migration_status": None,
        "os-vol-host-attr:host": "a@file1#pool1",
        "os-vol-mig-status-attr:migstat": None,
        "links": [{"rel": "self", "href": "http://here/v3/admin/volumes/1"}],
        **changes,
    }


def migration(**changes: Any) -> Json:
    return {
        "id": MIGRATION_ID,
        "volume_id": VOLUME_ID,
        "destination_volume_id": OTHER_ID,
        "status": "running",
        "plan": "host_copy",
        "step": "copy_data",
        "direction": "forward",
        "attempts": 1,
        "source_host": "a@file1#pool1",
        "destination_host": DESTINATION,
        "bytes_total": 1 << 30,
        "bytes_done": 1 << 29,
        "rate_bytes_per_second": 100 << 20,
        "eta_seconds": 5.12,
        "error": None,
        "verdicts": [],
        "steps": [
            {
                "step": "create_destination",
                "direction": "forward",
                "attempt": 1,
                "started_at": "2026-01-02T15:04:05.000000",
                "finished_at": "2026-01-02T15:04:05.500000",
                "result": "done",
                "bytes": None,
            }
        ],
        "created_at": "2026-01-02T15:04:05.000000",
        "updated_at": "2026-01-02T15:04:06.000000",
        "finished_at": None,
        **changes,
    }


ENDED = {"finished_at": "2026-01-02T15:04:08.500000", "eta_seconds": None, "rate_bytes_per_second": None}
MOVED = migration(status="success", step="delete_source", bytes_done=1 << 30, **ENDED)


def fault(code: int, message: str, name: str = "badRequest") -> Answer:
    return code, {name: {"code": code, "message": message}}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Result:
    """What a run of the command line left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


@dataclass
class StandIn:
    """Answers ``METHOD path`` from a table; several answers are given in turn, the last of them for ever."""

    answers: dict[str, Answer | list[Answer]]
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        path = request.path.removeprefix(PROJECT)
        found = self.answers.get(f"{request.method} {path}", fault(404, f"nothing at {path}", "itemNotFound"))
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found

    def sent(self, method: str, path: str) -> list[Any]:
        """Return the bodies sent so."""
        return [r.body for r in self.requests if (r.method, r.path) == (method, f"{PROJECT}{path}")]

    def run(self, *argv: str, **environment: str) -> Result:
        return run(*argv, **{"MIGRATOR_URL": self.url, **environment})


@contextlib.contextmanager
def serving(answers: dict[str, Answer | list[Answer]]) -> Iterator[StandIn]:
    """Serve ``answers`` on a free port of the loopback."""
    service = StandIn(answers)

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            parts = urlsplit(self.path)
            request = Request(
                self.command,
                parts.path,
                parse_qs(parts.query),
                {key.lower(): value for key, value in self.headers.items()},
                json.loads(raw) if raw else None,
            )
            status, body = service.answer(request)
            text = body if isinstance(body, str) else json.dumps(body) if body else ""
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Subject-Token", "a-token")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the base class looks for these

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's word
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(**changes: str) -> dict[str, str]:
    """Return the process's environment without what says where a service is, with ``changes``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OS_", "MIGRATOR_"))}
    return {**kept, "OS_CLIENT_CONFIG_FILE": "/nonexistent", **changes}


def run(*argv: str, **changes: str) -> Result:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment(**changes))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return Result(code, out.getvalue(), err.getvalue())


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return once ``condition`` holds; fails after ``seconds``."""
    tick = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        tick.wait(0.02)
    raise AssertionError("waited in vain")
