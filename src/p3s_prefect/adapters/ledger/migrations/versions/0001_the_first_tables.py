"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The first tables."""
    op.create_table(
        "arrival",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("stream", sa.String(length=120), nullable=False),
        sa.Column("key", sa.String(length=1000), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("data_id", sa.String(length=400), nullable=True),
        sa.Column("dataset_type", sa.String(length=120), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True, comment="known once it was read"),
        sa.Column("arrived_at", sa.Double(), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_arrival")),
        sa.UniqueConstraint("stream", "key", "size", "mtime_ns", name=op.f("uq_arrival_stream_key_size_mtime_ns")),
    )
    with op.batch_alter_table("arrival", schema=None) as batch_op:
        batch_op.create_index("ix_arrival_arrived_at", ["arrived_at"], unique=False)
        batch_op.create_index("ix_arrival_data_id", ["data_id", "dataset_type"], unique=False)

    op.create_table(
        "configuration",
        sa.Column("id", sa.String(length=64), nullable=False, comment="SHA-256 of the content in canonical JSON"),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_configuration")),
    )
    op.create_table(
        "data_group",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("data_id", sa.String(length=400), nullable=False),
        sa.Column("day", sa.String(length=8), nullable=False, comment="processing day on which it opened, YYYYMMDD"),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.Column("last_arrival_at", sa.Double(), nullable=False),
        sa.Column("arrivals", sa.Integer(), nullable=False, comment="units taken"),
        sa.Column("is_open", sa.Boolean(), nullable=False),
        sa.Column("closed_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_data_group")),
        sa.UniqueConstraint("data_id", name=op.f("uq_data_group_data_id")),
    )
    with op.batch_alter_table("data_group", schema=None) as batch_op:
        batch_op.create_index(
            "ix_data_group_open",
            ["is_open"],
            unique=False,
            sqlite_where=sa.text("is_open"),
            postgresql_where=sa.text("is_open"),
        )

    op.create_table(
        "journal",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(length=60), nullable=False),
        sa.Column(
            "subject",
            sa.String(length=400),
            nullable=False,
            comment="data id, group, stream or other name that it is about",
        ),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_journal")),
    )
    with op.batch_alter_table("journal", schema=None) as batch_op:
        batch_op.create_index("ix_journal_subject", ["subject"], unique=False)

    op.create_table(
        "lease",
        sa.Column("namespace", sa.String(length=120), nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=False),
        sa.Column(
            "token",
            sa.BigInteger(),
            nullable=False,
            comment="grows with take-overs; every write of the holder checks it",
        ),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", name=op.f("pk_lease")),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("group_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("pipeline", sa.String(length=120), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["data_group.id"], name=op.f("fk_job_group_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint("group_id", "pipeline", name=op.f("uq_job_group_id_pipeline")),
    )
    op.create_table(
        "run_collection",
        sa.Column("name", sa.String(length=400), nullable=False),
        sa.Column("configuration_id", sa.String(length=64), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["configuration_id"], ["configuration.id"], name=op.f("fk_run_collection_configuration_id")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_run_collection")),
    )
    op.create_table(
        "production_pass",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("run_collection", sa.String(length=400), nullable=False),
        sa.Column("is_open", sa.Boolean(), nullable=False, comment="whether further units may join"),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_production_pass_job_id")),
        sa.ForeignKeyConstraint(
            ["run_collection"], ["run_collection.name"], name=op.f("fk_production_pass_run_collection")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_production_pass")),
        sa.UniqueConstraint("job_id", "number", name=op.f("uq_production_pass_job_id_number")),
    )
    op.create_table(
        "sub_job",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("pass_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("data_id", sa.String(length=400), nullable=False),
        sa.Column("per", sa.String(length=8), nullable=False),
        sa.Column("arrival_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("taken_at", sa.Double(), nullable=False),
        sa.Column("arrived_at", sa.Double(), nullable=False),
        sa.Column("u", sa.Double(), nullable=False, comment="number in [0, 1) that the prescale compares with q"),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("settled_at", sa.Double(), nullable=True),
        sa.CheckConstraint("per IN ('unit', 'group')", name=op.f("ck_sub_job_per")),
        sa.CheckConstraint(
            "state IN ('expected', 'arrived', 'done', 'prescaled', 'shed', 'expired', 'failed', 'blocked', 'superseded', 'cancelled')",
            name=op.f("ck_sub_job_state"),
        ),
        sa.ForeignKeyConstraint(["arrival_id"], ["arrival.id"], name=op.f("fk_sub_job_arrival_id")),
        sa.ForeignKeyConstraint(["pass_id"], ["production_pass.id"], name=op.f("fk_sub_job_pass_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sub_job")),
        sa.UniqueConstraint("pass_id", "per", "data_id", name=op.f("uq_sub_job_pass_id_per_data_id")),
    )
    with op.batch_alter_table("sub_job", schema=None) as batch_op:
        batch_op.create_index("ix_sub_job_data_id", ["data_id"], unique=False)
        batch_op.create_index(
            "ix_sub_job_open",
            ["state"],
            unique=False,
            sqlite_where=sa.text("settled_at IS NULL"),
            postgresql_where=sa.text("settled_at IS NULL"),
        )
        batch_op.create_index("ix_sub_job_settled_at", ["settled_at"], unique=False)

    op.create_table(
        "stage_run",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sub_job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("stage", sa.String(length=120), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, comment="place in the pipeline's topological order"),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("q", sa.Double(), nullable=False, comment="probability of having reached this stage"),
        sa.Column("queued_at", sa.Double(), nullable=True),
        sa.Column("settled_at", sa.Double(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "state IN ('waiting', 'queued', 'running', 'held', 'done', 'prescaled', 'shed', 'expired', 'failed', 'blocked', 'superseded', 'cancelled')",
            name=op.f("ck_stage_run_state"),
        ),
        sa.ForeignKeyConstraint(["sub_job_id"], ["sub_job.id"], name=op.f("fk_stage_run_sub_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stage_run")),
        sa.UniqueConstraint("sub_job_id", "stage", name=op.f("uq_stage_run_sub_job_id_stage")),
    )
    op.create_table(
        "attempt",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("stage_run_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("prefix", sa.String(length=900), nullable=False, comment="where its objects are in the store"),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.Column("execution", sa.String(length=40), nullable=True),
        sa.Column("pilot", sa.String(length=200), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("published_at", sa.Double(), nullable=True),
        sa.Column("steps", sa.JSON(), nullable=True, comment="[{step, started_at, ended_at}]"),
        sa.Column("coverage", sa.JSON(), nullable=True, comment="of a stage per group: number of units by state"),
        sa.Column("log_key", sa.String(length=1000), nullable=True),
        sa.Column("is_recorded", sa.Boolean(), nullable=False, comment="whether its commit record is in the store"),
        sa.CheckConstraint(
            "state IN ('running', 'done', 'failed', 'lost', 'stopped', 'expired')", name=op.f("ck_attempt_state")
        ),
        sa.ForeignKeyConstraint(["stage_run_id"], ["stage_run.id"], name=op.f("fk_attempt_stage_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempt")),
        sa.UniqueConstraint("prefix", name=op.f("uq_attempt_prefix")),
        sa.UniqueConstraint("stage_run_id", "number", name=op.f("uq_attempt_stage_run_id_number")),
    )
    with op.batch_alter_table("attempt", schema=None) as batch_op:
        batch_op.create_index(
            "ix_attempt_open",
            ["state"],
            unique=False,
            sqlite_where=sa.text("state = 'running'"),
            postgresql_where=sa.text("state = 'running'"),
        )
        batch_op.create_index(
            "ix_attempt_unrecorded",
            ["is_recorded"],
            unique=False,
            sqlite_where=sa.text("state = 'done' AND NOT is_recorded"),
            postgresql_where=sa.text("state = 'done' AND NOT is_recorded"),
        )

    op.create_table(
        "dataset",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("dataset_type", sa.String(length=120), nullable=False),
        sa.Column("data_id", sa.String(length=400), nullable=False),
        sa.Column("run_collection", sa.String(length=400), nullable=False),
        sa.Column("format", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=1000), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("attempt_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name=op.f("fk_dataset_attempt_id")),
        sa.ForeignKeyConstraint(["run_collection"], ["run_collection.name"], name=op.f("fk_dataset_run_collection")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset")),
        sa.UniqueConstraint(
            "dataset_type", "data_id", "run_collection", name=op.f("uq_dataset_dataset_type_data_id_run_collection")
        ),
    )
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.create_index("ix_dataset_attempt_id", ["attempt_id"], unique=False)

    op.create_table(
        "product",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attempt_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("step", sa.String(length=120), nullable=False),
        sa.Column("category", sa.String(length=80), nullable=False),
        sa.Column("title", sa.String(length=120), nullable=False),
        sa.Column("shows", sa.Text(), nullable=False),
        sa.Column("file", sa.String(length=120), nullable=False),
        sa.Column("key", sa.String(length=1000), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name=op.f("fk_product_attempt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_product")),
    )
    with op.batch_alter_table("product", schema=None) as batch_op:
        batch_op.create_index("ix_product_attempt_id", ["attempt_id"], unique=False)

    op.create_table(
        "summary_value",
        sa.Column("attempt_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("unit", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name=op.f("fk_summary_value_attempt_id")),
        sa.PrimaryKeyConstraint("attempt_id", "name", name=op.f("pk_summary_value")),
    )
    op.create_table(
        "lineage",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attempt_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("dataset_type", sa.String(length=120), nullable=False),
        sa.Column("data_id", sa.String(length=400), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column(
            "dataset_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=True,
            comment="empty for a file as it arrived",
        ),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name=op.f("fk_lineage_attempt_id")),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.id"], name=op.f("fk_lineage_dataset_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lineage")),
    )
    with op.batch_alter_table("lineage", schema=None) as batch_op:
        batch_op.create_index("ix_lineage_attempt_id", ["attempt_id"], unique=False)
