"""What is to stand in Prefect about a pass: computed from the ledger alone, so that doing it again gives the same."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from p3s_prefect.adapters.ledger.pass_facts import PassFacts, StageTotal
from p3s_prefect.adapters.pass_artifacts import account, counted
from p3s_prefect.agent.states import (
    Kind,
    RecordedState,
    attempt_states,
    in_order,
    unstarted_state,
    waits_again,
)
from p3s_prefect.core.states import StageState
from p3s_prefect.core.views import StageRow, UnitRow

_BAD = (StageState.FAILED, StageState.EXPIRED, StageState.BLOCKED)


@dataclass(frozen=True, kw_only=True)
class TaskRunRecord:
    """A task run: an attempt, a stage run that waits or was left out, or a stage over all units of a large group.

    `*_at` is UTC in seconds since 1970.
    """

    id: uuid.UUID
    name: str
    task_key: str
    dynamic_key: str
    tags: tuple[str, ...]
    parents: tuple[uuid.UUID, ...]
    expected_at: float
    started_at: float | None
    ended_at: float | None
    busy_s: float
    run_count: int
    labels: Mapping[str, str | int]
    states: tuple[RecordedState, ...]
    """Oldest first; the times rise."""
    log_key: str | None = None
    """The log of an attempt that failed, in the store."""


@dataclass(frozen=True, kw_only=True)
class FlowRunRecord:
    """A flow run: one pass of a job."""

    flow: str
    name: str
    idempotency_key: str
    tags: tuple[str, ...]
    parameters: Mapping[str, str | int]
    labels: Mapping[str, str | int]
    state: RecordedState


class PassRecord:
    """Everything that is to stand in Prefect about a pass."""

    def __init__(self, facts: PassFacts, *, site: uuid.UUID, experiment: str, most_units: int) -> None:
        self.facts = facts
        self.is_large = facts.unit_count > most_units
        self._site = site
        self._experiment = experiment
        self._per = {stage.name: stage.per for stage in facts.stages}
        self._after = {stage.name: stage.after for stage in facts.stages}
        self._by_stage: dict[str, list[StageRow]] = {}
        for unit in facts.units:
            for stage in unit.stages:
                self._by_stage.setdefault(stage.stage, []).append(stage)

    # --- the flow run -----------------------------------------------------------------------------------------------

    def flow_run(self) -> FlowRunRecord:
        """The flow run with the state that it is to have."""
        facts = self.facts
        named: dict[str, str | int] = {"group": facts.group, "pipeline": facts.pipeline, "pass": facts.number}
        return FlowRunRecord(
            flow=facts.pipeline,
            name=f"{facts.pipeline} {facts.group} pass {facts.number}",
            idempotency_key=f"p3s-{self._site}-{facts.id}",
            tags=("p3s", f"experiment:{self._experiment}", f"day:{facts.day}"),
            parameters=named | {"run_collection": facts.collection},
            labels={"p3s.experiment": self._experiment} | {f"p3s.{name}": value for name, value in named.items()},
            state=self._flow_state(),
        )

    def _flow_state(self) -> RecordedState:
        facts = self.facts
        counts: Counter[str] = Counter()
        for total in facts.totals:
            counts.update(total.counts)
        told = account(facts)
        at = max((t.settled_at for t in facts.totals if t.settled_at is not None), default=facts.opened_at)
        if not facts.is_settled:
            return RecordedState(kind=Kind.RUNNING, name="Running", at=facts.opened_at)
        kind = _ended_as(counts)
        return RecordedState(kind=kind, name=kind.capitalize(), at=at, message=told)

    # --- task runs --------------------------------------------------------------------------------------------------

    def task_runs(self, *, reopened: bool = False) -> list[TaskRunRecord]:
        """The task runs to which something happened; `reopened` if the pass had ended, and goes on with a retry."""
        return [*self._totals(reopened), *self._touched()] if self.is_large else list(self._touched())

    def last_id(self, stage: StageRow) -> uuid.UUID:
        """The task run that stands for a stage run as it is now."""
        return self._id(stage, len(stage.attempts) - (not waits_again(stage)))

    def _touched(self) -> Iterator[TaskRunRecord]:
        for unit in self.facts.units:
            if unit.id not in self.facts.touched:
                continue
            for stage in unit.stages:
                if not self.is_large or unit.per == "group" or _went_wrong(stage):
                    yield from self._of_stage_run(unit, stage)

    def _of_stage_run(self, unit: UnitRow, stage: StageRow) -> Iterator[TaskRunRecord]:
        begun_at = unit.arrived_at if stage.queued_at is None else stage.queued_at
        for attempt in stage.attempts:
            started_at = attempt.opened_at if attempt.started_at is None else attempt.started_at
            yield self._task_run(
                unit,
                stage,
                attempt.number,
                expected_at=min(begun_at, attempt.opened_at),
                started_at=started_at,
                ended_at=attempt.ended_at,
                states=attempt_states(attempt),
                labels={"p3s.pilot": attempt.pilot} if attempt.pilot else {},
                log_key=attempt.log_key if attempt.state in ("failed", "expired") else None,
            )
        if waits_again(stage):
            state = unstarted_state(stage, arrived_at=unit.arrived_at, changed_at=self.facts.changed_at.get(stage.id))
            ended_at = state.at if StageState(stage.state).is_terminal else None
            yield self._task_run(
                unit,
                stage,
                len(stage.attempts),
                expected_at=begun_at,
                started_at=ended_at,
                ended_at=ended_at,
                states=(state,),
            )

    def _task_run(
        self,
        unit: UnitRow,
        stage: StageRow,
        number: int,
        *,
        expected_at: float,
        started_at: float | None,
        ended_at: float | None,
        states: tuple[RecordedState, ...],
        labels: Mapping[str, str | int] | None = None,
        log_key: str | None = None,
    ) -> TaskRunRecord:
        short = " ".join(part for part in unit.data_id.split() if part not in self.facts.group.split())
        name = f"{stage.stage} {short}".strip() + (f" (try {number + 1})" if number else "")
        named: dict[str, str | int] = {"p3s.data_id": unit.data_id, "p3s.stage_run": stage.id, "p3s.attempt": number}
        return TaskRunRecord(
            id=self._id(stage, number),
            name=name,
            task_key=f"{self.facts.pipeline}/{stage.stage}",
            dynamic_key=f"{stage.id}-{number}",
            tags=(f"stage:{stage.stage}", f"per:{unit.per}"),
            parents=(self._id(stage, number - 1),) if number else tuple(self._parents(unit, stage)),
            expected_at=expected_at,
            started_at=started_at,
            ended_at=ended_at,
            busy_s=0.0 if started_at is None or ended_at is None else max(0.0, ended_at - started_at),
            run_count=int(started_at is not None),
            labels=named | dict(labels or {}),
            states=states,
            log_key=log_key,
        )

    def _parents(self, unit: UnitRow, stage: StageRow) -> Iterator[uuid.UUID]:
        own = {found.stage: found for found in unit.stages}
        for parent in self._after.get(stage.stage, ()):
            if self.is_large and self._per.get(parent) == "unit":
                yield self._total_id(parent)
            elif parent in own:
                yield self.last_id(own[parent])
            else:
                yield from (self.last_id(gathered) for gathered in self._by_stage.get(parent, ()))

    def _totals(self, reopened: bool) -> Iterator[TaskRunRecord]:
        for total in self.facts.totals:
            if self._per.get(total.stage) == "unit":
                yield self._total(total, reopened)

    def _total(self, total: StageTotal, reopened: bool) -> TaskRunRecord:
        facts = self.facts
        begun_at = facts.opened_at if total.queued_at is None else total.queued_at
        ended_at = None if facts.is_open or total.is_open else total.settled_at
        started_at = total.opened_at if total.opened_at is not None else ended_at
        return TaskRunRecord(
            id=self._total_id(total.stage),
            name=total.stage,
            task_key=f"{facts.pipeline}/{total.stage}",
            dynamic_key="total",
            tags=(f"stage:{total.stage}", "per:total"),
            parents=tuple(self._total_id(parent) for parent in self._after.get(total.stage, ())),
            expected_at=begun_at,
            started_at=started_at,
            ended_at=ended_at,
            busy_s=total.busy_s,
            run_count=int(started_at is not None),
            labels={"p3s.units": facts.unit_count},
            states=_total_states(total, begun_at, ended_at, reopened),
        )

    def _id(self, stage: StageRow, number: int) -> uuid.UUID:
        return uuid.uuid5(self._site, f"stage run {stage.id} try {number}")

    def _total_id(self, stage: str) -> uuid.UUID:
        return uuid.uuid5(self._site, f"pass {self.facts.id} stage {stage}")


def event_id(task_run: TaskRunRecord, state: RecordedState) -> uuid.UUID:
    """The id of a state, the same whenever it is computed."""
    return uuid.uuid5(task_run.id, f"{state.name} {state.at!r}")


def _went_wrong(stage: StageRow) -> bool:
    """Whether it failed or expired, also where it was tried again; and whether it was lost with its pilot."""
    return bool(stage.failures or stage.losses) or stage.state in (StageState.FAILED, StageState.EXPIRED)


def _ended_as(counts: Mapping[str, int]) -> Kind:
    """What stage runs have come to together. Who cancels what is under way leaves what was done before."""
    if any(counts.get(state) for state in _BAD):
        return Kind.FAILED
    return Kind.CANCELLED if counts.get(StageState.CANCELLED) else Kind.COMPLETED


def _total_states(
    total: StageTotal, begun_at: float, ended_at: float | None, reopened: bool
) -> tuple[RecordedState, ...]:
    running = [RecordedState(kind=Kind.PENDING, name="Queued", at=begun_at)]
    if total.opened_at is not None:
        running = [RecordedState(kind=Kind.RUNNING, name="Running", at=total.opened_at)]
    if ended_at is not None:
        kind = _ended_as(total.counts)
        return in_order(
            [*running, RecordedState(kind=kind, name=kind.capitalize(), at=ended_at, message=counted(total))]
        )
    if reopened and total.queued_last_at is not None:
        running.append(RecordedState(kind=Kind.RUNNING, name="Retrying", at=total.queued_last_at))
    return in_order(running)
