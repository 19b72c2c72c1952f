"""How far the journal is recorded in Prefect."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the agent's cursor."""
    op.create_table(
        "agent_cursor",
        sa.Column("name", sa.String(length=40), nullable=False, comment="the record that is kept: prefect"),
        sa.Column(
            "site",
            sa.String(length=36),
            nullable=False,
            comment="UUID of this ledger, from which the record's ids are derived",
        ),
        sa.Column("number", sa.BigInteger(), nullable=False, comment="the journal is recorded up to this number"),
        sa.Column("seen_at", sa.Double(), nullable=False, comment="last sign of life of the agent"),
        sa.Column("problem", sa.Text(), nullable=False, comment="why it cannot record; empty if it can"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_agent_cursor")),
    )
