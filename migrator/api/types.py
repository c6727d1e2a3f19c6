"""``/types``: volume types and their extra specs."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors, policy
from migrator.api import lists, schemas, versions, views
from migrator.api.lists import Filter
from migrator.api.types_access import check_visible, visible
from migrator.api.wsgi import Answer, Request
from migrator.db import access, listing, types
from migrator.db.models import VolumeType

FILTERS: dict[str, Filter] = {
    "name": lists.equals(VolumeType.name),
    "id": lists.equals(VolumeType.id),
    "description": lists.equals(VolumeType.description),
}


def index(request: Request) -> Answer:
    page, rest = lists.split(request)
    rest.pop("all_tenants", None)  # types belong to no tenant; clients send it all the same
    scope = sa.and_(
        VolumeType.deleted_id == "",
        *_publicity(request, rest.pop("is_public", None)),
        *_with_specs(request, rest),
    )
    filters = lists.conditions(request, FILTERS, rest)
    rows = request.read(lambda session: listing.TYPES.fetch(session, scope, filters, page))
    shown = [views.volume_type(request, row) for row in rows]
    return Answer(200, views.page(request, "volume_types", shown, "types", page.limit, "volume_type_links"))


def _publicity(request: Request, asked: str | None) -> list[Any]:
    """Return the condition on ``is_public``; "None" is an administrator's word for all.

    Without that word, "public" means public to the caller's project: types that it was given access to are among them.
    """
    open_to_caller = sa.or_(VolumeType.is_public.is_(True), access.given(request.context.project_id))
    if not request.is_admin or asked is None:
        return [open_to_caller]
    if asked.lower() == "none":
        return []
    return [open_to_caller if lists.truth("is_public")(asked) else VolumeType.is_public.is_(False)]


def _with_specs(request: Request, rest: lists.Parameters) -> list[Any]:
    """Return the condition on ``extra_specs`` (3.52), by which nobody learns of specs that are not shown to them."""
    if request.version < versions.TYPE_EXTRA_SPECS or "extra_specs" not in rest:
        return []
    wanted = lists.pairs(rest.pop("extra_specs"), "extra_specs")
    hidden = not request.allows(policy.SEE_SENSITIVE_SPECS, request.context.project_id)
    if hidden and not set(wanted) <= set(views.PUBLIC_EXTRA_SPECS):
        return [sa.false()]
    return [types.has_spec(key, value) for key, value in wanted.items()]


def show(request: Request, type_id: str) -> Answer:
    row = request.read(lambda session: visible(request, session, type_id))
    return Answer(200, {"volume_type": views.volume_type(request, row)})


def default(request: Request) -> Answer:
    name = request.conf.default_volume_type

    def work(session: Session) -> VolumeType:
        row = types.find_by_name(session, name) if name else None
        if row is None:
            raise errors.NotFound(kind="Volume type", id="default")
        check_visible(request, session, row, "default")
        return row

    row = request.read(work)
    return Answer(200, {"volume_type": views.volume_type(request, row)})


def create(request: Request) -> Answer:
    wanted = request.body["volume_type"]
    values = {
        "name": wanted["name"].strip(),
        "description": wanted.get("description"),
        "is_public": schemas.as_bool(wanted.get("os-volume-type-access:is_public"), default=True),
    }
    row = request.run(lambda session: types.create(session, wanted.get("extra_specs") or {}, **values))
    return Answer(200, {"volume_type": views.volume_type(request, row)})


def update(request: Request, type_id: str) -> Answer:
    wanted = request.body["volume_type"]
    values: dict[str, Any] = {}
    if wanted.get("name") is not None:
        values["name"] = wanted["name"].strip()
    if wanted.get("description") is not None:
        values["description"] = wanted["description"]
    if "is_public" in wanted:
        values["is_public"] = schemas.as_bool(wanted["is_public"])
    if not values:
        raise errors.InvalidInput(field="volume_type", reason="it needs a name, a description or is_public")
    row = request.run(lambda session: types.update(session, type_id, **values))
    return Answer(200, {"volume_type": views.volume_type(request, row)})


def delete(request: Request, type_id: str) -> Answer:
    def work(session: Session) -> None:
        _refuse_used(session, type_id)
        types.delete(session, type_id)

    request.run(work)
    return Answer(202)


def _refuse_used(session: Session, type_id: str) -> None:
    """Raise InvalidType while volumes are of the type: they were placed by what it says."""
    types.get(session, type_id)
    if types.is_used(session, type_id):
        raise errors.InvalidType(type_id=type_id, reason="volumes are of this type")


# --- extra specs -----------------------------------------------------------------------------------------------------


def specs_index(request: Request, type_id: str) -> Answer:
    row = request.read(lambda session: visible(request, session, type_id))
    return Answer(200, {"extra_specs": views.extra_specs(request, row)})


def specs_show(request: Request, type_id: str, key: str) -> Answer:
    row = request.read(lambda session: visible(request, session, type_id))
    shown = views.extra_specs(request, row)
    if key not in shown:
        raise errors.NotFound(kind=f"Extra spec of volume type {type_id}", id=key)
    return Answer(200, {key: shown[key]})


def specs_create(request: Request, type_id: str) -> Answer:
    _set_specs(request, type_id, request.body["extra_specs"])
    return Answer(200, {"extra_specs": request.body["extra_specs"]})


def specs_update(request: Request, type_id: str, key: str) -> Answer:
    if key not in request.body:
        raise errors.InvalidInput(field="request body", reason=f"it must have the key of its URL, {key!r}")
    _set_specs(request, type_id, request.body)
    return Answer(200, request.body)


def _set_specs(request: Request, type_id: str, specs: dict[str, str | None]) -> None:
    def work(session: Session) -> None:
        _refuse_used(session, type_id)
        types.set_specs(session, type_id, specs)

    request.run(work)


def specs_delete(request: Request, type_id: str, key: str) -> Answer:
    def work(session: Session) -> None:
        _refuse_used(session, type_id)
        types.delete_spec(session, type_id, key)

    request.run(work)
    return Answer(202)
