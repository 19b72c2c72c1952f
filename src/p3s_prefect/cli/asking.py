"""Asking the running station for something, and waiting for its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from rich.console import Console

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import requests
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.station_status import suspended
from p3s_prefect.core.errors import BadName, ServiceError
from p3s_prefect.core.experiment import Experiment

# The station answers when what is being let in has been; a large file may be compared with its rival meanwhile.
_PATIENCE_S = 60.0
_POLL_S = 0.1


@contextmanager
def in_words_of_the_file(place: Home) -> Iterator[None]:
    """Where a name is refused, says that the experiment file was edited, if it was."""
    try:
        yield
    except BadName as error:
        if not place.is_edited():
            raise
        fix = f"{error.fix} experiment.yaml was edited since: what is new in it is there after `p3s reload`."
        raise BadName(error.what, fix=fix) from error


@contextmanager
def station_ledger(place: Home, experiment: Experiment) -> Iterator[Ledger]:
    """The ledger of a station that runs.

    Raises:
        ServiceError: it was removed under it.
    """
    with closing(place.ledger(experiment)) as ledger:
        if not ledger.exists():
            raise ServiceError(
                "the ledger of the station that runs here is not there",
                fix="Restart everything: `p3s down`, then `p3s up`.",
            )
        yield ledger


def require_station(place: Home, fix: str) -> None:
    """Refuses what only a running station can do.

    Raises:
        ServiceError: none runs here, and `fix` says what to do; or a signal has stopped it.
    """
    address = place.station()
    if address is None:
        raise ServiceError("no station runs here", fix=fix)
    if address.is_suspended:
        raise suspended(address)


def await_answer(
    ledger: Ledger, kind: str, *, by: str, why: str, detail: Mapping[str, Any] | None = None
) -> requests.Request:
    """Asks the running station for something, and waits for the answer; withdraws the request if none comes."""
    with ledger.transaction() as connection:
        number = requests.ask(connection, kind, by=by, why=why, now=time.time(), detail=detail)
    until = time.monotonic() + _PATIENCE_S
    with Console(stderr=True).status("waiting for the station's answer"):
        while True:
            with ledger.reading() as connection:
                found = requests.look_up(connection, number)
            if found.is_granted is not None:
                return found
            if time.monotonic() > until:
                _withdraw(ledger, found)
            time.sleep(_POLL_S)


def _withdraw(ledger: Ledger, asked: requests.Request) -> None:
    text = f"the station did not answer within {_PATIENCE_S:g} s; look into run/logs/station.log"
    with ledger.transaction() as connection:
        requests.answer(connection, asked, is_granted=False, text=text, now=time.time())
