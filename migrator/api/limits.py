"""``/limits`` and ``/os-quota-sets``: what a project uses.  There are no quotas here, so every limit is -1."""

from __future__ import annotations

from migrator.api import lists, versions
from migrator.api.wsgi import Answer, Json, Request
from migrator.db import totals
from migrator.db.totals import Totals

UNLIMITED = -1


def show(request: Request) -> Answer:
    project_id = request.context.project_id
    asked = request.query.get("project_id")
    if asked is not None and request.version >= versions.LIMITS_OF_PROJECT and request.is_admin:
        project_id = asked
    used = request.read(lambda session: totals.of_project(session, project_id))
    limits = ("Volumes", "Snapshots", "VolumeGigabytes", "Backups", "BackupGigabytes")
    absolute = {
        **{f"maxTotal{name}": UNLIMITED for name in limits},
        "totalVolumesUsed": used.volumes,
        "totalSnapshotsUsed": used.snapshots,
        "totalGigabytesUsed": used.volume_gib + used.snapshot_gib,
        "totalBackupsUsed": 0,
        "totalBackupGigabytesUsed": 0,
    }
    return Answer(200, {"limits": {"rate": [], "absolute": absolute}})


def quota_set(request: Request, quota_of: str) -> Answer:
    request.authorize_owner("Quota set", quota_of, quota_of, None)
    with_usage = lists.flag(request.query, "usage")
    used = _used(request.read(lambda session: totals.of_project(session, quota_of)) if with_usage else Totals())
    limits: Json = dict.fromkeys(used, UNLIMITED)
    if with_usage:
        limits = {name: {"limit": UNLIMITED, "in_use": count, "reserved": 0} for name, count in used.items()}
    return Answer(200, {"quota_set": {"id": quota_of, **limits}})


def quota_defaults(request: Request, quota_of: str) -> Answer:
    request.authorize_owner("Quota set", quota_of, quota_of, None)
    return Answer(200, {"quota_set": {"id": quota_of, **dict.fromkeys(_used(Totals()), UNLIMITED)}})


def _used(found: Totals) -> dict[str, int]:
    return {
        "volumes": found.volumes,
        "snapshots": found.snapshots,
        "gigabytes": found.volume_gib + found.snapshot_gib,
        "per_volume_gigabytes": 0,
        "backups": 0,
        "backup_gigabytes": 0,
        "groups": 0,
    }
