"""`p3s ledger archive`: closed periods go from the ledger to the store, and can still be read."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.steering import user
from p3s_prefect.adapters.store_owner import claim, owner_of
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json, table
from p3s_prefect.cli.progress import shown_progress
from p3s_prefect.cli.steer import ByOption
from p3s_prefect.core.reports import moment, utc
from p3s_prefect.station.archiving import Archived, Archiving

# More are counted by their reason.
_MOST_SHOWN = 50


def archive(
    before: Annotated[str, typer.Option("--before", help="Groups that ended before this: 2026-10-20, or 90d ago.")],
    yes: Annotated[bool, typer.Option("--yes", help="Archive them. Without, it is only said what would go.")] = False,
    by: ByOption = "",
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Archive groups that are over: products, summary values, lineage and journal of their units go to the store.

    They go as parquet files, are read back, and only then leave the ledger. `p3s show`, `p3s report`, `p3s list journal
    --subject` and notebooks read them as before. What later work needs stays: a late unit opens the next pass.
    Without --yes: say what would go, and what stays and why.
    """
    place, now = Home(home), time.time()
    experiment = place.in_force()
    ended_before = moment(before, now)
    with closing(place.ledger(experiment)) as ledger, shown_progress() as tell:
        ledger.migrate()
        store = place.store(experiment)
        work = Archiving(
            ledger=ledger,
            store=store,
            clock=SystemClock(),
            by=by or user(),
            sweep_after_s=experiment.store.sweep_after_s,
            progress=tell,
        )
        if yes:
            claim(store, owner_of(ledger, place, experiment, now))
            found = work.run(ended_before)
        else:
            found = Archived(groups=work.plan(ended_before))
    if as_json:
        print_json(
            {
                "archived": yes,
                "archives": [{"name": one.name, "rows": one.moved} for one in found.archives],
                "left": [{"name": name, "why": why} for name, why in found.left],
                "groups": [row.record() for row in found.groups],
            }
        )
        return
    _tell(found, ended_before, yes=yes)


def _tell(found: Archived, before: float, *, yes: bool) -> None:
    out, gone = console(), [row for row in found.groups if row.goes]
    if gone:
        shown = [(row.data_id, row.day, row.units, row.rows) for row in gone[:_MOST_SHOWN]]
        out.print(table(["group", "day", "sub-jobs>", "rows>"], shown), "", sep="\n")
    if stay := Counter(row.why for row in found.groups if not row.goes):
        out.print(table(["stay>", "because"], [(number, why) for why, number in stay.most_common()]), "", sep="\n")
    for name, why in found.left:
        out.print(plain_text(f"{name} is in the store, and not this ledger's: {why}. It stays as it is."))
    done = "archived" if yes else "to archive; --yes does it"
    groups = f"{len(gone)} group{'' if len(gone) == 1 else 's'} with {sum(row.rows for row in gone)} rows"
    out.print(plain_text(f"Of what ended before {utc(before)}, {groups} {done}."))
    for one in found.archives:
        out.print(plain_text(f"{one.name}: {one.moved} rows have left the ledger, with those of the journal."))
