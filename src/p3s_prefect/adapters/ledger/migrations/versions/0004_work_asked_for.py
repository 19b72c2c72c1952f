"""Work that is asked for by hand, and what Prefect's queues said."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds what requests ask, when work was asked for, and the queues."""
    with op.batch_alter_table("sub_job") as sub_job:
        sub_job.add_column(
            sa.Column(
                "asked_at",
                sa.Double(),
                nullable=True,
                comment="when it was asked for by hand: its deadlines count from then",
            )
        )
    with op.batch_alter_table("request") as request:
        request.add_column(
            sa.Column("detail", sa.JSON(), nullable=True, comment="what exactly is asked, and what the station gave")
        )
        request.add_column(
            sa.Column(
                "once",
                sa.String(length=120),
                nullable=True,
                comment="who asks again with the same word has asked already",
            )
        )
        request.drop_constraint(op.f("ck_request_kind"), type_="check")
        request.create_check_constraint(op.f("ck_request_kind"), "kind IN ('reload', 'process', 'retry', 'cancel')")
        request.create_unique_constraint(op.f("uq_request_once"), ["once"])
    op.create_table(
        "prefect_queue",
        sa.Column(
            "name",
            sa.String(length=200),
            nullable=False,
            comment="a queue of the work pool; empty for the pool itself",
        ),
        sa.Column("priority", sa.Integer(), nullable=True, comment="smaller goes first, as Prefect has it"),
        sa.Column("most", sa.Integer(), nullable=True, comment="its concurrency limit"),
        sa.Column("is_paused", sa.Boolean(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False, comment="when it was seen to say so first"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_prefect_queue")),
    )
