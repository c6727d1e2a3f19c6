"""Access to volume types that are not public: the projects that may use one."""

from __future__ import annotations

from sqlalchemy.orm import Session

from migrator import errors
from migrator.api.wsgi import Answer, Json, Request
from migrator.db import access, types
from migrator.db.models import VolumeType


def check_visible(request: Request, session: Session, kind: VolumeType, named: str) -> None:
    """Raise NotFound for a type that is neither public nor open to the caller's project; ``named`` as asked for."""
    if not request.is_admin and not access.may_use(session, kind, request.context.project_id):
        raise errors.NotFound(kind="Volume type", id=named)


def visible(request: Request, session: Session, type_id: str) -> VolumeType:
    """Return a type that the caller may see; raises NotFound."""
    kind = types.get(session, type_id)
    check_visible(request, session, kind, type_id)
    return kind


def index(request: Request, type_id: str) -> Answer:
    def work(session: Session) -> list[Json]:
        if visible(request, session, type_id).is_public:
            raise errors.NotFound(kind="Access list of the public volume type", id=type_id)
        return [
            {"volume_type_id": type_id, "project_id": project_id} for project_id in access.projects(session, type_id)
        ]

    return Answer(200, {"volume_type_access": request.read(work)})


def add(request: Request, type_id: str) -> Answer:
    project_id = request.body["addProjectAccess"]["project"]

    def work(session: Session) -> None:
        _private(request, session, type_id)
        access.add(session, type_id, project_id)

    request.run(work)
    return Answer(202)


def remove(request: Request, type_id: str) -> Answer:
    project_id = request.body["removeProjectAccess"]["project"]

    def work(session: Session) -> None:
        _private(request, session, type_id)
        access.remove(session, type_id, project_id)

    request.run(work)
    return Answer(202)


def _private(request: Request, session: Session, type_id: str) -> None:
    if visible(request, session, type_id).is_public:
        raise errors.InvalidType(type_id=type_id, reason="it is public, so every project has access")
