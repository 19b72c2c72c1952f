"""`p3s reconcile`: books and storage agree."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import requests
from p3s_prefect.adapters.ledger.damaged import Damaged, damaged
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.steering import user
from p3s_prefect.adapters.store_owner import claim, owner_of
from p3s_prefect.adapters.stores import directory_url, open_store
from p3s_prefect.cli.asking import await_answer, require_station
from p3s_prefect.cli.findings import findings_table
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json, table
from p3s_prefect.cli.progress import shown_progress
from p3s_prefect.core.agreement import Done, Finding, counted
from p3s_prefect.core.asking import PROCESS, ProcessAsked
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.retry import Which
from p3s_prefect.station.reconciling import Reconciliation


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is wrong, and change nothing.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare objects by size alone, without reading them.")
    ] = False,
    copies: Annotated[
        list[str] | None,
        typer.Option("--copies", help="A copy of the store, a directory or URL, from which objects are put back."),
    ] = None,
    collection: Annotated[str, typer.Option(help="Only run collections that begin so.")] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Have the station process anew what damaged datasets were made from.")
    ] = False,
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Compare ledger and store, in both directions, and mend what can be mended. The only copy is never removed.

    What nothing can mend is marked: no stage reads it any more. The station may run meanwhile. Exit code 1 if
    something is left that needs a hand.
    """
    place = Home(home)
    experiment = place.in_force()
    with closing(place.ledger(experiment)) as ledger:
        ledger.migrate()
        store = place.store(experiment)
        if not dry_run:
            # What another ledger has not published yet would be taken for orphans.
            claim(store, owner_of(ledger, place, experiment, time.time()))
        with shown_progress() as tell:
            work = Reconciliation(
                ledger=ledger,
                store=store,
                clock=SystemClock(),
                namespace=experiment.experiment,
                lease_s=experiment.station.lease_s,
                sweep_after_s=experiment.store.sweep_after_s,
                copies=[_store(name) for name in copies or []],
                quick=quick,
                progress=tell,
            )
            found = work.run(under=f"runs/{collection}", dry_run=dry_run)
        with ledger.reading() as connection:
            marked = damaged(connection)
        answers = _ask_again(place, ledger, marked) if again and not dry_run else []
    if as_json:
        print_json(_record(work, found, marked, answers))
    else:
        _tell(work, found, marked, answers)
    if any(one.done in (Done.LEFT, Done.SHOWN) for one in found):
        raise typer.Exit(1)


def _store(name: str) -> ObjectStore:
    if "://" not in name and not Path(name).is_dir():
        raise BadName(f"{name[:200]} is no directory", fix="Give a directory that is a copy of the store, or a URL.")
    return open_store(name if "://" in name else directory_url(Path(name)))


def _ask_again(place: Home, ledger: Ledger, marked: tuple[Damaged, ...]) -> list[str]:
    """Leaves requests for all units of which something is damaged."""
    if marked:
        require_station(place, "`p3s up` starts one; then ask again with --again.")
    units: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in marked:
        if one.per == "unit":
            units[one.pipeline, one.group].append(one.data_id)
    answers = []
    for (pipeline, group), names in sorted(units.items()):
        wanted = ProcessAsked(
            pipeline=pipeline,
            group=DataId.parse(group),
            units=tuple(dict.fromkeys(DataId.parse(name) for name in names)),
            which=Which.MISSING,
        )
        given: requests.Request = await_answer(
            ledger, PROCESS, by=user(), why="damaged in the store", detail=wanted.detail()
        )
        answers.append(f"{pipeline} {group}: {given.answer}")
    return answers


def _tell(work: Reconciliation, found: list[Finding], marked: tuple[Damaged, ...], answers: list[str]) -> None:
    out = console()
    if found:
        out.print(findings_table(found), "", sep="\n")
    numbers = {done: sum(one.done is done for one in found) for done in Done}
    told = ", ".join(f"{number} {done.value}" for done, number in numbers.items() if number)
    out.print(plain_text(f"{work.attempts} attempts compared: {told or 'ledger and store agree'}."))
    if marked:
        rows = [(one.name, one.data_id, one.damage, one.key) for one in marked]
        out.print("", table(["damaged", "of", "", "object"], rows), sep="\n")
    for answer in answers:
        out.print(plain_text(answer))


def _record(
    work: Reconciliation, found: list[Finding], marked: tuple[Damaged, ...], answers: list[str]
) -> dict[str, Any]:
    return {
        "at": time.time(),
        "compared": work.attempts,
        "counts": counted(found),
        "findings": [one.record() for one in found],
        "damaged": [one.record() for one in marked],
        "again": answers,
    }
