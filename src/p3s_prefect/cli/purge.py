"""`p3s purge`: room in the watched place."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.steering import user
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json, table
from p3s_prefect.cli.progress import shown_progress
from p3s_prefect.cli.steer import ByOption
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.health import size
from p3s_prefect.core.purging import PurgeRow, freed_bytes
from p3s_prefect.core.quantities import read_duration
from p3s_prefect.station.purging import Purge

# More are counted by their reason.
_MOST_SHOWN = 50


def purge(
    older_than: Annotated[
        str, typer.Option("--older-than", help="Only what arrived so long ago, such as 30d.")
    ] = "30d",
    copied_to: Annotated[
        list[Path] | None, typer.Option("--copied-to", help="A directory in which copies are; may be given again.")
    ] = None,
    stream: Annotated[str, typer.Option(help="Only of this stream.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Remove them. Without, it is only said what would go.")] = False,
    by: ByOption = "",
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Remove arrived files that are processed, copied and old enough. Without --yes: say what would go, and why.

    A file is copied if the same bytes stand in the store or below a directory of --copied-to; they are read to make
    sure. What is removed stays known, and what is processed anew reads the copy.
    """
    place = Home(home)
    experiment = place.in_force()
    if stream and stream not in experiment.streams:
        raise BadName(f"there is no stream {stream[:80]!r}", fix=did_you_mean(stream, experiment.streams))
    if stream and experiment.streams[stream].directory is None:
        raise BadName(
            f"stream {stream} comes from {experiment.streams[stream].comes_from}, where nothing is removed",
            fix="Only what stands in a stream's `directory` is. A bucket may have a rule of its server's own.",
        )
    for directory in copied_to or []:
        if not directory.is_dir():
            raise BadName(f"{directory} is no directory", fix="Give the directory in which the copies are.")
    roots = {
        name: (place.path / found.directory).resolve()
        for name, found in experiment.streams.items()
        if stream in ("", name) and found.directory is not None
    }
    with closing(place.ledger(experiment)) as ledger:
        ledger.migrate()
        work = Purge(
            ledger=ledger,
            store=place.store(experiment),
            clock=SystemClock(),
            roots=roots,
            copied_to=[directory.resolve() for directory in copied_to or []],
            older_than_s=read_duration(older_than),
            by=by or user(),
        )
        with shown_progress() as tell:
            rows: list[PurgeRow] = []
            for row in work.plan():
                rows.append(row)
                tell("looking at files", len(rows), None)
            if yes:
                rows = [work.remove(row) if row.goes else row for row in rows]
    if as_json:
        print_json({"removed": yes, "bytes": freed_bytes(rows), "files": [row.record() for row in rows]})
        return
    _tell(rows, yes)


def _tell(rows: list[PurgeRow], yes: bool) -> None:
    out, gone = console(), [row for row in rows if row.goes]
    if gone:
        shown = [(row.data_id, row.path, size(row.size), row.copy) for row in gone[:_MOST_SHOWN]]
        out.print(table(["unit", "file", "size>", "its copy"], shown), "", sep="\n")
    stay = Counter(row.why for row in rows if not row.goes)
    if stay:
        out.print(table(["stay>", "because"], [(number, why) for why, number in stay.most_common()]), "", sep="\n")
    done = "were removed" if yes else "would be removed; --yes removes them"
    out.print(plain_text(f"{len(gone)} of {len(rows)} files, {size(freed_bytes(rows))}, {done}."))
