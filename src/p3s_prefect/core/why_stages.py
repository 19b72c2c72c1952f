"""Why a stage run is in its state: one function a state, each with the rule and the release (B12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from p3s_prefect.core.experiment import Experiment, Stage
from p3s_prefect.core.health import duration
from p3s_prefect.core.overrides import Override, OverrideKind
from p3s_prefect.core.retry import away_s, backoff_s
from p3s_prefect.core.states import StageState
from p3s_prefect.core.targets import BEGUN
from p3s_prefect.core.views import StageRow
from p3s_prefect.core.why_case import StageCase
from p3s_prefect.core.why_ended import ENDED
from p3s_prefect.core.why_facts import Case, Reason, StageWhy, SubJobCase, since, units_named
from p3s_prefect.core.why_queue import queue_reasons
from p3s_prefect.core.why_rules import in_pipeline, of_override, rule, station_reasons, stops_of, times

_S = StageState


def explain_stage(experiment: Experiment, case: Case, found: SubJobCase, run: StageRow) -> StageWhy:
    """A stage run of this sub-job, explained."""
    asked = StageCase(experiment=experiment, case=case, found=found, run=run)
    reasons = tuple(_EXPLAIN[StageState(run.state)](asked))
    return StageWhy(stage=run.stage, state=run.state, since=since(run), reasons=reasons)


# --- open -----------------------------------------------------------------------------------------------------------


def _waiting(asked: StageCase) -> Iterator[Reason]:
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


def _queued(asked: StageCase) -> Iterator[Reason]:
    if asked.stage is None:
        yield from _no_longer_declared(asked)
        return
    yield from _back_off(asked, asked.stage)
    yield from queue_reasons(asked.experiment, asked.case, asked.run.id, asked.work)
    if _stops(asked):
        yield from _deadline_while_stopped(asked)


def _back_off(asked: StageCase, stage: Stage) -> Iterator[Reason]:
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
            why=f"it failed {times(asked.run.failures)} ({last.reason}), and is tried again after a while",
            rule=asked.of("backoff_s"),
            release=f"It is ready again in {duration(left_s)}.",
        )


def _away(asked: StageCase, reason: str, queued_at: float) -> Iterator[Reason]:
    left_s = queued_at + away_s(len(asked.run.attempts)) - asked.case.at
    if left_s > 0:
        yield Reason(
            why=f"its last attempt gave nothing, which does not count ({reason})",
            release=f"It is ready again in {duration(left_s)}.",
        )


def _running(asked: StageCase) -> Iterator[Reason]:
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


def _waits_for_store(asked: StageCase, pilot: str | None, since_at: float) -> Reason:
    waited = duration(max(0.0, asked.case.at - since_at))
    return Reason(
        why=f"its results have been waiting on {pilot} for the store for {waited}"
        if pilot
        else f"the station ended while it ran, {waited} ago, and the store, which can tell whether there are results, "
        "did not answer",
        rule=rule("pilots", "waiting_bytes", asked.experiment.pilots.waiting_bytes),
        release="It goes on when the store is back; `p3s status` tells what is wrong with that.",
    )


def _held(asked: StageCase) -> Iterator[Reason]:
    stops = _stops(asked)
    if not any(one.kind is OverrideKind.HOLD for one in stops):
        yield Reason(why="the hold that put it aside was lifted", release="The station puts it back at once.")
    for one in stops:
        yield of_override(one, asked.case.at)
    yield from _deadline_while_stopped(asked)
    yield from station_reasons(asked.case)


def _stops(asked: StageCase) -> list[Override]:
    begun = any(StageState(stage.state) in BEGUN for stage in asked.unit.stages)
    return stops_of(asked.case, asked.work, begun=begun)


def _deadline_while_stopped(asked: StageCase) -> Iterator[Reason]:
    """It counts on: what is paused is given up at it, and what is held when it is released after it."""
    if asked.stage is None or asked.stage.deadline_s is None:
        return
    left_s = asked.counts_from + asked.stage.deadline_s - asked.case.at
    is_left_out = asked.found.u >= asked.run.q and asked.unit.asked_at is None
    ends = "is shed" if is_left_out else "expires"
    if left_s > 0:
        when = "Released after that, it" if asked.run.state == _S.HELD else "If it has not started then, it"
        why, release = f"its deadline is in {duration(left_s)}", f"{when} {ends}."
    else:
        why = f"its deadline passed {duration(-left_s)} ago"
        anew = f"after that, `p3s request {in_pipeline(asked.unit)} --all` asks for it anew"
        release = f"Released, it {ends}, as nobody wanted its result so late; {anew}."
    yield Reason(why=why, rule=asked.of("deadline_s"), release=release)


def _no_longer_declared(asked: StageCase) -> Iterator[Reason]:
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


_EXPLAIN: dict[StageState, Callable[[StageCase], Iterator[Reason]]] = {
    _S.WAITING: _waiting,
    _S.QUEUED: _queued,
    _S.RUNNING: _running,
    _S.HELD: _held,
} | ENDED
