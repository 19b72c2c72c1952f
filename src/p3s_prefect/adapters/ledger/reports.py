"""Coverage and latency of a group or a period, from the ledger.

Counting is left to the database. Durations are read a page of sub-jobs at a time, so that memory grows by 8 bytes for
each phase of each result, however many stages and attempts there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row

from p3s_prefect.adapters.ledger import report_rows
from p3s_prefect.adapters.ledger.report_rows import Pass
from p3s_prefect.core.coverage import CoverageReport, CoverageRow, PipelineUnits, in_order
from p3s_prefect.core.latency import Durations, LatencyReport, Milestones
from p3s_prefect.core.reports import Scope
from p3s_prefect.core.states import TERMINAL, StageState, SubJobState

_OPEN = {*StageState, *SubJobState} - {str(state) for state in TERMINAL}
# Pipeline, number of the pass, per, part (empty without one), stage.
_Key = tuple[str, int, str, str, str | None]


@dataclass
class _Count:
    """How many are in which state, and sums over those that are done and stand for others."""

    states: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    deadlines_s: set[float] = field(default_factory=set)
    position: int = -1
    seen: int = 0
    sampled: int = 0
    q: float = 0.0
    weight: float = 0.0
    """Sum of 1/q."""
    square: float = 0.0
    """Sum of 1/q**2."""

    def add(self, row: Row[Any], of: Pass) -> None:
        self.states[row.state] += row.seen
        self.seen += row.seen
        self.position = row.position
        if (row.per, row.stage) in of.deadlines_s:
            self.deadlines_s.add(of.deadlines_s[row.per, row.stage])
        if row.stage is not None and row.state == StageState.DONE and row.sampled:
            self.sampled += row.sampled
            self.q, self.weight, self.square = self.q + row.q, self.weight + row.weight, self.square + row.square

    def row(self, key: _Key) -> CoverageRow:
        pipeline, number, per, part, stage = key
        return CoverageRow(
            pipeline=pipeline,
            pass_number=number,
            per=per,
            part=part or None,
            stage=stage,
            seen=self.seen,
            open=sum(self.states[state] for state in _OPEN),
            **{state.value: self.states[state] for state in TERMINAL},
            on_standby=self.states[StageState.DONE] - self.sampled if stage is not None else 0,
            mean_q=self.q / self.sampled if self.square else None,
            effective=self.weight**2 / self.square if self.square else None,
        )


def coverage(connection: Connection, scope: Scope) -> CoverageReport:
    """What became of everything in the scope.

    Raises:
        NoSuchRecord: there is nothing in it; says what there is instead.
    """
    counts, _ = _counted(connection, scope)
    return _coverage(connection, scope, counts)


def latency(connection: Connection, scope: Scope) -> LatencyReport:
    """How long it took for everything in the scope that is done.

    Raises:
        NoSuchRecord: there is nothing in it; says what there is instead.
    """
    counts, passes = _counted(connection, scope)
    found = _coverage(connection, scope, counts)
    measured: dict[_Key, Durations] = defaultdict(Durations)
    for sub_jobs in connection.execute(report_rows.sub_jobs(scope)).partitions(report_rows.PAGE):
        results = _results(connection, sub_jobs)
        for sub_job_id, pass_id, per, part, state, *_ in sub_jobs:
            is_done = state == SubJobState.DONE
            _measure(measured, passes[pass_id], per, part, results[sub_job_id], is_done=is_done)
    rows = tuple(measured[_key(row)].row(row, counts[_key(row)].deadlines_s) for row in found.rows)
    return LatencyReport(coverage=found, rows=rows)


def _counted(connection: Connection, scope: Scope) -> tuple[dict[_Key, _Count], dict[int, Pass]]:
    queries = (report_rows.sub_job_counts(scope), report_rows.stage_counts(scope))
    rows = [row for query in queries for row in connection.execute(query)]
    if not rows:
        raise report_rows.nothing(connection, scope)
    passes = report_rows.passes(connection, {row.pass_id for row in rows})
    counts: dict[_Key, _Count] = defaultdict(_Count)
    for row in rows:
        of = passes[row.pass_id]
        counts[of.pipeline, of.number, row.per, row.part, row.stage].add(row, of)
    return counts, passes


def _coverage(connection: Connection, scope: Scope, counts: Mapping[_Key, _Count]) -> CoverageReport:
    rows = in_order((count.row(key), count.position) for key, count in counts.items())
    return CoverageReport(scope=scope, rows=rows, units=tuple(_units(connection, scope, rows)))


def _units(connection: Connection, scope: Scope, rows: Sequence[CoverageRow]) -> Iterator[PipelineUnits]:
    """Each unit once. The ledger is asked for those in several passes only where there is more than one."""
    totals = [row for row in rows if row.stage is None and row.per == "unit"]
    for pipeline in dict.fromkeys(row.pipeline for row in totals):
        own = [row for row in totals if row.pipeline == pipeline]
        several = again = done_again = 0
        if len({row.pass_number for row in own}) > 1:
            several, again, done_again = connection.execute(report_rows.repeated(scope, pipeline)).one()
        yield PipelineUnits(
            pipeline=pipeline,
            units=sum(row.seen for row in own) - again,
            in_several_passes=several,
            done=sum(row.done for row in own) - done_again,
        )


def _key(row: CoverageRow) -> _Key:
    return row.pipeline, row.pass_number, row.per, row.part or "", row.stage


def _results(connection: Connection, sub_jobs: Sequence[Row[Any]]) -> dict[int, list[tuple[str, Milestones]]]:
    """By sub-job: its published stages, and the moments that each passed."""
    begun = {row.id: (row.taken_at, row.arrived_at, row.asked_at) for row in sub_jobs}
    found: dict[int, list[tuple[str, Milestones]]] = defaultdict(list)
    rows = connection.execute(report_rows.published(begun)).all()
    for sub_job_id, stage, queued_at, started_at, ended_at, published_at, spans in rows:
        taken_at, arrived_at, asked_at = begun[sub_job_id]
        queued_at = arrived_at if queued_at is None else queued_at
        if asked_at is not None and published_at >= asked_at:
            # As its deadlines do; what was published before that is as late as it was.
            taken_at = arrived_at = asked_at
        steps = [(span["step"], span["ended_at"] - span["started_at"]) for span in spans]
        passed = Milestones(taken_at, arrived_at, queued_at, started_at, ended_at, published_at, steps)
        found[sub_job_id].append((stage, passed))
    return found


def _measure(
    measured: dict[_Key, Durations],
    of: Pass,
    per: str,
    part: str,
    results: Sequence[tuple[str, Milestones]],
    *,
    is_done: bool,
) -> None:
    """Adds the published stages of a sub-job, and the sub-job itself if it is done."""
    in_time = True
    for stage, passed in results:
        in_time &= measured[of.pipeline, of.number, per, part, stage].add(passed, of.deadlines_s.get((per, stage)))
    if is_done and results:
        whole = Milestones.together([passed for _, passed in results])
        measured[of.pipeline, of.number, per, part, None].add_unit(whole, in_time=in_time)
