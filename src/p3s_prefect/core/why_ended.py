"""Why a stage run has ended as it has, and what can be done about that: one function a state (B12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.health import duration
from p3s_prefect.core.other_input import REMEDY, says_other_input
from p3s_prefect.core.overrides import Override
from p3s_prefect.core.plan import floor_of
from p3s_prefect.core.retry import MISSING
from p3s_prefect.core.states import StageState
from p3s_prefect.core.views import Coverage
from p3s_prefect.core.why_case import StageCase
from p3s_prefect.core.why_facts import Reason
from p3s_prefect.core.why_rules import asked_for, in_pipeline, rule, stage_rule, times

_S = StageState
# Stopped for so much of its time, it was not late for want of pilots.
_MOST_OF_IT = 0.5


def _done(asked: StageCase) -> Iterator[Reason]:
    unit, u, q = asked.unit, asked.found.u, asked.run.q
    show = f"p3s show {unit.data_id} --pipeline {unit.pipeline} --pass {unit.pass_number}"
    yield Reason(why="its results are published", release=f"`{show}` lists them.")
    if u >= q:
        how = "ran as a slot was left" if unit.asked_at is None else "was asked for by hand"
        yield Reason(
            why=f"overload had left it out, as its number {u:.4g} is not below {q:.4g}, and it {how}",
            rule=rule("classes", asked.work_class, "shed", True),
            release="Nothing: chance decides once. It has the weight 0 in trends and totals, and stands for no others.",
        )


def _prescaled(asked: StageCase) -> Iterator[Reason]:
    u, anew = asked.found.u, _anew(asked)
    passed_not = [found for found in _prescales(asked) if u >= found[1]]
    if not passed_not:
        # The experiment file has changed since.
        then = f"{asked.run.q:g}, the prescale that the experiment file gave then"
        yield Reason(why=f"its number {u:.4g} is not below {then}", release=anew)
        return
    whose, share, key = min(passed_not, key=lambda found: found[1])
    yield Reason(
        why=f"its number {u:.4g} is not below {share:g}, the prescale of {whose}",
        rule=key,
        release=f"{anew} A higher prescale takes in more of what comes.",
    )


def _prescales(asked: StageCase) -> Iterator[tuple[str, float, str]]:
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


def _shed(asked: StageCase) -> Iterator[Reason]:
    name = asked.work_class
    work_class = None if asked.pipeline is None else asked.experiment.class_of(asked.pipeline)
    floor = None if work_class is None else floor_of(work_class, DataId.parse(asked.unit.data_id))
    if work_class is not None and floor is not None and asked.run.q == floor.share:
        yield Reason(
            why=f"its number {asked.found.u:.4g} is not below {floor.share:g}, the share that the floor for "
            f"{floor.units} lets in whatever the overload",
            rule=rule("classes", name, "floors", work_class.floors.index(floor), "share", floor.share),
            release=f"{_anew(asked)} More pilots, a higher priority or a greater share let in more of what comes.",
        )
        return
    yield Reason(
        why=f"its number {asked.found.u:.4g} is not below {asked.run.q:.4g}, the share that could be let in "
        "in the overload of that moment",
        rule=rule("classes", name, "shed", True),
        release=f"{_anew(asked)} More pilots, or a higher priority or a floor for class {name}, let in more of "
        "what comes.",
    )


def _stopped_meanwhile(asked: StageCase) -> Iterator[tuple[Override, float, bool]]:
    """The commands that kept it from its slot for a while: for how long, in seconds, and whether they do so still."""
    ended_at = asked.run.settled_at
    if ended_at is None:
        return
    # Not since it was queued: what was held, or tried again, was queued anew.
    before = [asked.siblings[name].settled_at for name in asked.ancestors if name in asked.siblings]
    could_start_at = max([asked.unit.arrived_at, *(at for at in before if at is not None)])
    for one, lifted_at in asked.case.stops:
        stopped_s = min(ended_at, lifted_at or ended_at) - max(could_start_at, one.set_at)
        if stopped_s > 0 and one.target.covers(asked.work):
            yield one, stopped_s, lifted_at is None or lifted_at > asked.case.at


def _expired(asked: StageCase) -> Iterator[Reason]:
    stops = [*_stopped_meanwhile(asked)]
    for one, stopped_s, is_in_force in stops:
        yield Reason(
            why=f"it could not start for {duration(stopped_s)} of its time, by a {one.reason}",
            rule=one.command,
            release=(f"`{one.lift}` lifts it. " if is_in_force else "")
            + "Deadlines count on while something is stopped.",
        )
    deadline_s = None if asked.stage is None else asked.stage.deadline_s
    ended_at = asked.run.settled_at
    late = ""
    if deadline_s is not None and ended_at is not None:
        left_s = asked.counts_from + deadline_s - ended_at
        told = f"{duration(-left_s)} after" if left_s < 0 else f"{duration(left_s)} before"
        late = f"; it was given up {told} its deadline"
    release = _anew(asked, is_stopped=any(is_in_force for _, _, is_in_force in stops))
    longest_s = max((stopped_s for _, stopped_s, _ in stops), default=0.0)
    if deadline_s is None or longest_s < _MOST_OF_IT * deadline_s:
        release += " More pilots, a lower prescale or a longer deadline_s let more of what comes be in time."
    yield Reason(
        why=f"{asked.run.reason or 'its deadline had passed'}{late}",
        rule=asked.of("deadline_s") if deadline_s is not None else "",
        release=release,
    )


def _failed(asked: StageCase) -> Iterator[Reason]:
    run, last = asked.run, asked.run.attempts[-1] if asked.run.attempts else None
    log = f"Its log is {last.log_key} in the store. " if last is not None and last.log_key else ""
    step = asked.stage.steps[0].name if asked.stage else "STEP"
    by_hand = f"`p3s try {asked.unit.pipeline}/{run.stage}/{step} '{asked.unit.data_id}'`"
    how, key = f"it failed {times(run.failures)}: {run.reason}", asked.of("retries")
    if last is not None and last.state == "lost":
        how, key = f"it was lost with its pilot {times(run.losses)}, and is not given to another: {run.reason}", ""
    elif asked.stage is not None and run.failures <= asked.stage.retries:
        how, key = f"it failed, and to try again would not help: {run.reason}", ""
        if says_other_input(run.reason):
            log += f"{REMEDY} "
    told = f"{log}{by_hand} runs it by hand, with the log on the terminal."
    yield Reason(why=how, rule=key, release=f"{told} {_elsewhere(asked) or _tried_again(asked)}")


def _blocked(asked: StageCase) -> Iterator[Reason]:
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
        units = _units_of(asked) if asked.unit.per == "group" else None
        if units is not None and units.seen and not units.done:
            why = f"{why}; of its {units.seen} {'unit' if units.seen == 1 else 'units'} none is done"
            report = f"`p3s report coverage {asked.unit.data_id}` says what became of them"
            whose = in_pipeline(asked.unit)
            release = (
                f"{report}; `p3s retry {whose}` tries again what failed, `p3s request {whose}` asks for the others."
            )
        yield Reason(why=why, rule=asked.of("after"), release=release)


def _units_of(asked: StageCase) -> Coverage | None:
    """What became of the units of its group in its pass."""
    own = (asked.unit.pipeline, asked.unit.pass_number)
    coverage = () if asked.case.group is None else asked.case.group.coverage
    return next((one for one in coverage if (one.pipeline, one.pass_number) == own), None)


def _superseded(asked: StageCase) -> Iterator[Reason]:
    yield Reason(why=asked.run.reason or "a fallback took over")


def _cancelled(asked: StageCase) -> Iterator[Reason]:
    yield Reason(why=asked.run.reason or "it was cancelled", release=_anew(asked))


# --- what can be done ---------------------------------------------------------------------------------------------


def _anew(asked: StageCase, *, is_stopped: bool = False) -> str:
    """How a unit that has ended without this result comes to it all the same.

    What is asked for while a command stops it would wait, and expire again.
    """
    if elsewhere := _elsewhere(asked):
        return elsewhere
    unit = asked.unit
    if unit.per == "group":
        command, units = f"p3s request {in_pipeline(unit)}", _units_of(asked)
        if units is not None and units.seen == units.done:
            return f"`{command} --all` processes all of its units anew, and it."
        which = "its units without results, with --all for all of them"
        return f"`{command}` asks for {which}, and makes it anew with these."
    is_open = unit.settled_at is None
    first = [*(["nothing stops it"] if is_stopped else []), *(["all of it has ended"] if is_open else [])]
    # What failed too, or has other results, is not missing.
    told = asked_for(unit, every=is_open or unit.state not in MISSING)
    return f"Once {' and '.join(first)}, {told}" if first else told


def _tried_again(asked: StageCase) -> str:
    what = "it" if asked.unit.per == "unit" else "it, and what failed of its units,"
    whose = in_pipeline(asked.unit)
    # A retry stays in its pass, and so with the programs and parameters of that.
    other = f"if its program or the experiment file was changed for that, `p3s request {whose} --all` processes it anew"
    return f"Once that is mended, `p3s retry {whose}` tries {what} again; {other}."


def _elsewhere(asked: StageCase) -> str:
    """Why nothing can be done about this pass; empty where something can."""
    unit = asked.unit
    newest = max((number for number, _ in asked.found.others), default=unit.pass_number)
    if newest > unit.pass_number:
        return f"It is in pass {newest} now: `p3s why {unit.data_id} --pass {newest}`."
    if asked.pipeline is None:
        return f"Pipeline {unit.pipeline} is not in the experiment file any more."
    return ""


ENDED: dict[StageState, Callable[[StageCase], Iterator[Reason]]] = {
    _S.DONE: _done,
    _S.PRESCALED: _prescaled,
    _S.SHED: _shed,
    _S.EXPIRED: _expired,
    _S.FAILED: _failed,
    _S.BLOCKED: _blocked,
    _S.SUPERSEDED: _superseded,
    _S.CANCELLED: _cancelled,
}
