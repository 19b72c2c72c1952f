"""`p3s request`: the running station processes what has no results, or everything anew."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import asked, requests
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.steering import user
from p3s_prefect.cli.asking import await_answer, require_station
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json, state, table
from p3s_prefect.cli.progress import shown_progress
from p3s_prefect.cli.steer import ByOption
from p3s_prefect.core.asking import PROCESS, ProcessAsked, check_asked
from p3s_prefect.core.errors import BadName, ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.retry import Which
from p3s_prefect.core.states import SubJobState
from p3s_prefect.core.targets import read_target
from p3s_prefect.core.views import UnitRow

_TARGET = """A group or a unit, after the name of a pipeline where there are several:
waveform-dqm run=2008, 'waveform-dqm run=2008 subrun=3'."""
_LOOK_EVERY_S = 0.5
_MOST_ROWS = 20


def request(
    words: Annotated[list[str], typer.Argument(metavar="TARGET", help=_TARGET, show_default=False)],
    every: Annotated[
        bool, typer.Option("--all", help="What has results, too: in a new pass, which replaces it.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until all has ended; the exit code says if all is done.")
    ] = False,
    why: Annotated[str, typer.Option("--why", help="The reason, for the journal.")] = "",
    by: ByOption = "",
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Have the station process what has no results: what was left out, expired, was cancelled, or never began.

    Chance leaves nothing of it out, whatever the load, and deadlines count from now on. What failed is left to
    `p3s retry`; what is under way is not begun twice.

    Example: p3s request waveform-dqm run=2008 subrun=3 --wait
    """
    place = Home(home)
    experiment = place.in_force()
    wanted = _wanted(experiment, words, Which.ALL if every else Which.MISSING)
    require_station(place, "`p3s up` starts one; then ask again.")
    with closing(place.ledger(experiment)) as ledger:
        with ledger.reading() as connection:
            asked.check_data(connection, wanted.group, wanted.units)
        answered = await_answer(ledger, PROCESS, by=by or user(), why=why, detail=wanted.detail())
        if not answered.is_granted and not as_json:
            raise ServiceError(f"nothing is processed: {answered.answer}")
        if not as_json:
            console().print(plain_text(f"{answered.answer}."))
        ended = _await_end(ledger, answered) if wait else ()
    if as_json:
        print_json(
            {"ok": answered.is_granted, "answer": answered.answer} | ({"ended": _records(ended)} if wait else {})
        )
    elif wait:
        _print(ended)
    if not answered.is_granted or _without_results(ended):
        raise typer.Exit(1)


# --- inside ---------------------------------------------------------------------------------------------------------


def _wanted(experiment: Experiment, words: Sequence[str], which: Which) -> ProcessAsked:
    target = read_target(words, experiment)
    example = f"Such as `p3s request {next(iter(experiment.pipelines))} run=1`."
    if target.work_class is not None or target.stage is not None:
        raise BadName(f"{target} is no pipeline", fix=f"Name a pipeline. {example}")
    data = target.group or target.unit
    if data is None:
        raise BadName(f"{target} names no group and no unit", fix=example)
    pipeline = target.pipeline
    if pipeline is None:
        if len(experiment.pipelines) > 1:
            raise BadName(
                f"which pipeline is to process {data}?",
                fix=" or ".join(f"`p3s request {name} {data}`" for name in experiment.pipelines),
            )
        (pipeline,) = experiment.pipelines
    units = () if target.unit is None else (target.unit,)
    group = data.subset(experiment.instrument.group)
    return check_asked(ProcessAsked(pipeline=pipeline, group=group, units=units, which=which), experiment)


def _await_end(ledger: Ledger, answered: requests.Request) -> tuple[UnitRow, ...]:
    """What became of the units and groups that were asked for, once all have ended."""
    numbers = [int(number) for number in answered.detail.get("sub_jobs", ())]
    with shown_progress() as tell:
        while True:
            with ledger.reading() as connection:
                still_open = asked.count_open(connection, numbers)
            tell("processing", len(numbers) - still_open, len(numbers))
            if not still_open:
                break
            time.sleep(_LOOK_EVERY_S)
    with ledger.reading() as connection:
        return asked.outcome(connection, numbers)


def _without_results(ended: Sequence[UnitRow]) -> list[UnitRow]:
    return [unit for unit in ended if unit.state not in (SubJobState.DONE, SubJobState.PRESCALED)]


def _print(ended: Sequence[UnitRow]) -> None:
    counts = Counter(unit.state for unit in ended)
    told = ", ".join(f"{number} {name}" for name, number in counts.most_common())
    out = console()
    out.print(f"Ended: {told or 'nothing was asked for'}.")
    bad = _without_results(ended)
    if bad:
        rows = [(unit.data_id, unit.pass_number, state(unit.state), unit.reason) for unit in bad[:_MOST_ROWS]]
        out.print(table(["unit", "pass>", "state", "why"], rows))
        if len(bad) > _MOST_ROWS:
            out.print(f"... and {len(bad) - _MOST_ROWS} more")


def _records(ended: Sequence[UnitRow]) -> list[dict[str, Any]]:
    return [
        {"data_id": unit.data_id, "per": unit.per, "pass": unit.pass_number, "state": unit.state, "why": unit.reason}
        for unit in ended
    ]
