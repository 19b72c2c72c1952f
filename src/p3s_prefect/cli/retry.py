"""`p3s retry`: the running station tries again what failed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import overrides
from p3s_prefect.adapters.steering import user
from p3s_prefect.cli.asking import await_answer, in_words_of_the_file, require_station, station_ledger
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json
from p3s_prefect.cli.steer import TARGETS, ByOption
from p3s_prefect.core.asking import RETRY
from p3s_prefect.core.errors import ServiceError
from p3s_prefect.core.targets import read_target


def retry(
    words: Annotated[list[str], typer.Argument(metavar="TARGET", help=TARGETS, show_default=False)],
    why: Annotated[str, typer.Option("--why", help="The reason, for the journal.")] = "",
    by: ByOption = "",
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Try again what failed, in the same pass; what waited for it goes on. What was done stays as it is.

    Deadlines count from now on. Example: p3s retry run=2008 --why "the disk is back"
    """
    place = Home(home)
    experiment = place.in_force()
    with in_words_of_the_file(place):
        target = read_target(words, experiment)
    require_station(place, "`p3s up` starts one; then ask again.")
    with station_ledger(place, experiment) as ledger:
        with ledger.reading() as connection:
            overrides.check_data(connection, target)
        subject = target.unit or target.group
        detail = {"target": str(target)} | ({} if subject is None else {"group": str(subject)})
        answered = await_answer(ledger, RETRY, by=by or user(), why=why, detail=detail)
    if as_json:
        print_json({"ok": answered.is_granted, "answer": answered.answer})
    elif answered.is_granted:
        console().print(plain_text(f"{answered.answer}."))
    if not answered.is_granted:
        if not as_json:
            raise ServiceError(f"nothing is tried again: {answered.answer}")
        raise typer.Exit(1)
