"""What a running station says about itself; or why there is none that answers, and what is known without it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import httpx

from p3s_prefect.adapters.home import Home, StationAddress
from p3s_prefect.adapters.ledger import views
from p3s_prefect.adapters.ledger.damaged import count_damaged
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.steering import Steering
from p3s_prefect.adapters.supervision import Services
from p3s_prefect.core.errors import LedgerAway, ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.health import (
    START_STATION,
    HealthRow,
    arrivals,
    ledger_away,
    overall,
    results,
    station_down,
    steering,
)
from p3s_prefect.core.store_health import stored_results
from p3s_prefect.core.views import plain
from p3s_prefect.settings import Settings

# The station answers in milliseconds; whoever waits longer wants to know that it hangs.
_ANSWER_TIMEOUT_S = 10.0


def station_status(home: Home) -> dict[str, Any]:
    """What a running station says about itself, and whether the experiment file was edited since it read it.

    Raises:
        ServiceError: it does not run, does not answer, or wants another token.
    """
    address = home.station()
    if address is None:
        raise absent(home)
    if address.is_suspended:
        raise suspended(address)
    token = Settings().token
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    try:
        answer = httpx.get(f"{address.url}/api/status", headers=headers, timeout=_ANSWER_TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
        return dict(answer.json()) | {"is_edited": home.is_edited()}
    except httpx.HTTPStatusError as error:
        why = "it wants the token in P3S_TOKEN" if error.response.status_code == 401 else str(error)
        raise ServiceError(f"the station at {address.url} refuses: {why}", fix="Set P3S_TOKEN.") from error
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceError(
            f"the station (process {address.pid}) does not answer at {address.url}: {type(error).__name__}",
            fix="Look into run/logs/station.log; `p3s down` and `p3s up` restart it.",
        ) from error


def suspended(address: StationAddress) -> ServiceError:
    """What is to be said where a signal has stopped the station's process."""
    return ServiceError(
        f"the station (process {address.pid}) was stopped by a signal: it starts nothing, and answers nobody",
        fix=f"`kill -CONT {address.pid}` lets it go on; `p3s down` and `p3s up` restart it.",
    )


def told_by_ledger(experiment: Experiment, ledger: Ledger, down: ServiceError) -> dict[str, Any]:
    """The same as far as the ledger knows it, where no station answers."""
    now, given = time.time(), Steering(experiment, ledger).in_force()
    with ledger.reading() as connection:
        rows = (
            station_down(down.what, down.fix),
            arrivals(views.kept_out(connection, now=now)),
            results(views.outcomes(connection, now=now)),
            *steering(given),
            *stored_results(count_damaged(connection)),
        )
        return _told(experiment, rows) | {
            "overrides": [one.shown() for one in given],
            "account": [plain(row) for row in views.account(connection)],
            "sub_jobs": [plain(row) for row in views.sub_job_account(connection)],
        }


def told_by_nobody(experiment: Experiment, down: ServiceError, away: LedgerAway) -> dict[str, Any]:
    """The same where neither station nor ledger answers."""
    return _told(experiment, (station_down(down.what, down.fix), ledger_away(away.what)))


def _told(experiment: Experiment, rows: Sequence[HealthRow]) -> dict[str, Any]:
    return {
        "experiment": experiment.experiment,
        "instrument": experiment.instrument.name,
        "station": None,
        "is_edited": False,
        "status": overall(rows),
        "health": [plain(row) for row in rows],
        "overrides": [],
        "account": [],
        "sub_jobs": [],
    }


def absent(home: Home) -> ServiceError:
    """Why there is no station, and what to do about it."""
    services = Services(home)
    if services.pid() is not None:
        if complaint := home.complaint():
            why, *todo = [line.strip() for line in complaint.text.splitlines()]
            fix = "\n  ".join(todo)
            if complaint.is_tried_again:
                return ServiceError(f"the station cannot start, and is tried again: {why}", fix=fix)
            return ServiceError(
                f"the station cannot start, and is not started again: {why}",
                fix=f"{fix} Then `p3s down` and `p3s up`.",
            )
        return ServiceError("the station is being started again", fix="See run/logs/station.log: it says why it ended.")
    if left := services.processes():
        return ServiceError(
            f"the station and its supervisor have ended; {len(left)} other processes of this home go on, such as "
            f"{left[0].pid}",
            fix="`p3s down` ends what is left; then `p3s up`.",
        )
    return ServiceError("no station runs here", fix=START_STATION)
