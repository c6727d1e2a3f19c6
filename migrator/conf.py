"""Every option of migrator, by group; no other file declares one.

The configuration is an object that is handed in: nothing here or elsewhere uses oslo.config's global ``CONF``.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from oslo_config import cfg

Conf: TypeAlias = cfg.ConfigOpts

GIB = 1024**3

SERVICE_OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        "host",
        default=socket.gethostname(),
        sample_default="<hostname>",
        help="First part of the name of every backend of this service (host@backend#pool). Set it when the machine's "
        "name may change: volumes are found by it for as long as they live.",
    ),
    cfg.StrOpt(
        "state_path",
        default="/var/lib/migrator",
        help="Directory for what migrator keeps on disk itself: the SQLite database and lock files.",
    ),
    cfg.StrOpt(
        "cluster",
        help="Name of the cluster that this volume service belongs to. Services of one cluster must have the same "
        "storage behind backends and pools of the same name: while one of them is down, the others go on with its "
        "migrations. Leave it unset where each has storage of its own.",
    ),
    cfg.StrOpt(
        "storage_availability_zone",
        default="nova",
        help="Availability zone of this volume service's backends, and of a volume created without one.",
    ),
    cfg.IntOpt(
        "report_interval",
        default=10,
        min=1,
        help="Seconds between two signs of life of a service, and between two pool reports of a backend.",
    ),
    cfg.IntOpt(
        "service_down_time",
        default=60,
        min=2,
        help="Seconds without a sign of life after which a service counts as down. Must exceed report_interval.",
    ),
    cfg.ListOpt(
        "enabled_backends",
        default=[],
        help="Names of the sections that configure the backends of this volume service. Each runs in its own process.",
    ),
    cfg.StrOpt(
        "default_volume_type",
        help="Name of the volume type of a volume that is created without one. Unset: such a volume has no type.",
    ),
    cfg.StrOpt(
        "volume_name_template",
        default="volume-%s",
        help="Name of a volume's object on its backend; %s is replaced by the volume's name_id (its id until its first "
        "migration). Never change it while volumes exist: they are found by it.",
    ),
    cfg.StrOpt(
        "snapshot_name_template",
        default="snapshot-%s",
        help="Name of a snapshot's object on its backend; %s is replaced by the snapshot's id. Never change it while "
        "snapshots exist.",
    ),
]

API_OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        "auth_strategy",
        default="keystone",
        choices=[
            ("keystone", "tokens are checked by keystonemiddleware, see [keystone_authtoken]"),
            ("noauth", "the token is user:project and is believed; for tests and a single machine"),
        ],
        help="How callers prove who they are.",
    ),
    cfg.BoolOpt(
        "noauth_beyond_loopback",
        default=False,
        help="Serve auth_strategy = noauth on an address other than loopback. Everybody who reaches the port is then "
        "an administrator if they say so.",
    ),
    cfg.HostAddressOpt("osapi_volume_listen", default="127.0.0.1", help="Address that the API listens on."),
    cfg.PortOpt("osapi_volume_listen_port", default=8776, help="Port that the API listens on."),
    cfg.IntOpt("osapi_volume_workers", default=1, min=1, help="API processes. One per core is enough."),
    cfg.IntOpt(
        "osapi_volume_threads",
        default=16,
        min=1,
        help="Requests that one API process works on at the same time; more wait. Each may hold a database connection.",
    ),
    cfg.IntOpt("osapi_max_limit", default=1000, min=1, help="Most items that one page of a list holds."),
    cfg.IntOpt(
        "osapi_max_request_body_size",
        default=114688,
        min=1024,
        help="Largest request body in bytes; a larger one is answered 413.",
    ),
    cfg.StrOpt(
        "public_endpoint",
        help="URL that links in answers begin with, when a proxy stands in front. Unset: as the client addressed us.",
    ),
    cfg.IntOpt(
        "scheduler_rpc_timeout_seconds",
        default=10,
        min=1,
        help="Seconds the API waits for the scheduler's answer when pools are listed.",
    ),
]

SCHEDULER_OPTS: list[cfg.Opt] = [
    cfg.ListOpt(
        "scheduler_default_filters",
        default=["service_up", "availability_zone", "different_place", "capabilities", "capacity"],
        help="Filters that a pool must pass, asked in this order (entry points of migrator.scheduler.filters).",
    ),
    cfg.ListOpt(
        "scheduler_default_weighers",
        default=["free_capacity"],
        help="Weighers whose sum decides among the pools that passed (entry points of migrator.scheduler.weighers).",
    ),
    cfg.FloatOpt("free_capacity_multiplier", default=1.0, help="Weight of free space; negative: fill pools in turn."),
    cfg.FloatOpt("allocated_capacity_multiplier", default=-1.0, help="Weight of space already allocated to volumes."),
    cfg.FloatOpt("volume_number_multiplier", default=-1.0, help="Weight of the number of volumes on a pool."),
    cfg.IntOpt(
        "pool_report_max_age_seconds",
        default=180,
        min=10,
        help="A pool whose last report is older is not chosen.",
    ),
]

MIGRATION_OPTS: list[cfg.Opt] = [
    cfg.IntOpt(
        "migration_create_volume_timeout_secs",
        default=300,
        min=1,
        help="Seconds that creating the destination may take. Past it the migration is rolled back; what the backend "
        "finishes later is removed.",
    ),
    cfg.IntOpt(
        "migration_lease_seconds",
        default=30,
        min=3,
        help="Seconds without a sign of life of a migration's runner after which another may take it over.",
    ),
    cfg.IntOpt(
        "migration_sweep_interval",
        default=5,
        min=1,
        help="Seconds between two looks for migrations and volumes that nobody works on.",
    ),
    cfg.IntOpt("migration_attempts", default=3, min=1, help="Attempts per step before the migration turns back."),
    cfg.FloatOpt(
        "migration_retry_seconds",
        default=1.0,
        min=0.0,
        help="Wait before the second attempt of a step; doubled for each further one, at most 60 s, spread by chance.",
    ),
    cfg.IntOpt(
        "max_migrations_per_backend",
        default=8,
        min=1,
        help="Migrations that the service of one backend works on at the same time; more wait their turn.",
    ),
    cfg.IntOpt(
        "copy_workers",
        default=2,
        min=1,
        help="Processes per backend that copy, one volume each at a time. They are kept warm.",
    ),
    cfg.FloatOpt(
        "copy_checkpoint_seconds",
        default=2.0,
        min=0.05,
        help="Seconds between two flushes of the destination, after which a copy's progress is recorded. What was "
        "copied since the last one is copied again after a crash.",
    ),
    cfg.StrOpt(
        "verify",
        default="readback",
        choices=[
            ("readback", "the destination is read again past every cache and compared with what the source holds"),
            ("inline", "a checksum is made of what passes by; a device that loses what it acknowledged is not noticed"),
            ("none", "nothing is compared"),
        ],
        help="How a copy is verified before the volume is switched to it, unless the request for a migration says "
        "otherwise. Change it where the storage checks its data itself and time matters more.",
    ),
    cfg.IntOpt(
        "keep_source_seconds",
        default=0,
        min=0,
        max=365 * 24 * 3600,
        help="Seconds for which the source of a host copy is kept behind the switch, so that the migration can be "
        "undone as long as nothing wrote to the volume. Raise it where a new backend is not trusted yet; the space "
        "is in use twice meanwhile.",
    ),
    cfg.FloatOpt(
        "notify_progress_seconds",
        default=30.0,
        min=1.0,
        help="Seconds between two notifications migrate.progress of one migration. Raise it where the consumers of "
        "notifications keep all of them. Without a driver in [oslo_messaging_notifications] there are none.",
    ),
    cfg.StrOpt(
        "compute_service",
        help="Who moves running servers from one volume to another, an entry point of migrator.compute (nova, or qemu "
        "for hosts without a compute service). Set it for the API and for every volume service to migrate volumes in "
        "use; unset: they are refused.",
    ),
    cfg.FloatOpt(
        "nova_poll_seconds",
        default=10.0,
        min=0.05,
        help="Seconds between two looks at what the compute service does, in case its report is lost.",
    ),
    cfg.FloatOpt(
        "swap_begin_seconds",
        default=120.0,
        min=0.1,
        help="Seconds after which a swap that the compute service has not begun is given up. Must exceed the time "
        "that it takes to answer.",
    ),
    cfg.FloatOpt(
        "swap_timeout_seconds",
        default=86400.0,
        min=0.1,
        help="Seconds that the compute service has for a swap, the copy of all data included. Raise it for volumes "
        "that take longer than a day.",
    ),
    cfg.IntOpt("rpc_step_timeout_seconds", default=30, min=1, help="Seconds a destination has to export or revoke."),
    cfg.IntOpt(
        "rpc_call_monitor_seconds",
        default=10,
        min=2,
        help="Seconds after which a peer that died while it creates a destination is noticed.",
    ),
]

EXPORT_OPTS: list[cfg.Opt] = [
    cfg.HostAddressOpt(
        "nbd_export_address",
        help="Address of this host under which other hosts' volume services reach it: volumes that migrate to it from "
        "other hosts are exported there over NBD. Default: what the host's name stands for, or the address it sends "
        "from. Set it where the host has several; with nbd_tls = x509 it must be in the server's certificate.",
    ),
    cfg.StrOpt(
        "nbd_ports",
        default="10809-10999",
        regex=r"^\d{1,5}-\d{1,5}$",
        help="TCP ports for these exports, FIRST-LAST: one for each migration that comes in. Let the other volume "
        "services' hosts, and nobody else, through the firewall to them.",
    ),
    cfg.StrOpt(
        "nbd_tls",
        default="psk",
        choices=[
            ("psk", "TLS with a key made for each export, which only the migration's copier is told"),
            ("x509", "TLS with certificates on both sides, see nbd_tls_directory"),
            ("off", "plain text: whoever is on the way can read and change the volume"),
        ],
        help="How data is protected between hosts. A host that does not say off takes part in no plain export either. "
        "With psk, the message bus carries the keys, so it must be protected itself. Set off only for a network that "
        "nobody else is on.",
    ),
    cfg.StrOpt(
        "nbd_tls_directory",
        help="Directory with ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem for "
        "nbd_tls = x509. Everybody who has a certificate of that authority is let in, so use one for this alone.",
    ),
    cfg.IntOpt(
        "nbd_connections",
        default=16,
        min=1,
        max=64,
        help="Connections that one export accepts. More help where the network has a long delay.",
    ),
    cfg.StrOpt(
        "nbd_server",
        help="Path of the nbdkit or qemu-nbd that exports volumes. Default: nbdkit, if it is installed, else qemu-nbd.",
    ),
]

BACKEND_OPTS: list[cfg.Opt] = [
    cfg.StrOpt("volume_driver", help="Driver of this backend: an entry point of migrator.drivers (file, memory, …)."),
    cfg.StrOpt("volume_backend_name", help="Name that volume types ask for by the extra spec volume_backend_name."),
    cfg.StrOpt("backend_availability_zone", help="Zone of this backend, instead of storage_availability_zone."),
    cfg.ListOpt(
        "shared_access",
        default=[],
        help="Other volume services (host@backend) whose storage this backend has, too, under the same pool names. "
        "While one of them is down, this service goes on with its migrations. Set it where the cluster option cannot "
        "say so because the backends' names differ.",
    ),
    cfg.IntOpt(
        "reserved_percentage",
        default=0,
        min=0,
        max=100,
        help="Per cent of a pool's capacity that the scheduler leaves free.",
    ),
    cfg.FloatOpt(
        "max_over_subscription_ratio",
        default=20.0,
        min=1.0,
        help="How many times its capacity a thin pool may promise to volumes.",
    ),
    cfg.DictOpt(
        "file_pools",
        default={},
        help="Pools of the file driver and their directories: pool1:/srv/a, pool2:/srv/b.",
    ),
    cfg.BoolOpt(
        "file_thin_provisioning",
        default=True,
        help="Keep volumes sparse. False allocates every byte when a volume is created.",
    ),
    cfg.FloatOpt(
        "file_pool_quota_gib",
        min=0.0,
        help="GiB that the volumes of one pool of the file driver may allocate together; unset: as much as the file "
        "system holds. A copy into a pool over its quota fails as on a full disk.",
    ),
    cfg.IntOpt(
        "volume_copy_bps_limit",
        default=0,
        min=0,
        help="Bytes per second at which volumes are copied out of this backend, each of them; 0: as fast as it goes. "
        "Set it where migrations must leave room for others; a migration may be ordered another rate while it runs.",
    ),
    cfg.FloatOpt(
        "io_timeout_seconds",
        default=30.0,
        min=1.0,
        help="Seconds after which a read or write of a copy out of this backend counts as hanging: the migration is "
        "then shown as stalled, goes on when the device does, and can be cancelled. Raise it for storage that may be "
        "silent for longer, during a failover say.",
    ),
    cfg.StrOpt(
        "file_connection_type",
        default="gpfs",
        choices=[
            ("gpfs", "libvirt gets a disk of type file: what a raw file needs"),
            ("local", "libvirt gets a disk of type block, which a raw file is not; for compute drivers of other kinds"),
        ],
        help="What servers' hosts are told that a volume of the file driver is (driver_volume_type). Both come with "
        "the file's path, so the host must have the pool's directory under the same path. Change it for a hypervisor "
        "that knows the other word only.",
    ),
    cfg.DictOpt(
        "block_pools",
        default={},
        help="Pools of the block driver and their devices, absolute paths or patterns that blanks separate: "
        "pool1:/dev/disk/by-id/wwn-0x5000c5* /dev/zvol/tank/m1, pool2:/dev/disk/by-id/nvme-*. Each device holds one "
        "volume. One that holds anything is left alone unless it is adopted or named in block_claim_devices.",
    ),
    cfg.StrOpt(
        "block_state_dir",
        default="$state_path/block",
        help="Directory where the block driver records which device is which volume. It must be on a disk that is kept "
        "and backed up as the volumes are, and be the same for all block backends of a machine, so that no two of "
        "them take one device. Change it only together with its content.",
    ),
    cfg.StrOpt(
        "block_wipe",
        default="zero",
        choices=[
            ("zero", "every byte is zeroed"),
            ("discard", "everything is discarded, read back, and zeroed where it does not read as zeros"),
            ("none", "nothing: the next volume shows what the last one held, unless something else zeroes it"),
        ],
        help="What the block driver does to a device before it may hold the next volume. discard spares thin and "
        "flash devices; choose it only where discarded blocks are documented to stay zero. none is only for devices "
        "that are zeroed elsewhere: copies then write every zero.",
    ),
    cfg.IntOpt(
        "block_wipe_jobs",
        default=1,
        min=1,
        max=64,
        help="Devices of one backend of the block driver that are wiped or checked at the same time. Raise it where "
        "they are disks of their own.",
    ),
    cfg.ListOpt(
        "block_claim_devices",
        default=[],
        help="Paths of devices of block_pools (no patterns) that the block driver may wipe although they hold data it "
        "did not write. THEIR CONTENT IS LOST. Take a path out again once the log says that the device is wiping.",
    ),
    cfg.ListOpt("memory_pools", default=["pool1"], help="Pools of the memory driver (volumes live in RAM; for tests)."),
    cfg.IntOpt("memory_pool_gib", default=1024, min=1, help="Capacity of each pool of the memory driver."),
]

DATABASE_OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        "connection",
        secret=True,
        help="SQLAlchemy URL of the database: sqlite:////path, mysql+pymysql://user:password@host/db or "
        "postgresql+psycopg2://user:password@host/db. Default: the file migrator.sqlite in state_path. Parameters of "
        "the client library may follow: ?read_timeout=60, say, the seconds after which a silent server is given up.",
    ),
    cfg.IntOpt("max_pool_size", default=20, min=1, help="Connections kept open per process."),
    cfg.IntOpt("max_overflow", default=50, min=0, help="Connections beyond max_pool_size under load, per process."),
    cfg.IntOpt("connection_recycle_time", default=3600, min=60, help="Seconds after which a connection is renewed."),
    cfg.IntOpt(
        "max_retries",
        default=10,
        help="Tries to reach the database when a process starts, retry_interval seconds apart; -1 for ever.",
    ),
    cfg.IntOpt("retry_interval", default=2, min=1, help="Seconds between two tries."),
]

#: Section of the options of Nova; those of its credentials depend on auth_type and are read by keystoneauth.
NOVA = "nova"
NOVA_OPTS: list[cfg.Opt] = [
    cfg.FloatOpt(
        "connect_timeout_seconds",
        default=10.0,
        min=0.1,
        help="Seconds that connecting to Nova may take; its answer has as long as timeout says.",
    ),
]


def nova_opts() -> list[cfg.Opt]:
    """Options of [nova]: credentials (auth_type), session and endpoint, as every client of keystoneauth has them."""
    from keystoneauth1 import loading

    common = loading.get_auth_common_conf_options() + loading.get_session_conf_options()
    adapter = loading.get_adapter_conf_options(include_deprecated=False)
    cfg.set_defaults(common, timeout=60)
    cfg.set_defaults(adapter, service_type="compute")
    return [*common, *adapter, *NOVA_OPTS]


def register_nova(conf: Conf) -> None:
    """Register the options of [nova]: only who speaks to Nova needs them."""
    conf.register_opts(nova_opts(), group=NOVA)


#: Section of the options of plain QEMU.
QEMU = "qemu"
QEMU_OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        "qmp_socket_template",
        default="/run/qemu/%s.qmp",
        help="Path of the QMP socket of a server's QEMU on this host; %s is replaced by the server's id. Give migrator "
        "a monitor of its own (-qmp unix:PATH,server=on,wait=off): QEMU serves one client of a monitor at a time.",
    ),
    cfg.DictOpt(
        "qmp_sockets",
        default={},
        help="QMP sockets of servers whose path does not follow qmp_socket_template: server-id:PATH, server-id:PATH.",
    ),
    cfg.FloatOpt(
        "qmp_timeout_seconds",
        default=5.0,
        min=0.1,
        help="Seconds that QEMU has to answer one command. Raise it for hosts whose storage hangs for longer.",
    ),
]


def register_qemu(conf: Conf) -> None:
    """Register the options of [qemu]: only who speaks to QEMU needs them."""
    conf.register_opts(QEMU_OPTS, group=QEMU)


_GROUPS: list[tuple[str | None, list[cfg.Opt]]] = [
    (None, SERVICE_OPTS + API_OPTS + SCHEDULER_OPTS + MIGRATION_OPTS + EXPORT_OPTS),
    ("database", DATABASE_OPTS),
]
_SAMPLE_BACKEND = "file1"


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Every group with its options, for the sample configuration file."""
    groups = [(group or "DEFAULT", opts) for group, opts in _GROUPS]
    return [*groups, (NOVA, [*nova_opts(), *_password_opts()]), (QEMU, QEMU_OPTS), (_SAMPLE_BACKEND, BACKEND_OPTS)]


def _password_opts() -> list[cfg.Opt]:
    """The options of auth_type = password, which the sample shows since it is what a service user has."""
    from keystoneauth1 import loading

    return list(loading.get_auth_plugin_conf_options("password"))


def new() -> Conf:
    """Return a configuration with every option registered and none read yet."""
    conf = cfg.ConfigOpts()
    for group, opts in _GROUPS:
        conf.register_opts(opts, group=group)
    return conf


def load(prog: str, argv: Sequence[str], config_files: Iterable[str] | None = None, **overrides: Any) -> Conf:
    """Read the configuration of the program ``prog`` from its command line and files.

    ``overrides`` are defaults set after reading (option names of ``[DEFAULT]``).  Raises oslo.config's errors, which
    name the option.
    """
    from oslo_log import log

    from migrator import __version__

    conf = new()
    log.register_options(conf)
    files = list(config_files) if config_files is not None else None
    conf(list(argv), project="migrator", prog=prog, version=__version__, default_config_files=files)
    for name, value in overrides.items():
        conf.set_default(name, value)
    return conf


def backend(conf: Conf, name: str) -> cfg.ConfigOpts.GroupAttr:
    """Return the options of the backend section ``name``."""
    conf.register_opts(BACKEND_OPTS, group=name)
    return getattr(conf, name)  # type: ignore[no-any-return]


def database_url(conf: Conf) -> str:
    """Return the database's URL, the SQLite file in ``state_path`` by default."""
    return conf.database.connection or f"sqlite:///{conf.state_path}/migrator.sqlite"


__all__ = [
    *("GIB", "NOVA", "Conf", "backend", "database_url", "list_opts", "load", "new"),
    *("register_nova", "register_qemu"),
]
