"""A small night on real pilots, and the same night in virtual time: the same account (P21)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from sites import NewSite, Site, declare, obey, shell, total

from p3s_prefect.adapters.ledger import views
from p3s_prefect.adapters.what_if import Question, answer
from p3s_prefect.core.reports import scope
from p3s_prefect.core.simulation_results import Tally

pytestmark = pytest.mark.sockets

_STATES = ("seen", "done", "prescaled", "shed", "expired", "failed", "blocked")


def _account(site: Site) -> dict[str, Counter[str]]:
    rows = site.read(views.account)
    return {row.stage: Counter({state: getattr(row, state) for state in _STATES}) for row in rows}


def _simulated(tallies: tuple[Tally, ...]) -> dict[str | None, Counter[str]]:
    return {row.stage: Counter({state: getattr(row, state) for state in _STATES}) for row in tallies}


async def test_a_recorded_night_is_played_to_the_same_account(new_site: NewSite) -> None:
    """P21: exactly, where nothing was dropped in overload: done, prescaled, tried again, failed for good, expired by
    its age, blocked, and the group's own stage; and each stage took as long.
    """
    stages: dict[str, Any] = {
        "quick": {"steps": [obey("quick")], "retries": 1, "backoff_s": 0.1, "deadline_s": 600},
        "deep": {"after": ["quick"], "prescale": 0.5, "steps": [shell("sleep 0.1")]},
        "total": total(),
    }
    site = new_site(declare(stages, instrument={"closing": {"count": 24}}, seed=3))
    async with site.running(slots=2):
        for subrun in range(21):
            site.arrive(subrun, "quick: sleep 0.05")
        site.arrive(21, "quick: fail")
        site.arrive(22, age_s=3600)
        site.arrive(23, "quick: sleep 0.3")
        await site.until_settled(25)
    recorded = _account(site)
    assert recorded["quick"] == Counter(seen=24, done=22, failed=1, expired=1)
    question = Question(scope=scope(site.experiment.instrument, "run=1", now=0.0))
    found = answer(site.home, question)
    assert _simulated(found.a.stages) == recorded
    (of_class,) = found.a.classes
    assert of_class.in_time == sum(counts["done"] for counts in recorded.values())
    p50_s = {tally.stage: tally.p50_s for tally in found.a.stages}
    taken = {row.id: row.taken_at for row in site.rows(views.sub_job)}
    ended = sorted(
        attempt.ended_at - taken[stage.sub_job_id]
        for stage in site.rows(views.stage_run)
        for attempt in site.rows(views.attempt)
        if attempt.stage_run_id == stage.id and stage.stage == "quick" and attempt.state == "done"
    )
    assert p50_s["quick"] is not None
    # Real stages also wait for the station's round trips, so that they cannot end earlier than played ones by much.
    assert 0 < p50_s["quick"] < 1.5 * ended[len(ended) // 2]
