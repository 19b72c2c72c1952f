"""Asking the running station for something, and waiting for its answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import requests
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.station_status import stopped
from p3s_prefect.core.errors import ServiceError

# The station answers when what is being let in has been; a large file may be compared with its rival meanwhile.
_PATIENCE_S = 60.0
_POLL_S = 0.1


def require_station(place: Home, fix: str) -> None:
    """Refuses what only a running station can do.

    Raises:
        ServiceError: none runs here, and `fix` says what to do; or it is stopped by a signal.
    """
    address = place.station()
    if address is None:
        raise ServiceError("no station runs here", fix=fix)
    if address.is_stopped:
        raise stopped(address)


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
