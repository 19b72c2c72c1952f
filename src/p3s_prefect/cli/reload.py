"""`p3s reload`: the running station reads the experiment file again, all of it or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from p3s_prefect.adapters.experiment_file import payload_mistakes, read_experiment
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.steering import user
from p3s_prefect.cli.asking import await_answer, require_station, station_ledger
from p3s_prefect.cli.check import print_mistakes
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json
from p3s_prefect.cli.steer import ByOption
from p3s_prefect.core.errors import ExperimentFileErrors, ServiceError

_WhyOption = Annotated[str, typer.Option("--why", help="The reason, for the journal.")]


def reload(home: HomeOption = Path(), why: _WhyOption = "", by: ByOption = "", as_json: JsonOption = False) -> None:
    """Check the experiment file, and have the running station take it over. A mistake changes nothing.

    What comes from then on is decided by the new file; units that are open finish by the old one. Some settings need
    a restart: the station refuses a file that changes them, and says which.
    """
    place = Home(home)
    try:
        read_experiment(place.experiment_file, also=[payload_mistakes])
    except ExperimentFileErrors as errors:
        print_mistakes(errors, as_json=as_json)
        raise typer.Exit(1) from errors
    require_station(place, "The file is in order; `p3s up` starts a station with it.")
    with station_ledger(place, place.in_force()) as ledger:
        answered = await_answer(ledger, "reload", by=by or user(), why=why)
    if as_json:
        print_json({"ok": answered.is_granted, "answer": answered.answer.splitlines()})
    elif answered.is_granted:
        console().print(plain_text(f"Taken over:\n{answered.answer}"))
    if not answered.is_granted:
        if not as_json:
            raise ServiceError(f"the station refused; nothing has changed\n{answered.answer}")
        raise typer.Exit(1)
