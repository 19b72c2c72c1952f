"""`p3s reload`: the running station reads the experiment file again, all of it or nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from p3s_prefect.adapters.experiment_file import payload_mistakes, read_experiment
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import requests
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.steering import user
from p3s_prefect.cli.check import print_mistakes
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json
from p3s_prefect.cli.steer import ByOption
from p3s_prefect.core.errors import ExperimentFileErrors, ServiceError

# The station answers when what is being let in has been; a large file may be compared with its rival meanwhile.
_PATIENCE_S = 60.0
_POLL_S = 0.1

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
    if place.station() is None:
        raise ServiceError("no station runs here", fix="The file is in order; `p3s up` starts a station with it.")
    with closing(place.ledger(place.in_force())) as ledger:
        if not ledger.exists():
            raise ServiceError(
                "the ledger of the station that runs here is not there",
                fix="Restart everything: `p3s down`, then `p3s up`.",
            )
        answered = _ask(ledger, by or user(), why)
    if as_json:
        print_json({"ok": answered.is_granted, "answer": answered.answer.splitlines()})
    elif answered.is_granted:
        console().print(plain_text(f"Taken over:\n{answered.answer}"))
    if not answered.is_granted:
        if not as_json:
            raise ServiceError(f"the station refused; nothing has changed\n{answered.answer}")
        raise typer.Exit(1)


def await_answer(
    ledger: Ledger, kind: str, *, by: str, why: str, detail: Mapping[str, Any] | None = None
) -> requests.Request:
    """Asks the running station for something, and waits for the answer; withdraws the request if none comes."""
    with ledger.transaction() as connection:
        number = requests.ask(connection, kind, by=by, why=why, now=time.time(), detail=detail)
    until = time.monotonic() + _PATIENCE_S
    while True:
        with ledger.reading() as connection:
            found = requests.look_up(connection, number)
        if found.is_granted is not None:
            return found
        if time.monotonic() > until:
            _withdraw(ledger, found)
        time.sleep(_POLL_S)


def _ask(ledger: Ledger, by: str, why: str) -> requests.Request:
    return await_answer(ledger, "reload", by=by, why=why)


def _withdraw(ledger: Ledger, asked: requests.Request) -> None:
    text = f"the station did not answer within {_PATIENCE_S:g} s; look into run/logs/station.log"
    with ledger.transaction() as connection:
        requests.answer(connection, asked, is_granted=False, text=text, now=time.time())
