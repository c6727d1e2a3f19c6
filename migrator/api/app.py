"""The WSGI application: the pipeline that every request passes, in one function."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from oslo_middleware import cors, healthcheck, http_proxy_to_wsgi, request_id

from migrator.api import auth, faults
from migrator.api.router import Router
from migrator.api.versions import HEADER, MIN
from migrator.api.wsgi import CONTEXT, Backing, send
from migrator.conf import Conf
from migrator.db.api import Database
from migrator.notifications import OFF, Notifications
from migrator.policy import Policy
from migrator.rpc import SchedulerClient, VolumeClient

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LOG = logging.getLogger("migrator.api.access")


def build(
    conf: Conf, db: Database, scheduler: SchedulerClient, volume: VolumeClient, news: Notifications = OFF
) -> WSGIApplication:
    """Return the application; it keeps no state of its own and may run in any number of threads."""
    policy = Policy(conf)
    backing = Backing(conf, db, scheduler, volume, policy, news)
    app: Any = Router(backing, auth.authenticator(conf, policy))
    for layer in (
        # From the inside out.
        Authentication if conf.auth_strategy == "keystone" else None,
        # The application makes faults of its own errors; this does so for the layer within.
        Faults,
        # Behind the proxy's word on scheme and host, since links are made of them.
        http_proxy_to_wsgi.HTTPProxyToWSGI,
        # Before authentication: whoever asks whether we live has no token.
        Health,
        # Likewise: the browser's question whether a page may ask has no token.
        CrossOrigin,
        # Sees the answer of every layer within, and the request's id.
        AccessLog,
        # Outermost, so that every answer has an id, faults too.
        request_id.RequestId,
    ):
        app = layer(app, conf) if layer is not None else app
    return app  # type: ignore[no-any-return]


def Authentication(app: WSGIApplication, conf: Conf) -> WSGIApplication:  # noqa: N802 - it stands among classes
    return auth.keystone_filter(app, conf)


#: Headers of ours that a page may send, and those that it may read.
_SENT = ["X-Auth-Token", "X-Service-Token", "X-OpenStack-Request-ID", HEADER, "Content-Type", "Accept"]
_READ = ["X-OpenStack-Request-ID", HEADER, "Retry-After"]


def CrossOrigin(app: WSGIApplication, conf: Conf) -> WSGIApplication:  # noqa: N802 - it stands among classes
    """Let browsers' pages from ``[cors] allowed_origin`` ask; without any, nothing stands in a request's way."""
    cors.set_defaults(allow_headers=_SENT, expose_headers=_READ)
    layer = cors.CORS(app, conf)
    return layer if layer.allowed_origins else app


class Faults:
    """Answers with a fault where a layer within breaks, say because its options are wrong."""

    def __init__(self, app: WSGIApplication, conf: Conf) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            return self._app(environ, start_response)
        except Exception as error:  # the top of a request
            return send(faults.of(error), MIN, start_response)


class Health:
    """Answers ``/healthcheck`` by oslo.middleware, and leaves everything else alone."""

    def __init__(self, app: WSGIApplication, conf: Conf) -> None:
        self._app = app
        self._check = healthcheck.Healthcheck(None, conf)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        served = self._check if environ.get("PATH_INFO") == "/healthcheck" else self._app
        return served(environ, start_response)  # type: ignore[no-any-return]


class AccessLog:
    """Writes one line per request.  Queries are left out: they may hold what tenants call their own."""

    def __init__(self, app: WSGIApplication, conf: Conf) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        began = time.perf_counter()
        answered: list[str] = []

        def note(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            answered[:] = [status.partition(" ")[0]]
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        body = list(self._app(environ, note))
        caller = environ.get(CONTEXT)
        LOG.info(
            '"%s %s" status: %s len: %d time: %.1f ms %s user: %s project: %s from: %s',
            environ["REQUEST_METHOD"],
            _printable(environ.get("PATH_INFO", "")),
            answered[0] if answered else "-",
            sum(len(part) for part in body),
            (time.perf_counter() - began) * 1000,
            environ.get(request_id.ENV_REQUEST_ID, "-"),
            _printable((caller and caller.user_id) or "-"),
            _printable((caller and caller.project_id) or "-"),
            environ.get("REMOTE_ADDR", "-"),
        )
        return body


def _printable(text: str) -> str:
    """Return what may stand in a line of a log: nobody's request shall end one and begin another."""
    return "".join(character if character.isprintable() else "?" for character in text)
