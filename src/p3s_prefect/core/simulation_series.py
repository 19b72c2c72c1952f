"""How a simulated load went over time, in equal intervals, for plots and programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from p3s_prefect.core.loads import Load
from p3s_prefect.core.outcome import Outcome, PlayedRun
from p3s_prefect.core.states import StageState

# Points of a series: as many as a plot of eight inches shows.
POINTS = 160


@dataclass(frozen=True, kw_only=True)
class ClassSeries:
    """A class of work over time; NaN-free: None where nothing was seen."""

    work_class: str
    in_time_share: tuple[float | None, ...]
    """Of what was taken in each interval."""
    q: tuple[float | None, ...]
    """Mean probability of having got so far, of what was taken in each interval."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """How it went, in equal intervals of `every_s` from the first arrival on."""

    every_s: float
    arrivals_hz: tuple[float, ...]
    """Units that arrived in each interval [1/s]."""
    queued: tuple[int, ...]
    """Stage runs that waited for a slot at its end."""
    busy: tuple[float, ...]
    """Mean number of slots in use."""
    slots: tuple[float, ...]
    """Mean number of slots."""
    classes: tuple[ClassSeries, ...]


def series_of(load: Load, outcome: Outcome, steps: Sequence[tuple[float, int]], *, ended_at: float) -> Series:
    """The series of an outcome; `steps` are the moments from which there were so many slots, the first one first."""
    grid = _Grid(begins_at=load.begins_at, ends_at=ended_at)
    ends = [*(at for at, _ in steps[1:]), ended_at]
    return Series(
        every_s=grid.every_s,
        arrivals_hz=tuple(number / grid.every_s for number in grid.counts(unit.at for unit in load.units)),
        queued=tuple(_queued(outcome, grid)),
        busy=tuple(grid.covered((one.began_at, one.ended_at, 1) for one in outcome.services)),
        slots=tuple(grid.covered((at, end, slots) for (at, slots), end in zip(steps, ends, strict=True) if at < end)),
        classes=tuple(_class_series(outcome.runs, grid)),
    )


def _class_series(runs: Iterable[PlayedRun], grid: _Grid) -> Iterator[ClassSeries]:
    seen: defaultdict[str, list[int]] = defaultdict(lambda: [0] * POINTS)
    in_time: defaultdict[str, list[int]] = defaultdict(lambda: [0] * POINTS)
    q: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * POINTS)
    for run in runs:
        place = grid.place(run.taken_at)
        seen[run.work_class][place] += 1
        in_time[run.work_class][place] += run.in_time
        q[run.work_class][place] += run.q
    for name, counts in seen.items():
        yield ClassSeries(
            work_class=name,
            in_time_share=tuple(good / n if n else None for good, n in zip(in_time[name], counts, strict=True)),
            q=tuple(total / n if n else None for total, n in zip(q[name], counts, strict=True)),
        )


def _queued(outcome: Outcome, grid: _Grid) -> Iterator[int]:
    """Stage runs that wait for a slot at the end of each interval."""
    changes = [0] * POINTS
    queued: set[int] = set()
    for event in outcome.events:
        if event.state is StageState.QUEUED and event.stage_run_id not in queued:
            queued.add(event.stage_run_id)
            changes[grid.place(event.at)] += 1
        elif event.state is not StageState.QUEUED and event.stage_run_id in queued:
            queued.discard(event.stage_run_id)
            changes[grid.place(event.at)] -= 1
    now = 0
    for change in changes:
        now += change
        yield now


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Equal intervals; what lies outside counts to the first or the last."""

    begins_at: float
    ends_at: float

    @property
    def every_s(self) -> float:
        return max(self.ends_at - self.begins_at, 1e-3) / POINTS

    def place(self, at: float) -> int:
        return min(max(int((at - self.begins_at) / self.every_s), 0), POINTS - 1)

    def counts(self, moments: Iterable[float]) -> list[int]:
        found = [0] * POINTS
        for at in moments:
            found[self.place(at)] += 1
        return found

    def covered(self, spans: Iterable[tuple[float, float, int]]) -> list[float]:
        """Mean height of spans (begin, end, height) that are put onto each other, in each interval."""
        found, every_s = [0.0] * POINTS, self.every_s
        for began_at, ended_at, height in spans:
            for place in range(self.place(began_at), self.place(ended_at) + 1):
                left = self.begins_at + place * every_s
                found[place] += height * max(0.0, min(ended_at, left + every_s) - max(began_at, left))
        return [total / every_s for total in found]
