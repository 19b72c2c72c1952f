"""What Dask gave up: nobody is left to end it, in the ledger or in Prefect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Crashed

from p3s_prefect.station import production as books
from p3s_prefect.station.production import Production, StageWork
from p3s_prefect.tasks.turns import Runs, in_dask


def settle_lost(production: Production, work: Sequence[StageWork], runs: Runs) -> Mapping[int, State[Any]]:
    """Ends in the ledger what was submitted, and ended without a state; returns how, by the id of the stage run."""
    found: dict[int, State[Any]] = {}
    for one in work:
        run = runs.get(one.stage_run_id)
        if run is not None and in_dask(run).status == "error":
            error = in_dask(run).exception()
            reason = f"Dask gave it up: {type(error).__name__}: {error}"
            now = books.lose(production, one, reason)
            found[one.stage_run_id] = Crashed(message=f"{reason}; in the ledger it is {now.state} now")
    return found
