"""``/volumes/summary``: how many volumes there are, and how much they hold together."""

from __future__ import annotations

from sqlalchemy.orm import Session

from migrator.api import lists, versions
from migrator.api.volumes import FILTERS
from migrator.api.wsgi import Answer, Json, Request
from migrator.db import totals
from migrator.db.models import Volume


def show(request: Request) -> Answer:
    rest = request.query
    everybody = lists.all_tenants(request, rest)
    where = lists.conditions(request, FILTERS, rest)
    if not everybody:
        where.append(Volume.project_id == request.context.project_id)

    def work(session: Session) -> Json:
        found = totals.of_volumes(session, *where)
        shown: Json = {"total_size": found.volume_gib, "total_count": found.volumes}
        if request.version >= versions.SUMMARY_METADATA:
            shown["metadata"] = totals.metadata_of_volumes(session, *where)
        return shown

    return Answer(200, {"volume-summary": request.read(work)})
