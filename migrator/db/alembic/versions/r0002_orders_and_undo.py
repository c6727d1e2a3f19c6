"""Orders to a running migration, the kept source, and what makes a volume writable."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS: dict[str, list[sa.Column[Any]]] = {
    "migrations": [
        sa.Column("verify", sa.String(length=16), nullable=False, server_default="readback"),
        sa.Column("bytes_per_second", sa.BigInteger(), nullable=True),
        sa.Column("keep_source_seconds", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("keep_source_until", sa.Double(), nullable=True),
        sa.Column("switched_at", sa.Double(), nullable=True),
        sa.Column("undone_at", sa.Double(), nullable=True),
        sa.Column("moved_seconds", sa.Double(), nullable=True),
        sa.Column("bytes_moved", sa.BigInteger(), nullable=True),
        sa.Column("stalled_since", sa.Double(), nullable=True),
        sa.Column("bytes_verified", sa.BigInteger(), nullable=True),
        sa.Column("swap_server", sa.String(length=36), nullable=True),
        sa.Column("swap_called_at", sa.Double(), nullable=True),
        sa.Column("swap_result", sa.String(length=16), nullable=True),
        sa.Column("swap_seen_at", sa.Double(), nullable=True),
    ],
    "services": [
        sa.Column("reaches", sa.JSON(), nullable=True),
    ],
    "volumes": [
        sa.Column("writable_at", sa.Double(), nullable=True),
        sa.Column("image_metadata", sa.JSON(), nullable=True),
        sa.Column("adoption", sa.JSON(), nullable=True),
    ],
}


def upgrade() -> None:
    op.create_table(
        "volume_type_projects",
        sa.Column("type_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["type_id"],
            ["volume_types.id"],
            name=op.f("fk_volume_type_projects_type_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("type_id", "project_id", name=op.f("pk_volume_type_projects")),
        mysql_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_engine="InnoDB",
    )
    for table, columns in _COLUMNS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            for column in columns:
                batch_op.add_column(column)
    # Each choice of a pool looks for the migrations that ended since the last reports.
    op.create_index(op.f("ix_migrations_ended_at"), "migrations", ["ended_at"])
    op.create_index(op.f("ix_migrations_swap_server"), "migrations", ["swap_server"], unique=True)
