"""The client of Nova, against a real HTTP server: what is sent, what may be sent again, and what each failure means."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from migrator import compute, errors
from migrator import conf as config
from migrator.compute.base import Compute, Uses
from migrator.context import RequestContext
from tests.support.nbd import make_secrets

SERVER, OLD, NEW = "s" * 8, "o" * 8, "n" * 8
REQUEST = "req-5c1f2cf6-0000-4000-8000-000000000000"


class Peer:
    """Answers what it is told to, in turn, the last one for ever; None: hangs up, a number of seconds: later."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, dict[str, str], Any]] = []
        self.answers: list[Callable[[BaseHTTPRequestHandler], tuple[int, Any] | None]] = []
        self.let_go = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def say(self, *answers: tuple[int, Any] | None) -> None:
        self.answers = [lambda _, answer=answer: answer for answer in answers]  # type: ignore[misc]

    def end(self) -> None:
        self.let_go.set()
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                """Say nothing."""

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                peer.heard.append((self.command, self.path, dict(self.headers), body))
                answer = peer.answers[0](self) if len(peer.answers) == 1 else peer.answers.pop(0)(self)
                if answer is None:
                    return
                status, content = answer
                text = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("X-Subject-Token", "the-token")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_PUT = do_POST = _serve  # noqa: N815 (http.server's names)

        return Handler


@pytest.fixture
def peer() -> Iterator[Peer]:
    running = Peer()
    yield running
    running.end()


def client(peer_url: str, **options: Any) -> Compute:
    conf = config.load("tests", [], [])
    config.register_nova(conf)
    conf.set_override("compute_service", "nova")
    values = {"auth_type": "none", "endpoint_override": f"{peer_url}/v2.1", **options}
    for name, value in values.items():
        conf.set_override(name, value, config.NOVA)
    made = compute.load(conf)
    assert made is not None
    return made


def test_none_is_configured() -> None:
    assert compute.load(config.load("tests", [], [])) is None


def test_a_name_that_nothing_answers_to() -> None:
    conf = config.load("tests", [], [])
    conf.set_override("compute_service", "supernova")
    with pytest.raises(errors.ConfigError, match="no compute service 'supernova'"):
        compute.load(conf)


def test_a_swap_is_asked_for_as_nova_wants_it(peer: Peer) -> None:
    peer.say((202, ""))
    RequestContext(request_id=REQUEST, overwrite=True)
    client(peer.url).swap(SERVER, OLD, NEW)
    ((method, path, headers, body),) = peer.heard
    assert (method, path) == ("PUT", f"/v2.1/servers/{SERVER}/os-volume_attachments/{OLD}")
    assert body == {"volumeAttachment": {"volumeId": NEW}}
    assert headers["X-OpenStack-Nova-API-Version"] == "2.1"
    assert headers["X-Openstack-Request-Id"] == REQUEST, "its logs name what this is part of"


@pytest.mark.parametrize(
    ("ids", "uses"), [([OLD], Uses.OLD), (["x", NEW], Uses.NEW), ([OLD, NEW], Uses.NEW), ([], Uses.NEITHER)]
)
def test_which_volume_a_server_has(peer: Peer, ids: list[str], uses: Uses) -> None:
    peer.say((200, {"volumeAttachments": [{"volumeId": each} for each in ids]}))
    assert client(peer.url).uses(SERVER, OLD, NEW) is uses


def test_a_server_that_is_gone(peer: Peer) -> None:
    peer.say((404, {"itemNotFound": {"code": 404, "message": f"Instance {SERVER} could not be found."}}))
    assert client(peer.url).uses(SERVER, OLD, NEW) is Uses.GONE


@pytest.mark.parametrize("answer", [(404, "<html>nothing here</html>"), (404, {"error": "no such page"}), (404, "")])
def test_a_404_that_is_not_novas_says_nothing_of_the_server(peer: Peer, answer: tuple[int, Any]) -> None:
    """A proxy without Nova behind it: a destination would be removed that a host still writes to."""
    peer.say(answer)
    with pytest.raises(errors.ComputeRefused):
        client(peer.url).uses(SERVER, OLD, NEW)


def test_an_answer_that_is_none(peer: Peer) -> None:
    peer.say((200, {"nonsense": []}))
    with pytest.raises(errors.ComputeFailed, match="an answer that is none"):
        client(peer.url).uses(SERVER, OLD, NEW)


def test_a_grown_volume_is_an_event(peer: Peer) -> None:
    peer.say((200, {"events": [{"name": "volume-extended", "status": "completed", "code": 200}]}))
    client(peer.url).extended(SERVER, OLD, None, 2 << 30)
    ((method, path, headers, body),) = peer.heard
    assert (method, path) == ("POST", "/v2.1/os-server-external-events")
    assert body == {"events": [{"name": "volume-extended", "server_uuid": SERVER, "tag": OLD}]}
    assert headers["OpenStack-API-Version"] == "compute 2.51"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((207, {"events": [{"status": "failed", "code": 404}]}), errors.ComputeRefused),
        ((404, {"itemNotFound": {"code": 404, "message": "No instances found for any event"}}), errors.ComputeRefused),
        ((200, "nonsense"), errors.ComputeFailed),
        ((500, ""), errors.ComputeFailed),
        (None, errors.ComputeSilent),
    ],
)
def test_an_event_that_nobody_got_is_no_success(
    peer: Peer, answer: tuple[int, Any] | None, error: type[Exception]
) -> None:
    peer.say(answer)
    with pytest.raises(error):
        client(peer.url).extended(SERVER, OLD, None, 2 << 30)
    assert len(peer.heard) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((401, {"unauthorized": {"code": 401, "message": "no"}}), errors.ComputeRefused),
        ((403, {"forbidden": {"code": 403, "message": "no"}}), errors.ComputeRefused),
        ((409, {"conflictingRequest": {"code": 409, "message": "no"}}), errors.ComputeRefused),
        ((500, "oops"), errors.ComputeFailed),
        ((503, ""), errors.ComputeFailed),
        ((200, "garbage"), errors.ComputeFailed),
        ((200, []), errors.ComputeFailed),
        (None, errors.ComputeSilent),
    ],
)
def test_what_a_question_ends_in(peer: Peer, answer: tuple[int, Any] | None, error: type[Exception]) -> None:
    peer.say(answer)
    with pytest.raises(error):
        client(peer.url).uses(SERVER, OLD, NEW)


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ((401, {"unauthorized": {"code": 401, "message": "no token"}}), errors.ComputeRefused, "401: no token"),
        ((403, {"forbidden": {"code": 403, "message": "policy"}}), errors.ComputeRefused, "403: policy"),
        ((404, {"itemNotFound": {"code": 404, "message": "no volume"}}), errors.ComputeRefused, "404: no volume"),
        ((409, {"conflictingRequest": {"code": 409, "message": "it is stopped"}}), errors.ComputeRefused, "stopped"),
        ((400, {"badRequest": {"code": 400, "message": "too small"}}), errors.ComputeRefused, "400: too small"),
        ((500, "<html>oops</html>"), errors.ComputeFailed, "500: <html>oops"),
        ((503, ""), errors.ComputeFailed, "503"),
        (None, errors.ComputeSilent, "has not answered"),
    ],
)
def test_what_a_swap_ends_in_and_that_it_is_sent_once(
    peer: Peer, answer: tuple[int, Any] | None, error: type[Exception], reason: str
) -> None:
    peer.say(answer)
    with pytest.raises(error, match=reason):
        client(peer.url).swap(SERVER, OLD, NEW)
    assert len(peer.heard) == 1


def test_no_answer_in_time_is_silence_and_not_a_failure(peer: Peer) -> None:
    def late(handler: BaseHTTPRequestHandler) -> None:
        peer.let_go.wait(20)

    peer.answers = [late]
    with pytest.raises(errors.ComputeSilent):
        client(peer.url, timeout=1).swap(SERVER, OLD, NEW)
    assert len(peer.heard) == 1


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(errors.ComputeUnreachable):
        client(f"http://127.0.0.1:{port}").swap(SERVER, OLD, NEW)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_secrets(tmp_path_factory.mktemp("tls") / "secrets")


def whole_request(secure: ssl.SSLSocket) -> bytes:
    """Read to the end of the body: what is left unread resets the connection, and the client sees that instead."""
    request = b""
    while not request.endswith(b"}}") and (more := secure.recv(65536)):
        request += more
    return request


@contextlib.contextmanager
def tls_peer(secrets: Path) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads each request and then breaks the encrypted stream; gives its address and what it heard."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secrets / "server-cert.pem", secrets / "server-key.pem")
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener is closed at the end
                while True:
                    plain, _ = listener.accept()
                    with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as secure:
                        heard.append(whole_request(secure))
                        os.write(secure.fileno(), b"no TLS at all")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"https://localhost:{listener.getsockname()[1]}", heard
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_broken_stream_is_silence_for_the_request_was_heard(secrets: Path) -> None:
    """A swap that is taken for not sent is sent again: two of them in one server at a time."""
    with tls_peer(secrets) as (url, heard):
        with pytest.raises(errors.ComputeSilent, match="SSL"):
            client(url, cafile=str(secrets / "ca-cert.pem")).swap(SERVER, OLD, NEW)
        assert [each[:3] for each in heard] == [b"PUT"]


def test_a_peer_that_cannot_be_trusted_is_told_nothing(secrets: Path) -> None:
    with tls_peer(secrets) as (url, heard):
        with pytest.raises(errors.ComputeUnreachable, match="certificate verify failed"):
            client(url).swap(SERVER, OLD, NEW)
        assert heard == []


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("nova.example.com", {}, "No scheme supplied"),
        ("gopher://nova.example.com", {}, "No connection adapters"),
        ("https://127.0.0.1:1", {"cafile": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ("http://127.0.0.1:1", {"auth_type": "nonsense"}, "nonsense"),
    ],
)
def test_a_configuration_by_which_nothing_is_sent(url: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(errors.ComputeUnreachable, match=reason):
        client(url, **options).swap(SERVER, OLD, NEW)


def test_a_question_is_asked_again(peer: Peer) -> None:
    peer.say((503, ""), (200, {"volumeAttachments": [{"volumeId": OLD}]}))
    assert client(peer.url).uses(SERVER, OLD, NEW) is Uses.OLD
    assert len(peer.heard) == 2


def by_password(peer: Peer, **options: Any) -> Compute:
    """A client that asks the peer for a token and for the catalogue, too."""
    from keystoneauth1 import loading

    conf = config.load("tests", [], [])
    config.register_nova(conf)
    conf.set_override("compute_service", "nova")
    conf.register_opts(loading.get_auth_plugin_conf_options("v3password"), group=config.NOVA)
    values = {
        "auth_type": "v3password",
        "auth_url": f"{peer.url}/v3",
        "username": "migrator",
        "user_domain_name": "Default",
        "password": "pw",
        "region_name": "R",
        "valid_interfaces": ["internal"],
        **options,
    }
    for name, value in values.items():
        conf.set_override(name, value, config.NOVA)
    made = compute.load(conf)
    assert made is not None
    return made


def test_an_identity_service_that_does_not_answer_is_not_a_silent_nova(peer: Peer) -> None:
    """Nothing was asked of Nova, so that the swap may be tried again at once."""

    def late(handler: BaseHTTPRequestHandler) -> None:
        peer.let_go.wait(20)

    peer.answers = [late]
    with pytest.raises(errors.ComputeUnreachable):
        by_password(peer, timeout=1).swap(SERVER, OLD, NEW)
    assert {method for method, *_ in peer.heard} <= {"GET", "POST"}


def test_the_endpoint_comes_from_the_catalogue(peer: Peer) -> None:
    """A service user's token, and the internal endpoint of the region."""
    url = f"{peer.url}/nova/v2.1"
    endpoints = [{"interface": "internal", "region_id": "R", "region": "R", "id": "e", "url": url}]
    token = {
        "methods": ["password"],
        "expires_at": "2999-01-01T00:00:00.000000Z",
        "issued_at": "2020-01-01T00:00:00.000000Z",
        "user": {"id": "u", "name": "migrator", "domain": {"id": "default", "name": "Default"}},
        "catalog": [{"type": "compute", "name": "nova", "id": "c", "endpoints": endpoints}],
    }
    versions = {"version": {"id": "v2.1", "status": "CURRENT", "version": "2.96", "min_version": "2.1", "links": []}}

    def answer(handler: BaseHTTPRequestHandler) -> tuple[int, Any]:
        if handler.path.endswith("/auth/tokens"):
            return 201, {"token": token}
        return (202, "") if handler.command == "PUT" else (200, versions)

    peer.answers = [answer]
    by_password(peer).swap(SERVER, OLD, NEW)
    method, path, headers, _ = peer.heard[-1]
    assert (method, path) == ("PUT", f"/nova/v2.1/servers/{SERVER}/os-volume_attachments/{OLD}")
    assert headers["X-Auth-Token"] == "the-token"
