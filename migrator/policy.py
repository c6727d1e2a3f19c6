"""Who may do what: one documented rule for every route, named as operators of block storage know them.

A rule is asked twice: by the router with the caller's own project as target (may somebody like this do it at all?),
and by the handler with the project of the thing it found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from oslo_policy import policy

from migrator import conf as config
from migrator import errors
from migrator.conf import Conf
from migrator.context import RequestContext

Target = Mapping[str, Any]

#: A changed policy file is obeyed after this at the latest.  Finding the file costs more than all else in a decision.
RELOAD_SECONDS = 1.0

ADMIN = "rule:context_is_admin"
READER = "rule:admin_or_project_reader"
MEMBER = "rule:admin_or_project_member"

IS_ADMIN = "context_is_admin"
HOST_ATTRIBUTE = "volume_extension:volume_host_attribute"
MIGRATION_ATTRIBUTE = "volume_extension:volume_mig_status_attribute"
TENANT_ATTRIBUTE = "volume_extension:volume_tenant_attribute"
SNAPSHOT_ATTRIBUTES = "volume_extension:extended_snapshot_attributes"
FORCE_DELETE = "volume:force_delete"
SEE_EXTRA_SPECS = "volume_extension:access_types_extra_specs"
SEE_SENSITIVE_SPECS = "volume_extension:types_extra_specs:read_sensitive"
SEE_QOS = "volume_extension:access_types_qos_specs_id"
EXTEND_ATTACHED = "volume:extend_attached_volume"
MULTIATTACH = "volume:multiattach"
MULTIATTACH_BOOTABLE = "volume:multiattach_bootable_volume"
IMAGE_METADATA = "volume_extension:volume_image_metadata:show"

_BASE = [
    policy.RuleDefault(IS_ADMIN, "role:admin", description="Who is an administrator."),
    policy.RuleDefault(
        "admin_or_project_reader",
        "rule:context_is_admin or (role:reader and project_id:%(project_id)s)",
        description="An administrator, or a reader of the project that the thing belongs to.",
    ),
    policy.RuleDefault(
        "admin_or_project_member",
        "rule:context_is_admin or (role:member and project_id:%(project_id)s)",
        description="An administrator, or a member of the project that the thing belongs to.",
    ),
]

_ACTION = "POST /volumes/{volume_id}/action"
_ACTIONS = "volume_extension:volume_actions"

#: name, who by default, what for, operations as "METHOD /path".
_TABLE: list[tuple[str, str, str, list[str]]] = [
    ("volume:create", MEMBER, "Create a volume.", ["POST /volumes"]),
    ("volume:get", READER, "Show a volume.", ["GET /volumes/{volume_id}"]),
    ("volume:get_all", READER, "List volumes.", ["GET /volumes", "GET /volumes/detail"]),
    ("volume:update", MEMBER, "Change a volume's name, description or metadata.", ["PUT /volumes/{volume_id}"]),
    ("volume:delete", MEMBER, "Delete a volume.", ["DELETE /volumes/{volume_id}"]),
    (FORCE_DELETE, ADMIN, "Delete a volume whatever its status.", ["DELETE /volumes/{volume_id}"]),
    (HOST_ATTRIBUTE, ADMIN, "See which pool a volume is on.", ["GET /volumes/{volume_id}", "GET /volumes/detail"]),
    (TENANT_ATTRIBUTE, READER, "See a volume's project.", ["GET /volumes/{volume_id}", "GET /volumes/detail"]),
    (MIGRATION_ATTRIBUTE, ADMIN, "See a volume's migration.", ["GET /volumes/{volume_id}", "GET /volumes/detail"]),
    ("volume:extend", MEMBER, "Extend a volume.", [f"{_ACTION} (os-extend)"]),
    (EXTEND_ATTACHED, MEMBER, "Extend a volume that is in use.", [f"{_ACTION} (os-extend)"]),
    ("volume:retype", MEMBER, "Change a volume's type.", [f"{_ACTION} (os-retype)"]),
    (
        MULTIATTACH,
        MEMBER,
        "Have a volume of a type that several servers may use at once.",
        ["POST /volumes", f"{_ACTION} (os-retype)"],
    ),
    (
        "volume:update_readonly_flag",
        MEMBER,
        "Make a volume read-only, or writable again.",
        [f"{_ACTION} (os-update_readonly_flag)"],
    ),
    *(
        (f"{_ACTIONS}:{rule}", MEMBER, description, [f"{_ACTION} (os-{rule})"])
        for rule, description in (
            ("reserve", "Reserve a volume for a server."),
            ("unreserve", "Give up a reservation."),
            ("initialize_connection", "Have a volume offered to a host."),
            ("terminate_connection", "Take a volume back from a host."),
            ("attach", "Record that a server uses a volume."),
            ("detach", "Record that a server no longer uses a volume."),
            ("begin_detaching", "Announce that a server will let go of a volume."),
            ("roll_detaching", "Take such an announcement back."),
        )
    ),
    (
        "volume_extension:volume_admin_actions:force_detach",
        ADMIN,
        "Detach a volume whatever became of its server.",
        [f"{_ACTION} (os-force_detach)"],
    ),
    (
        "volume_extension:volume_admin_actions:force_delete",
        ADMIN,
        "Delete a volume whatever its status.",
        [f"{_ACTION} (os-force_delete)"],
    ),
    (
        IMAGE_METADATA,
        READER,
        "See what is recorded of a volume's image.",
        ["GET /volumes/{volume_id}", "GET /volumes/detail", f"{_ACTION} (os-show_image_metadata)"],
    ),
    (
        "volume_extension:volume_image_metadata:set",
        MEMBER,
        "Record something of a volume's image.",
        [f"{_ACTION} (os-set_image_metadata)"],
    ),
    (
        "volume_extension:volume_image_metadata:remove",
        MEMBER,
        "Forget something of a volume's image.",
        [f"{_ACTION} (os-unset_image_metadata)"],
    ),
    ("volume:attachment_get_all", READER, "List attachments.", ["GET /attachments", "GET /attachments/detail"]),
    ("volume:attachment_get", READER, "Show an attachment.", ["GET /attachments/{attachment_id}"]),
    ("volume:attachment_create", MEMBER, "Attach a volume to a server.", ["POST /attachments"]),
    ("volume:attachment_update", MEMBER, "Connect an attachment to a host.", ["PUT /attachments/{attachment_id}"]),
    ("volume:attachment_delete", MEMBER, "Detach a volume.", ["DELETE /attachments/{attachment_id}"]),
    (
        "volume:attachment_complete",
        MEMBER,
        "Report that a server uses the volume.",
        ["POST /attachments/{attachment_id}/action (os-complete)"],
    ),
    (
        MULTIATTACH_BOOTABLE,
        MEMBER,
        "Attach a bootable volume to a second server.",
        ["POST /attachments"],
    ),
    (
        "volume_extension:volume_admin_actions:reset_status",
        ADMIN,
        "Reset a volume's status.",
        [f"{_ACTION} (os-reset_status)"],
    ),
    (
        "volume_extension:volume_admin_actions:migrate_volume",
        ADMIN,
        "Migrate a volume.",
        [f"{_ACTION} (os-migrate_volume)"],
    ),
    (
        "volume_extension:volume_admin_actions:migrate_volume_completion",
        ADMIN,
        "Complete a migration on behalf of the compute service.",
        [f"{_ACTION} (os-migrate_volume_completion)"],
    ),
    ("volume:create_snapshot", MEMBER, "Create a snapshot.", ["POST /snapshots"]),
    ("volume:get_snapshot", READER, "Show a snapshot.", ["GET /snapshots/{snapshot_id}"]),
    ("volume:get_all_snapshots", READER, "List snapshots.", ["GET /snapshots", "GET /snapshots/detail"]),
    ("volume:update_snapshot", MEMBER, "Change a snapshot's name or description.", ["PUT /snapshots/{snapshot_id}"]),
    ("volume:delete_snapshot", MEMBER, "Delete a snapshot.", ["DELETE /snapshots/{snapshot_id}"]),
    (
        SNAPSHOT_ATTRIBUTES,
        READER,
        "See a snapshot's project and progress.",
        ["GET /snapshots/{snapshot_id}", "GET /snapshots/detail"],
    ),
    ("volume_extension:type_create", ADMIN, "Create a volume type.", ["POST /types"]),
    ("volume_extension:type_update", ADMIN, "Change a volume type.", ["PUT /types/{type_id}"]),
    ("volume_extension:type_delete", ADMIN, "Delete a volume type.", ["DELETE /types/{type_id}"]),
    ("volume_extension:type_get", READER, "Show a volume type.", ["GET /types/{type_id}"]),
    ("volume_extension:type_get_all", READER, "List volume types.", ["GET /types"]),
    (SEE_EXTRA_SPECS, READER, "See extra specs in types.", ["GET /types/{type_id}", "GET /types"]),
    (SEE_QOS, ADMIN, "See the QoS specs of types.", ["GET /types/{type_id}", "GET /types"]),
    (
        SEE_SENSITIVE_SPECS,
        ADMIN,
        "See extra specs that describe the deployment.",
        ["GET /types", "GET /types/{type_id}", "GET /types/{type_id}/extra_specs"],
    ),
    ("volume_extension:types_extra_specs:index", READER, "List extra specs.", ["GET /types/{type_id}/extra_specs"]),
    ("volume_extension:types_extra_specs:create", ADMIN, "Set extra specs.", ["POST /types/{type_id}/extra_specs"]),
    (
        "volume_extension:types_extra_specs:show",
        READER,
        "Show an extra spec.",
        ["GET /types/{type_id}/extra_specs/{key}"],
    ),
    (
        "volume_extension:types_extra_specs:update",
        ADMIN,
        "Change an extra spec.",
        ["PUT /types/{type_id}/extra_specs/{key}"],
    ),
    (
        "volume_extension:types_extra_specs:delete",
        ADMIN,
        "Delete an extra spec.",
        ["DELETE /types/{type_id}/extra_specs/{key}"],
    ),
    *(
        (f"volume:{verb}_volume_metadata", who, f"{what} a volume's metadata.", operations)
        for verb, who, what, operations in (
            ("get", READER, "Show", ["GET /volumes/{volume_id}/metadata", "GET /volumes/{volume_id}/metadata/{key}"]),
            ("create", MEMBER, "Add to", ["POST /volumes/{volume_id}/metadata"]),
            (
                "update",
                MEMBER,
                "Change",
                ["PUT /volumes/{volume_id}/metadata", "PUT /volumes/{volume_id}/metadata/{key}"],
            ),
            ("delete", MEMBER, "Delete a key of", ["DELETE /volumes/{volume_id}/metadata/{key}"]),
        )
    ),
    *(
        (f"volume:{verb}_snapshot_metadata", who, f"{what} a snapshot's metadata.", operations)
        for verb, who, what, operations in (
            (
                "get",
                READER,
                "Show",
                ["GET /snapshots/{snapshot_id}/metadata", "GET /snapshots/{snapshot_id}/metadata/{key}"],
            ),
            (
                "update",
                MEMBER,
                "Change",
                [
                    "POST /snapshots/{snapshot_id}/metadata",
                    "PUT /snapshots/{snapshot_id}/metadata",
                    "PUT /snapshots/{snapshot_id}/metadata/{key}",
                ],
            ),
            ("delete", MEMBER, "Delete a key of", ["DELETE /snapshots/{snapshot_id}/metadata/{key}"]),
        )
    ),
    *(
        (
            f"volume_extension:snapshot_admin_actions:{verb}",
            ADMIN,
            what,
            [f"POST /snapshots/{{snapshot_id}}/action (os-{verb})"],
        )
        for verb, what in (
            ("reset_status", "Reset a snapshot's status."),
            ("force_delete", "Delete a snapshot whatever its status."),
        )
    ),
    (
        "volume_extension:volume_type_access:get_all_for_type",
        ADMIN,
        "List the projects that may use a private volume type.",
        ["GET /types/{type_id}/os-volume-type-access"],
    ),
    *(
        (f"volume_extension:volume_type_access:{verb}", ADMIN, what, [f"POST /types/{{type_id}}/action ({verb})"])
        for verb, what in (
            ("addProjectAccess", "Let a project use a private volume type."),
            ("removeProjectAccess", "Let a project no longer use a private volume type."),
        )
    ),
    (
        "volume_extension:volume_type_encryption:get",
        ADMIN,
        "Show the encryption of a volume type.",
        ["GET /types/{type_id}/encryption", "GET /types/{type_id}/encryption/{key}"],
    ),
    (
        "volume_extension:list_manageable",
        ADMIN,
        "List what lies on a backend and could be managed.",
        ["GET /manageable_volumes", "GET /manageable_volumes/detail", "GET /os-volume-manage"],
    ),
    (
        "volume_extension:volume_manage",
        ADMIN,
        "Make a volume of what lies on a backend.",
        ["POST /manageable_volumes", "POST /os-volume-manage"],
    ),
    (
        "volume_extension:volume_unmanage",
        ADMIN,
        "Give up a volume without deleting it.",
        [f"{_ACTION} (os-unmanage)"],
    ),
    (
        "snapshot_extension:list_manageable",
        ADMIN,
        "List what lies on a backend and could be managed as a snapshot.",
        ["GET /manageable_snapshots", "GET /manageable_snapshots/detail", "GET /os-snapshot-manage"],
    ),
    (
        "snapshot_extension:snapshot_manage",
        ADMIN,
        "Make a snapshot of what lies on a backend.",
        ["POST /manageable_snapshots", "POST /os-snapshot-manage"],
    ),
    (
        "snapshot_extension:snapshot_unmanage",
        ADMIN,
        "Give up a snapshot without deleting it.",
        ["POST /snapshots/{snapshot_id}/action (os-unmanage)"],
    ),
    ("volume:freeze_host", ADMIN, "Keep new volumes away from a backend.", ["PUT /os-services/freeze"]),
    ("volume:thaw_host", ADMIN, "Let a backend have new volumes again.", ["PUT /os-services/thaw"]),
    ("clusters:get_all", ADMIN, "List clusters.", ["GET /clusters", "GET /clusters/detail"]),
    ("clusters:get", ADMIN, "Show a cluster.", ["GET /clusters/{name}"]),
    ("clusters:update", ADMIN, "Enable or disable a cluster.", ["PUT /clusters/{action}"]),
    ("workers:cleanup", ADMIN, "Have what dead services left worked on.", ["POST /workers/cleanup"]),
    ("volume_extension:hosts", ADMIN, "Show hosts and what they hold.", ["GET /os-hosts", "GET /os-hosts/{host}"]),
    ("volume_extension:capabilities", ADMIN, "Show what a backend can do.", ["GET /capabilities/{host}"]),
    ("volume_extension:availability_zones", READER, "List zones.", ["GET /os-availability-zone"]),
    (
        "volume_extension:extensions",
        READER,
        "List which parts of the API there are.",
        ["GET /extensions", "GET /extensions/{alias}"],
    ),
    ("volume_extension:resource_filters", READER, "List the filters of lists.", ["GET /resource_filters"]),
    ("limits_extension:used_limits", READER, "Show what a project uses.", ["GET /limits"]),
    (
        "volume_extension:quotas:show",
        READER,
        "Show a project's quotas, of which there are none.",
        ["GET /os-quota-sets/{project_id}", "GET /os-quota-sets/{project_id}/defaults"],
    ),
    ("volume_extension:services:index", ADMIN, "List services.", ["GET /os-services"]),
    ("volume_extension:services:update", ADMIN, "Enable or disable a service.", ["PUT /os-services/{action}"]),
    (
        "scheduler_extension:scheduler_stats:get_pools",
        ADMIN,
        "List pools and what they can do.",
        ["GET /scheduler-stats/get_pools"],
    ),
    ("message:get_all", READER, "List user messages.", ["GET /messages"]),
    ("message:get", READER, "Show a user message.", ["GET /messages/{message_id}"]),
    ("message:delete", MEMBER, "Delete a user message.", ["DELETE /messages/{message_id}"]),
    ("migrations:get_all", ADMIN, "List migrations.", ["GET /migrations"]),
    (
        "migrations:create",
        ADMIN,
        "Migrate a volume, or ask what that would do (dry_run); beside os-migrate_volume, which has its own rule.",
        ["POST /migrations"],
    ),
    ("migrations:plan", ADMIN, "Ask what migrating a volume would do.", ["GET /migrations/plan"]),
    ("migrations:get", ADMIN, "Show a migration with its history.", ["GET /migrations/{migration_id}"]),
    *(
        (f"migrations:{order}", ADMIN, description, [f"POST /migrations/{{migration_id}}/action ({order})"])
        for order, description in (
            ("cancel", "Cancel a migration."),
            ("pause", "Let a migration rest."),
            ("resume", "Let a paused migration go on."),
            ("retry", "Begin a migration that failed or was cancelled anew."),
            ("set_rate", "Change the rate at which a migration copies."),
            ("undo", "Put a migrated volume back on its kept source."),
        )
    ),
]


class _Enforcer(policy.Enforcer):  # type: ignore[misc]
    """Looks for a changed policy file once a while, not several times at each decision."""

    _next_look = 0.0

    def load_rules(self, force_reload: bool = False) -> None:
        now = time.monotonic()
        if force_reload or now >= self._next_look:
            self._next_look = now + RELOAD_SECONDS
            super().load_rules(force_reload)


def list_rules() -> list[policy.RuleDefault]:
    """Every rule with its documentation, for the sample policy file and the enforcer."""
    documented = [
        policy.DocumentedRuleDefault(name, check, description, [_operation(text) for text in operations])
        for name, check, description, operations in _TABLE
    ]
    return [*_BASE, *documented]


def _operation(text: str) -> policy.Operation:
    method, _, path = text.partition(" ")
    return {"method": method, "path": path}


def get_enforcer(conf: Conf | None = None) -> policy.Enforcer:
    """Return an enforcer of the rules and the operator's policy file; without ``conf``, of the default files."""
    if conf is None:  # how the tools of oslo.policy call it
        conf = config.load("migrator", [])
    enforcer = _Enforcer(conf)
    enforcer.register_defaults(list_rules())
    return enforcer


class Policy:
    """The decisions of one deployment; safe to ask from many threads."""

    def __init__(self, conf: Conf) -> None:
        self._enforcer = get_enforcer(conf)
        #: Rules are replaced in place when the file changes: who asked in that instant would be refused everything.
        self._lock = threading.Lock()

    def allows(self, context: RequestContext, rule: str, target: Target | None = None) -> bool:
        """Tell whether ``rule`` lets the caller act on ``target``, by default on what is the caller's own."""
        if target is None:
            target = {"project_id": context.project_id, "user_id": context.user_id}
        with self._lock:
            return bool(self._enforcer.authorize(rule, target, context))

    def authorize(self, context: RequestContext, rule: str, target: Target | None = None) -> None:
        """Raise Forbidden unless ``rule`` lets the caller act on ``target``."""
        if not self.allows(context, rule, target):
            raise errors.Forbidden(action=rule)
