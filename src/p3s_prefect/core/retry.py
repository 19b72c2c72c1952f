"""What becomes of a stage run whose execution gave no results: has the world changed, and is there time?"""

from __future__ import annotations

from dataclasses import dataclass

from p3s_prefect.core.experiment import Stage
from p3s_prefect.core.records import Failure
from p3s_prefect.core.states import StageState

# A unit that takes its pilot down with it must not take all of them: the third loss counts as the unit's own failure.
MOST_LOSSES = 3
MOST_BACKOFF_DOUBLINGS = 6


@dataclass(frozen=True, kw_only=True)
class NextState:
    """The next state of the stage run; back in the queue, it waits for `delay_s`."""

    state: StageState
    delay_s: float = 0.0


def after_failure(stage: Stage, failure: Failure, failures: int) -> NextState:
    """The next state after an execution that failed; `failures` counts this one too."""
    match failure:
        case Failure.DEADLINE:
            return NextState(state=StageState.EXPIRED)
        case Failure.STOPPED:
            return NextState(state=StageState.QUEUED)
        case Failure.INPUT:
            return NextState(state=StageState.FAILED)
    if failures > stage.retries:
        return NextState(state=StageState.FAILED)
    return NextState(state=StageState.QUEUED, delay_s=backoff_s(stage, failures))


def backoff_s(stage: Stage, failures: int) -> float:
    """How long a stage waits before it is tried again, after so many failures."""
    doublings = min(failures - 1, MOST_BACKOFF_DOUBLINGS)
    return stage.backoff_s * float(2**doublings)


def after_loss(losses: int) -> NextState:
    """The next state after a stage run whose pilot was lost; `losses` counts this one too."""
    return NextState(state=StageState.FAILED if losses >= MOST_LOSSES else StageState.QUEUED)
