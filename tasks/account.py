"""What became of a production: the table that Prefect shows, and the flow's last state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from p3s_prefect.adapters.ledger.selected import SelectedStage
from p3s_prefect.core.states import StageState

# A table artifact is one JSON document; the page that shows it does not hold more.
_MOST_ROWS = 1000
_GOOD = (StageState.DONE, StageState.PRESCALED)


def show_account(stages: Sequence[SelectedStage], kept_out: Mapping[str, str]) -> State[Any]:
    """Records the table, what went wrong first, and returns the state in which the flow ends."""
    rows = [_row(stage) for stage in sorted(stages, key=lambda stage: stage.state in _GOOD)]
    rows = [
        {"unit": file, "stage": "", "state": "kept out", "seconds": "", "why": why} for file, why in kept_out.items()
    ] + rows
    counts = Counter(str(stage.state) for stage in stages)
    told = ", ".join(f"{number} {state}" for state, number in counts.most_common()) or "nothing to run"
    create_table_artifact(rows[:_MOST_ROWS], key="production", description=f"Stage runs: {told}.")
    return _state(counts, len(kept_out), told)


def _state(counts: Counter[str], kept_out: int, told: str) -> State[Any]:
    failed = counts[StageState.FAILED]
    open_runs = sum(number for state, number in counts.items() if not StageState(state).is_terminal)
    wrong = [(failed, "stage runs failed"), (open_runs, "have not ended"), (kept_out, "files were kept out")]
    complaints = [f"{number} {what}" for number, what in wrong if number]
    if not complaints:
        return Completed(message=told)
    return Failed(
        message=f"{', '.join(complaints)} (of all: {told}); the table artifact says why, "
        "and `p3s show` has the log of each."
    )


def _row(stage: SelectedStage) -> dict[str, Any]:
    return {
        "unit": stage.data_id,
        "stage": f"{stage.pipeline}/{stage.stage}",
        "state": str(stage.state),
        "seconds": "" if stage.seconds is None else round(stage.seconds, 2),
        "why": stage.reason,
    }
