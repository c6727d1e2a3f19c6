"""``/os-availability-zone``: where volumes can be."""

from __future__ import annotations

from migrator.api.wsgi import Answer, Request
from migrator.db import services


def index(request: Request) -> Answer:
    """A zone is available while one of its volume services is enabled, as volumes can be asked for in it then."""
    found = request.read(
        lambda session: services.states(session, request.conf.service_down_time, binary=services.VOLUME)
    )
    zones: dict[str, bool] = {}
    for state in found:
        zone = state.service.availability_zone
        zones[zone] = zones.get(zone, False) or not state.service.disabled
    shown = [{"zoneName": name, "zoneState": {"available": zones[name]}} for name in sorted(zones)]
    return Answer(200, {"availabilityZoneInfo": shown})
