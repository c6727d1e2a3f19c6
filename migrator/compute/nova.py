"""Nova, spoken to over its REST API as a service user (nova-api's microversions are named at each call)."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import requests.exceptions
from keystoneauth1 import exceptions, loading
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from migrator import conf as config
from migrator import errors
from migrator.compute.base import Compute, Uses
from migrator.context import current

#: The oldest microversion: swapping has not changed since.
_SWAP = "2.1"
#: volume-extended is an event from here on.
_EXTENDED = "2.51"
#: Times that a question is asked again when Nova cannot be reached or is overloaded.
_RETRIES = 2
_OVERLOADED = [429, 502, 503, 504]


class Nova(Compute):
    """The Nova of the section [nova]."""

    def __init__(self, conf: config.Conf) -> None:
        super().__init__(conf)
        config.register_nova(conf)
        self._timeouts = (conf.nova.connect_timeout_seconds, conf.nova.timeout)
        self._lock = threading.Lock()
        self._adapter: Any = None

    def swap(self, server: str, old: str, new: str) -> None:
        self._prepare()
        body = {"volumeAttachment": {"volumeId": new}}
        self._request("PUT", f"/servers/{server}/os-volume_attachments/{old}", _SWAP, body)

    def uses(self, server: str, old: str, new: str) -> Uses:
        try:
            answer = self._request("GET", f"/servers/{server}/os-volume_attachments", _SWAP)
        except errors.ComputeRefused as error:
            # Only Nova's own words mean it: a proxy without Nova behind it says 404 of everything.
            if error.kwargs["code"] == 404 and server in error.kwargs["reason"]:
                return Uses.GONE
            raise
        try:
            found = {str(each["volumeId"]) for each in answer.json()["volumeAttachments"]}
        except (ValueError, KeyError, TypeError) as error:
            raise errors.ComputeFailed(code=answer.status_code, reason=f"an answer that is none: {error!r}") from error
        return Uses.NEW if new in found else Uses.OLD if old in found else Uses.NEITHER

    def extended(self, server: str, volume_id: str, path: str | None, size: int) -> None:
        event = {"name": "volume-extended", "server_uuid": server, "tag": volume_id}
        answer = self._request("POST", "/os-server-external-events", _EXTENDED, {"events": [event]})
        try:
            codes = [int(each.get("code", 200)) for each in answer.json()["events"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.ComputeFailed(code=answer.status_code, reason=f"an answer that is none: {error!r}") from error
        if any(code >= 400 for code in codes):
            raise errors.ComputeRefused(code=max(codes), reason=f"no event was delivered to server {server}")

    # --- HTTP ---

    def _prepare(self) -> None:
        """Have a token and know the endpoint: whatever goes wrong with these, nothing was sent to Nova."""
        adapter = self._opened()
        try:
            adapter.session.get_auth_headers(adapter.auth)
            adapter.get_endpoint()
        except (exceptions.ClientException, OSError) as error:
            raise errors.ComputeUnreachable(reason=f"{type(error).__name__}: {error}") from error

    def _request(self, method: str, path: str, version: str, body: Any = None) -> Any:
        """Return the answer; only a question is asked again by itself."""
        retries = _RETRIES if method == "GET" else 0
        try:
            answer = self._opened().request(
                path,
                method,
                json=body,
                microversion=version,
                timeout=self._timeouts,
                connect_retries=retries,
                status_code_retries=retries,
                retriable_status_codes=_OVERLOADED,
                raise_exc=False,
                global_request_id=_request_id(),
            )
        except exceptions.ClientException as error:
            raise _translated(error) from error
        except OSError as error:  # a file of certificates that cannot be read, say: what happens later is translated
            raise errors.ComputeUnreachable(reason=str(error)) from error
        if answer.status_code < 400:
            return answer
        kind = errors.ComputeFailed if answer.status_code >= 500 else errors.ComputeRefused
        raise kind(code=answer.status_code, reason=_reason(answer))

    def _opened(self) -> Any:
        """The adapter: session, credentials and endpoint, made at the first use; raises ComputeUnreachable."""
        with self._lock:
            if self._adapter is None:
                try:
                    auth = loading.load_auth_from_conf_options(self.conf, config.NOVA)
                    session = loading.load_session_from_conf_options(self.conf, config.NOVA)
                    self._adapter = loading.load_adapter_from_conf_options(
                        self.conf, config.NOVA, session=session, auth=auth
                    )
                except exceptions.ClientException as error:
                    raise errors.ComputeUnreachable(reason=f"[nova] cannot be used: {error}") from error
            return self._adapter


def _request_id() -> str | None:
    """Return the id by which Nova shall know what this is part of: its logs then name the request that began it."""
    found = current()
    return None if found is None else str(found.global_id)


def _translated(error: exceptions.ClientException) -> errors.MigratorError:
    """Tell what was certainly not sent from what nobody knows of."""
    if isinstance(error, exceptions.RetriableConnectionFailure | exceptions.ConnectionError):
        return (errors.ComputeUnreachable if _never_connected(error) else errors.ComputeSilent)(reason=str(error))
    # No token, no endpoint in the catalogue, no such version: the request itself was never made.
    return errors.ComputeUnreachable(reason=f"{type(error).__name__}: {error}")


#: Nobody was reached, the one who was is not whom he claims to be, or the address is none.  No other fault of TLS:
#: it may as well come behind the request, which must not be sent twice.
_BEFORE_SENDING = (
    *(requests.exceptions.ConnectTimeout, NewConnectionError, ConnectTimeoutError),
    *(ssl.SSLCertVerificationError, requests.exceptions.InvalidURL),
    *(requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema),
)


def _never_connected(error: BaseException) -> bool:
    """Tell whether the connection failed before anything could be sent, from what caused the error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _BEFORE_SENDING):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _reason(answer: Any) -> str:
    """The sentence in a fault, or the beginning of whatever came."""
    try:
        (fault,) = answer.json().values()
        return str(fault["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return str(answer.text)[:200] or str(answer.reason)
