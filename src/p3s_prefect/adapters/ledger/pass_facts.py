"""What the projector reads about a pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from p3s_prefect.core.states import StageState
from p3s_prefect.core.views import UnitRow

# A table in Prefect is one JSON document; the page that shows it does not hold more.
MOST_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Touched:
    """What some lines of the journal are about."""

    number: int
    """Of the last of these lines."""
    passes: Mapping[int, frozenset[int]]
    """Passes, oldest first, with their sub-jobs to which something happened."""
    changed_at: Mapping[int, float]
    """When something happened last to a stage run, as far as these lines tell."""


@dataclass(frozen=True, kw_only=True)
class StageDefinition:
    """A stage as it was declared when the pass was opened."""

    name: str
    per: str
    after: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StageTotal:
    """A stage over all units of a pass."""

    stage: str
    counts: Mapping[str, int]
    """Number of units by state."""
    queued_at: float | None
    """When the first was queued."""
    queued_last_at: float | None
    """When the last of those that are open was queued."""
    opened_at: float | None
    """When the first attempt was handed out."""
    settled_at: float | None
    """When the last one settled, as far as they have."""
    busy_s: float
    """The time that all attempts took together."""

    @property
    def is_open(self) -> bool:
        """Whether a unit has not settled."""
        return any(not StageState(state).is_terminal for state in self.counts)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A product that Prefect can show."""

    sub_job_id: int
    stage: str
    per: str
    data_id: str
    category: str
    title: str
    shows: str
    key: str
    size: int


@dataclass(frozen=True, kw_only=True)
class PassFacts:
    """One pass of a job, with what is to be recorded of it."""

    id: int
    number: int
    pipeline: str
    group: str
    day: str
    collection: str
    is_open: bool
    opened_at: float
    closed_by: str | None
    stages: tuple[StageDefinition, ...]
    unit_count: int
    totals: tuple[StageTotal, ...]
    """Of the stages per unit, and of those per group, in the pipeline's order."""
    units: tuple[UnitRow, ...]
    """Its sub-jobs for the table and the graph: all of them, or of a large pass those that tell most."""
    touched: frozenset[int]
    """Sub-jobs to which something happened."""
    pictures: tuple[Picture, ...] = ()
    """Of each stage and title the latest, as far as its sub-job is touched."""
    changed_at: Mapping[int, float] = field(default_factory=dict)
    """When something happened last to a stage run."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing more happens in it, but for retries."""
        return not self.is_open and not any(total.is_open for total in self.totals)
