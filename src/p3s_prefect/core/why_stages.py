"""Why a stage run is in its state: one function a state, each with the rule and the release (B12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from p3s_prefect.core import dag
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Experiment, Pipeline, Stage
from p3s_prefect.core.health import duration
from p3s_prefect.core.other_input import REMEDY, says_other_input
from p3s_prefect.core.overrides import Work
from p3s_prefect.core.plan import floor_of
from p3s_prefect.core.retry import away_s, backoff_s
from p3s_prefect.core.states import StageState
from p3s_prefect.core.views import StageRow, UnitRow
from p3s_prefect.core.why_facts import Case, Reason, StageWhy, SubJobCase, since, units_named
from p3s_prefect.core.why_queue import queue_reasons
from p3s_prefect.core.why_rules import ask_for, of_override, rule, stage_rule, station_reasons

_S = StageState


def explain_stage(experiment: Experiment, case: Case, found: SubJobCase, run: StageRow) -> StageWhy:
    """A stage run of this sub-job, explained."""
    asked = _Asked(experiment=experiment, case=case, found=found, run=run)
    reasons = tuple(_EXPLAIN[StageState(run.state)](asked))
    return StageWhy(stage=run.stage, state=run.state, since=since(run), reasons=reasons)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    experiment: Experiment
    case: Case
    found: SubJobCase
    run: StageRow

    @property
    def unit(self) -> UnitRow:
        return self.found.unit

    @property
    def pipeline(self) -> Pipeline | None:
        """None if the experiment file does not have it any more."""
        return self.experiment.pipelines.get(self.unit.pipeline)

    @property
    def counts_from(self) -> float:
        """From when on its deadlines count."""
        return self.unit.taken_at if self.found.asked_at is None else self.found.asked_at

    @property
    def stage(self) -> Stage | None:
        return None if self.pipeline is None else self.pipeline.stages.get(self.run.stage)

    @property
    def work_class(self) -> str:
        return "default" if self.pipeline is None else self.pipeline.work_class

    @property
    def work(self) -> Work:
        return self.case.work(self.unit, self.run.stage, self.work_class)

    def of(self, key: str) -> str:
        """The rule of a key of its stage."""
        return stage_rule(self.experiment, self.unit.pipeline, self.run.stage, key)

    @property
    def siblings(self) -> dict[str, StageRow]:
        return {stage.stage: stage for stage in self.unit.stages}

    @property
    def ancestors(self) -> frozenset[str]:
        if self.pipeline is None or self.stage is None:
            return frozenset()
        return dag.ancestors(self.pipeline, self.run.stage)


# --- open -----------------------------------------------------------------------------------------------------------


def _waiting(asked: _Asked) -> Iterator[Reason]:
    if asked.stage is None:
        yield from _no_longer_declared(asked)
        return
    told = False
    for name in dict.fromkeys(asked.stage.after):
        parent = asked.siblings.get(name)
        if parent is not None and not StageState(parent.state).is_terminal:
            told = True
            yield Reason(
                why=f"it waits for {name}, which is {_activity(parent, asked.case.at)}",
                rule=asked.of("after"),
                release=f"It goes on when {name} is done.",
            )
    awaited = [one for one in asked.found.awaited if one.stage in asked.ancestors]
    if awaited:
        told = True
        number = len({one.data_id for one in awaited})
        named = units_named(f"{one.data_id} ({one.stage} is {one.state})" for one in awaited)
        units = "a unit of the group that is open" if number == 1 else f"{number} units of the group that are open"
        yield Reason(
            why=f"it waits for {units}: {named}",
            rule=asked.of("after"),
            release="It goes on when that has settled, whether well or not; "
            f"`p3s why {awaited[0].data_id}` says what {'it' if number == 1 else 'the first of them'} waits for.",
        )
    if not told:
        yield Reason(why="all that it waited for has settled", release="The station moves it on at once.")
    yield from station_reasons(asked.case)


def _queued(asked: _Asked) -> Iterator[Reason]:
    if asked.stage is None:
        yield from _no_longer_declared(asked)
        return
    yield from _back_off(asked, asked.stage)
    yield from queue_reasons(asked.experiment, asked.case, asked.run.id, asked.work)


def _back_off(asked: _Asked, stage: Stage) -> Iterator[Reason]:
    last = asked.run.attempts[-1] if asked.run.attempts else None
    queued_at, station_at = asked.run.queued_at, asked.case.station.started_at
    # Until when something waits only its station knows: the next one begins it at once.
    if last is None or queued_at is None or station_at is None or queued_at < station_at:
        return
    # What ends uncounted and not by a pilot's report (its pilot was lost, say) is ready at once.
    if last.state == "stopped" and last.started_at is not None:
        yield from _away(asked, last.reason, queued_at)
    if last.state != "failed":
        return
    left_s = queued_at + backoff_s(stage, asked.run.failures) - asked.case.at
    if left_s > 0:
        yield Reason(
            why=f"it failed {_times(asked.run.failures)} ({last.reason}), and is tried again after a while",
            rule=asked.of("backoff_s"),
            release=f"It is ready again in {duration(left_s)}.",
        )


def _away(asked: _Asked, reason: str, queued_at: float) -> Iterator[Reason]:
    left_s = queued_at + away_s(len(asked.run.attempts)) - asked.case.at
    if left_s > 0:
        yield Reason(
            why=f"its last attempt gave nothing, which does not count ({reason})",
            release=f"It is ready again in {duration(left_s)}.",
        )


def _running(asked: _Asked) -> Iterator[Reason]:
    last = asked.run.attempts[-1] if asked.run.attempts else None
    if last is None or last.state != "running":
        yield Reason(why="it was handed to a pilot", release="It ends by itself.")
        return
    if last.waits_since is not None:
        yield _waits_for_store(asked, last.pilot, last.waits_since)
        return
    tries = f", attempt {last.number + 1}" if last.number else ""
    began = duration(max(0.0, asked.case.at - last.opened_at))
    limit_s = sum(step.timeout_s for step in asked.stage.steps) if asked.stage else None
    yield Reason(
        why=f"it has been with {f'pilot {last.pilot}' if last.pilot else 'a pilot'} for {began}{tries}",
        rule=f"{asked.of('steps')}[].timeout_s" if limit_s else "",
        release=f"Its steps are killed when they take longer than {duration(limit_s)} together." if limit_s else "",
    )
    yield from station_reasons(asked.case)


def _waits_for_store(asked: _Asked, pilot: str | None, since_at: float) -> Reason:
    waited = duration(max(0.0, asked.case.at - since_at))
    return Reason(
        why=f"its results have been waiting on {pilot} for the store for {waited}"
        if pilot
        else f"the station ended while it ran, {waited} ago, and the store, which can tell whether there are results, "
        "did not answer",
        rule=rule("pilots", "waiting_bytes", asked.experiment.pilots.waiting_bytes),
        release="It goes on when the store is back; `p3s status` tells what is wrong with that.",
    )


def _held(asked: _Asked) -> Iterator[Reason]:
    hold = asked.case.controls.held(asked.work)
    if hold is not None:
        yield of_override(hold, asked.case.at)
    else:
        yield Reason(why="the hold that put it aside was lifted", release="The station puts it back at once.")
    if asked.stage is not None and asked.stage.deadline_s is not None:
        yield _deadline_of_held(asked, asked.counts_from + asked.stage.deadline_s - asked.case.at)
    yield from station_reasons(asked.case)


def _deadline_of_held(asked: _Asked, left_s: float) -> Reason:
    is_left_out = asked.found.u >= asked.run.q and asked.found.asked_at is None
    ends = "is shed" if is_left_out else "expires"
    if left_s > 0:
        why, release = f"its deadline is in {duration(left_s)}", f"Released after that, it {ends}."
    else:
        why = f"its deadline passed {duration(-left_s)} ago"
        release = f"Released, it {ends}, as nobody wanted its result so late. {ask_for(asked.unit)}"
    return Reason(why=why, rule=asked.of("deadline_s"), release=release)


# --- ended ----------------------------------------------------------------------------------------------------------


def _done(asked: _Asked) -> Iterator[Reason]:
    yield Reason(why="its results are published", release=f"`p3s show {asked.unit.data_id}` lists them.")
    u, q = asked.found.u, asked.run.q
    if u >= q:
        yield Reason(
            why=f"overload had left it out, as its number {u:.4g} is not below {q:.4g}, and it ran as a slot was left",
            rule=rule("classes", asked.work_class, "shed", True),
            release="Nothing: chance decides once. It has the weight 0 in trends and totals, and stands for no others.",
        )


def _prescaled(asked: _Asked) -> Iterator[Reason]:
    u, in_advance = asked.found.u, "Nothing: it was chosen in advance, at random."
    passed_not = [found for found in _prescales(asked) if u >= found[1]]
    if not passed_not:
        # The experiment file has changed since.
        then = f"{asked.run.q:g}, the prescale that the experiment file gave then"
        yield Reason(why=f"its number {u:.4g} is not below {then}", release=in_advance)
        return
    whose, share, key = min(passed_not, key=lambda found: found[1])
    yield Reason(
        why=f"its number {u:.4g} is not below {share:g}, the prescale of {whose}",
        rule=key,
        release=f"{in_advance} A higher prescale takes in more of what comes.",
    )


def _prescales(asked: _Asked) -> Iterator[tuple[str, float, str]]:
    """Whose prescales stand on the way to the stage, their values, and their keys."""
    stream = asked.experiment.streams.get(asked.found.stream or "")
    if stream is not None:
        yield (
            f"stream {asked.found.stream}",
            stream.prescale,
            rule("streams", asked.found.stream, "prescale", stream.prescale),
        )
    if asked.pipeline is not None:
        for name in (asked.run.stage, *sorted(asked.ancestors)):
            declared = asked.pipeline.stages.get(name)
            if declared is not None:
                key = stage_rule(asked.experiment, asked.unit.pipeline, name, "prescale")
                yield f"stage {name}", declared.prescale, key


def _shed(asked: _Asked) -> Iterator[Reason]:
    name = asked.work_class
    work_class = None if asked.pipeline is None else asked.experiment.class_of(asked.pipeline)
    floor = None if work_class is None else floor_of(work_class, DataId.parse(asked.unit.data_id))
    if work_class is not None and floor is not None and asked.run.q == floor.share:
        yield Reason(
            why=f"its number {asked.found.u:.4g} is not below {floor.share:g}, the share that the floor for "
            f"{floor.units} lets in whatever the overload",
            rule=rule("classes", name, "floors", work_class.floors.index(floor), "share", floor.share),
            release=f"{ask_for(asked.unit)} More pilots, a higher priority or a greater share let in more of what "
            "comes.",
        )
        return
    yield Reason(
        why=f"its number {asked.found.u:.4g} is not below {asked.run.q:.4g}, the share that could be let in "
        "in the overload of that moment",
        rule=rule("classes", name, "shed", True),
        release=f"{ask_for(asked.unit)} More pilots, or a higher priority or a floor for class {name}, let in more of "
        "what comes.",
    )


def _stopped_meanwhile(asked: _Asked) -> Iterator[Reason]:
    """The commands that kept it from its slot for a while."""
    ended_at = asked.run.settled_at
    if ended_at is None:
        return
    # Not since it was queued: what was held, or tried again, was queued anew.
    before = [asked.siblings[name].settled_at for name in asked.ancestors if name in asked.siblings]
    could_start_at = max([asked.unit.arrived_at, *(at for at in before if at is not None)])
    for one, lifted_at in asked.case.stops:
        stopped_s = min(ended_at, lifted_at or ended_at) - max(could_start_at, one.set_at)
        if stopped_s > 0 and one.target.covers(asked.work):
            yield Reason(
                why=f"it could not start for {duration(stopped_s)} of its time, by a {one.reason}",
                rule=one.command,
                release="Deadlines count on while something is stopped.",
            )


def _expired(asked: _Asked) -> Iterator[Reason]:
    stopped = [*_stopped_meanwhile(asked)]
    yield from stopped
    deadline_s = None if asked.stage is None else asked.stage.deadline_s
    ended_at = asked.run.settled_at
    late = ""
    if deadline_s is not None and ended_at is not None:
        left_s = asked.counts_from + deadline_s - ended_at
        told = f"{duration(-left_s)} after" if left_s < 0 else f"{duration(left_s)} before"
        late = f", and was given up {told} its deadline"
    more = "" if stopped else " More pilots, a lower prescale or a longer deadline_s let more of what comes be in time."
    yield Reason(
        why=f"{asked.run.reason or 'its deadline had passed'}{late}",
        rule=asked.of("deadline_s") if deadline_s is not None else "",
        release=f"{ask_for(asked.unit)}{more}",
    )


def _failed(asked: _Asked) -> Iterator[Reason]:
    run, last = asked.run, asked.run.attempts[-1] if asked.run.attempts else None
    log = f"Its log is {last.log_key} in the store. " if last is not None and last.log_key else ""
    step = asked.stage.steps[0].name if asked.stage else "STEP"
    by_hand = f"`p3s try {asked.unit.pipeline}/{run.stage}/{step} '{asked.unit.data_id}'`"
    again = f"`p3s retry {asked.unit.pipeline} {asked.unit.data_id}` tries it again."
    how, key = f"it failed {_times(run.failures)}: {run.reason}", asked.of("retries")
    if last is not None and last.state == "lost":
        how, key = f"it was lost with its pilot {_times(run.losses)}, and is not given to another: {run.reason}", ""
    elif asked.stage is not None and run.failures <= asked.stage.retries:
        how, key = f"it failed, and to try again would not help: {run.reason}", ""
        if says_other_input(run.reason):
            log += f"{REMEDY} "
    told = f"{log}{by_hand} runs it by hand, with the log on the terminal. {again}"
    yield Reason(why=how, rule=key, release=told)


def _blocked(asked: _Asked) -> Iterator[Reason]:
    ended = [
        stage
        for stage in asked.unit.stages
        if stage.stage in asked.ancestors
        and StageState(stage.state).is_terminal
        and stage.state not in (_S.DONE, _S.BLOCKED)
    ]
    for stage in ended:
        why = f": {stage.reason}" if stage.reason else ""
        yield Reason(
            why=f"it needs {stage.stage}, which is {stage.state}{why}",
            rule=asked.of("after"),
            release=f"`p3s why {asked.unit.pipeline}/{stage.stage} {asked.unit.data_id}` says what to do about that.",
        )
    if not ended:
        why, release = asked.run.reason or "something that it needs did not finish", ""
        if (seen := _units_without_results(asked)) is not None:
            why = f"{why}; of its {seen} {'unit' if seen == 1 else 'units'} none is done"
            report = f"`p3s report coverage {asked.unit.data_id}` says what became of them"
            release = f"{report}; `p3s retry` tries again what failed."
        yield Reason(why=why, rule=asked.of("after"), release=release)


def _units_without_results(asked: _Asked) -> int | None:
    """Of a group, how many units it has, if none of them is done."""
    if asked.unit.per != "group" or asked.case.group is None:
        return None
    own = (asked.unit.pipeline, asked.unit.pass_number)
    for covered in asked.case.group.coverage:
        if (covered.pipeline, covered.pass_number) == own and covered.seen and not covered.done:
            return covered.seen
    return None


def _superseded(asked: _Asked) -> Iterator[Reason]:
    yield Reason(why=asked.run.reason or "a fallback took over")


def _cancelled(asked: _Asked) -> Iterator[Reason]:
    later = [number for number, _ in asked.found.others if number > asked.unit.pass_number]
    goes_on = f"It goes on in pass {min(later)}: `p3s why {asked.unit.data_id} --pass {min(later)}`." if later else ""
    gone = f"Pipeline {asked.unit.pipeline} is not in the experiment file any more." if asked.pipeline is None else ""
    yield Reason(why=asked.run.reason or "it was cancelled", release=goes_on or gone or ask_for(asked.unit))


def _no_longer_declared(asked: _Asked) -> Iterator[Reason]:
    yield Reason(
        why=f"the experiment file has no stage {asked.unit.pipeline}/{asked.run.stage} any more",
        release="A station that is started with this file cancels it; one that runs with the old file goes on with it.",
    )
    yield from station_reasons(asked.case)


def _activity(stage: StageRow, now: float) -> str:
    """``running since 3 s on pilot tcp://...``."""
    if stage.state == _S.RUNNING and stage.attempts:
        last = stage.attempts[-1]
        if last.waits_since is not None:
            return f"waiting for the store with its results, for {duration(max(0.0, now - last.waits_since))}"
        where = f" on pilot {last.pilot}" if last.pilot else ""
        return f"running{where}, for {duration(max(0.0, now - last.opened_at))}"
    at = since(stage)
    return stage.state if at is None else f"{stage.state}, for {duration(max(0.0, now - at))}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


_EXPLAIN: dict[StageState, Callable[[_Asked], Iterator[Reason]]] = {
    _S.WAITING: _waiting,
    _S.QUEUED: _queued,
    _S.RUNNING: _running,
    _S.HELD: _held,
    _S.DONE: _done,
    _S.PRESCALED: _prescaled,
    _S.SHED: _shed,
    _S.EXPIRED: _expired,
    _S.FAILED: _failed,
    _S.BLOCKED: _blocked,
    _S.SUPERSEDED: _superseded,
    _S.CANCELLED: _cancelled,
}
