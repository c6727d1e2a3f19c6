"""``/extensions``: which parts of the dialect are served, for clients that look before they ask."""

from __future__ import annotations

from migrator import errors
from migrator.api.wsgi import Answer, Json, Request

#: alias -> name and what it is, of the extensions whose calls are in the table of routes.
EXTENSIONS: dict[str, tuple[str, str]] = {
    "os-admin-actions": ("AdminActions", "Migration and reset of volumes and snapshots."),
    "os-availability-zone": ("AvailabilityZones", "Where volumes can be."),
    "os-extended-services": ("ExtendedServices", "Services with the reason why they are disabled."),
    "os-extended-snapshot-attributes": ("ExtendedSnapshotAttributes", "Project and progress of snapshots."),
    "os-hosts": ("Hosts", "What the hosts of services hold."),
    "os-quota-sets": ("Quotas", "What a project uses."),
    "os-services": ("Services", "Services, to be enabled, disabled and frozen."),
    "os-snapshot-manage": ("SnapshotManage", "Taking over snapshots that lie on a backend already."),
    "os-snapshot-unmanage": ("SnapshotUnmanage", "Giving up a snapshot without deleting it."),
    "os-snapshot-actions": ("SnapshotActions", "Actions on snapshots."),
    "os-types-extra-specs": ("TypesExtraSpecs", "Extra specs of volume types."),
    "os-types-manage": ("TypesManage", "Volume types, to be made and changed."),
    "os-used-limits": ("UsedLimits", "What of its limits a project uses."),
    "os-vol-host-attr": ("VolumeHostAttribute", "The pool that a volume is on."),
    "os-vol-mig-status-attr": ("VolumeMigStatusAttribute", "How a volume's migration stands."),
    "os-vol-tenant-attr": ("VolumeTenantAttribute", "The project that a volume belongs to."),
    "os-volume-actions": ("VolumeActions", "Actions on volumes."),
    "os-volume-manage": ("VolumeManage", "Taking over what lies on a backend already."),
    "os-volume-type-access": ("VolumeTypeAccess", "Which projects may use a volume type."),
    "os-volume-unmanage": ("VolumeUnmanage", "Giving up a volume without deleting it."),
    "capabilities": ("Capabilities", "What a backend can do."),
    "scheduler-stats": ("Scheduler_stats", "The pools that the scheduler knows."),
}
_UPDATED = "2026-01-01T00:00:00+00:00"


def _view(alias: str) -> Json:
    name, description = EXTENSIONS[alias]
    return {"alias": alias, "name": name, "description": description, "updated": _UPDATED, "links": []}


def index(request: Request) -> Answer:
    return Answer(200, {"extensions": [_view(alias) for alias in sorted(EXTENSIONS)]})


def show(request: Request, alias: str) -> Answer:
    if alias not in EXTENSIONS:
        raise errors.NotFound(kind="Extension", id=alias)
    return Answer(200, {"extension": _view(alias)})
