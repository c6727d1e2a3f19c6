"""A request and its answer, as handlers see them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import webob
from sqlalchemy.orm import Session

from migrator import errors
from migrator.api.versions import HEADER, MIN, SERVICE_TYPES, Version
from migrator.conf import Conf
from migrator.context import RequestContext
from migrator.db.api import Database, T
from migrator.notifications import OFF, Notifications
from migrator.policy import Policy
from migrator.rpc import SchedulerClient, VolumeClient

Json = dict[str, Any]

NO_CONTENT = 204
#: Where the WSGI environment holds the caller's context, once it is known: for what is logged of a request.
CONTEXT = "migrator.context"


@dataclass(frozen=True)
class Backing:
    """What the API stands on."""

    conf: Conf
    db: Database
    scheduler: SchedulerClient
    volume: VolumeClient
    policy: Policy
    news: Notifications = OFF


@dataclass(frozen=True)
class Answer:
    """A status with a JSON body, or none."""

    status: int
    body: Json | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """One request, its microversion and its caller."""

    http: webob.Request
    backing: Backing
    context: RequestContext
    version: Version = MIN
    #: The project in the URL, if there is one: links must have it then.
    url_project: str | None = None
    #: The rule that the router asked; the handler asks it again about what it found.
    rule: str = ""
    body: Json = field(default_factory=dict)
    _decisions: dict[tuple[Any, ...], bool] = field(default_factory=dict)

    @property
    def conf(self) -> Conf:
        return self.backing.conf

    @property
    def is_admin(self) -> bool:
        return bool(self.context.is_admin)

    @functools.cached_property
    def base_url(self) -> str:
        """Scheme, host and prefix that links begin with, no slash at the end."""
        return str(self.conf.public_endpoint or self.http.application_url).rstrip("/")

    @property
    def scope(self) -> str:
        """The part of links between the version and the collection: empty, or the project with a slash."""
        return f"/{self.url_project}" if self.url_project else ""

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; of a repeated one, the last."""
        try:
            found = dict(self.http.GET)
        except UnicodeDecodeError as error:
            raise errors.InvalidInput(field="query", reason="it is not UTF-8") from error
        if any("\0" in text for text in found.values()):
            raise errors.InvalidInput(field="query", reason="it has a NUL character")
        return found

    def read(self, work: Callable[[Session], T]) -> T:
        return self.backing.db.read(work)

    def run(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in a writing transaction; raises CommitUnanswered where nobody knows whether it was done."""
        return self.backing.db.run(work, if_unanswered=False)

    def allows(self, rule: str, project_id: str | None, user_id: str | None = None) -> bool:
        """Tell whether a rule lets the caller act on a thing of that project; asked once per request."""
        key = (rule, project_id, user_id)
        if key not in self._decisions:
            target = {"project_id": project_id, "user_id": user_id}
            self._decisions[key] = self.backing.policy.allows(self.context, rule, target)
        return self._decisions[key]

    def authorize(self, rule: str, project_id: str | None, user_id: str | None = None) -> None:
        """Raise Forbidden unless the rule lets the caller act on a thing of that project."""
        if not self.allows(rule, project_id, user_id):
            raise errors.Forbidden(action=rule)

    def authorize_owner(self, kind: str, id: str, project_id: str, user_id: str | None) -> None:  # noqa: A002 - as in NotFound
        """Raise NotFound for a thing of another project, Forbidden for one that the rule keeps from the caller."""
        if not self.is_admin and project_id != self.context.project_id:
            raise errors.NotFound(kind=kind, id=id)
        self.authorize(self.rule, project_id, user_id)


Handler = Callable[..., Answer]
"""Takes the Request and the variables of its path."""


def read_body(http: webob.Request, limit: int) -> bytes:
    """Return the body; raises BodyTooLarge without reading much more than ``limit`` bytes."""
    length = http.content_length
    if length is not None:
        if length > limit:
            raise errors.BodyTooLarge(limit=limit)
        return bytes(http.environ["wsgi.input"].read(length)) if length else b""
    if not http.is_body_readable:
        return b""
    body = b""
    while len(body) <= limit:
        piece = http.environ["wsgi.input"].read(limit + 1 - len(body))
        if not piece:
            return body
        body += piece
    raise errors.BodyTooLarge(limit=limit)


def parse_body(text: bytes) -> Json:
    """Return the JSON object that the body is; raises BadRequest."""
    try:
        body = json.loads(text)
        # No database keeps half a surrogate pair, and not every one a NUL.
        json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise errors.BadRequest(reason="Malformed request body: it is not JSON") from error
    if rb"\u0000" in text:
        raise errors.BadRequest(reason="Malformed request body: it has a NUL character")
    if not isinstance(body, dict):
        raise errors.BadRequest(reason="Malformed request body: it is not a JSON object")
    return body


def send(answer: Answer, version: Version, start_response: Any) -> list[bytes]:
    """Give an answer to the server; it always says by which microversion it was made."""
    body = b"" if answer.body is None else json.dumps(answer.body, separators=(",", ":")).encode()
    headers = {HEADER: f"{SERVICE_TYPES[0]} {version}", "Vary": HEADER}
    if answer.status != NO_CONTENT:
        headers["Content-Length"] = str(len(body))
    if body:
        headers["Content-Type"] = "application/json"
    reason = webob.util.status_reasons.get(answer.status, "Unknown")
    start_response(f"{answer.status} {reason}", [*headers.items(), *answer.headers.items()])
    return [body] if body else []
