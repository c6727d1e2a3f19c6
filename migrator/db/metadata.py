"""Metadata of volumes and snapshots, key by key.

A change begins with an UPDATE of the thing's own row: whoever else changes it waits for that, and what is read
afterwards is what the other one left.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.orm import Session

from migrator.db import snapshots, volumes
from migrator.db.models import Snapshot, VolumeMetadata

Metadata = dict[str, str]


def of_volume(session: Session, volume_id: str) -> Metadata:
    """The volume's metadata."""
    query = sa.select(VolumeMetadata.key, VolumeMetadata.value).where(VolumeMetadata.volume_id == volume_id)
    return {key: value for key, value in session.execute(query)}  # noqa: C416 (typed)


def lock_volume(session: Session, volume_id: str) -> None:
    """Let nobody else change the volume until the transaction ends; to be the first that it does."""
    volumes.update_where(session, volume_id)


def set_of_volume(session: Session, volume_id: str, metadata: Mapping[str, str]) -> None:
    """Replace the volume's metadata."""
    volumes.set_metadata(session, volume_id, dict(metadata))


def of_snapshot(session: Session, snapshot_id: str) -> Metadata:
    """The snapshot's metadata; raises NotFound."""
    return dict(snapshots.get(session, snapshot_id).meta or {})


def lock_snapshot(session: Session, snapshot_id: str) -> None:
    """Let nobody else change the snapshot until the transaction ends; to be the first that it does."""
    snapshots.update_where(session, snapshot_id)


def set_of_snapshot(session: Session, snapshot_id: str, metadata: Mapping[str, str]) -> None:
    """Replace the snapshot's metadata."""
    session.execute(
        sa.update(Snapshot)
        .where(Snapshot.id == snapshot_id)
        .values(meta=dict(metadata))
        .execution_options(synchronize_session=False)
    )
