"""Errors as clients of block storage know them: ``{"badRequest": {"code": 400, "message": "…"}}``."""

from __future__ import annotations

import logging

from oslo_db import exception as db_exc

from migrator import errors
from migrator.api.wsgi import Answer
from migrator.db.api import CommitUnanswered

LOG = logging.getLogger(__name__)

#: Names that the public API gives to statuses; all others are a computeFault.
NAMES = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    503: "serviceUnavailable",
}
#: Seconds after which what is in the way now (a migration behind its line) probably is over.
RETRY_AFTER = 2


def fault(status: int, message: str, **headers: str) -> Answer:
    """Return a fault; underscores in names of headers stand for hyphens."""
    name = NAMES.get(status, "computeFault")
    body = {name: {"code": status, "message": message}}
    return Answer(status, body, {key.replace("_", "-"): value for key, value in headers.items()})


def of(error: Exception) -> Answer:
    """Return the fault for ``error``; what only an operator can mend is logged, and hidden from callers."""
    if isinstance(error, errors.MigratorError):
        if error.status >= 500 and not isinstance(error, errors.ServiceUnavailable):
            LOG.error("A request failed: %s", error, exc_info=error)
            return fault(500, "The server could not do what was asked; its log says why.")
        headers = {"Retry_After": str(error.kwargs["retry_after"])} if "retry_after" in error.kwargs else {}
        return fault(error.status, error.message, **headers)
    if isinstance(error, CommitUnanswered):
        LOG.error("Whether a request was carried out is not known: %s", error, exc_info=error)
        message = "The database has not answered, so it is not known whether this was done; look before it is repeated."
        return fault(503, message, Retry_After=str(RETRY_AFTER))
    if isinstance(error, db_exc.DBError):
        LOG.error("A request failed, the database does not answer: %s", error, exc_info=error)
        return fault(503, "The database does not answer.", Retry_After=str(RETRY_AFTER))
    LOG.error("A request failed by a fault of the server", exc_info=error)
    return fault(500, "The server could not do what was asked; its log says why.")
