"""``POST /volumes/{id}/action``: what is recorded of the image that a volume was made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import guard
from migrator.api.wsgi import Answer, Request
from migrator.db import volumes

#: Keys that one volume may have.
MAX_KEYS = 128

Metadata = dict[str, Any]


def show(request: Request, volume_id: str) -> Answer:
    found = request.read(lambda session: guard.visible(request, session, volume_id).image_metadata)
    return Answer(200, {"metadata": found or {}})


def set_(request: Request, volume_id: str) -> Answer:
    """Add or replace keys; the others stay."""
    wanted = request.body["os-set_image_metadata"]["metadata"]
    return Answer(200, {"metadata": _change(request, volume_id, lambda known: {**known, **wanted})})


def unset(request: Request, volume_id: str) -> Answer:
    key = request.body["os-unset_image_metadata"]["key"]

    def without(known: Metadata) -> Metadata:
        if key not in known:
            raise errors.NotFound(kind=f"Image metadata of volume {volume_id}:", id=key)
        return {name: value for name, value in known.items() if name != key}

    _change(request, volume_id, without)
    return Answer(200)


def _change(request: Request, volume_id: str, change: Callable[[Metadata], Metadata]) -> Metadata:
    """Write what ``change`` makes of the metadata, whoever else changes it meanwhile; return it."""

    def work(session: Session) -> Metadata:
        volume = guard.usable(request, session, volume_id)
        guard.refuse_locked(volume)
        new = change(volume.image_metadata or {})
        if len(new) > MAX_KEYS:
            raise errors.InvalidInput(field="metadata", reason=f"a volume can have {MAX_KEYS} keys, not {len(new)}")
        if not volumes.update_where(session, volume_id, volumes.unchanged(volume), image_metadata=new or None):
            raise guard.Overtaken
        return new

    return guard.run(request, volume_id, work)
