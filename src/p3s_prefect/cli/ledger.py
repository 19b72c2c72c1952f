"""`p3s ledger ...`: what keeps a ledger for years."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.journal_segments import Exported, export, exported
from p3s_prefect.adapters.ledger.archiving import count_archived
from p3s_prefect.adapters.ledger.backups import back_up, sqlite_file
from p3s_prefect.adapters.ledger.damaged import count_damaged
from p3s_prefect.adapters.ledger.purged import count_purged
from p3s_prefect.adapters.store_owner import claim, owner_of
from p3s_prefect.cli.archive import archive
from p3s_prefect.cli.findings import findings_table
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json, table
from p3s_prefect.cli.progress import shown_progress
from p3s_prefect.core.agreement import counted
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.health import size
from p3s_prefect.station import replacing
from p3s_prefect.station.replacing import Replaced
from p3s_prefect.station.taking_over import Prefer, rows_by_table

ledger = typer.Typer(
    help="Keep the ledger: back it up, restore it, fill it again from the store, archive what is over.",
    no_args_is_help=True,
)
ledger.command()(archive)

ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="A ledger with content is put aside, under a name with the time in it.")
]
PreferOption = Annotated[
    str, typer.Option("--prefer", help="Where two attempts at the same are both committed: earlier or later.")
]
QuickOption = Annotated[bool, typer.Option("--quick", help="Compare objects by size alone, without reading them.")]


@ledger.command()
def backup(
    file: Annotated[
        Path | None, typer.Argument(help="Where to. Default: backups/ledger-TIME.db in the home.", show_default=False)
    ] = None,
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Copy the ledger while the station runs: one state of it, verified. Keep it on another disk.

    Example: p3s ledger backup /mnt/other/ledger-tonight.db
    """
    place = Home(home)
    with closing(place.ledger(place.in_force())) as live:
        source = sqlite_file(live.url)
    target = file or place.path / "backups" / f"ledger-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.db"
    with shown_progress() as tell:
        found = back_up(source, target, lambda done, total: tell("copying pages", done, total))
    if as_json:
        told = {"file": str(found.file), "size": found.size, "revision": found.revision, "rows": dict(found.rows)}
        print_json(told)
        return
    out = console()
    out.print(plain_text(f"{found.file}: {size(found.size)}, {sum(found.rows.values())} rows, verified"))
    out.print("`p3s ledger restore FILE` puts it back, with what the store has been given since.")


@ledger.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup.")],
    replace: ReplaceOption = False,
    prefer: PreferOption = "",
    quick: QuickOption = False,
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Put a backup in the ledger's place, with what was published since, as the store's commit records say.

    The station must be stopped. What ran without publishing anything since the backup is not known any more: its files
    are taken anew where they are still in the watched place.
    """
    with shown_progress() as tell:
        done = replacing.restore(
            Home(home),
            file,
            replace=replace,
            prefer=_preferred(prefer),
            quick=quick,
            progress=tell,
            copied=lambda pages, total: tell("copying pages", pages, total),
        )
    _tell(done, f"restored from {file}", as_json)


@ledger.command()
def rebuild(
    replace: ReplaceOption = False,
    prefer: PreferOption = "",
    quick: QuickOption = False,
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Fill an empty ledger from the store alone: datasets, lineage, configurations, units, groups, values, weights.

    What cannot be told for sure is listed, and not guessed. What gave no results stands in no record of the store.
    """
    with shown_progress() as tell:
        done = replacing.rebuild(Home(home), replace=replace, prefer=_preferred(prefer), quick=quick, progress=tell)
    _tell(done, "rebuilt from the store", as_json)


@ledger.command("export-journal")
def export_journal(home: HomeOption = Path(), as_json: JsonOption = False) -> None:
    """Write the journal to the store, all that is not there yet, and say how far it is.

    The station does so by itself with whole segments, and with what is older than a day.
    """
    place = Home(home)
    experiment = place.in_force()
    with closing(place.ledger(experiment)) as live, shown_progress() as tell:
        live.migrate()
        store = place.store(experiment)
        claim(store, owner_of(live, place, experiment, time.time()))
        found = export(live, store, told=lambda number, newest: tell("journal lines", number, newest))
    _tell_exported(found, as_json)


@ledger.command()
def status(home: HomeOption = Path(), as_json: JsonOption = False) -> None:
    """How much is in the ledger, how far its journal is in the store, and what is damaged, purged or archived."""
    place = Home(home)
    experiment = place.in_force()
    with closing(place.ledger(experiment)) as live:
        live.migrate()
        with live.reading() as connection:
            rows = dict(rows_by_table(connection))
            damaged, gone = count_damaged(connection), count_purged(connection)
            archives, groups, archived = count_archived(connection)
        journal = exported(live, place.store(experiment))
    backups = sorted(file.name for file in (place.path / "backups").glob("*.db"))
    if as_json:
        numbers = {"number": journal.number, "newest": journal.newest, "segments": journal.segments}
        told = {"rows": rows, "damaged": damaged, "purged": gone, "journal": numbers, "backups": backups}
        print_json(told | {"archives": {"number": archives, "groups": groups, "rows": archived}})
        return
    out = console()
    out.print(table(["table", "rows>"], [(name, number) for name, number in rows.items() if number]), "", sep="\n")
    _tell_exported(journal, False)
    out.print(f"{damaged} datasets are damaged, {gone} arrived files were purged.")
    if archives:
        out.print(f"{archived} rows of {groups} groups are in {archives} archives in the store.")
    out.print(plain_text(f"Newest backup here: {backups[-1] if backups else 'none; `p3s ledger backup` takes one'}."))


def _tell_exported(found: Exported, as_json: bool) -> None:
    if as_json:
        print_json({"number": found.number, "newest": found.newest, "segments": found.segments})
        return
    behind = f", {found.behind} are not there yet" if found.behind else ""
    console().print(
        f"Journal: {found.number} of {found.newest} lines are in the store, in {found.segments} segments{behind}."
    )


def _preferred(word: str) -> Prefer:
    found: dict[str, Prefer] = {"": "", "earlier": "earlier", "later": "later"}
    if word not in found:
        raise BadName(f"--prefer {word[:40]!r} is no choice", fix="Say earlier or later.")
    return found[word]


def _tell(done: Replaced, what: str, as_json: bool) -> None:
    taken = done.taken
    if as_json:
        print_json(_record(done))
        return
    out = console()
    out.print(plain_text(f"The ledger is {what}."))
    known = f", {taken.known} were known" if taken.known else ""
    out.print(f"From the store: {taken.publications} publications with {taken.datasets} datasets{known}.")
    if done.aside is not None:
        out.print(plain_text(f"The one that was there is now {done.aside}."))
    if taken.known:
        out.print("What was known before was not compared with the store: `p3s reconcile` does that.")
    if taken.not_recorded:
        out.print(
            f"Of {taken.not_recorded} stage runs no record tells how they ended: they are cancelled, and can be "
            "processed anew (`p3s list units --state cancelled`)."
        )
    if taken.findings:
        out.print("", findings_table(taken.findings), sep="\n")


def _record(done: Replaced) -> dict[str, Any]:
    taken = done.taken
    return {
        "publications": taken.publications,
        "known": taken.known,
        "datasets": taken.datasets,
        "not_recorded": taken.not_recorded,
        "aside": None if done.aside is None else str(done.aside),
        "counts": counted(taken.findings),
        "findings": [one.record() for one in taken.findings],
    }
