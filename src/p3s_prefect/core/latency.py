"""How long it took from data being taken until their results were published, and on what (V24)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from p3s_prefect.core.coverage import CoverageReport, CoverageRow, coverage_record
from p3s_prefect.core.phases import PhaseKind
from p3s_prefect.core.reports import quantile

# Enough points for a smooth cumulative distribution 1,000 pixels wide.
_CURVE_POINTS = 200


class Milestones(NamedTuple):
    """The moments that the results of a stage passed, or those of a unit (UTC, seconds since 1970).

    A tuple, as a report of a night makes millions of them.
    """

    taken_at: float
    """When the data were taken; what was asked for by hand counts from when it was asked for, as its deadlines do."""
    arrived_at: float
    queued_at: float
    """When it was last put into the queue; of a unit, when its first stage was."""
    started_at: float
    ended_at: float
    published_at: float
    steps: Sequence[tuple[str, float]] = ()
    """Name and seconds of each step, in order; of a unit, none."""

    @classmethod
    def together(cls, stages: Sequence[Milestones]) -> Milestones:
        """Those of a unit, from those of its published stages: from its first start to its last publication.

        Of a unit that was tried again by hand, the stages that came after that.
        """
        taken_at = max([stage.taken_at for stage in stages])
        own = [stage for stage in stages if stage.taken_at == taken_at]
        return cls(
            taken_at,
            own[0].arrived_at,
            min([stage.queued_at for stage in own]),
            min([stage.started_at for stage in own]),
            max([stage.ended_at for stage in own]),
            max([stage.published_at for stage in own]),
        )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How durations are distributed [s]."""

    count: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    longest_s: float


@dataclass(frozen=True, kw_only=True)
class PhaseSpread:
    """How long one phase took."""

    kind: PhaseKind
    label: str
    spread: Spread


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """From taken to published, of one stage or of the sub-jobs of one pass (see `account`)."""

    account: CoverageRow
    deadlines_s: tuple[float, ...]
    """Deadlines of the stage, by the configurations that were used, sorted; empty if it has none. Of sub-jobs: the
    longest of their stages."""
    in_time: int | None
    """How many of those that are done were published within their deadline; a sub-job, if each stage was that it has
    published. None without a deadline."""
    total: Spread | None
    """From taken to published, of those that are done; None if none is."""
    phases: tuple[PhaseSpread, ...]
    """What the time went into, in order."""
    curve: tuple[float, ...]
    """Sorted durations from taken to published, the shortest and the longest among them, thinned evenly to 200."""

    @property
    def in_time_of_done(self) -> float | None:
        """Share of those that are done."""
        return None if self.in_time is None or not self.account.done else self.in_time / self.account.done

    @property
    def in_time_of_due(self) -> float | None:
        """Share of all that should have given a result: what was lost was not in time."""
        return None if self.in_time is None or not self.account.due else self.in_time / self.account.due


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """Latency of a scope; its rows are those of the coverage."""

    coverage: CoverageReport
    rows: tuple[LatencyRow, ...]


def spread(ordered: Sequence[float]) -> Spread:
    """How these sorted durations are distributed; there is at least one."""
    return Spread(
        count=len(ordered),
        mean_s=sum(ordered) / len(ordered),
        p50_s=quantile(ordered, 0.5),
        p95_s=quantile(ordered, 0.95),
        p99_s=quantile(ordered, 0.99),
        longest_s=ordered[-1],
    )


class Durations:
    """Durations of one row, gathered one after the other: 8 bytes for each phase of each result.

    A duration is 0 where clocks of two machines disagree on the order of two moments.
    """

    def __init__(self) -> None:
        self._arrival, self._earlier, self._slot = array("d"), array("d"), array("d")
        self._steps: dict[str, array[float]] = {}
        self._around, self._publishing, self._totals = array("d"), array("d"), array("d")
        self._in_time = 0

    def add(self, passed: Milestones, deadline_s: float | None = None) -> bool:
        """Adds the results of a stage, and says whether they were published within its deadline, if it has one."""
        total_s = self._append(passed)
        in_time = deadline_s is None or total_s <= deadline_s
        self._in_time += in_time
        return in_time

    def add_unit(self, passed: Milestones, *, in_time: bool) -> None:
        """Adds a unit, whose stages have deadlines of their own."""
        self._append(passed)
        self._in_time += in_time

    def _append(self, passed: Milestones) -> float:
        """Returns the time from taken to published."""
        taken_at, arrived_at, queued_at, started_at, ended_at, published_at, steps = passed
        self._arrival.append(max(0.0, arrived_at - taken_at))
        self._earlier.append(max(0.0, queued_at - arrived_at))
        self._slot.append(max(0.0, started_at - queued_at))
        around_s = ended_at - started_at
        for step, seconds in steps:
            around_s -= seconds
            if step not in self._steps:
                self._steps[step] = array("d")
            self._steps[step].append(max(0.0, seconds))
        self._around.append(max(0.0, around_s))
        self._publishing.append(max(0.0, published_at - ended_at))
        total_s = max(0.0, published_at - taken_at)
        self._totals.append(total_s)
        return total_s

    def row(self, account: CoverageRow, deadlines_s: Iterable[float]) -> LatencyRow:
        """What was gathered, as a row."""
        deadlines, ordered = tuple(sorted(deadlines_s)), sorted(self._totals)
        return LatencyRow(
            account=account,
            deadlines_s=deadlines,
            in_time=self._in_time if deadlines else None,
            total=spread(ordered) if ordered else None,
            phases=tuple(self._phases(account.stage is None)) if ordered else (),
            curve=_thinned(ordered),
        )

    def _phases(self, is_unit: bool) -> Iterator[PhaseSpread]:
        # Around its steps a pilot fetches inputs and stores outputs; between the stages of a unit others have their
        # turn.
        around = "its stages, and waits between them" if is_unit else "inputs and outputs"
        for kind, label, seconds in (
            (PhaseKind.ARRIVAL, "waited for arrival", self._arrival),
            (PhaseKind.WAITING, "earlier stages and tries", self._earlier),
            (PhaseKind.WAITING, "waited for a slot", self._slot),
            *((PhaseKind.RUNNING, step, seconds) for step, seconds in self._steps.items()),
            (PhaseKind.RUNNING, around, self._around),
            (PhaseKind.PUBLISHING, "published", self._publishing),
        ):
            yield PhaseSpread(kind=kind, label=label, spread=spread(sorted(seconds)))


def latency_record(row: LatencyRow) -> dict[str, Any]:
    """A row as plain values, without its curve."""
    account: Mapping[str, Any] = coverage_record(row.account)
    names = ("pipeline", "pass_number", "per", "part", "stage", "seen", "done", "shed", "expired", "failed", "blocked")
    return {
        **{name: account[name] for name in names},
        "deadlines_s": list(row.deadlines_s),
        "in_time": row.in_time,
        "in_time_of_done": row.in_time_of_done,
        "in_time_of_due": row.in_time_of_due,
        "total": None if row.total is None else asdict(row.total),
        "phases": [{"kind": one.kind, "label": one.label, **asdict(one.spread)} for one in row.phases],
    }


def _thinned(ordered: Sequence[float]) -> tuple[float, ...]:
    if len(ordered) <= _CURVE_POINTS:
        return tuple(ordered)
    last = len(ordered) - 1
    return tuple(ordered[round(place * last / (_CURVE_POINTS - 1))] for place in range(_CURVE_POINTS))
