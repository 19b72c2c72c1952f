"""Attempts whose outputs wait for the store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds since when an attempt's outputs wait."""
    with op.batch_alter_table("attempt") as attempt:
        attempt.add_column(
            sa.Column("waits_since", sa.Double(), nullable=True, comment="when its outputs began to wait for the store")
        )
