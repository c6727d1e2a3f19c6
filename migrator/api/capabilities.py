"""``/capabilities/{host}``: what a backend can do, as it last reported."""

from __future__ import annotations

from migrator import errors
from migrator.api.wsgi import Answer, Json, Request
from migrator.backend_name import BackendName, MalformedBackendName

_NAMESPACE = "OS::Storage::Capabilities"
_TITLES = {
    "thin_provisioning": ("Thin Provisioning", "Space is taken when it is written to.", "thin_provisioning_support"),
    "multiattach": ("Multiattach", "Several servers may use one volume at once.", "multiattach"),
    "qos": ("QoS", "Limits on requests and bytes per second.", "QoS_support"),
    "can_assist": ("Assisted migration", "The backend can move volumes itself.", "can_assist"),
    "snapshots": ("Snapshots", "Snapshots can be taken.", "snapshots"),
    "clone": ("Clones", "Volumes can be made from others and from snapshots.", "clone"),
    "adopt": ("Adoption", "What lies on the backend already can be taken over.", "adopt"),
}


def show(request: Request, host: str) -> Answer:
    try:
        wanted = BackendName.parse(host)
    except MalformedBackendName as error:
        raise errors.InvalidInput(field="host", reason=str(error)) from error
    pools = request.backing.scheduler.get_pools(request.context, True)
    found = [pool["capabilities"] for pool in pools if wanted.contains(BackendName.parse(pool["name"]))]
    if not found:
        raise errors.NotFound(kind="Backend", id=host)
    first = found[0]
    return Answer(
        200,
        {
            "namespace": f"{_NAMESPACE}::{host}",
            "vendor_name": first.get("vendor_name"),
            "volume_backend_name": first.get("volume_backend_name"),
            "pool_name": first.get("pool_name") if len(found) == 1 else None,
            "driver_version": first.get("driver_version"),
            "storage_protocol": first.get("storage_protocol"),
            "display_name": f"Capabilities of {host}",
            "description": f"What the pools of {host} have in common.",
            "visibility": "public",
            "replication_targets": [],
            "properties": {key: _property(*words, found) for key, words in _TITLES.items()},
        },
    )


def _property(title: str, description: str, reported: str, pools: list[Json]) -> Json:
    common = all(pool.get(reported) for pool in pools)
    return {"title": title, "description": description, "type": "boolean", "default": common}
