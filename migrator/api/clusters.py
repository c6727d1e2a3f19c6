"""``/clusters``: volume services that serve the same backends, listed, enabled and disabled together."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import lists, versions, views
from migrator.api.services import binary_name
from migrator.api.wsgi import Answer, Json, Request
from migrator.db import clusters, services
from migrator.db.clusters import Cluster


def _number(name: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()):
            raise errors.InvalidInput(field=name, reason=f"{text[:40]!r} is not a number")
        return int(text)

    return read


#: filter -> how its text is read, what it is compared with, since which microversion
FILTERS: dict[str, tuple[Callable[[str], object], Callable[[Cluster], object], versions.Version]] = {
    "name": (str, lambda cluster: cluster.name, versions.CLUSTERS),
    "binary": (lambda text: binary_name(text), lambda cluster: cluster.binary, versions.CLUSTERS),
    "is_up": (lists.truth("is_up"), lambda cluster: cluster.up, versions.CLUSTERS),
    "disabled": (lists.truth("disabled"), lambda cluster: cluster.disabled, versions.CLUSTERS),
    "num_hosts": (_number("num_hosts"), lambda cluster: len(cluster.members), versions.CLUSTERS),
    "num_down_hosts": (_number("num_down_hosts"), lambda cluster: cluster.down_members, versions.CLUSTERS),
    "frozen": (lists.truth("frozen"), lambda cluster: cluster.frozen, versions.CLUSTER_REPLICATION),
    "replication_status": (str, lambda cluster: "disabled", versions.CLUSTER_REPLICATION),
    "active_backend_id": (str, lambda cluster: None, versions.CLUSTER_REPLICATION),
}


def index(request: Request) -> Answer:
    return _list(request, detail=False)


def detail(request: Request) -> Answer:
    return _list(request, detail=True)


def _list(request: Request, detail: bool) -> Answer:
    wanted = []
    for name, text in request.query.items():
        read, value, since = FILTERS.get(name, (str, lambda cluster: None, versions.MAX))
        if name not in FILTERS or since > request.version:
            raise errors.InvalidInput(field="query", reason=f"{name[:40]!r} is not a filter of this list")
        wanted.append((value, read(text)))
    found = request.read(lambda session: clusters.every(session, request.conf.service_down_time))
    shown = [
        _view(request, cluster, detail) for cluster in found if all(value(cluster) == text for value, text in wanted)
    ]
    return Answer(200, {"clusters": shown})


def show(request: Request, name: str) -> Answer:
    binary = binary_name(request.query.get("binary", services.VOLUME))
    found = request.read(lambda session: clusters.get(session, request.conf.service_down_time, name, binary))
    return Answer(200, {"cluster": _view(request, found, detail=True)})


def enable(request: Request) -> Answer:
    return _set(request, disabled=False)


def disable(request: Request) -> Answer:
    return _set(request, disabled=True)


def _set(request: Request, disabled: bool) -> Answer:
    """Do so to every service that is in the cluster now."""
    name, reason = request.body["name"], request.body.get("disabled_reason")
    binary = binary_name(request.body.get("binary") or services.VOLUME)

    def work(session: Session) -> Cluster:
        clusters.set_disabled(session, name, binary, disabled, reason)
        return clusters.get(session, request.conf.service_down_time, name, binary)

    cluster = request.run(work)
    shown = _view(request, cluster, detail=False) | {"disabled_reason": cluster.disabled_reason}
    return Answer(200, {"cluster": shown})


def _view(request: Request, cluster: Cluster, detail: bool) -> Json:
    view: Json = {
        "name": cluster.name,
        "binary": cluster.binary,
        "state": "up" if cluster.up else "down",
        "status": "disabled" if cluster.disabled else "enabled",
    }
    if not detail:
        return view
    heard = datetime.datetime.fromtimestamp(cluster.heartbeat_at, datetime.UTC).replace(tzinfo=None)
    view |= {
        "num_hosts": len(cluster.members),
        "num_down_hosts": cluster.down_members,
        "last_heartbeat": views.time(heard),
        "created_at": views.time(cluster.created_at),
        "updated_at": views.time(cluster.updated_at),
        "disabled_reason": cluster.disabled_reason,
    }
    if request.version >= versions.CLUSTER_REPLICATION:
        view |= {"replication_status": "disabled", "frozen": cluster.frozen, "active_backend_id": None}
    return view
