"""`p3s request`: the running station processes what has no results, or everything anew."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from p3s_prefect.adapters.home import Home, StationAddress
from p3s_prefect.adapters.ledger import asked, requests
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.station_status import absent, suspended
from p3s_prefect.adapters.steering import Steering, user
from p3s_prefect.cli.asking import await_answer, in_words_of_the_file, require_station, station_ledger
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import INTERRUPTED, console, plain_text, print_json, state, table
from p3s_prefect.cli.progress import shown_progress
from p3s_prefect.cli.steer import ByOption
from p3s_prefect.core.asking import PROCESS, ProcessAsked, check_asked
from p3s_prefect.core.errors import BadName, LedgerAway, ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.overrides import Override, Target
from p3s_prefect.core.retry import Which
from p3s_prefect.core.states import WITHOUT_RESULT, StageState
from p3s_prefect.core.targets import acting_on, read_target
from p3s_prefect.core.views import UnitRow

_TARGET = """A group or a unit, after the name of a pipeline where there are several:
waveform-dqm run=2008, 'waveform-dqm run=2008 subrun=3'."""
# For people who watch it; to count the open units of a run takes milliseconds.
_LOOK_EVERY_S = 0.5
# What fits on a screen; `p3s list units` has all.
_MOST_ROWS = 20


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
        try:
            answered = await_answer(ledger, PROCESS, by=by or user(), why=why, detail=wanted.detail())
            if not answered.is_granted and not as_json:
                raise ServiceError(f"nothing is processed: {answered.answer}")
            stops = _stops(ledger, experiment, answered)
            if not as_json:
                lines = [f"{answered.answer}.", *(f"{said}. `{one.lift}` lifts it." for one, said in stops.items())]
                console().print(plain_text("\n".join(lines)), soft_wrap=True)
            ended = _await_end(place, ledger, answered) if wait else ()
        except KeyboardInterrupt:
            Console(stderr=True).print("Not waited for any more; what was asked for goes on.")
            raise typer.Exit(INTERRUPTED) from None
    missing = [unit for unit in ended if any(stage.state in WITHOUT_RESULT for stage in unit.stages)]
    is_well = bool(answered.is_granted) and not missing
    if as_json:
        told = {"ok": is_well, "answer": answered.answer, "waits_for": [one.shown() for one in stops]}
        print_json(told | ({"ended": _records(ended)} if wait else {}))
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


def _stops(ledger: Ledger, experiment: Experiment, answered: requests.Request) -> dict[Override, str]:
    """The commands that keep some of it from starting, and how many each keeps."""
    controls = Steering(experiment, ledger).controls()
    with ledger.reading() as connection:
        units = asked.outcome(connection, _numbers(answered)) if controls else ()
    waiting = (unit for unit in units if unit.settled_at is None and unit.activity != StageState.RUNNING)
    found = Counter(one for unit in waiting for one in acting_on(unit, experiment, controls) if one.stops)
    return {one: f"{number} of it {'waits' if number == 1 else 'wait'}: {one.reason}" for one, number in found.items()}


def _await_end(place: Home, ledger: Ledger, answered: requests.Request) -> tuple[UnitRow, ...]:
    """What became of the units and groups that were asked for, once all have ended.

    Whatever is away meanwhile is told once, and waited for.
    """
    numbers = _numbers(answered)
    address, was_away = place.station(), False
    with shown_progress() as tell:
        while True:
            try:
                with ledger.reading() as connection:
                    numbers, still_open = asked.follow(connection, numbers)
                    if not still_open:
                        return asked.outcome(connection, numbers)
                tell("processing", len(numbers) - still_open, len(numbers))
                address = place.station()
                is_away, trouble = address is None or address.is_suspended, ""
            except LedgerAway as error:
                is_away, trouble = True, f"{error.what}; it is waited for"
            if is_away != was_away:
                told = (trouble or _trouble(place, address)) if is_away else "It goes on."
                Console(stderr=True, soft_wrap=True).print(plain_text(told))
            was_away = is_away
            time.sleep(_LOOK_EVERY_S)


def _numbers(answered: requests.Request) -> list[int]:
    """The sub-jobs that were asked for."""
    return [int(number) for number in answered.detail.get("sub_jobs", ())]


def _trouble(place: Home, address: StationAddress | None) -> str:
    """Why the station does nothing; what was asked for stays asked for."""
    return str(absent(place) if address is None else suspended(address))


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
