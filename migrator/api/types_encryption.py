"""Encryption of volume types: no type has any, and clients that ask are told so in the words they know."""

from __future__ import annotations

from migrator import errors
from migrator.api import types_access
from migrator.api.wsgi import Answer, Request


def index(request: Request, type_id: str) -> Answer:
    request.read(lambda session: types_access.visible(request, session, type_id))
    return Answer(200, {})


def show(request: Request, type_id: str, key: str) -> Answer:
    request.read(lambda session: types_access.visible(request, session, type_id))
    raise errors.NotFound(kind=f"Encryption of volume type {type_id}:", id=key)
