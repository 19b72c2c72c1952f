"""Thinning again: what was let in and cannot end in time any more is left out at random, in place of expiring."""

from __future__ import annotations

from collections.abc import Iterable

from p3s_prefect.core.admission import left_out
from p3s_prefect.core.controller import LEAST_Q, Controller
from p3s_prefect.core.open_runs import OpenRuns
from p3s_prefect.core.open_work import Run
from p3s_prefect.core.queues import Queues
from p3s_prefect.core.records import Transition
from p3s_prefect.core.states import StageState


def thin_again(opened: OpenRuns, queues: Queues, controller: Controller, now: float) -> list[Transition]:
    """Of the queue of each tier that has let in too much, keeps what still ends in time; returns what changed."""
    changes: list[Transition] = []
    for tier, share in controller.overfull(now).items():
        queued = [
            run
            for run in opened.by_id.values()
            if run.state is StageState.QUEUED and not run.is_left_out and controller.in_tier(run, tier)
        ]
        # What was asked for by hand is never left out, so its probability stays what it is.
        open_to_chance = [run for run in queued if run.sub_job.u > 0 and not run.sub_job.is_asked]
        asked_for = len(queued) - len(open_to_chance)
        most_q = _cap([(run.q, _floor(run)) for run in open_to_chance], share * len(queued) - asked_for)
        for run in open_to_chance:
            q = min(run.q, max(most_q, _floor(run), LEAST_Q))
            if q < run.q:
                _thin(opened, queues, run, q, changes)
    return changes


def _thin(opened: OpenRuns, queues: Queues, run: Run, q: float, changes: list[Transition]) -> None:
    opened.set_q(run, q)
    why = left_out(run.state, run.sub_job.u, q)
    changes.append(Transition(stage_run_id=run.id, old=run.state, new=run.state, q=q, reason=why))
    if run.is_left_out:
        opened.leave_out_after(run, changes)
        queues.add(run)


def _floor(run: Run) -> float:
    return run.sub_job.flow.plan.floor(run.sub_job.data_id)


def _cap(found: Iterable[tuple[float, float]], stay: float) -> float:
    """The q that none may exceed, but for its floor, so that so many of them stay let in; (q, floor) of each.

    One that was let in with q stays with min(1, max(cap, floor) / q), so that who was let in freely is thinned first.
    """
    turns = []
    sum_at_cap, slope, cap = 0.0, 0.0, 0.0
    for q, floor in found:
        least = min(floor, q)
        sum_at_cap += least / q
        turns += [(least, 1 / q), (q, -1 / q)]
    for following, change in sorted(turns):
        rise = slope * (following - cap)
        if sum_at_cap + rise >= stay:
            return cap + (stay - sum_at_cap) / slope if slope > 0 else cap
        sum_at_cap, slope, cap = sum_at_cap + rise, slope + change, following
    return cap
