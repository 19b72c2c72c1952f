"""Putting another ledger in the place of the one that is there: filled beside it, and moved there when it is whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import make_url, select, update
from sqlalchemy.exc import DatabaseError

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.journal_segments import import_missing
from p3s_prefect.adapters.ledger import journal, schema
from p3s_prefect.adapters.ledger.adoption import continue_numbers
from p3s_prefect.adapters.ledger.backups import (
    Backup,
    Copied,
    back_up,
    into_one_file,
    put_aside,
    sqlite_file,
    verified,
    written_whole,
)
from p3s_prefect.adapters.ledger.database import Lease, Ledger, renew
from p3s_prefect.adapters.store_owner import claim_again
from p3s_prefect.adapters.supervision import Services
from p3s_prefect.core.errors import LeaseLost, LedgerError, ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.station.taking_over import Prefer, Progress, TakenOver, is_empty, take_over
from p3s_prefect.station.upkeep import claim_lease, kept_lease

_T = TypeVar("_T")

_FOR_GOOD_S = 1e10
_REBUILT = "ledger.rebuilt"
_KEEP = "It stays as it is. With --replace it is put aside, and the new one takes its place."


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """What was put in place."""

    taken: TakenOver
    backup: Backup | None
    """None for a rebuild."""
    aside: Path | None
    """The ledger that was there before."""


def restore(
    home: Home,
    file: Path,
    *,
    replace: bool,
    prefer: Prefer = "",
    quick: bool = False,
    progress: Progress,
    copied: Copied = lambda done, total: None,
) -> Replaced:
    """Puts a backup in the ledger's place, together with what the store has been given since.

    The ledger is complete before it is in its place: a station never sees the state of the backup alone, and so never
    uses a number again that is in the store.

    Raises:
        LedgerError: the backup is damaged, or there is a ledger that is not to be replaced.
        LeaseLost, ServiceError: a station works with it.
        StoreTaken: the store belongs to another ledger than that of the backup.
    """
    found, experiment = verified(file), home.read()
    filling = _Filling(home=home, experiment=experiment, prefer=prefer, quick=quick, progress=progress)

    def fill(place: Path, token: int) -> TakenOver:
        back_up(file, place, copied)
        with _ledger_at(place) as ledger:
            ledger.migrate()
            _release(ledger, token)
            return filling.fill(ledger, "ledger.restored", file=file.name)

    taken, aside = _replace(home, fill, replace=replace)
    return Replaced(taken=taken, backup=found, aside=aside)


def rebuild(home: Home, *, replace: bool, prefer: Prefer = "", quick: bool = False, progress: Progress) -> Replaced:
    """Fills a new ledger from the store alone; raises as `restore`."""
    experiment = home.read()
    filling = _Filling(home=home, experiment=experiment, prefer=prefer, quick=quick, progress=progress)

    def fill(place: Path, token: int) -> TakenOver:
        with _ledger_at(place) as ledger:
            ledger.migrate()
            _release(ledger, token)
            return filling.fill(ledger, _REBUILT)

    if make_url(experiment.ledger.url).get_backend_name() != "sqlite":
        return Replaced(taken=_rebuild_there(filling), backup=None, aside=None)
    taken, aside = _replace(home, fill, replace=replace)
    return Replaced(taken=taken, backup=None, aside=aside)


@dataclass(frozen=True, kw_only=True)
class _Filling:
    """From the store of a home, as somebody has asked for it."""

    home: Home
    experiment: Experiment
    prefer: Prefer
    quick: bool
    progress: Progress

    def fill(self, ledger: Ledger, kind: str, lease: Lease | None = None, **detail: object) -> TakenOver:
        """Claims the store, and takes over its journal and what was published there; told in the journal as `kind`."""
        store, now = self.home.store(self.experiment), time.time()
        claim_again(store, ledger, self.home, self.experiment, now)
        lines = _journal_of(ledger, store, lease)
        taken = take_over(ledger, store, now, lease=lease, prefer=self.prefer, quick=self.quick, progress=self.progress)
        with ledger.transaction(lease) as connection:
            told = {"publications": taken.publications, "lines": lines, **detail}
            journal.write(connection, time.time(), kind, "ledger", **told)
        return taken


def _rebuild_there(filling: _Filling) -> TakenOver:
    """In a database that is not ours to move: it must be empty."""
    experiment = filling.experiment
    with closing(filling.home.ledger(experiment)) as ledger:
        ledger.migrate()
        with ledger.reading() as connection:
            if not is_empty(connection):
                raise LedgerError("this ledger is not empty", fix="Give an empty database, or run `p3s reconcile`.")
        lease_s = experiment.station.lease_s
        lease = claim_lease(ledger, experiment.experiment, lease_s)
        with kept_lease(ledger, lease, lease_s):
            return filling.fill(ledger, _REBUILT, lease)


def _replace(home: Home, fill: Callable[[Path, int], _T], *, replace: bool) -> tuple[_T, Path | None]:
    experiment = home.read()
    with closing(home.ledger(experiment)) as old:
        file = sqlite_file(old.url)
        if home.station() is not None or Services(home).processes():
            raise ServiceError("services run here", fix="Stop them first: p3s down")
        lease = _claimed(old, experiment, replace=replace) if file.exists() else None
        try:
            with written_whole(file) as hidden:
                filled = fill(hidden, 0 if lease is None else lease.token)
                into_one_file(hidden)
                # At the last moment: until then nothing has changed.
                aside = _put_aside(file) if file.exists() else None
        except BaseException:
            if lease is not None and file.exists():
                _give_back(old, lease)
            raise
    return filled, aside


def _put_aside(file: Path) -> Path:
    return put_aside(file, f"{file.name}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")


def _claimed(old: Ledger, experiment: Experiment, *, replace: bool) -> Lease | None:
    """The lease of the ledger that is there, for good; None if it cannot be read.

    A station that waits for it has the old file open, and would go on in it after it was put aside.
    """
    try:
        old.migrate()
        with old.reading() as connection:
            empty = is_empty(connection)
        if empty or replace:
            return claim_lease(old, experiment.experiment, _FOR_GOOD_S)
    except LeaseLost:
        raise
    except (LedgerError, DatabaseError) as error:
        if replace:
            return None
        raise LedgerError(f"the ledger that is there cannot be read: {old.url}", fix=_KEEP) from error
    raise LedgerError(f"there is a ledger with content: {old.url}", fix=_KEEP)


def _give_back(old: Ledger, lease: Lease) -> None:
    with suppress(LedgerError, DatabaseError), old.transaction() as connection:
        renew(connection, lease, expires_at=time.time())


def _ledger_at(place: Path) -> closing[Ledger]:
    return closing(Ledger(f"sqlite:///{place}"))


def _release(ledger: Ledger, token: int) -> None:
    """Nobody holds the lease; and whoever held it in the ledger that was there before is refused here."""
    with ledger.transaction() as connection:
        for row in connection.execute(select(schema.lease)).all():
            values = {"token": max(token, row.token) + 1, "expires_at": 0.0}
            connection.execute(update(schema.lease).where(schema.lease.c.namespace == row.namespace).values(values))


def _journal_of(ledger: Ledger, store: ObjectStore, lease: Lease | None = None) -> int:
    """Takes over the journal as far as the store has it, and the ledger does not; returns the number of lines.

    Numbers go on after them, as what is in the store was told under its number.
    """
    lines = import_missing(ledger, store, lease)
    with ledger.transaction(lease) as connection:
        continue_numbers(connection)
    return lines
