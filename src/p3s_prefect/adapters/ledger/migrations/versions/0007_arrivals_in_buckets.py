"""Objects in a bucket are told by their ETag."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the ETag to what tells arrivals apart; files in directories have none."""
    with op.batch_alter_table("arrival") as arrival:
        arrival.add_column(
            sa.Column(
                "etag",
                sa.String(length=200),
                nullable=False,
                server_default=sa.text("''"),
                comment="of an object in a bucket",
            )
        )
        arrival.drop_constraint(op.f("uq_arrival_stream_key_size_mtime_ns"), type_="unique")
        arrival.create_unique_constraint(
            op.f("uq_arrival_stream_key_size_mtime_ns_etag"), ["stream", "key", "size", "mtime_ns", "etag"]
        )
