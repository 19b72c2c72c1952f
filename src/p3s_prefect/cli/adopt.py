"""`p3s adopt`: a store whose ledger is gone for good becomes that of this home's ledger."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from p3s_prefect.adapters import store_owner
from p3s_prefect.adapters.home import Home
from p3s_prefect.cli.options import HomeOption
from p3s_prefect.cli.output import console, plain_text


def adopt(home: HomeOption = Path()) -> None:
    """Take over the store for this home's ledger, when the ledger that it belonged to is gone for good.

    What that ledger had published stays; what neither of them knows is swept in time.
    """
    place = Home(home)
    experiment, now = place.in_force(), time.time()
    store = place.store(experiment)
    with closing(place.ledger(experiment)) as ledger:
        ledger.migrate()
        owner = store_owner.owner_of(ledger, place, experiment, now)
        before = store_owner.adopt(store, owner, ledger, now)
    told = "is this ledger's already" if before == str(owner) else f"is this ledger's now; before, it was {before}"
    console().print(plain_text(f"The store {store.url} {told}."))
