"""The ledger's tables. `*_at` is UTC in seconds since 1970 (float64: exact to a microsecond until the year 2200)."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from p3s_prefect.core.overrides import OverrideKind
from p3s_prefect.core.states import StageState, SubJobState

# Named constraints, so that a migration can find them on every database.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite counts up by itself only in a column of type INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")


def _one_of(column: str, values: list[str]) -> CheckConstraint:
    return CheckConstraint(text(f"{column} IN ({', '.join(repr(value) for value in values)})"), name=column)


lease = Table(
    "lease",
    metadata,
    Column("namespace", String(120), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("token", BigInteger, nullable=False, comment="grows with take-overs; every write of the holder checks it"),
    Column("expires_at", Double, nullable=False),
    Column(
        "batch",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="the holder's latest transaction; tells whether one was written whose end it has not seen",
    ),
)

configuration = Table(
    "configuration",
    metadata,
    Column("id", String(64), primary_key=True, comment="SHA-256 of the content in canonical JSON"),
    Column("content", JSON, nullable=False),
    Column("stored_at", Double, nullable=False),
)

run_collection = Table(
    "run_collection",
    metadata,
    Column("name", String(400), primary_key=True),
    Column("configuration_id", ForeignKey("configuration.id"), nullable=False),
    Column("opened_at", Double, nullable=False),
)

data_group = Table(
    "data_group",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("data_id", String(400), nullable=False, unique=True),
    Column("day", String(8), nullable=False, comment="processing day on which it opened, YYYYMMDD"),
    Column("opened_at", Double, nullable=False),
    Column("last_arrival_at", Double, nullable=False),
    Column("arrivals", Integer, nullable=False, comment="units taken"),
    Column("is_open", Boolean, nullable=False),
    Column("closed_by", Text),
    Index("ix_data_group_open", "is_open", sqlite_where=text("is_open"), postgresql_where=text("is_open")),
)

arrival = Table(
    "arrival",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("stream", String(120), nullable=False),
    Column("key", String(1000), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("etag", String(200), nullable=False, server_default=text("''"), comment="of an object in a bucket"),
    Column("path", Text, nullable=False),
    Column("data_id", String(400)),
    Column("dataset_type", String(120)),
    Column("sha256", String(64), comment="known once it was read"),
    Column("arrived_at", Double, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("purged_at", Double, comment="when it was removed from the watched place; `path` is then its copy's"),
    UniqueConstraint("stream", "key", "size", "mtime_ns", "etag"),
    Index("ix_arrival_data_id", "data_id", "dataset_type"),
    Index("ix_arrival_arrived_at", "arrived_at"),
)

job = Table(
    "job",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("group_id", ForeignKey("data_group.id"), nullable=False),
    Column("pipeline", String(120), nullable=False),
    UniqueConstraint("group_id", "pipeline"),
)

production_pass = Table(
    "production_pass",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("job_id", ForeignKey("job.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("run_collection", ForeignKey("run_collection.name"), nullable=False),
    Column("is_open", Boolean, nullable=False, comment="whether further units may join"),
    Column("opened_at", Double, nullable=False),
    UniqueConstraint("job_id", "number"),
)

sub_job = Table(
    "sub_job",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("pass_id", ForeignKey("production_pass.id"), nullable=False),
    Column("data_id", String(400), nullable=False),
    Column("per", String(8), nullable=False),
    Column("arrival_id", ForeignKey("arrival.id")),
    Column("taken_at", Double, nullable=False),
    Column("arrived_at", Double, nullable=False),
    Column("asked_at", Double, comment="when it was asked for by hand: its deadlines count from then"),
    Column("u", Double, nullable=False, comment="number in [0, 1) that the prescale compares with q"),
    Column("state", String(16), nullable=False),
    Column("settled_at", Double),
    _one_of("state", [state.value for state in SubJobState]),
    _one_of("per", ["unit", "group"]),
    # A group of one unit may have the unit's own data id.
    UniqueConstraint("pass_id", "per", "data_id"),
    Index(
        "ix_sub_job_open", "state", sqlite_where=text("settled_at IS NULL"), postgresql_where=text("settled_at IS NULL")
    ),
    Index("ix_sub_job_data_id", "data_id"),
    Index("ix_sub_job_settled_at", "settled_at"),
)

stage_run = Table(
    "stage_run",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("sub_job_id", ForeignKey("sub_job.id"), nullable=False),
    Column("stage", String(120), nullable=False),
    Column("position", Integer, nullable=False, comment="place in the pipeline's topological order"),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("q", Double, nullable=False, comment="probability of having reached this stage"),
    Column("queued_at", Double),
    Column("settled_at", Double),
    Column("failures", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    _one_of("state", [state.value for state in StageState]),
    UniqueConstraint("sub_job_id", "stage"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("stage_run_id", ForeignKey("stage_run.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("prefix", String(900), nullable=False, comment="where its objects are in the store"),
    Column("opened_at", Double, nullable=False),
    Column("execution", String(40)),
    Column("pilot", String(200)),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("published_at", Double),
    Column("steps", JSON, comment="[{step, started_at, ended_at}]"),
    Column("coverage", JSON, comment="of a stage per group: number of units by state"),
    Column("log_key", String(1000)),
    Column("is_recorded", Boolean, nullable=False, comment="whether its commit record is in the store"),
    Column("waits_since", Double, comment="when its outputs began to wait for the store"),
    _one_of("state", ["running", "done", "failed", "lost", "stopped", "expired"]),
    UniqueConstraint("stage_run_id", "number"),
    UniqueConstraint("prefix"),
    Index(
        "ix_attempt_open", "state", sqlite_where=text("state = 'running'"), postgresql_where=text("state = 'running'")
    ),
    Index(
        "ix_attempt_unrecorded",
        "is_recorded",
        sqlite_where=text("state = 'done' AND NOT is_recorded"),
        postgresql_where=text("state = 'done' AND NOT is_recorded"),
    ),
)

dataset = Table(
    "dataset",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("dataset_type", String(120), nullable=False),
    Column("data_id", String(400), nullable=False),
    Column("run_collection", ForeignKey("run_collection.name"), nullable=False),
    Column("format", String(16), nullable=False),
    Column("key", String(1000), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("attempt_id", ForeignKey("attempt.id"), nullable=False),
    Column("damage", Text, comment="what is wrong with its object; empty as far as is known, nothing"),
    UniqueConstraint("dataset_type", "data_id", "run_collection"),
    Index("ix_dataset_attempt_id", "attempt_id"),
    Index(
        "ix_dataset_damaged", "id", sqlite_where=text("damage IS NOT NULL"), postgresql_where=text("damage IS NOT NULL")
    ),
)

lineage = Table(
    "lineage",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("attempt_id", ForeignKey("attempt.id"), nullable=False),
    Column("dataset_type", String(120), nullable=False),
    Column("data_id", String(400), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("dataset_id", ForeignKey("dataset.id"), comment="empty for a file as it arrived"),
    Index("ix_lineage_attempt_id", "attempt_id"),
)

product = Table(
    "product",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("attempt_id", ForeignKey("attempt.id"), nullable=False),
    Column("step", String(120), nullable=False),
    Column("category", String(80), nullable=False),
    Column("title", String(120), nullable=False),
    Column("shows", Text, nullable=False),
    Column("file", String(120), nullable=False),
    Column("key", String(1000), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("damage", Text, comment="as of a dataset"),
    Index("ix_product_attempt_id", "attempt_id"),
    Index(
        "ix_product_damaged", "id", sqlite_where=text("damage IS NOT NULL"), postgresql_where=text("damage IS NOT NULL")
    ),
)

summary_value = Table(
    "summary_value",
    metadata,
    Column("attempt_id", ForeignKey("attempt.id"), primary_key=True),
    Column("name", String(120), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("unit", String(40), nullable=False),
)

override = Table(
    "override",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    Column("work_class", String(120)),
    Column("pipeline", String(120)),
    Column("stage", String(120)),
    Column("data_group", String(400), comment="data id of a group"),
    Column("unit", String(400), comment="data id of a unit"),
    Column("value", Integer),
    Column("given_by", String(200), nullable=False),
    Column("why", Text, nullable=False),
    Column("set_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("ended_at", Double),
    _one_of("kind", [kind.value for kind in OverrideKind]),
    Index(
        "ix_override_in_force",
        "id",
        sqlite_where=text("ended_at IS NULL"),
        postgresql_where=text("ended_at IS NULL"),
    ),
)

request = Table(
    "request",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    Column("asked_by", String(200), nullable=False),
    Column("why", Text, nullable=False),
    Column("asked_at", Double, nullable=False),
    Column("answered_at", Double),
    Column("is_granted", Boolean),
    Column("answer", Text, comment="what was done, or why it was refused"),
    Column("detail", JSON, comment="what exactly is asked, and what the station gave"),
    Column("once", String(120), comment="who asks again with the same word has asked already"),
    _one_of("kind", ["reload", "process", "retry", "cancel"]),
    UniqueConstraint("once"),
    Index(
        "ix_request_open",
        "id",
        sqlite_where=text("answered_at IS NULL"),
        postgresql_where=text("answered_at IS NULL"),
    ),
)

agent_cursor = Table(
    "agent_cursor",
    metadata,
    Column("name", String(40), primary_key=True, comment="the record that is kept: prefect"),
    Column("site", String(36), nullable=False, comment="UUID of this ledger, from which the record's ids are derived"),
    Column("number", BigInteger, nullable=False, comment="the journal is recorded up to this number"),
    Column("seen_at", Double, nullable=False, comment="last sign of life of the agent"),
    Column("problem", Text, nullable=False, comment="why it cannot record; empty if it can"),
)

prefect_queue = Table(
    "prefect_queue",
    metadata,
    Column("name", String(200), primary_key=True, comment="a queue of the work pool; empty for the pool itself"),
    Column("priority", Integer, comment="smaller goes first, as Prefect has it"),
    Column("most", Integer, comment="its concurrency limit"),
    Column("is_paused", Boolean, nullable=False),
    Column("seen_at", Double, nullable=False, comment="when it was seen to say so first"),
)

journal = Table(
    "journal",
    metadata,
    Column("number", _Id, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("kind", String(60), nullable=False),
    Column("subject", String(400), nullable=False, comment="data id, group, stream or other name that it is about"),
    Column("detail", JSON, nullable=False),
    Index("ix_journal_subject", "subject"),
)

archive = Table(
    "archive",
    metadata,
    Column("name", String(400), primary_key=True, comment="where its objects are in the store"),
    Column("sha256", String(64), nullable=False, comment="of its manifest"),
    Column("rows", BigInteger, nullable=False, comment="that left the ledger"),
    Column("archived_at", Double, nullable=False),
)

archived_group = Table(
    "archived_group",
    metadata,
    Column("group_id", ForeignKey("data_group.id"), primary_key=True),
    Column("archive", ForeignKey("archive.name"), primary_key=True),
)

# PostgreSQL refuses what is longer than declared, where SQLite takes it; so there it is a text of any length.
for _table in metadata.tables.values():
    for _column in _table.columns:
        if isinstance(_column.type, String) and not isinstance(_column.type, Text):
            _column.type = _column.type.with_variant(Text(), "postgresql")
