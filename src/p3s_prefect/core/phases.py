"""Where a unit's time went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from p3s_prefect.core.states import SubJobState
from p3s_prefect.core.views import StageRow, UnitRow


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


_WAITED = "waited"


def phases(unit: UnitRow, now: float) -> tuple[Phase, ...]:
    """Where a unit's time went, without gaps, until `now` or until it settled.

    It begins when the data were taken or, where it was let in by hand, then. Where stages ran side by side, running
    outranks publishing, and publishing outranks waiting.
    """
    end = unit.settled_at if unit.settled_at is not None else max(now, unit.arrived_at)
    spans = [span for stage in unit.stages for span in stage_phases(stage, end)]
    arrival = Phase(
        kind=PhaseKind.ARRIVAL,
        label="waited for arrival",
        started_at=min(unit.began_at, unit.arrived_at),
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
