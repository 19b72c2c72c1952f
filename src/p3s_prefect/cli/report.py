"""`p3s report coverage | latency`: how much of a group or a period was processed, and how fast."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from p3s_prefect.api import open_experiment
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json, table
from p3s_prefect.core.coverage import CoverageReport, CoverageRow, PipelineUnits, coverage_record
from p3s_prefect.core.health import duration
from p3s_prefect.core.latency import LatencyReport, LatencyRow, latency_record
from p3s_prefect.core.reports import Scope, shown_share
from p3s_prefect.core.views import plain, printable


class About(StrEnum):
    """What `p3s report` tells."""

    COVERAGE = "coverage"
    LATENCY = "latency"


def report(
    about: Annotated[
        About,
        typer.Argument(help="coverage: what became of all that was seen. latency: how long it took, and on what."),
    ],
    group: Annotated[
        list[str] | None, typer.Argument(help="A group, such as run=2008. Default: what arrived in the last 24 h.")
    ] = None,
    home: HomeOption = Path(),
    since: Annotated[
        str | None, typer.Option(help="What arrived at or after this: 2026-10-20T18:30 (UTC), or 6h for 6 hours ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="What arrived before this.")] = None,
    day: Annotated[str | None, typer.Option(help="Groups of this processing day, such as 2026-10-20.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="This pipeline.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="One row for each value of this dimension.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw it into this file (.png, .svg, .pdf).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Report how much of a run or a period was processed, or how fast, and how many were in time.

    Examples: p3s report coverage run=2008 --by subrun; p3s report latency --since 6h --plot latency.png
    """
    words = {"since": since, "until": until, "day": day, "pipeline": pipeline, "by": by}
    name = " ".join(group) if group else None
    if plot is not None:
        from p3s_prefect.adapters.report_style import check_place  # matplotlib takes a second to import

        check_place(plot)
    # A million units take half a minute.
    with open_experiment(home) as books, Console(stderr=True).status("Reading the ledger..."):
        found = (books.coverage_report if about is About.COVERAGE else books.latency_report)(name, **words)
    if isinstance(found, CoverageReport):
        _coverage(found, plot, as_json=as_json)
    else:
        _latency(found, plot, as_json=as_json)


def _coverage(found: CoverageReport, plot: Path | None, *, as_json: bool) -> None:
    if plot is not None:
        from p3s_prefect.adapters.coverage_picture import draw_coverage  # as above

        draw_coverage(found, plot)
    if as_json:
        rows = [coverage_record(row) for row in found.rows]
        print_json({"scope": plain(found.scope), "rows": rows, "units": [plain(row) for row in found.units]})
        return
    out = console()
    out.print(plain_text(f"Coverage of {found.scope}"), "", sep="\n")
    columns = ["", *(f"{name}>" for name in _COUNTS), "done %>", "q>", "effective>"]
    counted = [_counted(row, found.scope) for row in found.rows]
    if any(row.on_standby for row in found.rows):
        columns.append("on standby>")
        counted = [(*told, row.on_standby or "-") for told, row in zip(counted, found.rows, strict=True)]
    out.print(table(columns, counted))
    if any(row.mean_q is not None for row in found.rows):
        out.print("", plain_text(_Q_NOTE), sep="\n")
    _print_notes(out, found, plot)


def _latency(found: LatencyReport, plot: Path | None, *, as_json: bool) -> None:
    if plot is not None:
        from p3s_prefect.adapters.latency_picture import draw_latency  # as above

        draw_latency(found, plot)
    if as_json:
        print_json({"scope": plain(found.coverage.scope), "rows": [latency_record(row) for row in found.rows]})
        return
    out = console()
    out.print(plain_text(f"Latency of {found.coverage.scope}"), "", sep="\n")
    columns = ["taken to published", "done>", "p50>", "p95>", "p99>", "longest>"]
    columns += ["deadline>", "in time>", "of all due>", "shed>", "expired>", "failed>", "blocked>"]
    out.print(table(columns, [_timed(row, found.coverage.scope) for row in found.rows]))
    if phases := _phases(found):
        out.print("", table(["on the way", "", "p50>", "p95>", "p99>", "mean>"], phases), sep="\n")
    _print_notes(out, found.coverage, plot)


_Q_NOTE = (
    "q: the mean probability of being let in, of those that are done. effective: as many units of equal weight would "
    "say as much."
)
_COUNTS = ("seen", "done", "open", "prescaled", "shed", "expired", "failed", "blocked", "superseded", "cancelled")


def _counted(row: CoverageRow, scope: Scope) -> tuple[object, ...]:
    counts = (getattr(row, name) or "-" for name in _COUNTS)
    q = "" if row.mean_q is None else f"{row.mean_q:.3g}"
    effective = "" if row.effective is None else f"{row.effective:.0f}"
    return (_name(row, scope), *counts, shown_share(row.done_share), q, effective)


def _timed(row: LatencyRow, scope: Scope) -> tuple[object, ...]:
    total, account = row.total, row.account
    times = ["-"] * 4
    if total is not None:
        times = [duration(seconds) for seconds in (total.p50_s, total.p95_s, total.p99_s, total.longest_s)]
    deadline = " or ".join(duration(seconds) for seconds in row.deadlines_s)
    shares = [shown_share(row.in_time_of_done), shown_share(row.in_time_of_due)]
    lost = (count or "-" for count in (account.shed, account.expired, account.failed, account.blocked))
    return (_name(account, scope), account.done, *times, deadline, *shares, *lost)


def _phases(found: LatencyReport) -> list[tuple[object, ...]]:
    return [
        (
            "" if place else _name(row.account, found.coverage.scope),
            phase.label,
            *(duration(seconds) for seconds in (phase.spread.p50_s, phase.spread.p95_s, phase.spread.p99_s)),
            duration(phase.spread.mean_s),
        )
        for row in found.rows
        if found.coverage.tells_more(row.account)
        for place, phase in enumerate(phase for phase in row.phases if phase.spread.longest_s)
    ]


def _name(row: CoverageRow, scope: Scope) -> str:
    """Sub-jobs by pipeline and pass, stages indented below them."""
    part = f" {scope.by}={row.part}" if row.part is not None else ""
    if row.stage is not None:
        return f"  {row.stage}{part}"
    name = f"{row.pipeline}/{row.pass_number}" if row.pass_number else row.pipeline
    return f"{name} (groups){part}" if row.per == "group" else f"{name}{part}"


def _print_notes(out: Console, found: CoverageReport, plot: Path | None) -> None:
    """What must not be overlooked: units in several passes, what is still open, whether the account balances."""
    notes = [plain_text(_several(units)) for units in found.units if units.in_several_passes]
    if still_open := sum(row.open for row in found.rows if row.stage is None):
        notes.append(plain_text(f"{still_open} still open: the numbers will change."))
    notes += [Text(printable(_unbalanced(row, found.scope)), style="bold red") for row in found.unbalanced]
    if not found.unbalanced:
        notes.append(plain_text("The account balances: in each row, what was seen is the sum of its states."))
    if plot is not None:
        notes.append(plain_text(f"Drawn: {plot}"))
    out.print("", *notes, sep="\n")


def _unbalanced(row: CoverageRow, scope: Scope) -> str:
    return (
        f"{_name(row, scope).strip()}: {row.seen} seen, but {row.open + row.settled} in all states together. "
        "The ledger is damaged: keep a copy of it, and report this."
    )


def _several(units: PipelineUnits) -> str:
    return (
        f"{units.pipeline}: {units.units} units in all, {units.done} of them done. {units.in_several_passes} are in "
        "more than one pass, and counted in each of them above."
    )
