"""What a load becomes under a policy, in numbers: counts, latencies, drops, slot use."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from p3s_prefect.core.loads import Load
from p3s_prefect.core.outcome import Outcome, PlayedRun
from p3s_prefect.core.reports import quantile
from p3s_prefect.core.simulation_series import Series, series_of
from p3s_prefect.core.states import StageState


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What became of the stage runs of a stage, or of a class of work where `stage` is None."""

    work_class: str
    pipeline: str | None = None
    stage: str | None = None
    seen: int
    in_time: int
    """Done by the deadline; all that are done where there is none."""
    done: int
    prescaled: int
    shed: int
    expired: int
    failed: int
    blocked: int
    open: int
    """Not settled at the end: held, or waiting for what never came."""
    p50_s: float | None
    """From the data being taken to the stage being done, of what was done: half took at most so long;"""
    p95_s: float | None
    p99_s: float | None

    @property
    def in_time_share(self) -> float:
        """Of all that was seen."""
        return self.in_time / self.seen if self.seen else 0.0


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """What the load became under one policy."""

    name: str
    changes: tuple[str, ...]
    classes: tuple[Tally, ...]
    stages: tuple[Tally, ...]
    slots: int
    """At the beginning."""
    slot_use: float
    """Share of the slots' time, from the first arrival to the end, in which they worked."""
    wasted: float
    """Share of that work which was for nothing: it failed, was stopped or lost, or ended late."""
    lasted_s: float
    """From the first arrival until nothing was left to do."""
    series: Series


def result_of(
    load: Load, name: str, changes: tuple[str, ...], outcome: Outcome, steps: Sequence[tuple[float, int]]
) -> PolicyResult:
    """The outcome of a policy; `steps` are the moments from which there were so many slots, the first one first."""
    runs = outcome.runs
    ended_at = max(load.ends_at, *(run.since for run in runs))
    series = series_of(load, outcome, steps, ended_at=ended_at)
    busy_s = useful_s = 0.0
    for service in outcome.services:
        seconds = service.ended_at - service.began_at
        busy_s += seconds
        if service.state is StageState.DONE and runs[service.stage_run_id - 1].in_time:
            useful_s += seconds
    available_s = sum(series.slots) * series.every_s
    return PolicyResult(
        name=name,
        changes=changes,
        classes=tuple(_tallies(runs, lambda run: (run.work_class, None, None))),
        stages=tuple(_tallies(runs, lambda run: (run.work_class, run.pipeline, run.stage))),
        slots=steps[0][1],
        slot_use=busy_s / available_s if available_s else 0.0,
        wasted=1 - useful_s / busy_s if busy_s else 0.0,
        lasted_s=ended_at - load.begins_at,
        series=series,
    )


_Key = tuple[str, str | None, str | None]


def _tallies(runs: Iterable[PlayedRun], key_of: Callable[[PlayedRun], _Key]) -> Iterator[Tally]:
    states: defaultdict[_Key, Counter[StageState]] = defaultdict(Counter)
    latencies_s: defaultdict[_Key, list[float]] = defaultdict(list)
    in_time: Counter[_Key] = Counter()
    for run in runs:
        key = key_of(run)
        states[key][run.state] += 1
        in_time[key] += run.in_time
        if run.state is StageState.DONE:
            latencies_s[key].append(run.latency_s)
    for key, found in states.items():
        ordered = sorted(latencies_s[key])
        p50_s, p95_s, p99_s = (quantile(ordered, share) if ordered else None for share in (0.5, 0.95, 0.99))
        yield Tally(
            work_class=key[0],
            pipeline=key[1],
            stage=key[2],
            seen=found.total(),
            in_time=in_time[key],
            done=found[StageState.DONE],
            prescaled=found[StageState.PRESCALED],
            shed=found[StageState.SHED],
            expired=found[StageState.EXPIRED],
            failed=found[StageState.FAILED],
            blocked=found[StageState.BLOCKED],
            open=sum(number for state, number in found.items() if not state.is_terminal),
            p50_s=p50_s,
            p95_s=p95_s,
            p99_s=p99_s,
        )


def tally_record(tally: Tally) -> dict[str, Any]:
    """With the share, for JSON and tables."""
    return {**asdict(tally), "in_time_share": tally.in_time_share}
