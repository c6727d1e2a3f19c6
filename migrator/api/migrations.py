"""``/migrations``: what is moved, how far it is, and what became of it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import lists, views
from migrator.api.lists import Filter
from migrator.api.wsgi import Answer, Json, Request
from migrator.db import history, listing, migrations
from migrator.db.api import clock
from migrator.db.listing import Condition
from migrator.db.models import Migration


def _status(text: str) -> Condition:
    if text not in listing.MIGRATION_STATUS:
        known = ", ".join(listing.MIGRATION_STATUS)
        raise errors.InvalidInput(field="status", reason=f"{text[:40]!r} is not one of: {known}")
    return listing.MIGRATION_STATUS[text]


def _ends_at(text: str) -> Condition:
    columns = (Migration.source_host, Migration.destination_host, Migration.requested_host)
    return sa.or_(*(listing.place(column, text) for column in columns))


FILTERS: dict[str, Filter] = {
    "volume_id": lists.equals(Migration.volume_id),
    "status": Filter(_status),
    "host": Filter(_ends_at),
    "since": Filter(lambda text: Migration.created_at >= lists.time(text, "since")),
}


def index(request: Request) -> Answer:
    page, rest = lists.split(request)
    rest.pop("all_tenants", None)  # an operator's list knows no tenants; clients may send it all the same
    filters = lists.conditions(request, FILTERS, rest)

    def work(session: Session) -> list[Json]:
        rows = listing.MIGRATIONS.fetch(session, sa.true(), filters, page)
        now = clock(session)
        return [views.migration(row, now) for row in rows]

    return Answer(200, views.page(request, "migrations", request.read(work), "migrations", page.limit))


def show(request: Request, migration_id: str) -> Answer:
    def work(session: Session) -> Json:
        row = migrations.get(session, migration_id)
        request.authorize_owner("Migration", migration_id, row.project_id, row.user_id)
        return views.migration_detail(row, history.steps(session, migration_id), clock(session))

    return Answer(200, {"migration": request.read(work)})
