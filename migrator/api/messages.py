"""``/messages``: what became of a tenant's asynchronous requests."""

from __future__ import annotations

from sqlalchemy.orm import Session

from migrator.api import lists, versions, views
from migrator.api.lists import Filter
from migrator.api.wsgi import Answer, Request
from migrator.db import listing, messages
from migrator.db.models import Message

FILTERS: dict[str, Filter] = {
    name: Filter(lambda text, column=getattr(Message, name): column == text, versions.MESSAGE_FILTERS)  # type: ignore[misc]
    for name in ("resource_uuid", "resource_type", "event_id", "request_id", "message_level")
}


def index(request: Request) -> Answer:
    page, rest = lists.split(request)
    filters = lists.conditions(request, FILTERS, rest)
    scope = Message.project_id == request.context.project_id
    rows = request.read(lambda session: listing.MESSAGES.fetch(session, scope, filters, page))
    shown = [views.message(request, row) for row in rows]
    return Answer(200, views.page(request, "messages", shown, "messages", page.limit))


def _visible(request: Request, session: Session, message_id: str) -> Message:
    message = messages.get(session, message_id)
    request.authorize_owner("Message", message_id, message.project_id, None)
    return message


def show(request: Request, message_id: str) -> Answer:
    message = request.read(lambda session: _visible(request, session, message_id))
    return Answer(200, {"message": views.message(request, message)})


def delete(request: Request, message_id: str) -> Answer:
    def work(session: Session) -> None:
        messages.delete(session, _visible(request, session, message_id).id)

    request.run(work)
    return Answer(204)
