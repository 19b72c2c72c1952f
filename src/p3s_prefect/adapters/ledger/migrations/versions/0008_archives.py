"""Which groups have gone from the ledger to the store, and where they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the table of archives, and that of the groups in them."""
    op.create_table(
        "archive",
        sa.Column("name", sa.String(length=400), nullable=False, comment="where its objects are in the store"),
        sa.Column("sha256", sa.String(length=64), nullable=False, comment="of its manifest"),
        sa.Column("rows", sa.BigInteger(), nullable=False, comment="that left the ledger"),
        sa.Column("archived_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_archive")),
    )
    op.create_table(
        "archived_group",
        sa.Column("group_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("archive", sa.String(length=400), nullable=False),
        sa.ForeignKeyConstraint(["archive"], ["archive.name"], name=op.f("fk_archived_group_archive")),
        sa.ForeignKeyConstraint(["group_id"], ["data_group.id"], name=op.f("fk_archived_group_group_id")),
        sa.PrimaryKeyConstraint("group_id", "archive", name=op.f("pk_archived_group")),
    )
