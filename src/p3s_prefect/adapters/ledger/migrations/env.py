"""Alembic's environment: it runs inside the connection that `Ledger.migrate` opened."""

from __future__ import annotations

from alembic import context

from p3s_prefect.adapters.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite changes a column by building the table anew; alembic does that only in batch mode.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
