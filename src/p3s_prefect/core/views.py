"""What the ledger shows: frozen records for pages, tables and notebooks. `*_at` is UTC in seconds since 1970."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from p3s_prefect.core.records import Verdict
from p3s_prefect.core.states import SubJobState

# --- a unit and its parts -----------------------------------------------------------------------------------------


class PhaseKind(StrEnum):
    """What a unit's time went into."""

    ARRIVAL = "arrival"
    """From the data being taken to their arrival."""
    WAITING = "waiting"
    """For parents, for a slot, or for the next try."""
    RUNNING = "running"
    PUBLISHING = "publishing"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of a unit's time."""

    kind: PhaseKind
    label: str
    """For people, such as ``quick: statistics``."""
    started_at: float
    ended_at: float

    @property
    def seconds(self) -> float:
        """How long it took; 0 where clocks of two machines disagree on the order."""
        return max(0.0, self.ended_at - self.started_at)


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
    def activity(self) -> str:
        """What is going on: its state, or while it is open that of the stage that is furthest."""
        if self.settled_at is not None:
            return self.state
        states = {stage.state for stage in self.stages}
        return next((state for state in ("running", "queued", "held", "waiting") if state in states), self.state)

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
            return "The content that came first counts: send the new one under a name, and so a number, of its own."
        if self.verdict != Verdict.REFUSED:
            return ""
        # The source's own words; what none of them fits is told in general.
        known = (remedy for words, remedy in _REMEDIES if words in self.reason)
        return next(known, "Correct the file, and send it again.")


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

_WAITED = "waited"


def phases(unit: UnitRow, now: float) -> tuple[Phase, ...]:
    """Where a unit's time went, without gaps, from the data being taken until `now` or until it settled.

    Where stages ran side by side, running outranks publishing, and publishing outranks waiting.
    """
    end = unit.settled_at if unit.settled_at is not None else max(now, unit.arrived_at)
    spans = [span for stage in unit.stages for span in stage_phases(stage, end)]
    arrival = Phase(
        kind=PhaseKind.ARRIVAL,
        label="waited for arrival",
        started_at=min(unit.taken_at, unit.arrived_at),
        ended_at=unit.arrived_at,
    )
    found = [arrival, *_timeline(unit.arrived_at, end, spans)]
    # Nothing is waited for after a failure that settles the unit: its report is on the way into the ledger.
    if unit.settled_at is not None and unit.state == SubJobState.FAILED and spans and found[-1].label == _WAITED:
        found[-1] = replace(found[-1], label="recorded")
    return tuple(found)


def stage_phases(stage: StageRow, end: float) -> Iterator[Phase]:
    """What the attempts of one stage did: steps, what lay around them, publication. `end` closes what is open."""
    for attempt in stage.attempts:
        # Until its report is in, the ledger knows only when an attempt was handed out.
        started_at = attempt.started_at if attempt.started_at is not None else attempt.opened_at
        ended_at = attempt.ended_at if attempt.ended_at is not None else end
        for step in attempt.steps:
            label = f"{stage.stage}: {step.step}"
            yield Phase(kind=PhaseKind.RUNNING, label=label, started_at=step.started_at, ended_at=step.ended_at)
        # Around its steps, the pilot fetches inputs, and checks and stores outputs.
        label = f"{stage.stage}: inputs and outputs" if attempt.steps else f"{stage.stage}: {attempt.state}"
        yield Phase(kind=PhaseKind.RUNNING, label=label, started_at=started_at, ended_at=ended_at)
        if attempt.published_at is not None:
            label = f"{stage.stage}: published"
            yield Phase(kind=PhaseKind.PUBLISHING, label=label, started_at=ended_at, ended_at=attempt.published_at)


def _timeline(start: float, end: float, spans: list[Phase]) -> Iterator[Phase]:
    """Cuts overlapping spans at every edge; the first that covers a piece names it, and gaps were spent waiting."""
    rank = {PhaseKind.RUNNING: 0, PhaseKind.PUBLISHING: 1}
    spans = sorted(spans, key=lambda span: (rank[span.kind], span.seconds))
    edges = sorted({start, end} | {min(max(at, start), end) for s in spans for at in (s.started_at, s.ended_at)})
    last: Phase | None = None
    for left, right in pairwise(edges):
        over = next((span for span in spans if span.started_at <= left and span.ended_at >= right), None)
        kind, label = (over.kind, over.label) if over else (PhaseKind.WAITING, _WAITED)
        if last is not None and (last.kind, last.label) == (kind, label):
            last = Phase(kind=kind, label=label, started_at=last.started_at, ended_at=right)
            continue
        if last is not None:
            yield last
        last = Phase(kind=kind, label=label, started_at=left, ended_at=right)
    if last is not None:
        yield last


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
