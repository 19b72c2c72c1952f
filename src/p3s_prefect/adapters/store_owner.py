"""Whose store it is: the mark of the one ledger whose publications lie there.

A ledger takes for an orphan what it does not know; two of them on one store would sweep what the other has not
published yet. So the first one leaves a mark, and any other finds it before it writes or removes anything.

It guards against a mistake in an experiment file, not against copies of a ledger, which bear the same id. Of two that
claim a new store at the same instant, one may believe for a moment that it is its own, where a store knows no "only if
nothing is there": the next claim, made before each sweep, tells it.
"""

from __future__ import annotations

import contextlib
from uuid import UUID

from pydantic import BaseModel, ConfigDict, ValidationError

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import agent_cursor, journal
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.errors import ObjectExists, ObjectMissing, StoreTaken
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.ports import ObjectStore

MARK = "owner.json"


class Owner(BaseModel):
    """A ledger; and for people, of which experiment in which home."""

    model_config = ConfigDict(frozen=True)

    ledger: UUID
    experiment: str
    home: str

    def __str__(self) -> str:
        return f"that of {self.experiment!r} in {self.home}"


def owner_of(ledger: Ledger, home: Home, experiment: Experiment, now: float, site: UUID | None = None) -> Owner:
    """What marks a store as this ledger's; one that has no id yet gets `site`, or a new one."""
    with ledger.transaction() as connection:
        site = agent_cursor.open_cursor(connection, now, site).site
    return Owner(ledger=site, experiment=experiment.experiment, home=str(home.path.resolve()))


def claim_again(store: ObjectStore, ledger: Ledger, home: Home, experiment: Experiment, now: float) -> None:
    """Claims a store for the ledger that is to take the place of the one to which it belongs, and so bears its id.

    Raises:
        StoreTaken: it belongs to another ledger than that of which this is a backup; or to whom cannot be read.
        StoreError: it cannot be read or written.
    """
    found = _found(store)
    claim(store, owner_of(ledger, home, experiment, now, None if found is None else found.ledger))


def claim(store: ObjectStore, owner: Owner) -> None:
    """Marks a store that belongs to nobody; one that is this ledger's already is no error.

    Raises:
        StoreTaken: it belongs to another ledger, or to whom cannot be read.
        StoreError: it cannot be read or written.
    """
    if (found := _found(store)) is None:
        with contextlib.suppress(ObjectExists):  # somebody was quicker
            store.put_bytes(MARK, _mark(owner))
        found = _found(store)
    if found is None or found.ledger != owner.ledger:
        raise StoreTaken(
            f"the store {store.url} belongs to another ledger, {found or 'which has just left it'}",
            fix="Each ledger needs a store of its own: set `store` in the experiment file. If the other one is gone "
            "for good, `p3s adopt` makes the store this one's.",
        )


def adopt(store: ObjectStore, owner: Owner, ledger: Ledger, now: float) -> str:
    """Makes a store this ledger's, whosever it was, and tells whose.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        found = _found(store)
        before = "nobody's" if found is None else str(found)
    except StoreTaken:
        found, before = None, "that of nobody knows whom"
    if found is not None and found.ledger == owner.ledger:
        return before
    store.delete(MARK)
    store.put_bytes(MARK, _mark(owner))
    with ledger.transaction() as connection:
        journal.write(connection, now, "store.adopted", store.url, before=before)
    return before


def _found(store: ObjectStore) -> Owner | None:
    try:
        return Owner.model_validate_json(store.read_bytes(MARK))
    except ObjectMissing:
        return None
    except ValidationError as error:
        raise StoreTaken(
            f"{MARK} in {store.url} does not say which ledger the store belongs to",
            fix="If it can be no other's, `p3s adopt` makes it this one's.",
        ) from error


def _mark(owner: Owner) -> bytes:
    return owner.model_dump_json(indent=1).encode()
