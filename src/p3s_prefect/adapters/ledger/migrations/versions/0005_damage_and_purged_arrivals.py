"""Objects that are damaged, and arrived files that were removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds what is wrong with an object, and when a file was removed from the watched place."""
    with op.batch_alter_table("dataset") as dataset:
        dataset.add_column(
            sa.Column(
                "damage",
                sa.Text(),
                nullable=True,
                comment="what is wrong with its object; empty as far as is known, nothing",
            )
        )
    with op.batch_alter_table("product") as product:
        product.add_column(sa.Column("damage", sa.Text(), nullable=True, comment="as of a dataset"))
    with op.batch_alter_table("arrival") as arrival:
        arrival.add_column(
            sa.Column(
                "purged_at",
                sa.Double(),
                nullable=True,
                comment="when it was removed from the watched place; `path` is then its copy's",
            )
        )
    is_damaged = sa.text("damage IS NOT NULL")
    for table in ("dataset", "product"):
        name = op.f(f"ix_{table}_damaged")
        op.create_index(name, table, ["id"], unique=False, sqlite_where=is_damaged, postgresql_where=is_damaged)
