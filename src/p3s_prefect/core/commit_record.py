"""The commit record: with the manifest beside it, all that the ledger says about an attempt whose results are visible.

It is written when they are, as things stood then. Ids are the ledger's, so that a ledger rebuilt from records is the
one that was lost. What changes later (another stage of the same unit, the group) stands in later records, or in none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from p3s_prefect.core.states import StageState
from p3s_prefect.core.versioned import read_versioned

VERSION: Final = 1

RECORD_FILE = "commit.json"
MANIFEST_FILE = "manifest.json"


class _Row(BaseModel):
    # Columns that a later version of the package has added are no reason not to read the others.
    model_config = ConfigDict(frozen=True, extra="ignore")


class RecordedAttempt(_Row):
    """The attempt; its other columns stand in the manifest."""

    id: int
    number: int
    prefix: str
    execution: str
    opened_at: float
    published_at: float


class RecordedSubJob(_Row):
    """The sub-job."""

    id: int
    data_id: str
    per: Literal["unit", "group"]
    taken_at: float
    arrived_at: float
    asked_at: float | None
    u: float


class RecordedPass(_Row):
    """The pass."""

    id: int
    number: int
    is_open: bool
    opened_at: float


class RecordedJob(_Row):
    """The job."""

    id: int
    pipeline: str


class RecordedGroup(_Row):
    """The group."""

    id: int
    data_id: str
    day: str
    opened_at: float
    last_arrival_at: float
    arrivals: int
    is_open: bool
    closed_by: str | None


class RecordedCollection(_Row):
    """The run collection, and the number of the configuration behind it."""

    name: str
    configuration_id: str
    opened_at: float


class RecordedArrival(_Row):
    """The file that was processed: known again when it is listed again (P2)."""

    id: int
    stream: str
    key: str
    size: int
    mtime_ns: int
    etag: str = ""
    path: str
    data_id: str | None
    dataset_type: str | None
    sha256: str | None
    arrived_at: float
    verdict: str
    reason: str


class RecordedStage(_Row):
    """A stage run of the sub-job as it stood when the results became visible."""

    id: int
    stage: str
    position: int
    state: StageState
    reason: str
    q: float
    queued_at: float | None
    settled_at: float | None
    failures: int
    losses: int


class CommitRecord(_Row):
    """All of it."""

    version: Literal[1] = VERSION
    attempt: RecordedAttempt
    stage_run_id: int
    """Which of `stages` the attempt belongs to."""
    stages: tuple[RecordedStage, ...]
    sub_job: RecordedSubJob
    production_pass: RecordedPass
    job: RecordedJob
    group: RecordedGroup
    collection: RecordedCollection
    arrival: RecordedArrival | None
    """None for a group's own sub-job."""
    datasets: Mapping[str, int]
    """Dataset type -> id, for all that the manifest names."""

    @property
    def place(self) -> str:
        """The prefix of the execution's objects."""
        return f"{self.attempt.prefix}/{self.attempt.execution}"

    @property
    def key(self) -> str:
        """Where it stands in the store."""
        return f"{self.place}/{RECORD_FILE}"

    @property
    def stage(self) -> RecordedStage:
        """The stage run of the attempt."""
        return next(stage for stage in self.stages if stage.id == self.stage_run_id)

    def content(self) -> bytes:
        """As an object."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()


def read_commit_record(content: bytes) -> CommitRecord:
    """A commit record from the store.

    Raises:
        RecordUnreadable: it is damaged, or of a newer version.
    """
    fix = "`p3s reconcile` writes it again where the ledger knows it."
    return read_versioned(CommitRecord, content, newest=VERSION, name="it", if_damaged=fix)


def configuration_key(configuration_id: str) -> str:
    """Where the content of a configuration stands in the store."""
    return f"configurations/{configuration_id}.json"
