"""What several stations on one server need: the holder's latest batch, and a word to those who follow the journal."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the number of a batch to the lease, and on PostgreSQL the notice of new lines."""
    with op.batch_alter_table("lease") as lease:
        lease.add_column(
            sa.Column(
                "batch",
                sa.BigInteger(),
                nullable=False,
                server_default=sa.text("0"),
                comment="the holder's latest transaction; tells whether one was written whose end it has not seen",
            )
        )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION p3s_tell_journal() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_notify('p3s_journal', ''); RETURN NULL; END $$"
        )
        op.execute(
            "CREATE TRIGGER p3s_tell_journal AFTER INSERT ON journal"
            " FOR EACH STATEMENT EXECUTE FUNCTION p3s_tell_journal()"
        )
