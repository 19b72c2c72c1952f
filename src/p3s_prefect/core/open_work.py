"""What is open: sub-jobs with their stage runs, and the passes whose group stages wait for them.

A hundred thousand of them may be open at once, so they are small: no dictionary each, and everything that they have in
common is shared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.flow import Flow, Load
from p3s_prefect.core.heap import Heap
from p3s_prefect.core.plan import PlannedStage
from p3s_prefect.core.states import TERMINAL, StageState

Entry = tuple[float, int, "Run"]
"""In a heap: smallest goes first, of equal ones the run with the smaller id."""
Lane = tuple[int, bool, bool]
"""What goes before the order: minus the priority, whether it is on standby, and whether the unit has not started.
Smaller goes first."""


@dataclass(slots=True, kw_only=True, eq=False)
class SubJob:
    """An open sub-job."""

    id: int
    flow: Flow
    data_id: DataId
    taken_at: float
    u: float
    is_unit: bool
    own_pass: Pass
    earlier_passes: tuple[Pass, ...]
    """For a group's: those whose units it gathers too."""
    runs: tuple[Run | None, ...] = ()
    """By position in the plan; None where a stage is not its own. Empty once it is settled, and forgotten."""
    started: bool = False
    is_asked: bool = False
    """Whether somebody asked for it by hand, so that it is queued as what was let in."""
    is_owed: bool = False
    """Whether a floor lets it in, so that it is owed a slot in time however much stands before it."""

    def __iter__(self) -> Iterator[Run]:
        return filter(None, self.runs)

    @property
    def settled(self) -> bool:
        """Whether nothing of it is open."""
        return all(run.state.is_terminal for run in self)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Its own, and for a group's those whose units it gathers too."""
        return (self.own_pass, *self.earlier_passes)


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """A stage run of an open sub-job."""

    id: int
    stage: PlannedStage
    load: Load
    """That of its stage."""
    sub_job: SubJob
    state: StageState
    q: float
    deadline: float
    not_before: float = 0.0
    cause: str = ""
    """Why it is blocked: of which ancestor."""
    in_flight: bool = False
    is_short: bool = False
    """Whether it was taken for one that takes little time when it began (see `at_pilots`)."""
    is_claimed: bool = False
    """Whether it has its entry among what floors owe a slot."""
    ready_in: Heap[Run] | None = None
    """The lane of its pipeline's queue in which it was ready last."""
    entry: Entry | None = None
    """While it is ready to start, its entry in the queue; another one that names it is stale."""
    due: Entry | None = None
    """While it is queued, its entry among the deadlines, or if it stands by, among what does; None without either."""

    def __lt__(self, other: Run) -> bool:
        """Entries of one key and id are those of a run that is retried: the older is stale, so either may go first."""
        return False

    @property
    def is_left_out(self) -> bool:
        """Whether chance has left it out, in overload."""
        return self.sub_job.u >= self.q

    @property
    def is_standby(self) -> bool:
        """Whether it is left out, so that it starts only where a slot would idle, or go to a lower priority.

        Nothing is without a deadline, nor what was asked for by hand; that stays left out for statistics all the same.
        """
        return self.sub_job.u >= self.q and not self.sub_job.is_asked and self.stage.needed_in_s < math.inf

    @property
    def parents(self) -> list[Run]:
        """Those of its own sub-job that it comes after."""
        runs = self.sub_job.runs
        return [parent for position in self.stage.parents if (parent := runs[position]) is not None]


@dataclass(slots=True, eq=False)
class Pass:
    """What of a pass is open: a group's stage waits until none of the units has a stage before it open."""

    id: int
    group: DataId
    units: int = 0
    groups: dict[int, SubJob] = field(default_factory=dict)
    open: Counter[str] = field(default_factory=Counter)
    """Number of its units of which this stage is not settled, by stage."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is open."""
        return not self.units and not self.groups

    def add(self, sub_job: SubJob) -> None:
        """Takes a sub-job of its own, or a group's of a later pass."""
        if not sub_job.is_unit:
            self.groups[sub_job.id] = sub_job
            return
        self.units += 1
        for run in sub_job:
            self.open[run.stage.name] += not run.state.is_terminal

    def moved(self, run: Run, state: StageState) -> None:
        """One of its runs is about to go to `state`."""
        if run.sub_job.is_unit and (by := (run.state in TERMINAL) - (state in TERMINAL)):
            self.open[run.stage.name] += by

    def remove(self, sub_job: SubJob) -> None:
        """A sub-job is settled."""
        if sub_job.is_unit:
            self.units -= 1
        else:
            self.groups.pop(sub_job.id, None)
