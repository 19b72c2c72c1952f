"""Why something waits, or was dropped: every state on a real ledger, with its rule and its release (B12)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from builders import DAY, NOW, arrival, collections, manifest
from sqlalchemy import Connection, event, update

from p3s_prefect.adapters.ledger import arrivals, asked, breakers, execution, groups, overrides, views
from p3s_prefect.adapters.ledger.arrivals import Intake
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.ledger.schema import sub_job
from p3s_prefect.adapters.ledger.why import case_of
from p3s_prefect.core import dag
from p3s_prefect.core.admission import Admission, StagePlan, admit_by_hand, admit_group
from p3s_prefect.core.breaker import BreakerState
from p3s_prefect.core.closing import GroupFact
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName, NoSuchRecord
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.other_input import REMEDY, OtherInput
from p3s_prefect.core.overrides import Controls, OverrideKind, Target
from p3s_prefect.core.ports import Refusal
from p3s_prefect.core.records import StageReport, SubJobFact, Transition, Verdict
from p3s_prefect.core.retry import Which
from p3s_prefect.core.states import StageState
from p3s_prefect.core.why import explain
from p3s_prefect.core.why_arrivals import expected_files
from p3s_prefect.core.why_asked import asked_why
from p3s_prefect.core.why_facts import Explanation, Reason, StageWhy, StationCase

_S = StageState
UP = StationCase(slots=2, started_at=NOW - 60)


def _stage(made: str, read: str = "raw", **fields: Any) -> dict[str, Any]:
    step = {"name": "work", "command": ["true"], "inputs": {"read": read}, "outputs": {"made": made}, "timeout_s": 30}
    return {"steps": [step], **fields}


def declared(**changes: Any) -> Experiment:
    """Two pipelines; the first with a chain of three stages, of which the last is per group."""
    found: dict[str, Any] = {
        "experiment": "test",
        "instrument": {
            "name": "TestCam",
            "dimensions": {"run": "int", "subrun": "int"},
            "group": ["run"],
            "closing": {"count": 10, "quiet_s": 60, "marker": "run{run:05d}.closed"},
        },
        "dataset_types": {name: {"format": "json"} for name in ("raw", "quick", "deep", "total", "alert")},
        "classes": {"prompt": {"priority": 3, "limit": 5}},
        "pipelines": {
            "dqm": {
                "class": "prompt",
                "order": "oldest-first",
                "limit": 3,
                "stages": {
                    "quick": _stage("quick", retries=2, backoff_s=8, deadline_s=60),
                    "deep": _stage("deep", "quick", after=["quick"], prescale=0.5),
                    "total": _stage("total", "quick", after=["quick"], per="group"),
                },
            },
            "alerts": {"priority": 7, "stages": {"alert": _stage("alert")}},
        },
        "streams": {
            "raw": {
                "directory": "incoming",
                "pattern": "run{run:05d}_{subrun:04d}.fits",
                "dataset_type": "raw",
                "prescale": 0.8,
                "complete": {"by": "marker"},
                "rules": [{"when": {"run": 9}, "pipelines": []}, {"when": {"run": 1}, "pipelines": ["dqm"]}],
            }
        },
    }
    return Experiment.model_validate(found | changes)


class Books:
    """A ledger that is filled through the functions of the station, and asked."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.experiment = declared()
        self.station = UP
        self.at = NOW
        self.standing: frozenset[str] = frozenset()

    def do(self, write: Callable[..., Any], *args: Any, **fields: Any) -> Any:
        with self.ledger.transaction() as connection:
            return write(connection, *args, **fields)

    def take(
        self,
        subrun: int = 0,
        *,
        run: int = 1,
        pipeline: str | None = "dqm",
        u: float = 0.25,
        begins: Mapping[str, tuple[StageState, float]] | None = None,
        at: float = NOW,
        **fields: Any,
    ) -> SubJobFact | None:
        """A unit arrives; `begins` says in which state, and with which q, stages begin that do not wait or queue."""
        seen = arrival(subrun, run=run, at=at, mtime_ns=int(at * 1e9), **fields)
        admissions = () if pipeline is None else (self._admission(pipeline, u, begins or {}),)
        intake = Intake(group=seen.data_id.subset(["run"]), day=DAY, admissions=admissions)
        taken = self.do(arrivals.take, seen, intake, collections("dqm", "alerts"))
        return taken.sub_jobs[0] if taken.sub_jobs else None

    def _admission(self, name: str, u: float, begins: Mapping[str, tuple[StageState, float]]) -> Admission:
        pipeline = self.experiment.pipelines[name]
        plans = []
        for position, stage in enumerate(dag.topological_order(pipeline)):
            if pipeline.stages[stage].per == "unit":
                first = _S.WAITING if pipeline.stages[stage].after else _S.QUEUED
                state, q = begins.get(stage, (first, 0.5))
                plans.append(StagePlan(stage=stage, position=position, state=state, q=q))
        return Admission(pipeline=name, per="unit", u=u, stages=tuple(plans))

    def run_of(self, fact: SubJobFact, stage: str = "quick") -> int:
        return next(run.id for run in fact.stages if run.stage == stage)

    def move(self, fact: SubJobFact, stage: str, old: StageState, new: StageState, reason: str = "") -> None:
        change = Transition(stage_run_id=self.run_of(fact, stage), old=old, new=new, reason=reason)
        self.do(execution.apply, [change], self.at)

    def start(self, fact: SubJobFact, stage: str = "quick") -> Any:
        return self.do(execution.start, self.run_of(fact, stage), self.at)

    def finish(self, fact: SubJobFact, stage: str = "quick") -> None:
        attempt = self.start(fact, stage)
        self.do(execution.publish, manifest(attempt, made=(stage,), run_id=f"e{attempt.id}"), self.at)

    def fail(
        self,
        fact: SubJobFact,
        reason: str,
        next_state: StageState = _S.FAILED,
        ended_as: str = "failed",
        report: StageReport | None = None,
    ) -> None:
        attempt = self.start(fact)
        self.do(
            execution.give_up,
            attempt_id=attempt.id,
            stage_run_id=attempt.stage_run_id,
            ended_as=ended_as,
            next_state=next_state,
            reason=reason,
            now=self.at,
            report=report,
        )

    def close(self, group: GroupFact, reason: str = "quiet for 60 s") -> SubJobFact:
        admissions = {name: admit_group(name, found) for name, found in self.experiment.pipelines.items()}
        fact: SubJobFact
        (fact,) = self.do(groups.close, group, reason, admissions, self.at)
        return fact

    def order(
        self, kind: OverrideKind, value: int | None = None, expires_at: float | None = None, **target: Any
    ) -> None:
        self.do(
            overrides.set_override,
            kind=kind,
            target=Target(**target),
            value=value,
            by="anna",
            why="beam studies",
            now=self.at,
            expires_at=expires_at,
        )

    def lift(self, kind: OverrideKind, **target: Any) -> None:
        self.do(overrides.clear, kinds=[kind], target=Target(**target), by="ben", why="", now=self.at)

    def why(self, words: str = "run=1 subrun=0", pass_number: int | None = None) -> Explanation:
        asked = asked_why(self.experiment, words)
        with self.ledger.reading() as connection:
            case = case_of(
                connection,
                asked.data_id,
                group=asked.group,
                files=expected_files(self.experiment, asked.data_id).values(),
                controls=Controls(overrides.in_force(connection, self.at)),
                station=self.station,
                at=self.at,
                standing=self.standing,
                pipeline=asked.pipeline,
                pass_number=pass_number,
            )
        return explain(self.experiment, case, pipeline=asked.pipeline, stage=asked.stage)

    def stage(self, stage: str = "quick", words: str = "run=1 subrun=0", **fields: Any) -> StageWhy:
        (found,) = (
            one for sub_job in self.why(words, **fields).sub_jobs for one in sub_job.stages if one.stage == stage
        )
        assert found.reasons, "every state has a reason"
        return found

    def reason(self, stage: str = "quick", words: str = "run=1 subrun=0", **fields: Any) -> Reason:
        return self.stage(stage, words, **fields).reasons[0]


@pytest.fixture
def books(ledger: Ledger) -> Books:
    return Books(ledger)


def only_group(books: Books) -> GroupFact:
    found: GroupFact
    (found,) = books.do(groups.open_groups)
    return found


# --- queued ---------------------------------------------------------------------------------------------------------


def test_the_first_of_the_queue_waits_for_a_slot(books: Books) -> None:
    """B12."""
    books.take()
    books.at += 12
    found = books.stage()
    assert (found.state, found.since) == ("queued", NOW)
    (reason,) = found.reasons
    assert reason.why == "it is the first in its queue; 0 stages are with the pilots, which have 2 slots"
    assert reason.release == "It starts when a slot is free."


def test_the_place_in_the_queue_by_priority_beginning_and_order(books: Books) -> None:
    """B12: how many go before it, by which rule."""
    for subrun in range(4):
        books.take(subrun, at=NOW + subrun)
    begun = books.take(5, at=NOW + 5)
    assert begun is not None
    books.finish(begun)
    books.move(begun, "deep", _S.WAITING, _S.QUEUED)
    books.take(0, run=2, pipeline="alerts")
    reason = books.reason(words="run=1 subrun=3")
    assert reason.why == (
        "5 go before it in the queue (1 of a priority above 3, 1 of units that have begun, 3 in the order "
        "oldest-first); 0 stages are with the pilots, which have 2 slots"
    )
    assert reason.rule == "classes.prompt.priority: 3, pipelines.dqm.order: oldest-first"
    books.order(OverrideKind.PRIORITY, 9, unit=DataId.of(run=1, subrun=3))
    assert books.reason(words="run=1 subrun=3").why.startswith("it is the first in its queue")
    _, given = books.stage("quick", "run=1 subrun=3").reasons
    assert books.reason(words="run=1 subrun=3").rule == given.rule == "p3s priority run=1 subrun=3 9"
    assert given.why.startswith("it has another priority, as a part of run=1 subrun=3, by anna since")
    assert "beam studies" in given.why
    assert "p3s priority run=1 subrun=3 --clear" in given.release


def test_what_is_paused_goes_before_nobody(books: Books) -> None:
    """B12, P14: it is passed over."""
    books.take(0)
    books.take(1, at=NOW + 1)
    assert books.reason(words="run=1 subrun=1").why.startswith("1 go before it")
    books.order(OverrideKind.PAUSE, unit=DataId.of(run=1, subrun=0))
    assert books.reason(words="run=1 subrun=1").why.startswith("it is the first in its queue")


def test_what_a_floor_owes_a_slot_goes_before_all_others_in_time(books: Books) -> None:
    """B12, P5: and others learn that it does."""
    floors = [{"share": 0.01}, {"when": {"subrun": 1}, "share": 0.3}]
    books.experiment = declared(classes={"prompt": {"priority": 3, "floors": floors}})
    books.take(0, u=0.2)
    books.take(1, u=0.2)
    owed, place = books.stage(words="run=1 subrun=1").reasons
    assert owed.why == "a floor owes it a slot in time: it is for 0.3 of subrun=1, and its number is 0.2"
    assert owed.rule == "classes.prompt.floors[1].share: 0.3"
    assert owed.release.startswith("It goes before everything else that its limits let start")
    assert place.why.startswith("1 go before it in the queue (1 in the order oldest-first)")
    books.station = replace(UP, owed_until={"dqm/quick": (NOW, 1_000_000)})
    assert books.stage(words="run=1 subrun=1").reasons[1].why.startswith("it is the first in its queue")
    (behind,) = books.stage(words="run=1 subrun=0").reasons
    assert behind.why.startswith("1 go before it in the queue (1 that a floor owes a slot)")


def test_a_limit_of_the_file_and_one_by_command(books: Books) -> None:
    """B12: at which limit, whose it is, and what lifts it."""
    for subrun in range(4):
        fact = books.take(subrun)
        if subrun and fact is not None:
            books.start(fact)
    reason = books.reason()
    assert reason.why == "pipeline dqm is at its limit: 3 of its stages run, and 3 may at once"
    assert reason.rule == "pipelines.dqm.limit: 3"
    books.order(OverrideKind.LIMIT, 9, pipeline="dqm")
    books.order(OverrideKind.LIMIT, 2, work_class="prompt")
    reason = books.reason()
    assert reason.why.startswith("class prompt is at its limit: 3 of its stages run, and 2 may at once; ")
    assert "by anna" in reason.why
    assert reason.rule == "p3s limits class:prompt 2"
    assert "`p3s limits class:prompt --clear`" in reason.release


@pytest.mark.parametrize(
    ("kind", "target", "does"),
    [
        (OverrideKind.PAUSE, {"pipeline": "dqm"}, "it is paused, as a part of dqm, by anna"),
        (OverrideKind.DRAIN, {}, "no new unit may begin: it is drained, as a part of all, by anna"),
        (OverrideKind.PAUSE, {"work_class": "prompt"}, "it is paused, as a part of class:prompt, by anna"),
        (OverrideKind.PAUSE, {"group": DataId.of(run=1)}, "it is paused, as a part of run=1, by anna"),
    ],
)
def test_what_is_stopped_says_by_whom_why_and_until_when(
    books: Books, kind: OverrideKind, target: dict[str, Any], does: str
) -> None:
    """B12, S9: with the exact command that lifts it."""
    books.take()
    books.order(kind, expires_at=NOW + 3600, **target)
    books.at += 120
    reason, deadline = books.stage().reasons
    assert deadline.why == "its deadline passed 60 s ago"
    assert reason.why == f'{does} since 08:00:00 UTC (2 min ago): "beam studies"'
    command = f"p3s release {Target(**target)}"
    assert reason.release == f"`{command}` lifts it. At 09:00:00 UTC it ends by itself."


def test_what_a_breaker_has_paused(books: Books) -> None:
    """B12, V17: that it was the breaker, and why."""
    books.take()
    books.do(breakers.write, "dqm", BreakerState.OPEN, "5 of 6 stages failed", NOW)
    reason, deadline = books.stage().reasons
    assert (
        'it is paused, as a part of dqm, by breaker since 08:00:00 UTC (0 ms ago): "5 of 6 stages failed"' in reason.why
    )
    assert reason.rule == "pipelines.dqm.breaker"
    assert (deadline.why, deadline.release) == ("its deadline is in 60 s", "If it has not started then, it expires.")
    assert "`p3s release dqm`" in reason.release
    books.do(breakers.write, "dqm", BreakerState.HALF_OPEN, "one at a time", NOW)
    fact = books.take(1)
    assert fact is not None
    books.start(fact)
    assert books.reason().why.startswith("pipeline dqm is at its limit: 1 of its stages run, and 1 may at once")


def test_a_failed_try_waits_for_its_next(books: Books) -> None:
    """B12: until when, after which failure."""
    fact = books.take()
    assert fact is not None
    books.fail(fact, "step work exited with 3", _S.QUEUED)
    books.at += 2
    reason = books.reason()
    assert reason.why == "it failed once (step work exited with 3), and is tried again after a while"
    assert reason.rule == "pipelines.dqm.stages.quick.backoff_s: 8"
    assert reason.release == "It is ready again in 6 s."
    books.station = replace(UP, started_at=books.at - 1)
    assert books.reason().why.startswith("it is the first"), "a station knows only its own delays"
    books.station = UP
    books.at += 7
    assert books.reason().why.startswith("it is the first")


def test_only_what_was_away_is_waited_for(books: Books) -> None:
    """B12, P13: what a pilot has told of waits; what was lost uncounted, by whatever cause, is ready at once."""
    fact = books.take()
    assert fact is not None
    books.fail(fact, "the scheduler was lost", _S.QUEUED, "stopped")
    assert books.reason().why.startswith("it is the first")
    report = StageReport(
        attempt_id=0, stage_run_id=0, execution="e", pilot="p", started_at=NOW, ended_at=NOW, reason="it is away"
    )
    books.fail(fact, report.reason, _S.QUEUED, "stopped", report)
    books.at += 3
    reason = books.reason()
    assert reason.why == "its last attempt gave nothing, which does not count (it is away)"
    assert reason.release == "It is ready again in 7 s."
    books.at += 8
    assert books.reason().why.startswith("it is the first")


def test_without_station_or_pilots_that_comes_first(books: Books) -> None:
    """B12."""
    books.take()
    books.station = StationCase(trouble="no station runs here", remedy="Start it with `p3s up`.")
    assert books.reason() == Reason(why="no station runs here", release="Start it with `p3s up`.")
    assert books.stage("deep").reasons[-1].why == "no station runs here"
    books.station = StationCase(slots=0)
    assert books.reason().why == "no pilot is connected to the scheduler"


# --- waiting, held, running -----------------------------------------------------------------------------------------


def test_a_stage_waits_for_its_parent(books: Books) -> None:
    """B12: which, what it is doing, and since when."""
    fact = books.take()
    assert fact is not None
    assert books.reason("deep").why == "it waits for quick, which is queued, for 0 ms"
    assert books.reason("deep").rule == "pipelines.dqm.stages.deep.after: [quick]"
    books.start(fact)
    books.at += 5
    assert books.reason("deep").why == "it waits for quick, which is running, for 5 s"
    assert "when quick is done" in books.reason("deep").release
    running = books.stage()
    assert (running.state, running.since) == ("running", NOW)
    assert "for 5 s" in running.reasons[0].why
    assert "longer than 30 s" in running.reasons[0].release


def test_what_is_held(books: Books) -> None:
    """B12: by whom, how it is released, and what its deadline makes of that; without the hold, the station is next."""
    fact = books.take()
    assert fact is not None
    books.order(OverrideKind.HOLD, unit=DataId.of(run=1, subrun=0))
    books.move(fact, "quick", _S.QUEUED, _S.HELD)
    reason = books.reason()
    assert reason.why.startswith("it is held, as a part of run=1 subrun=0, by anna since 08:00:00 UTC")
    assert reason.release == "`p3s release run=1 subrun=0` lifts it."
    # Whoever releases it shall know what it waits for then.
    books.order(OverrideKind.PAUSE, pipeline="dqm")
    books.order(OverrideKind.HOLD)
    assert [one.rule for one in books.stage().reasons[:3]] == [
        "p3s hold run=1 subrun=0",
        "p3s hold all",
        "p3s pause dqm",
    ]
    books.lift(OverrideKind.PAUSE, pipeline="dqm")
    books.lift(OverrideKind.HOLD)
    _, deadline = books.stage().reasons
    assert (deadline.why, deadline.rule) == ("its deadline is in 60 s", "pipelines.dqm.stages.quick.deadline_s: 60")
    books.at += 90
    _, deadline = books.stage().reasons
    assert deadline.why == "its deadline passed 30 s ago"
    assert "it expires" in deadline.release
    assert "after that, `p3s request dqm run=1 subrun=0 --all` asks for it" in deadline.release
    books.do(lambda connection: connection.execute(update(sub_job).values(asked_at=books.at)))
    assert books.stage().reasons[-1].why == "its deadline is in 60 s"
    books.do(overrides.clear, kinds=[OverrideKind.HOLD], target=Target(unit=fact.data_id), by="x", why="", now=NOW)
    assert books.reason().why == "the hold that put it aside was lifted"


def test_what_is_held_and_not_seen_by_a_station_says_so(books: Books) -> None:
    """B12, P10: no station runs, or it has not looked yet: in the ledger it is queued."""
    books.take()
    books.order(OverrideKind.HOLD, unit=DataId.of(run=1, subrun=0))
    assert books.reason().why.startswith("it is held, as a part of run=1 subrun=0, by anna")


def test_what_expired_after_a_hold_tells_of_it(books: Books) -> None:
    """B12: released, it was queued anew; what stopped it before that counts all the same."""
    fact = books.take()
    assert fact is not None
    books.order(OverrideKind.HOLD, unit=DataId.of(run=1, subrun=0))
    books.move(fact, "quick", _S.QUEUED, _S.HELD)
    books.at += 90
    target = Target(unit=fact.data_id)
    books.do(overrides.clear, kinds=[OverrideKind.HOLD], target=target, by="x", why="", now=books.at)
    books.move(fact, "quick", _S.HELD, _S.QUEUED)
    books.at += 1
    books.move(fact, "quick", _S.QUEUED, _S.EXPIRED, "its deadline passed while it waited")
    first, _ = books.stage().reasons
    assert first.why.startswith("it could not start for 90 s of its time, by a hold of run=1 subrun=0 by anna")


# --- groups ---------------------------------------------------------------------------------------------------------


def test_an_open_group_says_by_which_rules_it_closes(books: Books) -> None:
    """B12: and its own stages wait for that."""
    books.take(0)
    books.take(1)
    books.at += 20
    found = books.why("run=1")
    whys = [(reason.why, reason.rule, reason.release) for reason in found.reasons]
    assert whys == [
        (
            "the group is open: 2 units arrived",
            "instrument.closing.marker: run{run:05d}.closed",
            "It closes when the file run00001.closed appears in incoming.",
        ),
        (
            "the group is open: 2 units arrived, of 10",
            "instrument.closing.count: 10",
            "It closes when 8 more have arrived.",
        ),
        (
            "the group is open: 2 units arrived, the last one 20 s ago",
            "instrument.closing.quiet_s: 60",
            "It closes at 08:01:00 UTC if nothing more of it arrives; a station that was started since counts from "
            "its start.",
        ),
        (
            "in dqm, pass 0, 2 of 2 units are open",
            "",
            "`p3s list units --state open --group 'run=1'` lists them; `p3s why` says what each waits for.",
        ),
    ]
    (sub_job,) = found.sub_jobs
    (total,) = sub_job.stages
    assert (sub_job.state, total.stage, total.state) == ("not begun", "total", "not begun")
    assert total.reasons[0].why == "it runs once, when the group has closed; 2 of 2 units are open"


def test_totals_of_a_group_without_results_say_so_and_where_to_look(books: Books) -> None:
    """B12: its units were left out or have failed; what it lacks are the results of all of them."""
    for subrun in range(2):
        unit = books.take(subrun)
        assert unit is not None
        books.fail(unit, "step work exited with 3")
        books.move(unit, "deep", _S.WAITING, _S.BLOCKED, "quick is failed")
    fact = books.close(only_group(books))
    books.move(fact, "total", _S.WAITING, _S.BLOCKED, "there is no quick to read")
    reason = books.reason("total", "run=1")
    assert reason.why == "there is no quick to read; of its 2 units none is done"
    assert reason.release == (
        "`p3s report coverage run=1` says what became of them; `p3s retry dqm run=1` tries again what failed, "
        "`p3s request dqm run=1` asks for the others."
    )


def test_a_closed_groups_stage_waits_for_the_units_that_are_open(books: Books) -> None:
    """B12: it names them, and then the queue."""
    first, second = books.take(0), books.take(1)
    assert first is not None
    assert second is not None
    fact = books.close(only_group(books))
    found = books.why("run=1")
    assert found.reasons[0].why == "the group is closed: quiet for 60 s"
    assert found.reasons[0].rule == "instrument.closing.quiet_s: 60"
    reason = books.reason("total", "run=1")
    assert reason.why == (
        "it waits for 2 units of the group that are open: run=1 subrun=0 (quick is queued), "
        "run=1 subrun=1 (quick is queued)"
    )
    assert "`p3s why run=1 subrun=0`" in reason.release
    books.finish(first)
    assert books.reason("total", "run=1").why.startswith(
        "it waits for a unit of the group that is open: run=1 subrun=1"
    )
    books.finish(second)
    assert books.reason("total", "run=1").why == "all that it waited for has settled"
    books.move(fact, "total", _S.WAITING, _S.QUEUED)
    assert books.stage("total", "dqm/total run=1").state == "queued"


# --- dropped --------------------------------------------------------------------------------------------------------


def test_prescaled_names_the_prescale(books: Books) -> None:
    """B12: u, q, and whose prescale it was: the strictest that it did not pass."""
    books.take(0, u=0.61, begins={"deep": (_S.PRESCALED, 0.5)})
    reason = books.reason("deep")
    assert reason.why == "its number 0.61 is not below 0.5, the prescale of stage deep"
    assert reason.rule == "pipelines.dqm.stages.deep.prescale: 0.5"
    assert reason.release.startswith("Once all of it has ended, `p3s request dqm run=1 subrun=0 --all` asks for it")
    books.take(1, u=0.83, begins={"quick": (_S.PRESCALED, 0.8), "deep": (_S.PRESCALED, 0.5)})
    reason = books.reason("quick", "run=1 subrun=1")
    assert reason.why == "its number 0.83 is not below 0.8, the prescale of stream raw"
    assert reason.rule == "streams.raw.prescale: 0.8"
    assert reason.release.startswith("`p3s request dqm run=1 subrun=1` asks for it whatever the load.")
    books.take(2, u=0.3, begins={"quick": (_S.PRESCALED, 0.2), "deep": (_S.PRESCALED, 0.2)})
    changed = books.reason("quick", "run=1 subrun=2")
    assert changed.why == "its number 0.3 is not below 0.2, the prescale that the experiment file gave then"


def test_shed_tells_u_and_q(books: Books) -> None:
    """B12."""
    books.take(0, u=0.47, begins={"quick": (_S.SHED, 0.123), "deep": (_S.SHED, 0.123)})
    reason = books.reason()
    assert reason.why == (
        "its number 0.47 is not below 0.123, the share that could be let in in the overload of that moment"
    )
    assert reason.release.startswith("`p3s request dqm run=1 subrun=0` asks for it whatever the load.")
    assert "floor for class prompt" in reason.release


@pytest.mark.parametrize(
    ("deep", "advice"),
    [
        (_S.FAILED, "`p3s request dqm run=1 subrun=0 --all` asks for it whatever the load."),
        (_S.RUNNING, "Once all of it has ended, `p3s request dqm run=1 subrun=0 --all` asks for it whatever the load."),
        (_S.BLOCKED, "`p3s request dqm run=1 subrun=0` asks for it whatever the load."),
    ],
)
def test_how_a_stage_is_asked_for_follows_from_what_became_of_the_others(
    books: Books, deep: StageState, advice: str
) -> None:
    """B12: what the station would not take as without results needs another word, and what is open has to end."""
    fact = books.take(0, begins={"deep": (_S.QUEUED, 0.5)})
    assert fact is not None
    old = _S.QUEUED
    if deep is _S.FAILED:
        books.move(fact, "deep", old, _S.RUNNING)
        old = _S.RUNNING
    books.move(fact, "deep", old, deep)
    books.move(fact, "quick", _S.QUEUED, _S.CANCELLED, "by ana")
    if deep is _S.FAILED:
        # As of two branches of which the first has failed.
        books.do(lambda connection: connection.execute(update(sub_job).values(state="failed")))
    assert books.reason().release == advice


def test_nothing_is_advised_about_a_pass_that_is_over(books: Books) -> None:
    """B12: where it is processed now; and where the file has lost the pipeline, that."""
    fact, _ = (books.take(subrun, begins={"quick": (_S.SHED, 0.1), "deep": (_S.SHED, 0.1)}) for subrun in range(2))
    assert fact is not None
    with books.ledger.transaction() as connection:
        _again_in_a_new_pass(connection, books, fact)
    assert books.reason(pass_number=0).release.startswith("It is in pass 1 now: `p3s why run=1 subrun=0 --pass 1`.")
    stream = {"directory": "incoming", "pattern": "{run}_{subrun}", "dataset_type": "raw"}
    other = {"alerts": {"stages": {"alert": _stage("alert")}}}
    books.experiment = declared(pipelines=other, streams={"raw": stream | {"rules": [{"pipelines": ["alerts"]}]}})
    assert "is not in the experiment file any more" in books.reason(words="run=1 subrun=1").release


def test_shed_above_its_floor_tells_of_the_floor(books: Books) -> None:
    """B12."""
    books.experiment = declared(classes={"prompt": {"floors": [{"share": 0.3}]}})
    books.take(0, u=0.47, begins={"quick": (_S.SHED, 0.3), "deep": (_S.SHED, 0.3)})
    reason = books.reason()
    assert reason.why == (
        "its number 0.47 is not below 0.3, the share that the floor for all units lets in whatever the overload"
    )
    assert reason.rule == "classes.prompt.floors[0].share: 0.3"


def test_standby_tells_u_and_q(books: Books) -> None:
    """B12, P6: unless somebody asks for it by hand."""
    books.take(0, u=0.47, begins={"quick": (_S.QUEUED, 0.123)})
    reason, place = books.stage("quick").reasons
    assert (
        reason.why == "overload has left it out, as its number 0.47 is not below 0.123, the share that could be let in"
    )
    assert reason.rule == "classes.prompt.shed: true"
    assert "asks for it whatever the load" in place.release
    books.order(OverrideKind.PRIORITY, 9, unit=DataId.of(run=1, subrun=0))
    _, place, given = books.stage("quick").reasons
    assert "sorts what was let in, and it was left out" in given.why
    assert "beam studies" in given.why
    assert given.rule == "p3s priority run=1 subrun=0 9"
    books.lift(OverrideKind.PRIORITY, unit=DataId.of(run=1, subrun=0))
    with books.ledger.transaction() as connection:
        connection.execute(update(sub_job).values(asked_at=books.at))
    assert "first in its queue" in books.reason().why


def test_expired_tells_the_deadline_and_how_late(books: Books) -> None:
    """B12."""
    fact = books.take()
    assert fact is not None
    books.at += 75
    books.move(fact, "quick", _S.QUEUED, _S.EXPIRED, "its deadline passed while it waited")
    reason = books.reason()
    assert reason.why == "its deadline passed while it waited; it was given up 15 s after its deadline"
    assert reason.rule == "pipelines.dqm.stages.quick.deadline_s: 60"
    assert "More pilots" in reason.release


@pytest.mark.parametrize(("kind", "value"), [(OverrideKind.PAUSE, None), (OverrideKind.LIMIT, 0)])
@pytest.mark.parametrize(("lifted", "expires_at"), [(True, None), (False, None), (False, NOW + 3600)])
def test_expired_tells_what_had_stopped_it(
    books: Books, kind: OverrideKind, value: int | None, lifted: bool, expires_at: float | None
) -> None:
    """B12, S9: and for how long; what stopped others, or was lifted before it came, is not told."""
    books.order(OverrideKind.PAUSE, pipeline="dqm", stage="quick")
    books.at += 1
    books.lift(OverrideKind.PAUSE, pipeline="dqm", stage="quick")
    fact = books.take(at=books.at)
    assert fact is not None
    books.at += 10
    books.order(kind, value, expires_at, pipeline="dqm")
    books.order(OverrideKind.PAUSE, pipeline="alerts")
    books.at += 30
    if lifted:
        books.lift(kind, pipeline="dqm")
    books.at += 20
    books.move(fact, "quick", _S.QUEUED, _S.EXPIRED, "its deadline passed while it waited")
    stopped, late = books.stage("quick").reasons
    what = "pause" if value is None else "limit 0"
    assert stopped.why == (
        f"it could not start for {30 if lifted else 50} s of its time, by a {what} of dqm by anna: beam studies"
    )
    assert late.why.startswith("its deadline passed while it waited")
    # Asked for now, it would be stopped again; and it was not late for want of pilots.
    assert ("lifts it" in stopped.release) is not lifted
    assert late.release.startswith("Once nothing stops it and all of it has ended, ") is not lifted
    assert "More pilots" not in late.release


def test_a_short_stop_does_not_hide_that_there_are_too_few_pilots(books: Books) -> None:
    """B12."""
    fact = books.take()
    assert fact is not None
    books.order(OverrideKind.PAUSE, pipeline="dqm")
    books.at += 1
    books.lift(OverrideKind.PAUSE, pipeline="dqm")
    books.at += 70
    books.move(fact, "quick", _S.QUEUED, _S.EXPIRED, "its deadline passed while it waited")
    stopped, late = books.stage("quick").reasons
    assert stopped.why.startswith("it could not start for 1 s of its time")
    assert "More pilots" in late.release


def test_failed_tells_reason_and_what_to_do(books: Books) -> None:
    """B12: after as many tries as the stage has, or where another would not help."""
    fact = books.take()
    assert fact is not None
    for next_state in (_S.QUEUED, _S.QUEUED, _S.FAILED):
        books.fail(fact, "step work exited with 3", next_state)
    reason = books.reason()
    assert reason.why == "it failed 3 times: step work exited with 3"
    assert reason.rule == "pipelines.dqm.stages.quick.retries: 2"
    assert "`p3s try dqm/quick/work 'run=1 subrun=0'`" in reason.release
    assert reason.release.endswith("`p3s request dqm run=1 subrun=0 --all` processes it anew.")
    assert "Once that is mended, `p3s retry dqm run=1 subrun=0` tries it again" in reason.release
    damaged = books.take(1)
    assert damaged is not None
    books.fail(damaged, "raw is damaged")
    reason = books.reason(words="run=1 subrun=1")
    assert (reason.why, reason.rule) == ("it failed, and to try again would not help: raw is damaged", "")


@pytest.mark.parametrize("words", OtherInput)
def test_an_input_that_was_replaced_has_its_own_remedy(books: Books, words: OtherInput) -> None:
    """B12, S8: in a directory, a bucket and the online buffer; not where a payload says such a thing."""
    replaced, payload = books.take(0), books.take(1)
    assert replaced is not None
    assert payload is not None
    books.fail(replaced, f"s3://raw/r0.json {words} 0123abcd…")
    books.fail(payload, f"step work: its table {words}")
    assert books.reason().release.startswith(REMEDY)
    assert REMEDY not in books.reason(words="run=1 subrun=1").release


def test_lost_with_its_pilot(books: Books) -> None:
    """B12, P12."""
    fact = books.take()
    assert fact is not None
    for next_state in (_S.QUEUED, _S.QUEUED, _S.FAILED):
        books.fail(fact, "the pilot died", next_state, ended_as="lost")
    reason = books.reason()
    assert reason.why == "it was lost with its pilot 3 times, and is not given to another: the pilot died"
    assert reason.rule == ""


def test_blocked_names_the_ancestor_and_its_reason(books: Books) -> None:
    """B12."""
    fact = books.take()
    assert fact is not None
    books.fail(fact, "step work exited with 3")
    books.move(fact, "deep", _S.WAITING, _S.BLOCKED, "quick is failed")
    reason = books.reason("deep")
    assert reason.why == "it needs quick, which is failed: step work exited with 3"
    assert "`p3s why dqm/quick run=1 subrun=0`" in reason.release


def test_superseded_and_done(books: Books) -> None:
    """B12: by which pass, and where its results are."""
    fact = books.take()
    assert fact is not None
    books.finish(fact)
    show = "`p3s show run=1 subrun=0 --pipeline dqm --pass 0` lists them."
    assert books.reason() == Reason(why="its results are published", release=show)
    books.move(fact, "deep", _S.WAITING, _S.SUPERSEDED, "deep-lite took over")
    assert books.reason("deep").why == "deep-lite took over"


def test_what_was_done_on_standby_stands_for_no_others(books: Books) -> None:
    """B12, P6."""
    let_in, left_out = (
        books.take(number, u=0.6, begins={"quick": (_S.QUEUED, q)}) for number, q in ((0, 0.7), (1, 0.2))
    )
    for fact in (let_in, left_out):
        assert fact is not None
        books.finish(fact)
    assert [reason.why for reason in books.stage("quick").reasons] == ["its results are published"]
    published, weight = books.stage("quick", "run=1 subrun=1").reasons
    assert published.why == "its results are published"
    assert weight.why == "overload had left it out, as its number 0.6 is not below 0.2, and it ran as a slot was left"
    assert "weight 0" in weight.release


def test_cancelled_says_where_it_goes_on(books: Books) -> None:
    """B12: in the pass that the new configuration opened; until there is one, how to ask for it."""
    fact = books.take()
    assert fact is not None
    reason = "the configuration changed before it ran"
    books.move(fact, "quick", _S.QUEUED, _S.CANCELLED, reason)
    books.move(fact, "deep", _S.WAITING, _S.CANCELLED, reason)
    ask = "`p3s request dqm run=1 subrun=0` asks for it whatever the load."
    assert books.reason() == Reason(why=reason, release=ask)
    with books.ledger.transaction() as connection:
        _again_in_a_new_pass(connection, books, fact)
    (newest,) = books.why().sub_jobs
    assert (newest.pass_number, newest.others) == (1, ((0, "cancelled"),))
    old = books.reason(pass_number=0)
    assert old.why == reason
    assert "It is in pass 1 now" in old.release


def _again_in_a_new_pass(connection: Connection, books: Books, fact: SubJobFact) -> None:
    known = collections("dqm")["dqm"]
    changed = replace(known, name=lambda day, number: f"test/dqm/{day:%Y%m%d}/bead" + (f"/pass{number}" * (number > 0)))
    pass_id = arrivals.open_pass(connection, 1, DAY, changed, NOW)
    arrivals.add_sub_job(
        connection,
        pass_id,
        books._admission("dqm", 0.25, {}),
        data_id=fact.data_id,
        group=fact.group,
        arrival_id=None,
        taken_at=NOW,
        arrived_at=NOW,
    )


def test_what_the_file_no_longer_declares(books: Books) -> None:
    """B12: a pipeline that is gone, with work that is open, and that was cancelled."""
    fact = books.take()
    assert fact is not None
    only_alerts = {"alerts": {"stages": {"alert": _stage("alert")}}}
    (stream,) = declared().model_dump(mode="json")["streams"].values()
    streams = {"raw": stream | {"rules": [{"pipelines": ["alerts"]}]}}
    books.experiment = declared(pipelines=only_alerts, streams=streams)
    assert "no stage dqm/quick any more" in books.reason().why
    books.move(fact, "quick", _S.QUEUED, _S.CANCELLED, "the configuration changed before it ran")
    assert "not in the experiment file any more" in books.reason().release


# --- files ----------------------------------------------------------------------------------------------------------


def test_ignored_names_the_rule(books: Books) -> None:
    """B12: none matches, or the first that does names no pipeline."""
    books.take(0, run=5, pipeline=None)
    (reason,) = books.why("run=5 subrun=0").reasons
    assert reason.why == "the file run00005_0000.fits came by stream raw, and was ignored: no rule matched"
    books.take(0, run=9, pipeline=None)
    (reason,) = books.why("run=9 subrun=0").reasons
    assert reason.rule == "streams.raw.rules[0]: {when: {'run': 9}, pipelines: []}"


def test_conflicts_and_refusals_are_told(books: Books) -> None:
    """B12: beside what became of the unit itself; a refused file is known by its name."""
    books.take()
    other = arrival(0, key="again/run00001_0000.fits", content=b"other", checksum="b" * 64)
    path = "/watched/run00001_0000.fits"
    compared = arrivals.Rival(id=1, path=path, identity=arrival(0).identity, sha256="a" * 64)
    intake = Intake(group=other.data_id, day=DAY, admissions=())
    taken = books.do(arrivals.take, other, intake, {}, compared=compared)
    assert taken.verdict is Verdict.CONFLICT
    (reason,) = books.why().reasons
    assert reason.why.startswith("the file again/run00001_0000.fits came, and is in conflict: other bytes than")
    assert "under a name, and so a number, of its own" in reason.release
    key = "late/run00003_0007.fits"
    refusal = Refusal(stream="raw", key=key, path=key, size=1, mtime_ns=1, reason="it is not a plain file")
    books.do(arrivals.refuse, refusal, NOW)
    (reason,) = books.why("run=3 subrun=7").reasons
    assert reason.why == f"the file {key} came, and was refused: it is not a plain file"


def test_never_seen_says_how_it_would_come_and_what_is_like_it(books: Books) -> None:
    """B12."""
    books.take(4)
    found = books.why("run=1 subrun=5")
    assert found.sub_jobs == ()
    first, near = found.reasons
    assert first.why == "nothing of this name was ever seen: stream raw would bring it as run00001_0005.fits"
    assert first.rule == "streams.raw.pattern: run{run:05d}_{subrun:04d}.fits"
    assert first.release == (
        "It is taken when run00001_0005.fits stands in incoming, or a directory below it, with its marker, a file of "
        "the same name and .ok."
    )
    assert near.why == "what is known and most like it: run=1 subrun=4"


def test_never_seen_names_the_online_buffer_where_it_could_come_from_there(books: Books) -> None:
    """B12, P13: instead of the bucket while that is away, or always."""
    books.take(4)
    (found,) = declared().model_dump(mode="json")["streams"].values()
    from_bucket = {**found, "directory": None, "bucket": "s3://raw/lst1"}
    for buffer, release in (
        (
            {"directory": "lst1"},
            "stands in s3://raw/lst1, or below it, with its marker, a file of the same name and .ok; "
            "while that cannot be reached, when it stands so in lst1 of the online buffer.",
        ),
        ({"directory": "lst1", "always": True}, "stands in lst1 in the online buffer, or a directory below it, with"),
    ):
        streams = {"raw": {**from_bucket, "buffer": buffer}}
        books.experiment = declared(streams=streams, buffer={"directory": "/daq"})
        assert release in books.why("run=1 subrun=5").reasons[0].release


@pytest.mark.parametrize(
    ("stream", "why", "rule", "release"),
    [
        ({}, "is not known to be complete", "streams.raw.complete.by: marker", "with its marker"),
        ({"complete": {"by": "name"}}, "was not taken yet", "streams.raw.list_every_s: 5", "next listing takes it"),
        ({"exclude": ["run*"]}, "a temporary name", "streams.raw.exclude: [run*]", "Name it otherwise"),
    ],
)
def test_a_file_that_stands_there_and_was_not_taken(
    books: Books, stream: dict[str, Any], why: str, rule: str, release: str
) -> None:
    """B12: the question that is asked most."""
    books.standing = frozenset({"raw"})
    (found,) = declared().model_dump(mode="json")["streams"].values()
    books.experiment = declared(streams={"raw": found | stream})
    (reason,) = books.why("run=1 subrun=5").reasons
    assert why in reason.why
    assert "run00001_0005.fits" in reason.why
    assert reason.rule == rule
    assert release in reason.release


def test_a_group_that_was_never_seen(books: Books) -> None:
    """B12."""
    (reason,) = books.why("run=77").reasons
    assert reason.why == "nothing of the group run=77 was ever seen"
    assert "opens with its first unit" in reason.release


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("", "nothing is named"),
        ("all", "neither a unit nor a group"),
        ("dqm", "neither a unit nor a group"),
        ("class:prompt run=1", "neither a unit nor a group"),
        ("subrun=3", "neither a group nor a unit"),
        ("run=1 event=3", "no dimension 'event'"),
        ("run=../../etc", "cannot be used"),
        ("dqn run=1", "no pipeline 'dqn'"),
        ("dqm/quik run=1 subrun=0", "no stage of dqm: 'quik'"),
        ("dqm/total run=1 subrun=0", "runs once for a group"),
        ("dqm/quick run=1", "runs for each unit"),
    ],
)
def test_what_cannot_be_asked(words: str, what: str) -> None:
    """B12, S8: a clear answer, with what to write instead."""
    with pytest.raises(BadName) as caught:
        asked_why(declared(), words)
    assert what in caught.value.what
    assert caught.value.fix


def test_a_pass_or_pipeline_that_it_is_not_in(books: Books) -> None:
    """B12, S8: says in which it is."""
    books.take()
    with pytest.raises(NoSuchRecord) as caught:
        books.why(pass_number=3)
    assert caught.value.fix == "It is in: pipeline dqm, pass 0."
    with pytest.raises(NoSuchRecord):
        books.why("alerts run=1 subrun=0")


def test_one_stage_alone(books: Books) -> None:
    """B12: as PIPELINE/STAGE."""
    books.take()
    (sub_job,) = books.why("dqm/deep run=1 subrun=0").sub_jobs
    assert [stage.stage for stage in sub_job.stages] == ["deep"]


def test_a_long_queue_is_read_in_a_few_statements(books: Books) -> None:
    """B12: however many units wait."""
    for subrun in range(40):
        books.take(subrun, at=NOW + subrun)
    statements: list[str] = []
    with books.ledger.reading() as connection:
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append(args[2]))
        asked = asked_why(books.experiment, "run=1 subrun=39")
        case = case_of(
            connection, asked.data_id, group=asked.group, files=(), controls=Controls(), station=UP, at=books.at
        )
    assert len(statements) < 12
    assert len(case.queue) == 40


def test_what_stands_by_and_is_asked_for_stands_by_no_more(books: Books) -> None:
    """B3, B12: it is the same sub-job, with its q and a deadline from then on, after a restart too; others stand by."""
    left_out = {"quick": (_S.QUEUED, 0.2), "deep": (_S.WAITING, 0.2)}
    told = "in overload: u = 0.6000 is not below q = 0.2"
    first, other = (books.take(number, u=0.6, begins=left_out) for number in (0, 1))
    books.take(2, u=0.1, begins=left_out)
    assert first is not None
    assert other is not None
    for fact in (first, other):
        thinned = Transition(stage_run_id=books.run_of(fact), old=_S.QUEUED, new=_S.QUEUED, q=0.2, reason=told)
        books.do(execution.apply, [thinned], books.at)
    pipeline = books.experiment.pipelines["dqm"]
    books.at += 30

    def ask(**fields: Any) -> asked.LetIn:
        found: asked.LetIn = books.do(
            asked.let_in,
            group=DataId.of(run=1),
            which=Which.MISSING,
            collection=collections("dqm")["dqm"],
            admission=admit_by_hand("dqm", pipeline),
            of_group=None,
            now=books.at,
            **fields,
        )
        return found

    found = ask(units=[first.data_id])
    assert (found.facts, found.pass_number) == ((), None)
    (awake,) = found.from_standby
    assert awake == replace(first, is_asked=True, taken_at=books.at)
    with books.ledger.reading() as connection:
        assert awake in execution.open_sub_jobs(connection)
    for number, stands_by in ((0, False), (1, True)):
        reasons = books.stage("quick", f"run=1 subrun={number}").reasons
        assert any("stands by" in reason.release for reason in reasons) is stands_by
        with books.ledger.reading() as connection:
            (unit,) = [one for one in views.units(connection) if one.data_id == f"run=1 subrun={number}"]
        assert unit.stages[0].reason == (told if stands_by else "")
    assert [fact.id for fact in ask(units=[]).from_standby] == [other.id]
    assert ask(units=[]).from_standby == ()
