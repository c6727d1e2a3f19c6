"""The tables.  Rows are read as these objects and never written through them: a change is one UPDATE … WHERE.

Times that people read are naive UTC (``created_at`` …); times that decide something (leases, signs of life) are epoch
seconds of the database's own clock, so that two machines' clocks never meet.
"""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, DateTime, Double, ForeignKey, Index, Integer, MetaData, String, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Uuid = String(36)
Name = String(255)
#: MariaDB keeps whole seconds unless told otherwise.
Time = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def utcnow() -> datetime.datetime:
    """Now, naive UTC."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMING)
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}
    __table_args__: Any = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


class Service(Base):
    """One process that serves a topic; ``host`` is host@backend for a volume service."""

    __tablename__ = "services"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    uuid: Mapped[str] = mapped_column(Uuid, unique=True)
    host: Mapped[str] = mapped_column(Name)
    binary: Mapped[str] = mapped_column(Name)
    topic: Mapped[str] = mapped_column(Name)
    cluster_name: Mapped[str | None] = mapped_column(Name)
    availability_zone: Mapped[str] = mapped_column(Name)
    disabled: Mapped[bool] = mapped_column(Boolean, default=False)
    disabled_reason: Mapped[str | None] = mapped_column(Name)
    frozen: Mapped[bool] = mapped_column(Boolean, default=False)
    #: Other volume services (host@backend) whose storage this one can reach under the same pool names.
    reaches: Mapped[list[Any] | None]
    #: Last sign of life, epoch seconds of the database's clock.
    heartbeat_at: Mapped[float] = mapped_column(Double)
    created_at: Mapped[datetime.datetime] = mapped_column(Time)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(Time)

    __table_args__ = (Index("uq_services_host_binary", "host", "binary", unique=True), Base.__table_args__)


class VolumeType(Base):
    __tablename__ = "volume_types"

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    description: Mapped[str | None] = mapped_column(Text)
    is_public: Mapped[bool] = mapped_column(Boolean, default=True)
    created_at: Mapped[datetime.datetime] = mapped_column(Time)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    #: The name is unique among the living; the id of the dead frees it.
    deleted_id: Mapped[str] = mapped_column(Uuid, default="")

    extra_specs: Mapped[list[ExtraSpec]] = relationship(lazy="selectin", viewonly=True)

    __table_args__ = (Index("uq_volume_types_name", "name", "deleted_id", unique=True), Base.__table_args__)


class ExtraSpec(Base):
    __tablename__ = "volume_type_extra_specs"

    type_id: Mapped[str] = mapped_column(Uuid, ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str | None] = mapped_column(String(1024))


class TypeAccess(Base):
    """A project that may use a volume type which is not public."""

    __tablename__ = "volume_type_projects"

    type_id: Mapped[str] = mapped_column(Uuid, ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True)
    project_id: Mapped[str] = mapped_column(Name, primary_key=True)


class Volume(Base):
    """A volume, or the twin that a migration makes at the destination (``twin_of``)."""

    __tablename__ = "volumes"

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    #: Id under which the object was created on its backend, once a migration has moved it.
    name_id: Mapped[str | None] = mapped_column(Uuid)
    #: The volume whose destination this row is, or, after the switch, whose old place it holds.
    twin_of: Mapped[str | None] = mapped_column(Uuid, index=True)
    #: The migration that moves it now, or did last.
    migration_id: Mapped[str | None] = mapped_column(Uuid)
    project_id: Mapped[str] = mapped_column(Name, index=True)
    user_id: Mapped[str] = mapped_column(Name)
    host: Mapped[str | None] = mapped_column(Name, index=True)
    cluster_name: Mapped[str | None] = mapped_column(Name)
    service_uuid: Mapped[str | None] = mapped_column(Uuid)
    availability_zone: Mapped[str] = mapped_column(Name)
    size: Mapped[int] = mapped_column(Integer)  # GiB
    status: Mapped[str] = mapped_column(Name)
    previous_status: Mapped[str | None] = mapped_column(Name)
    attach_status: Mapped[str] = mapped_column(Name, default="detached")
    migration_status: Mapped[str | None] = mapped_column(Name)
    display_name: Mapped[str | None] = mapped_column(Name)
    display_description: Mapped[str | None] = mapped_column(Text)
    volume_type_id: Mapped[str | None] = mapped_column(Uuid)
    snapshot_id: Mapped[str | None] = mapped_column(Uuid)
    source_volid: Mapped[str | None] = mapped_column(Uuid)
    bootable: Mapped[bool] = mapped_column(Boolean, default=False)
    multiattach: Mapped[bool] = mapped_column(Boolean, default=False)
    readonly: Mapped[bool] = mapped_column(Boolean, default=False)
    encryption_key_id: Mapped[str | None] = mapped_column(Uuid)
    replication_status: Mapped[str | None] = mapped_column(Name)
    group_id: Mapped[str | None] = mapped_column(Uuid)
    provider_id: Mapped[str | None] = mapped_column(Name)
    provider_location: Mapped[str | None] = mapped_column(Name)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, index=True)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    launched_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    #: Size that ``extending`` leads to, GiB.
    wanted_size: Mapped[int | None] = mapped_column(Integer)
    #: The database's clock when the volume got its host: a pool report older than this does not include it.
    placed_at: Mapped[float | None] = mapped_column(Double)
    #: The database's clock when the volume was last made writable to anybody (attached, reserved, extended) where it
    #: lives; None: not since a switch brought it there.  A source that was kept is a copy of it for as long.
    writable_at: Mapped[float | None] = mapped_column(Double)
    #: What ``managing`` takes over: the reference to something that lies in the pool already.
    adoption: Mapped[dict[str, Any] | None]
    #: What is recorded of the image that the volume was made from; None: nothing.
    image_metadata: Mapped[dict[str, Any] | None]
    #: Set when the row is dead; the living have none.
    deleted_at: Mapped[datetime.datetime | None] = mapped_column(Time, index=True)

    @property
    def object_id(self) -> str:
        """The id that names the object on the backend."""
        return self.name_id or self.id


class VolumeMetadata(Base):
    __tablename__ = "volume_metadata"

    volume_id: Mapped[str] = mapped_column(Uuid, ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str] = mapped_column(Name)


class Attachment(Base):
    """A volume used by a server."""

    __tablename__ = "attachments"

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    volume_id: Mapped[str] = mapped_column(Uuid, index=True)
    instance_uuid: Mapped[str | None] = mapped_column(Uuid)
    attached_host: Mapped[str | None] = mapped_column(Name)
    mountpoint: Mapped[str | None] = mapped_column(Name)
    attach_mode: Mapped[str | None] = mapped_column(String(16))
    attach_status: Mapped[str] = mapped_column(Name)
    connector: Mapped[dict[str, Any] | None]
    connection_info: Mapped[dict[str, Any] | None]
    attach_time: Mapped[datetime.datetime | None] = mapped_column(Time)
    detach_time: Mapped[datetime.datetime | None] = mapped_column(Time)
    created_at: Mapped[datetime.datetime] = mapped_column(Time)
    deleted_at: Mapped[datetime.datetime | None] = mapped_column(Time)


class Snapshot(Base):
    __tablename__ = "snapshots"

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    volume_id: Mapped[str] = mapped_column(Uuid, index=True)
    project_id: Mapped[str] = mapped_column(Name, index=True)
    user_id: Mapped[str] = mapped_column(Name)
    status: Mapped[str] = mapped_column(Name)
    progress: Mapped[str] = mapped_column(String(8), default="0%")
    volume_size: Mapped[int] = mapped_column(Integer)  # GiB
    #: What ``managing`` takes over.  While it stands here, what it refers to is its owner's, and never deleted.
    adoption: Mapped[dict[str, Any] | None]
    volume_type_id: Mapped[str | None] = mapped_column(Uuid)
    display_name: Mapped[str | None] = mapped_column(Name)
    display_description: Mapped[str | None] = mapped_column(Text)
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", JSON, default=dict)
    created_at: Mapped[datetime.datetime] = mapped_column(Time)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    deleted_at: Mapped[datetime.datetime | None] = mapped_column(Time)


class PoolGeneration(Base):
    """One counter per pool, raised by each reservation: two schedulers never give the same space away."""

    __tablename__ = "pools"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    generation: Mapped[int] = mapped_column(Integer, default=0)


class Migration(Base):
    """One volume's way from one pool to another; see volume/states.py for what the columns mean together."""

    __tablename__ = "migrations"

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    volume_id: Mapped[str] = mapped_column(Uuid, index=True)
    destination_volume_id: Mapped[str] = mapped_column(Uuid, unique=True)
    user_id: Mapped[str] = mapped_column(Name)
    project_id: Mapped[str] = mapped_column(Name)
    request_id: Mapped[str | None] = mapped_column(Name)

    source_host: Mapped[str] = mapped_column(Name, index=True)
    #: The id that names the source's object, also behind the switch.
    source_object_id: Mapped[str] = mapped_column(Uuid)
    #: As asked for: a pool, a backend, or None where the scheduler chooses freely.
    requested_host: Mapped[str | None] = mapped_column(Name)
    #: The pool picked; its space is reserved until the end.
    destination_host: Mapped[str | None] = mapped_column(Name, index=True)
    #: What the destination's backend says of where the pool really lies, for the question can_assist.
    destination_location: Mapped[dict[str, Any] | None]
    size: Mapped[int] = mapped_column(Integer)  # GiB
    force_host_copy: Mapped[bool] = mapped_column(Boolean, default=False)
    lock_volume: Mapped[bool] = mapped_column(Boolean, default=False)
    new_type_id: Mapped[str | None] = mapped_column(Uuid)
    previous_status: Mapped[str] = mapped_column(Name)

    plan: Mapped[str] = mapped_column(String(32))
    step: Mapped[str] = mapped_column(String(32))
    direction: Mapped[str] = mapped_column(String(8))
    end: Mapped[str | None] = mapped_column(String(16), index=True)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    generation: Mapped[int] = mapped_column(Integer, default=0)
    owner: Mapped[str | None] = mapped_column(Name)
    #: Epoch seconds of the database's clock, like not_before and heartbeat_at.
    lease_until: Mapped[float] = mapped_column(Double, default=0.0)
    not_before: Mapped[float] = mapped_column(Double, default=0.0)
    heartbeat_at: Mapped[float | None] = mapped_column(Double)
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    paused: Mapped[bool] = mapped_column(Boolean, default=False)
    #: The process that may be writing: machine, boot_id, pid, started; written before its first byte.
    worker: Mapped[dict[str, Any] | None]

    bytes_total: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_done: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_allocated: Mapped[int | None] = mapped_column(BigInteger)
    rate: Mapped[float | None] = mapped_column(Double)  # bytes per second over the last seconds
    #: How far the comparison of both ends is.
    bytes_verified: Mapped[int | None] = mapped_column(BigInteger)
    checksum: Mapped[str | None] = mapped_column(Name)
    #: How the copy is verified before the switch: readback, inline or none.
    verify: Mapped[str] = mapped_column(String(16), default="readback")
    #: The limit that was ordered, bytes per second; None: that of the backend.
    bytes_per_second: Mapped[int | None] = mapped_column(BigInteger)
    #: Seconds and bytes that copying took so far, over all attempts: the rate overall.
    moved_seconds: Mapped[float | None] = mapped_column(Double)
    bytes_moved: Mapped[int | None] = mapped_column(BigInteger)
    #: The database's clock since when no read or write of the copy has come back, while that lasts.
    stalled_since: Mapped[float | None] = mapped_column(Double)
    #: Seconds for which the source is kept behind the switch, and the moment (database's clock) when that ends.
    keep_source_seconds: Mapped[int] = mapped_column(Integer, default=0)
    keep_source_until: Mapped[float | None] = mapped_column(Double)
    #: The database's clock at the switch, and when the volume was put back on its kept source.
    switched_at: Mapped[float | None] = mapped_column(Double)
    undone_at: Mapped[float | None] = mapped_column(Double)
    #: The server that the compute service moves to the twin at present: one volume of a server at a time.
    swap_server: Mapped[str | None] = mapped_column(Uuid, unique=True, index=True)
    #: The database's clock when the compute service was about to be asked, which is done once.
    swap_called_at: Mapped[float | None] = mapped_column(Double)
    #: What it has reported: done or failed.
    swap_result: Mapped[str | None] = mapped_column(String(16))
    #: The database's clock when the server was first seen at the destination without a report.
    swap_seen_at: Mapped[float | None] = mapped_column(Double)
    error_step: Mapped[str | None] = mapped_column(String(32))
    error_code: Mapped[str | None] = mapped_column(Name)
    error_message: Mapped[str | None] = mapped_column(Text)
    verdicts: Mapped[list[Any]] = mapped_column(JSON, default=list)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, index=True)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    finished_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    #: The database's clock at the end: a pool report older than this still lacks what the migration placed.
    ended_at: Mapped[float | None] = mapped_column(Double, index=True)


class MigrationStep(Base):
    """One attempt of one step: the history that operators read."""

    __tablename__ = "migration_steps"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    migration_id: Mapped[str] = mapped_column(Uuid, ForeignKey("migrations.id", ondelete="CASCADE"), index=True)
    step: Mapped[str] = mapped_column(String(32))
    direction: Mapped[str] = mapped_column(String(8))
    attempt: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime.datetime] = mapped_column(Time)
    finished_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    #: An Event, or None while it runs or when its process died.
    result: Mapped[str | None] = mapped_column(String(16))
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    message: Mapped[str | None] = mapped_column(Text)


class CopiedRange(Base):
    """A range of the destination that was copied and flushed, bytes; merged, so a copy in order is one row."""

    __tablename__ = "copied_ranges"

    migration_id: Mapped[str] = mapped_column(Uuid, ForeignKey("migrations.id", ondelete="CASCADE"), primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    length: Mapped[int] = mapped_column(BigInteger)


class Message(Base):
    """What a user is told about an asynchronous action that failed."""

    __tablename__ = "messages"

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    project_id: Mapped[str] = mapped_column(Name, index=True)
    request_id: Mapped[str | None] = mapped_column(Name)
    resource_type: Mapped[str] = mapped_column(Name)
    resource_uuid: Mapped[str] = mapped_column(Uuid, index=True)
    event_id: Mapped[str] = mapped_column(Name)
    user_message: Mapped[str] = mapped_column(Text)
    message_level: Mapped[str] = mapped_column(String(16), default="ERROR")
    created_at: Mapped[datetime.datetime] = mapped_column(Time)
    guaranteed_until: Mapped[datetime.datetime] = mapped_column(Time)
