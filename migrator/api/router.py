"""From a path to its handler, the same way for every route: version, caller, policy, body, handler."""

from __future__ import annotations

from typing import Any

import routes as routes_library
import webob
from oslo_middleware.request_id import ENV_REQUEST_ID

from migrator import errors
from migrator.api import faults, versions
from migrator.api.auth import Authenticate
from migrator.api.routes import DISCOVERY, REQUIREMENTS, ROUTES, Actions, Call, Methods
from migrator.api.wsgi import CONTEXT, Answer, Backing, Json, Request, parse_body, read_body, send
from migrator.context import RequestContext


def make_mapper() -> routes_library.Mapper:
    """Return a mapper of every path to its template, first below ``/v3`` and then below ``/v3/{project_id}``."""
    mapper = routes_library.Mapper()
    mapper.minimization = False
    for prefix, table in (("/v3", ROUTES), ("/v3/{project_id}", ROUTES), ("", DISCOVERY)):
        for path in table:
            mapper.connect(None, prefix + path, template=path, requirements=REQUIREMENTS.get(path, {}))
    mapper.create_regs([])
    return mapper


class Router:
    """The application behind the filters: always answers, with a fault where something goes wrong."""

    def __init__(self, backing: Backing, authenticate: Authenticate) -> None:
        self._backing = backing
        self._authenticate = authenticate
        self._mapper = make_mapper()
        self._body_limit = backing.conf.osapi_max_request_body_size

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        anonymous = RequestContext(request_id=environ.get(ENV_REQUEST_ID), overwrite=True)
        request = Request(webob.Request(environ), self._backing, anonymous)
        try:
            answer = self._answer(request)
        except Exception as error:  # the top of a request: whatever it was, the caller gets a fault
            answer = faults.of(error)
        return send(answer, request.version, start_response)

    def _answer(self, request: Request) -> Answer:
        http = request.http
        # Read whatever comes of it, so that the connection stays usable; one byte too many ends it here.
        text = read_body(http, self._body_limit)
        methods, variables = self._match(http)
        call = methods.get(http.method)
        if call is None:
            allowed = ", ".join(sorted(methods))
            return faults.fault(405, f"{http.method} is not served here, only: {allowed}", Allow=allowed)
        url_project = variables.pop("project_id", None)
        if isinstance(call, Call) and call.rule is None:
            return call.handler(request)
        request.version = versions.negotiate(http.headers.get(versions.HEADER))
        request.url_project = url_project
        request.context = http.environ[CONTEXT] = self._authenticate(http, url_project)
        return self._police(request, call, text, variables)

    def _match(self, http: webob.Request) -> tuple[Methods, dict[str, str]]:
        try:
            path = http.path_info.rstrip("/") or "/"
        except UnicodeDecodeError as error:
            raise errors.BadRequest(reason="Malformed request url: it is not UTF-8") from error
        found = None if "\0" in path else self._mapper.match(path, {})
        if found is None:
            raise _not_found(http)
        variables: dict[str, Any] = dict(found)
        template = variables.pop("template")
        return ROUTES.get(template) or DISCOVERY[template], variables

    def _police(self, request: Request, call: Call | Actions, text: bytes, variables: dict[str, str]) -> Answer:
        """Check who may do it before what the body is: a stranger learns nothing from complaints about bodies."""
        body: Json | None = None
        if isinstance(call, Actions):
            body = parse_body(text)
            call = _action(call, body)
        if call.since > request.version:
            raise _not_found(request.http)
        assert call.rule is not None, "only discovery is open to everybody"
        request.rule = call.rule
        request.authorize(call.rule, request.context.project_id, request.context.user_id)
        if call.schema is not None:
            request.body = parse_body(text) if body is None else body
            call.schema.check(request.body, request.version)
        return call.handler(request, **variables)


def _action(actions: Actions, body: Json) -> Call:
    """Return the action that the body names; raises BadRequest."""
    if len(body) != 1:
        raise errors.BadRequest(reason=f"The body must have exactly one key, the action; it has {len(body)}.")
    name = next(iter(body))
    if name not in actions.table:
        raise errors.BadRequest(reason=f"There is no such action: {name[:60]}")
    return actions.table[name]


def _not_found(http: webob.Request) -> errors.NotFound:
    return errors.NotFound(kind="The resource", id=http.path_info[:200])
