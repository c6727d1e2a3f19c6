"""PostgreSQL that is away or takes a statement and never answers: noticed, and called what it is.

libpq has no such option.  Its TCP options notice a machine that is gone, not a server, pooler or proxy that still holds
the connection and says nothing; a statement would wait for it for ever.  psycopg2 lets a callback wait in its place.
"""

from __future__ import annotations

import select
from typing import Any

import sqlalchemy as sa

READ_TIMEOUT = "read_timeout"
#: By this oslo.db knows a server that cannot be reached; libpq says it in other words since its release 14.
_UNREACHABLE = "could not connect to server"
#: What a server says that answers, and refuses: that is for people to mend, unless it says that it soon will not.
_REFUSES, _SOON = "FATAL:", ("starting up", "shutting down", "recovery", "too many clients", "connection slots")


def split(url: sa.URL) -> tuple[sa.URL, dict[str, Any]]:
    """Return the URL without what libpq does not know, and how to connect so that it is kept all the same.

    Seconds: ``read_timeout`` for the answer to a statement, ``connect_timeout`` for each answer of the login.
    """
    seconds = url.query.get(READ_TIMEOUT)
    url = url.difference_update_query([READ_TIMEOUT])
    if url.get_dialect().driver != "psycopg2" or seconds is None:
        return url, {}
    login = url.query.get("connect_timeout", seconds)
    return url, {"connection_factory": _impatient(float(str(seconds)), float(str(login)))}


def call_unreachable(engine: sa.Engine) -> None:
    """Have a failed login raise oslo.db's DBConnectionError, which is tried again, where the server is not there."""

    @sa.event.listens_for(engine, "do_connect")
    def do_connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
        try:
            return dialect.connect(*arguments, **options)
        except dialect.loaded_dbapi.OperationalError as error:
            text = str(error)
            if _REFUSES in text and not any(words in text for words in _SOON):
                raise
            raise dialect.loaded_dbapi.OperationalError(f"{_UNREACHABLE}: {text}") from error


def _impatient(read_seconds: float, login_seconds: float) -> type:
    """A class of connections that carry their time-outs; every other connection of the process waits as before."""
    import psycopg2.extensions  # type: ignore[import-untyped]

    psycopg2.extensions.set_wait_callback(_wait)
    times = {"read_seconds": read_seconds, "login_seconds": login_seconds}
    return type("Impatient", (psycopg2.extensions.connection,), times)


def _wait(connection: Any) -> None:
    """Wait until the server has answered; raises OperationalError, behind which psycopg2 closes the connection."""
    import psycopg2  # type: ignore[import-untyped]
    from psycopg2 import extensions

    events = {extensions.POLL_READ: select.POLLIN, extensions.POLL_WRITE: select.POLLOUT}
    while (state := connection.poll()) != extensions.POLL_OK:
        logged_in = connection.status in (extensions.STATUS_READY, extensions.STATUS_BEGIN)
        kind = "read_seconds" if logged_in else "login_seconds"
        seconds = getattr(connection, kind, None)
        ready = select.poll()
        ready.register(connection.fileno(), events[state])
        if not ready.poll(None if seconds is None else seconds * 1000):
            raise psycopg2.OperationalError(f"server closed the connection unexpectedly: no answer in {seconds:g} s")
