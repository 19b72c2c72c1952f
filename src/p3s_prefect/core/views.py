"""What the ledger shows: frozen records for pages, tables and notebooks. `*_at` is UTC in seconds since 1970."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from p3s_prefect.core.records import Verdict
from p3s_prefect.core.states import StageState
from p3s_prefect.core.weighted_values import WeightedValue

# --- a unit and its parts -----------------------------------------------------------------------------------------

ACTIVITIES = (StageState.RUNNING, StageState.QUEUED, StageState.HELD, StageState.WAITING)
"""What an open unit does: the first of these in which a stage of it is."""


@dataclass(frozen=True, kw_only=True)
class StepSpan:
    """When a step of an attempt ran."""

    step: str
    started_at: float
    ended_at: float


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    """One try of a stage run."""

    id: int
    number: int
    state: str
    reason: str
    opened_at: float
    started_at: float | None
    ended_at: float | None
    published_at: float | None
    pilot: str | None
    steps: tuple[StepSpan, ...]
    log_key: str | None
    waits_since: float | None = None
    """Since when its outputs have been waiting for the store; None if they do not."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage of a unit, with its attempts in their order."""

    id: int
    stage: str
    state: str
    reason: str
    q: float
    """Probability of having reached this stage."""
    queued_at: float | None
    settled_at: float | None
    failures: int
    losses: int
    attempts: tuple[AttemptRow, ...]


@dataclass(frozen=True, kw_only=True)
class UnitRow:
    """A sub-job: one unit, or the group stages of one group, in one pass of a pipeline."""

    id: int
    data_id: str
    per: str
    group: str
    pipeline: str
    pass_number: int
    state: str
    reason: str
    """Why it is in this state; empty where there is nothing to explain."""
    taken_at: float
    arrived_at: float
    asked_at: float | None = None
    """When somebody asked for it by hand; None of what came by itself."""
    queued_at: float | None
    """When its first stage was queued."""
    started_at: float | None
    """When its first attempt started."""
    ended_at: float | None
    """When its last attempt ended."""
    published_at: float | None
    """When its last results became visible."""
    settled_at: float | None
    stages: tuple[StageRow, ...]

    @property
    def began_at(self) -> float:
        """From when on its time counts: from the data being taken or, where it was let in by hand, from then."""
        is_let_in = self.asked_at is not None and self.asked_at <= self.arrived_at
        return self.arrived_at if is_let_in else self.taken_at

    @property
    def activity(self) -> str:
        """What is going on: its state, or while it is open that of the stage that is furthest."""
        if self.settled_at is not None:
            return self.state
        states = {stage.state for stage in self.stages}
        return next((state for state in ACTIVITIES if state in states), self.state)

    @property
    def path(self) -> str:
        """As part of an address: ``pipeline/pass/run=2008/subrun=3``."""
        return f"{self.pipeline}/{self.pass_number}/{self.data_id.replace(' ', '/')}"


@dataclass(frozen=True, kw_only=True)
class ArrivalRow:
    """A file that was seen, and what became of it."""

    id: int
    stream: str
    key: str
    path: str
    size: int
    data_id: str | None
    sha256: str | None
    arrived_at: float
    verdict: str
    reason: str

    @property
    def remedy(self) -> str:
        """What to do about a file that was kept out; empty for others."""
        if self.verdict == Verdict.CONFLICT:
            first = "Nobody has read what came first: bring it back" if _UNREAD in self.reason else _FIRST_COUNTS
            return f"{first}; send the new one under a name, and so a number, of its own."
        if self.verdict != Verdict.REFUSED:
            return ""
        # The source's own words; what none of them fits is told in general.
        known = (remedy for words, remedy in _REMEDIES if words in self.reason)
        return next(known, "Correct the file, and send it again.")


_UNREAD = "changed before its bytes were read"
_FIRST_COUNTS = "The content that came first counts"
_REMEDIES = (
    (
        "name does not fit",
        "Rename it so that it fits the pattern, or, if it shall not be processed, add its name to the stream's "
        "`exclude`.",
    ),
    (
        "not a plain file",
        "Put the file itself there, not a link or a directory, or add its name to the stream's `exclude`.",
    ),
    ("time of modification", "Set its time (`touch` it), once the clock of the machine that wrote it is right."),
)


@dataclass(frozen=True, kw_only=True)
class DatasetRow:
    """One output."""

    id: int
    dataset_type: str
    data_id: str
    run_collection: str
    format: str
    key: str
    size: int
    sha256: str
    attempt_id: int
    damage: str | None = None
    """What is wrong with its object in the store, as far as `p3s reconcile` has found; None if nothing."""


@dataclass(frozen=True, kw_only=True)
class LineageRow:
    """What an attempt read."""

    attempt_id: int
    dataset_type: str
    data_id: str
    sha256: str
    dataset_id: int | None


@dataclass(frozen=True, kw_only=True)
class ProductRow:
    """A file that is worth a look, and whose it is."""

    id: int
    pipeline: str
    pass_number: int
    stage: str
    step: str
    data_id: str
    per: str
    category: str
    title: str
    shows: str
    file: str
    key: str
    size: int
    sha256: str
    taken_at: float
    published_at: float | None

    @property
    def is_picture(self) -> bool:
        """Whether a page tries to show it; what it really is, its first bytes decide when it is read."""
        return self.file.lower().endswith(".png")

    @property
    def unit_path(self) -> str:
        """Address of the unit's page."""
        return f"{self.pipeline}/{self.pass_number}/{self.data_id.replace(' ', '/')}"


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """A summary value of one unit."""

    pipeline: str
    stage: str
    per: str
    data_id: str
    name: str
    value: float | int | str | bool
    unit: str
    taken_at: float
    q: float
    """Probability of its unit having got so far: if its number is below it, it stands for 1/q units."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A summary value over the latest units of a pipeline, oldest first."""

    pipeline: str
    stage: str
    per: str
    name: str
    unit: str
    data_ids: tuple[str, ...]
    values: tuple[float | int | str | bool, ...]
    weights: tuple[float, ...]
    """Of each value, how many units its unit stands for; 0 if chance had left it out, and it ran on standby."""
    whole: WeightedValue | None = None
    """The same for all units of this stretch of time; None for texts, and for groups."""


@dataclass(frozen=True, kw_only=True)
class JournalRow:
    """One line of the journal."""

    number: int
    at: float
    kind: str
    subject: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class UnitDetail:
    """All that the ledger knows about a unit in one pass."""

    unit: UnitRow
    run_collection: str
    arrival: ArrivalRow | None
    also: tuple[UnitRow, ...]
    """The same data id in other pipelines and passes, newest first."""
    datasets: tuple[DatasetRow, ...]
    lineage: tuple[LineageRow, ...]
    products: tuple[ProductRow, ...]
    summary: tuple[SummaryRow, ...]
    journal: tuple[JournalRow, ...]


# --- groups and the account ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of a group one pass of a pipeline has processed. Units only; the group's own stages are apart."""

    pipeline: str
    pass_number: int
    seen: int
    done: int
    open: int

    @property
    def lost(self) -> int:
        """Units that settled without being done: dropped, failed or left out."""
        return self.seen - self.done - self.open


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """What was announced or taken together."""

    id: int
    data_id: str
    day: str
    opened_at: float
    last_arrival_at: float
    arrivals: int
    is_open: bool
    closed_by: str | None
    coverage: tuple[Coverage, ...]

    @property
    def path(self) -> str:
        """As part of an address: ``run=2008``."""
        return self.data_id.replace(" ", "/")


@dataclass(frozen=True, kw_only=True)
class AccountRow:
    """The account (P7) of a stage, or of the sub-jobs of a pipeline where `stage` is None."""

    pipeline: str
    stage: str | None
    seen: int
    open: int
    done: int
    prescaled: int
    shed: int
    expired: int
    failed: int
    blocked: int
    superseded: int
    cancelled: int

    @property
    def settled(self) -> int:
        """Sum over the terminal states."""
        given_up = self.shed + self.expired + self.failed + self.blocked + self.superseded + self.cancelled
        return self.done + self.prescaled + given_up

    @property
    def balances(self) -> bool:
        """Whether everything seen is either open or in exactly one terminal state."""
        return self.seen == self.open + self.settled


# --- from records to what people read -------------------------------------------------------------------------------


def plain(record: Any) -> dict[str, Any]:
    """A record as mappings, lists and plain values, for JSON."""
    return asdict(record)


def number(value: float | int | str | bool) -> str:
    """A summary value as people read it: four digits say enough."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """Text with everything that a terminal or a reader could be misled by written as an escape.

    Control characters, bidirectional marks and broken characters are escaped; newlines and tabs stay.
    """
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )
