"""Reports of what a station really did, against the rows that it left."""

from __future__ import annotations

from statistics import median

import pytest
from sites import NewSite, declare, obey, total

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.api import open_experiment
from p3s_prefect.core.phases import PhaseKind

pytestmark = pytest.mark.sockets


async def test_reports_of_a_run_that_was_processed(new_site: NewSite) -> None:
    """P7, V24: done, failed, expired; the deadline of the configuration that was used is the deadline."""
    stages = {"quick": {"steps": [obey()], "retries": 0, "deadline_s": 300.0}, "total": total()}
    site = new_site(declare(stages, instrument={"closing": {"count": 6}}))
    async with site.running():
        for subrun in range(4):
            site.arrive(subrun, "sleep 0.2", age_s=5.0)
        site.arrive(4, "fail")
        site.arrive(5, age_s=1000.0)
        await site.until_settled(7)
    taken_at = {row.id: row.taken_at for row in site.rows(schema.sub_job)}
    runs = {row.id: row for row in site.rows(schema.stage_run) if row.stage == "quick"}
    tries = [row for row in site.rows(schema.attempt) if row.state == "done" and row.stage_run_id in runs]
    latencies = [row.published_at - taken_at[runs[row.stage_run_id].sub_job_id] for row in tries]
    steps = [sum(step["ended_at"] - step["started_at"] for step in row.steps) for row in tries]

    # Another file now declares another deadline: what was asked for then counts.
    site.declare(declare({"quick": {"steps": [obey()], "deadline_s": 1.0}, "total": total()}))
    with open_experiment(site.path) as books:
        coverage, found = books.coverage_report("run=1"), books.latency_report("run=1")
    units, quick, group, whole = coverage.rows
    assert (units.stage, quick.stage, group.per, whole.stage) == (None, "quick", "group", "total")
    for row in (units, quick):
        assert (row.seen, row.done, row.failed, row.expired, row.open) == (6, 4, 1, 1, 0)
    assert (whole.seen, whole.done, whole.balances) == (1, 1, True)
    row = found.rows[1]
    assert row.total is not None
    assert row.total.p50_s == pytest.approx(median(latencies), abs=1e-5)
    assert row.total.longest_s == pytest.approx(max(latencies), abs=1e-5)
    assert (row.deadlines_s, row.in_time, row.in_time_of_done, row.in_time_of_due) == ((300.0,), 4, 1.0, 4 / 6)
    by_label = {phase.label: phase for phase in row.phases}
    assert by_label["waited for arrival"].spread.p50_s >= 5.0
    assert (by_label["obey"].kind, by_label["obey"].spread.count) == (PhaseKind.RUNNING, 4)
    assert by_label["obey"].spread.p50_s == pytest.approx(median(steps), abs=1e-5)
    assert by_label["obey"].spread.p50_s >= 0.2
    assert sum(phase.spread.mean_s for phase in row.phases) == pytest.approx(row.total.mean_s, abs=1e-3)
    assert found.rows[3].deadlines_s == ()
