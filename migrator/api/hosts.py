"""``/os-hosts``: the hosts of services, and what a volume service's host holds for whom."""

from __future__ import annotations

import datetime

from migrator import errors
from migrator.api import views
from migrator.api.services import is_on
from migrator.api.wsgi import Answer, Json, Request
from migrator.db import listing, services, totals
from migrator.db.models import Volume
from migrator.db.services import ServiceState
from migrator.db.totals import Totals


def index(request: Request) -> Answer:
    zone, service = request.query.get("zone"), request.query.get("service")
    found = request.read(lambda session: services.states(session, request.conf.service_down_time))
    shown = [
        _host(state)
        for state in found
        if zone in (None, state.service.availability_zone) and service in (None, state.service.binary)
    ]
    return Answer(200, {"hosts": shown})


def _host(state: ServiceState) -> Json:
    heard = datetime.datetime.fromtimestamp(state.service.heartbeat_at, datetime.UTC).replace(tzinfo=None)
    return {
        "host_name": state.service.host,
        "service": state.service.binary,
        "zone": state.service.availability_zone,
        "service-status": "available" if state.up else "unavailable",
        "service-state": "disabled" if state.service.disabled else "enabled",
        "last-update": views.time(heard),
    }


def show(request: Request, host: str) -> Answer:
    """The totals of a host, host@backend or pool, and of each project there."""
    known = request.read(
        lambda session: services.states(session, request.conf.service_down_time, binary=services.VOLUME)
    )
    if not any(is_on(state.service, host.partition("#")[0]) for state in known):
        raise errors.NotFound(kind="Host", id=host)
    found = request.read(lambda session: totals.by_project(session, listing.place(Volume.host, host)))
    shown = [_resource(host, "(total)", _sum(list(found.values())))]
    shown += [_resource(host, project_id, of_it) for project_id, of_it in found.items()]
    return Answer(200, {"host": shown})


def _sum(parts: list[Totals]) -> Totals:
    return Totals(
        sum(part.volumes for part in parts),
        sum(part.volume_gib for part in parts),
        sum(part.snapshots for part in parts),
        sum(part.snapshot_gib for part in parts),
    )


def _resource(host: str, project: str, found: Totals) -> Json:
    return {
        "resource": {
            "host": host,
            "project": project,
            "volume_count": str(found.volumes),
            "total_volume_gb": str(found.volume_gib),
            "snapshot_count": str(found.snapshots),
            "total_snapshot_gb": str(found.snapshot_gib),
        }
    }
