"""The service's REST API as the commands need it: JSON in and out, pages, things by name, errors as ours."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from keystoneauth1 import exceptions
from keystoneauth1.token_endpoint import Token

from migrator import errors

if TYPE_CHECKING:
    from keystoneauth1.adapter import Adapter
    from requests import Response

Json = dict[str, Any]

_REFUSED = os.strerror(errno.ECONNREFUSED).lower()


@dataclass(frozen=True)
class Kind:
    """A kind of thing that operators name: how the API lists it, and under which keys it answers."""

    name: str
    path: str
    key: str
    listing: str
    filters: Json = field(default_factory=dict)
    #: The API can look for a name; otherwise all are read.
    by_name: bool = True

    @property
    def list_key(self) -> str:
        return f"{self.key}s"


VOLUME = Kind("volume", "volumes", "volume", "volumes/detail", {"all_tenants": 1})
SNAPSHOT = Kind("snapshot", "snapshots", "snapshot", "snapshots/detail", {"all_tenants": 1})
TYPE = Kind("volume type", "types", "volume_type", "types", {"is_public": "None"}, by_name=False)


def is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


class Client:
    """One connection to the service.

    Every call raises ApiRefused for a 4xx, ApiFailed for a 5xx or an answer that is no JSON, and ApiUnreachable.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def get(self, path: str, **params: Any) -> Json:
        """Return the answer to GET; parameters that are None are not sent."""
        return self._call("GET", path, params={key: value for key, value in params.items() if value is not None})

    def post(self, path: str, body: Json) -> Json:
        return self._call("POST", path, json=body)

    def put(self, path: str, body: Json) -> Json:
        return self._call("PUT", path, json=body)

    def delete(self, path: str, **params: Any) -> None:
        self._call("DELETE", path, params=params)

    def list_all(self, path: str, key: str, *, limit: int | None = None, **params: Any) -> Iterator[Json]:
        """Yield what ``path`` lists under ``key``, page after page, at most ``limit``."""
        left = limit
        while True:
            body = self.get(path, limit=left, **params)
            page = body.get(key, [])
            yield from page[:left]
            left = None if left is None else left - len(page)
            more = any(name.endswith("_links") and body[name] for name in body)
            if not more or not page or (left is not None and left <= 0):
                return
            params["marker"] = page[-1]["id"]

    def find(self, kind: Kind, text: str) -> Json:
        """Return the thing with ``text`` as its id or its only name; raises NotFound and NotUnique."""
        if is_uuid(text):
            return self.show(kind, text)
        filters = {**kind.filters, **({"name": text} if kind.by_name else {})}
        found = [thing for thing in self.list_all(kind.listing, kind.list_key, **filters) if thing["name"] == text]
        if not found:
            raise errors.NotFound(kind=kind.name.capitalize(), id=repr(text))
        if len(found) > 1:
            ids = ", ".join(thing["id"] for thing in found)
            raise errors.NotUnique(count=len(found), kind=kind.name, name=repr(text), ids=ids)
        return found[0]

    def find_id(self, kind: Kind, text: str) -> str:
        """Return the id of the thing called ``text``; an id is believed, also that of what is gone."""
        return text if is_uuid(text) else str(self.find(kind, text)["id"])

    def show(self, kind: Kind, id: str) -> Json:  # noqa: A002 - the API's word
        """Return the thing with that id, all its fields."""
        return self.thing(self.get(f"{kind.path}/{id}"), kind.key)

    def thing(self, body: Json, key: str) -> Json:
        """Return what the answer holds under ``key``; raises ApiFailed if that is no object."""
        found = body.get(key)
        if not isinstance(found, dict):
            raise errors.ApiFailed(reason=f"the service answered without {key!r}: is this a block-storage API?")
        return found

    def act(self, kind: Kind, id: str, action: str, body: Json) -> Json:  # noqa: A002 - the API's word
        """Ask for an action on the thing with that id."""
        return self.post(f"{kind.path}/{id}/action", {action: body})

    def _call(self, method: str, path: str, **kwargs: Any) -> Json:
        try:
            response = self._adapter.request(f"/{path}", method, raise_exc=False, **kwargs)
        except exceptions.ClientException as error:
            raise self._translated(error) from error
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            raise _refusal(response.status_code, _fault(response))
        return _json(response)

    def _translated(self, error: exceptions.ClientException) -> errors.MigratorError:
        if isinstance(error, exceptions.HttpError):  # the identity service's answer
            return _refusal(error.http_status, str(error.message))
        lost = next((cause for cause in _causes(error) if isinstance(cause, exceptions.ConnectionError)), None)
        if lost is None:  # no such service in the catalog, options missing …
            return errors.BadRequest(reason=str(error))
        reason = _why(lost)
        # A cloud is not ours to start; the service of this machine is.
        if isinstance(self._adapter.auth, Token) and reason == _REFUSED:
            reason += "; is migrator-all running?"
        return errors.ApiUnreachable(url=_url(lost), reason=reason)


def _refusal(status: int, reason: str) -> errors.MigratorError:
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return errors.ApiRefused(reason=reason)
    return errors.ApiFailed(reason=reason)


def _json(response: Response) -> Json:
    if not response.content:
        return {}
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise errors.ApiFailed(reason=f"{response.url} answered what is not JSON: is this a block-storage API?")
    return body


def _fault(response: Response) -> str:
    """Return the message of ``{"badRequest": {"code": 400, "message": "…"}}``, whatever the fault is called."""
    try:
        body = response.json()
    except ValueError:
        body = None
    for fault in body.values() if isinstance(body, dict) else ():
        if isinstance(fault, dict) and isinstance(fault.get("message"), str):
            return str(fault["message"])
    return f"{response.url} answered {response.status_code} {response.reason or ''}".rstrip()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and what lies below it: urllib3 keeps the socket's error in a ``reason``."""
    seen: list[BaseException] = []
    queue: list[object] = [error]
    while queue:
        cause = queue.pop(0)
        if isinstance(cause, BaseException) and cause not in seen:
            seen.append(cause)
            yield cause
            queue += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]


def _url(error: BaseException) -> str:
    """Return scheme and host of the request that got no answer."""
    from urllib.parse import urlsplit

    for cause in _causes(error):
        url = getattr(getattr(cause, "request", None), "url", None)
        if url:
            return "{0.scheme}://{0.netloc}".format(urlsplit(url))
    return "the service"


def _why(error: BaseException) -> str:
    """Return the operating system's word for what went wrong."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None and cause.strerror:
            return cause.strerror.lower()
    return "timed out" if isinstance(error, exceptions.ConnectTimeout) else str(error)
