"""How statistics see stage runs: which one of a unit in several passes counts, and for how many units it stands.

What chance has left out is left out, also where it ran because a slot was left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Row, and_, case, exists, or_

from p3s_prefect.adapters.ledger.schema import production_pass, stage_run, sub_job
from p3s_prefect.core.states import LEFT_OUT, StageState


def _is_sampled(run: FromClause, unit: FromClause) -> ColumnElement[bool]:
    return unit.c.u < run.c.q


def _sampled_state(run: FromClause, unit: FromClause) -> ColumnElement[str]:
    is_told = or_(_is_sampled(run, unit), run.c.state == StageState.PRESCALED)
    return case((is_told, run.c.state), else_=StageState.SHED.value)


IS_SAMPLED = _is_sampled(stage_run, sub_job)
"""Whether chance let it through; only then it stands for others, and for itself."""
SAMPLED_STATE = _sampled_state(stage_run, sub_job).label("state")
"""Its state; shed if overload had left it out, whatever became of it on standby."""
IS_BY_HAND = and_(sub_job.c.u == 0, sub_job.c.asked_at.is_not(None)).label("is_by_hand")
"""Whether somebody let it in, whatever chance would have done."""


def counts(last_pass: int | None = None) -> ColumnElement[bool]:
    """Whether a stage run stands for its unit: of several passes the newest that is done does, else the newest.

    Passes after `last_pass` are not looked at.
    """
    other, unit, its_pass = stage_run.alias(), sub_job.alias(), production_pass.alias()
    is_done = _sampled_state(other, unit) == StageState.DONE
    own_is_not = SAMPLED_STATE.element != StageState.DONE
    is_later = its_pass.c.number > production_pass.c.number
    found = exists().where(
        unit.c.data_id == sub_job.c.data_id,
        unit.c.per == sub_job.c.per,
        its_pass.c.id == unit.c.pass_id,
        its_pass.c.job_id == production_pass.c.job_id,
        other.c.sub_job_id == unit.c.id,
        other.c.stage == stage_run.c.stage,
        or_(and_(is_done, own_is_not), and_(is_later, or_(is_done, own_is_not))),
    )
    return ~found if last_pass is None else ~found.where(its_pass.c.number <= last_pass)


def probabilities(runs: Mapping[str, Row[Any]]) -> dict[str, float]:
    """How likely each unit was to be let in, of all that count at a stage of a group; by unit.

    That is q. But where somebody has let in by hand whatever chance had left out, each was sure to come.
    """
    is_whole = any(run.is_by_hand for run in runs.values()) and all(run.state not in LEFT_OUT for run in runs.values())
    return {unit: 1.0 if is_whole else run.q for unit, run in runs.items()}
