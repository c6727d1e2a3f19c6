"""``/scheduler-stats/get_pools``: the pools as the scheduler knows them."""

from __future__ import annotations

from migrator.api import lists, versions
from migrator.api.volumes import find_type
from migrator.api.wsgi import Answer, Request


def get_pools(request: Request) -> Answer:
    rest = request.query
    detail = lists.flag(rest, "detail")
    type_id = None
    if request.version >= versions.POOL_TYPE_FILTER and rest.get("volume_type"):
        type_id = request.read(lambda session: find_type(request, session, rest["volume_type"])).id
    pools = request.backing.scheduler.get_pools(request.context, detail, type_id)
    if request.version >= versions.POOL_FILTERS and "name" in rest:
        pools = [pool for pool in pools if pool["name"] == rest["name"]]
    shown = pools if detail else [{"name": pool["name"]} for pool in pools]
    return Answer(200, {"pools": shown})
