"""Who calls: a context from the token, by Keystone's middleware or, where nobody else can reach us, by its word."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import webob
from oslo_middleware import request_id

from migrator import errors
from migrator.context import RequestContext
from migrator.policy import IS_ADMIN, Policy

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from migrator.conf import Conf

Authenticate = Callable[[webob.Request, str | None], RequestContext]
"""Takes a request and the project of its URL; returns the caller's context or raises NotAuthenticated."""

#: User and project where nobody says who asks.
NOAUTH_TOKEN = "admin:admin"  # noqa: S105 - no secret: everybody is believed
#: What the columns hold that say whose something is; Keystone's ids are shorter.
_MAX_ID = 255
#: What keystoneauth's plugin "none" sends for want of a token.
KEYSTONEAUTH_NONE = "notused"


def authenticator(conf: Conf, policy: Policy) -> Authenticate:
    """Return what ``auth_strategy`` asks for."""
    make = {"noauth": _noauth, "keystone": _keystone}[conf.auth_strategy]

    def authenticate(http: webob.Request, url_project: str | None) -> RequestContext:
        ids = {
            "request_id": http.environ.get(request_id.ENV_REQUEST_ID),
            "global_request_id": http.environ.get(request_id.GLOBAL_REQ_ID),
            "overwrite": True,  # the lines that this thread logs from now on are of this request
        }
        context = make(http, url_project, ids)
        context.is_admin = policy.allows(context, IS_ADMIN)
        return context

    return authenticate


def _noauth(http: webob.Request, url_project: str | None, ids: dict[str, Any]) -> RequestContext:
    """The token is ``user:project`` or ``user``; the project is the URL's where that has one.

    Without a token it is the administrator, as clients with ``auth_type: none`` ask.  Not so for a page in a browser:
    any page on the web may send a request to loopback, but none with a header of ours.
    """
    token = http.headers.get("X-Auth-Token", "" if "Origin" in http.headers else NOAUTH_TOKEN)
    if token == KEYSTONEAUTH_NONE:
        token = NOAUTH_TOKEN
    user, _, project = token.partition(":")
    if not user:
        raise errors.NotAuthenticated(reason="The request has no X-Auth-Token; it is of the form user:project here.")
    roles = ["member", "reader"] + (["admin"] if user == "admin" else [])
    project = url_project or project or user
    if max(len(user), len(project)) > _MAX_ID:
        raise errors.NotAuthenticated(reason=f"A user or project has at most {_MAX_ID} characters.")
    return RequestContext(user_id=user, project_id=project, roles=roles, **ids)


def _keystone(http: webob.Request, url_project: str | None, ids: dict[str, Any]) -> RequestContext:
    """What keystonemiddleware found the token to say."""
    if http.environ.get("HTTP_X_IDENTITY_STATUS") != "Confirmed":
        raise errors.NotAuthenticated(reason="The request has no valid token.")
    context = RequestContext.from_environ(http.environ, **ids)
    if url_project is not None and url_project != context.project_id:
        raise errors.BadRequest(reason="Malformed request url")
    return context


def keystone_filter(app: WSGIApplication, conf: Conf) -> WSGIApplication:
    """Put Keystone's middleware before ``app``; which requests need a valid token is decided behind it."""
    from keystonemiddleware import auth_token

    settings = {"oslo_config_config": conf, "delay_auth_decision": True}
    return auth_token.AuthProtocol(app, settings)  # type: ignore[no-any-return]
