"""`p3s request`: the running station processes what has no results, or everything anew."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import asked, requests
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.station_status import absent, suspended
from p3s_prefect.adapters.steering import Steering, user
from p3s_prefect.cli.asking import await_answer, in_words_of_the_file, require_station, station_ledger
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json, state, table
from p3s_prefect.cli.progress import shown_progress
from p3s_prefect.cli.steer import ByOption
from p3s_prefect.core.asking import PROCESS, ProcessAsked, check_asked
from p3s_prefect.core.errors import BadName, LedgerAway, ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.overrides import Target, Work
from p3s_prefect.core.retry import Which
from p3s_prefect.core.states import WITHOUT_RESULT
from p3s_prefect.core.targets import read_target
from p3s_prefect.core.views import UnitRow

_TARGET = """A group or a unit, after the name of a pipeline where there are several:
waveform-dqm run=2008, 'waveform-dqm run=2008 subrun=3'."""
# For people who watch it; to count the open units of a run takes milliseconds.
_LOOK_EVERY_S = 0.5
# What fits on a screen; `p3s list units` has all.
_MOST_ROWS = 20
# As shells have it.
_INTERRUPTED = 128 + signal.SIGINT


def request(
    words: Annotated[list[str], typer.Argument(metavar="TARGET", help=_TARGET, show_default=False)],
    every: Annotated[
        bool, typer.Option("--all", help="What has results or failed, too: all anew, in a new pass.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end; the exit code says if all gave results.")
    ] = False,
    why: Annotated[str, typer.Option("--why", help="The reason, for the journal.")] = "",
    by: ByOption = "",
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Have the station process what has no results: never begun, left out, given up, blocked, cancelled, or damaged.

    Chance leaves nothing of it out, whatever the load, and deadlines count from now on. What failed is left to
    `p3s retry`; what is under way is not begun twice. The totals of a group that has closed are made anew with it.

    Example: p3s request waveform-dqm run=2008 subrun=3 --wait
    """
    place = Home(home)
    experiment = place.in_force()
    with in_words_of_the_file(place):
        wanted = _wanted(experiment, words, Which.ALL if every else Which.MISSING)
    require_station(place, "`p3s up` starts one; then ask again.")
    with station_ledger(place, experiment) as ledger:
        with ledger.reading() as connection:
            asked.check_data(connection, wanted.group, wanted.units)
        answered = await_answer(ledger, PROCESS, by=by or user(), why=why, detail=wanted.detail())
        if not answered.is_granted and not as_json:
            raise ServiceError(f"nothing is processed: {answered.answer}")
        if not as_json:
            stops = _stops(ledger, experiment, wanted, answered)
            console().print(plain_text("\n".join([f"{answered.answer}.", *stops])), soft_wrap=True)
        try:
            ended = _await_end(place, ledger, answered) if wait else ()
        except KeyboardInterrupt:
            Console(stderr=True).print("Not waited for any more; what was asked for goes on.")
            raise typer.Exit(_INTERRUPTED) from None
    missing = [unit for unit in ended if unit.state in WITHOUT_RESULT]
    is_well = bool(answered.is_granted) and not missing
    if as_json:
        print_json({"ok": is_well, "answer": answered.answer} | ({"ended": _records(ended)} if wait else {}))
    elif wait:
        _print(ended, missing)
    if not is_well:
        raise typer.Exit(1)


# --- inside ---------------------------------------------------------------------------------------------------------


def _wanted(experiment: Experiment, words: Sequence[str], which: Which) -> ProcessAsked:
    target = read_target(words, experiment, "pipeline, and a group or a unit of it")
    group = " ".join(f"{dimension}=..." for dimension in experiment.instrument.group)
    fix = f"Name a pipeline, and a group or a unit of it, such as {next(iter(experiment.pipelines))} {group}."
    if target.work_class is not None:
        raise BadName("a whole class cannot be asked for", fix=fix)
    if target.stage is not None:
        raise BadName("a stage cannot be asked for by itself", fix=fix)
    data = target.group or target.unit
    if data is None:
        raise BadName(f"{target} names no group and no unit", fix=fix)
    pipeline = target.pipeline
    if pipeline is None:
        if len(experiment.pipelines) > 1:
            each = (Target(pipeline=name, group=target.group, unit=target.unit) for name in experiment.pipelines)
            commands = " or ".join(f"`p3s request {one}`" for one in each)
            raise BadName(f"which pipeline is to process {data}?", fix=f"{commands}.")
        (pipeline,) = experiment.pipelines
    units = () if target.unit is None else (target.unit,)
    own_group = data.subset(experiment.instrument.group)
    return check_asked(ProcessAsked(pipeline=pipeline, group=own_group, units=units, which=which), experiment)


def _stops(ledger: Ledger, experiment: Experiment, wanted: ProcessAsked, answered: requests.Request) -> list[str]:
    """What keeps all that is open of it from starting, by command."""
    with ledger.reading() as connection:
        if not asked.count_open(connection, _numbers(answered)):
            return []
    controls = Steering(experiment, ledger).controls()
    pipeline = experiment.pipelines[wanted.pipeline]
    unit = wanted.units[0] if len(wanted.units) == 1 else None
    works = [
        Work(
            work_class=pipeline.work_class,
            pipeline=wanted.pipeline,
            stage=stage,
            group=wanted.group,
            unit=unit if declared.per == "unit" else None,
        )
        for stage, declared in pipeline.stages.items()
    ]
    found = dict.fromkeys(one for work in works for one in controls.acting_on(work) if one.stops)
    return [f"It waits, as a part of {one.target}: {one.reason}. `{one.lift}` lifts it." for one in found]


def _await_end(place: Home, ledger: Ledger, answered: requests.Request) -> tuple[UnitRow, ...]:
    """What became of the units and groups that were asked for, once all have ended.

    Whatever is away meanwhile is told once, and waited for.
    """
    numbers = _numbers(answered)
    told = ""
    with shown_progress() as tell:
        while True:
            try:
                with ledger.reading() as connection:
                    still_open = asked.count_open(connection, numbers)
                    successors = numbers if still_open else asked.followed(connection, numbers)
                    if not still_open and successors == numbers:
                        return asked.outcome(connection, numbers)
                numbers = successors
                tell("processing", len(numbers) - still_open, len(numbers))
                trouble = _trouble(place)
            except LedgerAway as error:
                trouble = f"{error.what}; it is waited for"
            if trouble != told:
                Console(stderr=True, soft_wrap=True).print(plain_text(trouble or "It goes on."))
            told = trouble
            time.sleep(_LOOK_EVERY_S)


def _numbers(answered: requests.Request) -> list[int]:
    """The sub-jobs that were asked for."""
    return [int(number) for number in answered.detail.get("sub_jobs", ())]


def _trouble(place: Home) -> str:
    """Why nothing goes on at the moment, if the station is not there to go on; what was asked for stays asked for."""
    address = place.station()
    if address is None:
        return str(absent(place))
    return str(suspended(address)) if address.is_suspended else ""


def _print(ended: Sequence[UnitRow], missing: Sequence[UnitRow]) -> None:
    counts = Counter(unit.state for unit in ended)
    told = ", ".join(f"{number} {name}" for name, number in counts.most_common())
    out = console()
    out.print(f"Ended: {told}." if told else "There is nothing of it to wait for.")
    if missing:
        rows = [(unit.data_id, unit.pass_number, state(unit.state), unit.reason) for unit in missing[:_MOST_ROWS]]
        out.print(table(["unit", "pass>", "state", "why"], rows))
    if len(missing) > _MOST_ROWS:
        out.print(f"... and {len(missing) - _MOST_ROWS} more.")


def _records(ended: Sequence[UnitRow]) -> list[dict[str, Any]]:
    return [
        {"data_id": unit.data_id, "per": unit.per, "pass": unit.pass_number, "state": unit.state, "why": unit.reason}
        for unit in ended
    ]
