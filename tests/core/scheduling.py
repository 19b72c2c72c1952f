"""What the scheduling tests share: random pipelines, and a ledger in memory whose every move is a compare-and-set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

from hypothesis import strategies as st

from p3s_prefect.core import dag
from p3s_prefect.core.admission import Admission, admit_group, admit_unit
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Decisions
from p3s_prefect.core.experiment import Pipeline, Stage, Step
from p3s_prefect.core.records import StageFact, SubJobFact, Transition
from p3s_prefect.core.states import StageState, may_move

STEP = Step(name="work", command=["true"])


def stage(**values: Any) -> Stage:
    return Stage(steps=[STEP], **values)


def chain(*names: str, **values: Any) -> Pipeline:
    """Stages one after the other."""
    after = dict(zip(names, [[], *([name] for name in names[:-1])], strict=True))
    return Pipeline(stages={name: stage(after=after[name]) for name in names}, **values)


@st.composite
def pipelines(draw: st.DrawFn, *, prescales: bool = True) -> Pipeline:
    """Random DAGs of up to 6 stages per unit and 3 per group, declared in an order of their own."""
    units = [f"u{index}" for index in range(draw(st.integers(1, 6)))]
    groups = [f"g{index}" for index in range(draw(st.integers(0, 3)))]
    shares = st.sampled_from([1.0, 1.0, 0.6, 0.2]) if prescales else st.just(1.0)
    stages = {}
    for index, name in enumerate(units):
        after = draw(st.lists(st.sampled_from(units[:index]), max_size=3, unique=True)) if index else []
        stages[name] = stage(after=after, prescale=draw(shares))
    for index, name in enumerate(groups):
        after = draw(st.lists(st.sampled_from(units + groups[:index]), min_size=1, max_size=3, unique=True))
        stages[name] = stage(after=after, per="group")
    declared = draw(st.permutations(list(stages)))
    return Pipeline(
        stages={name: stages[name] for name in declared},
        limit=draw(st.sampled_from([None, None, 1, 2])),
        priority=draw(st.integers(-1, 1)),
    )


class PlayedLedger:
    """Sub-jobs and their stage runs as the ledger would have them."""

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self.pipelines = pipelines
        self.facts: dict[int, SubJobFact] = {}
        self.states: dict[int, StageState] = {}
        self.q: dict[int, float] = {}
        self.sub_job_of: dict[int, int] = {}
        self.stage_of: dict[int, str] = {}
        self._numbers = count(1)

    def take(self, pipeline: str, *, pass_id: int = 1, taken_at: float = 0.0, u: float = 0.0) -> SubJobFact:
        """A unit's new sub-job."""
        admission = admit_unit(pipeline, self.pipelines[pipeline], u=u, first_q=1.0)
        return self._let_in(admission, pass_id, taken_at)

    def close(
        self, pipeline: str, *, pass_id: int = 1, now: float = 0.0, earlier: tuple[int, ...] = ()
    ) -> SubJobFact | None:
        """The new sub-job of a closed group, if the pipeline has stages for it."""
        admission = admit_group(pipeline, self.pipelines[pipeline])
        return admission and self._let_in(admission, pass_id, now, earlier)

    def _let_in(self, admission: Admission, pass_id: int, taken_at: float, earlier: tuple[int, ...] = ()) -> SubJobFact:
        sub_job_id = next(self._numbers)
        stages = tuple(StageFact(id=next(self._numbers), stage=s.stage, state=s.state, q=s.q) for s in admission.stages)
        for run in stages:
            self.states[run.id], self.sub_job_of[run.id] = run.state, sub_job_id
            self.stage_of[run.id], self.q[run.id] = run.stage, run.q
        self.facts[sub_job_id] = SubJobFact(
            id=sub_job_id,
            pass_id=pass_id,
            pipeline=admission.pipeline,
            data_id=DataId.of(run=pass_id, number=sub_job_id),
            group=DataId.of(run=pass_id),
            per=admission.per,
            taken_at=taken_at,
            u=admission.u,
            stages=stages,
            earlier_passes=earlier,
        )
        return self.facts[sub_job_id]

    def apply(self, changes: Iterable[Transition]) -> None:
        for change in changes:
            if change.q is not None:
                assert change.q <= self.q[change.stage_run_id]
                self.q[change.stage_run_id] = change.q
            if change.new is change.old:
                assert change.q is not None
                assert self.states[change.stage_run_id] is change.old
            else:
                self.move(change.stage_run_id, change.old, change.new)

    def move(self, stage_run_id: int, old: StageState, new: StageState) -> None:
        assert self.states[stage_run_id] is old
        assert may_move(old, new)
        self.states[stage_run_id] = new

    def write(self, decisions: Decisions) -> None:
        """Records what the dispatcher decided; a stage starts only when all that it comes after allows it."""
        self.apply(decisions.transitions)
        for start in decisions.starts:
            self.assert_may_start(start.stage_run_id)
            self.move(start.stage_run_id, StageState.QUEUED, StageState.RUNNING)

    def assert_may_start(self, stage_run_id: int) -> None:
        fact, name = self.facts[self.sub_job_of[stage_run_id]], self.stage_of[stage_run_id]
        pipeline = self.pipelines[fact.pipeline]
        own = self.by_stage(fact.id)
        assert all(own[parent] is StageState.DONE for parent in dag.parents(pipeline, name) if parent in own)
        if fact.per == "group":
            before = dag.ancestors(pipeline, name)
            units = [self.by_stage(other.id) for other in self.facts.values() if self._is_unit_of(other, fact)]
            assert all(state.is_terminal for unit in units for name, state in unit.items() if name in before)

    @staticmethod
    def _is_unit_of(other: SubJobFact, group: SubJobFact) -> bool:
        return other.per == "unit" and (other.pass_id, other.pipeline) == (group.pass_id, group.pipeline)

    def by_stage(self, sub_job_id: int) -> dict[str, StageState]:
        return {run.stage: self.states[run.id] for run in self.facts[sub_job_id].stages}

    def running(self) -> list[int]:
        return [number for number, state in self.states.items() if state is StageState.RUNNING]

    def count(self, state: StageState) -> int:
        return sum(found is state for found in self.states.values())

    def restart(self) -> list[SubJobFact]:
        """What a new station finds: running ones back in the queue; open sub-jobs, units before groups."""
        for number in self.running():
            self.move(number, StageState.RUNNING, StageState.QUEUED)
        for fact in self.facts.values():
            now = tuple(replace(run, state=self.states[run.id], q=self.q[run.id]) for run in fact.stages)
            self.facts[fact.id] = replace(fact, stages=now)
        found = [f for f in self.facts.values() if not all(self.states[run.id].is_terminal for run in f.stages)]
        return sorted(found, key=lambda fact: fact.per == "group")

    def account(self) -> dict[tuple[int, str], StageState]:
        """The state of every stage run, by sub-job and stage."""
        return {(self.sub_job_of[number], self.stage_of[number]): state for number, state in self.states.items()}
