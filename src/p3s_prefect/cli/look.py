"""`p3s status | list | show`: what the ledger and the station say. Nothing is changed here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import result_views, views
from p3s_prefect.adapters.ledger.weighted_rows import group_values
from p3s_prefect.adapters.prefect_pools import pools
from p3s_prefect.adapters.prefect_server import prefect_api, prefect_page
from p3s_prefect.api import open_experiment
from p3s_prefect.api import status as status_of
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import ago, console, in_force_table, plain_text, print_json, state, table
from p3s_prefect.core.errors import BadName, ExperimentFileErrors, ServiceError
from p3s_prefect.core.health import Status, duration, overall, size
from p3s_prefect.core.overrides import PIPELINE_PREFIX
from p3s_prefect.core.phases import phases
from p3s_prefect.core.pool_health import pool, untold
from p3s_prefect.core.targets import acting_on, explained
from p3s_prefect.core.views import GroupRow, UnitDetail, UnitRow, number, plain
from p3s_prefect.core.weighted_values import WeightedValue


class What(StrEnum):
    """What `p3s list` lists."""

    UNITS = "units"
    GROUPS = "groups"
    ARRIVALS = "arrivals"
    JOURNAL = "journal"
    PRODUCTS = "products"
    TRENDS = "trends"


def status(home: HomeOption = Path(), as_json: JsonOption = False) -> None:
    """Is all well? Health, and what became of everything that was seen."""
    found = status_of(home)
    at = Home(home)
    experiment, address = at.in_force(), at.station()
    prefect = prefect_page(at, experiment)
    if api := os.environ.get("PREFECT_API_URL") or prefect_api(at, experiment):
        _add_pools(found, api, experiment.prefect.pool)
    if as_json:
        print_json(found)
        return
    out = console()
    out.print(plain_text(f"{found['experiment']} ({found['instrument']})"), state(found["status"]))
    if found["station"] and address:
        out.print(plain_text(f"page: {address.url}"))
        if prefect:
            out.print(plain_text(f"Prefect: {prefect}"))
    if found["is_edited"]:
        out.print(plain_text(_edited(at)))
    out.print()
    rows = found["health"]
    out.print(
        table(
            ["", "status", "now", "normal"],
            [(row["name"], state(row["status"]), row["actual"], row["nominal"]) for row in rows],
        )
    )
    for row in rows:
        if row["status"] != "ok":
            out.print(plain_text(f"\n{row['name']}: {row['cause']}.\n  {row['action']}"), soft_wrap=True)
    out.print()
    if found.get("overrides"):  # a station of an earlier version tells none
        out.print(in_force_table(found["overrides"], time.time()), "", sep="\n")
    if any(row["name"] == "ledger" and row["status"] == Status.DOWN for row in rows):
        out.print("What was seen is not known as long as the ledger is away.")
    else:
        _print_account(out, found["sub_jobs"], found["account"])


def _edited(home: Home) -> str:
    """What became of the experiment file since the station has read it."""
    goes_on = f"the station goes on with what it has read ({home.run / 'experiment.yaml'})"
    if not home.experiment_file.exists():
        return f"experiment.yaml is gone: {goes_on}; put it back before it is started again"
    try:
        home.read()
    except ExperimentFileErrors:
        return f"experiment.yaml was edited and has mistakes, which `p3s check` tells: {goes_on}"
    return f"experiment.yaml was edited: {goes_on}; `p3s reload` has it take the file over"


def list_(
    what: Annotated[What, typer.Argument(help="What to list.")] = What.UNITS,
    home: HomeOption = Path(),
    in_state: Annotated[
        str | None,
        typer.Option(
            "--state",
            help="Units in this state, such as done, failed, running, queued or held; `open` for all that are not "
            "settled, `standby` for those of them of which overload has left a stage out.",
        ),
    ] = None,
    pipeline: Annotated[str | None, typer.Option(help="Units of this pipeline.")] = None,
    group: Annotated[str | None, typer.Option(help="Units of this group, such as run=2008.")] = None,
    subject: Annotated[str | None, typer.Option(help="Journal lines about this, such as 'run=2008 subrun=3'.")] = None,
    kept_out: Annotated[
        bool, typer.Option("--kept-out", help="Arrivals that were refused or are in conflict.")
    ] = False,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=views.MAX_PAGE)] = 30,
    before: Annotated[int | None, typer.Option(help="Go on below this number, that of the last row.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List units, groups, arrivals, the journal or the latest products, newest first; or trends of summary values."""
    page: dict[str, Any] = {"limit": limit, "before": before}
    given = {"--state": in_state, "--pipeline": pipeline, "--group": group, "--subject": subject}
    _refuse_others(what, {name for name, value in (given | {"--kept-out": kept_out or None}).items() if value})
    with open_experiment(home) as books:
        group = None if group is None else books.named(group)
        books.read(views.check_filters, books.experiment.pipelines, state=in_state, pipeline=pipeline, group=group)
        rows: tuple[Any, ...]
        match what:
            case What.UNITS:
                found = books.read(views.units, state=in_state, pipeline=pipeline, group=group, **page)
                rows = explained(found, books.experiment, books.steer.controls())
            case What.GROUPS:
                rows = books.read(views.groups, **page)
            case What.ARRIVALS:
                rows = books.read(views.arrivals, verdicts=views.KEPT_OUT if kept_out else None, **page)
            case What.JOURNAL:
                rows = books.read_about(subject or "", views.journal_rows, subject=subject, **page)
            case What.PRODUCTS:
                rows = books.read(result_views.latest_products)[:limit]
            case What.TRENDS:
                rows = books.read(result_views.trends)[:limit]
    if as_json:
        print_json([plain(row) for row in rows])
        return
    out = console()
    out.print(_LISTS[what](rows, time.time()) if rows else "Nothing to list.")


def show(
    data_id: Annotated[list[str], typer.Argument(help="Such as: run=2008 subrun=3, or waveform-dqm run=2008 subrun=3")],
    home: HomeOption = Path(),
    pipeline: Annotated[str | None, typer.Option(help="In this pipeline.")] = None,
    pass_number: Annotated[int | None, typer.Option("--pass", help="In this pass; default: the newest.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show all about one unit or group: states, attempts and their reasons, times, results, journal."""
    with open_experiment(home) as books:
        pieces = " ".join(data_id).split()
        if pieces and pipeline is None and pieces[0].removeprefix(PIPELINE_PREFIX) in books.experiment.pipelines:
            # As the other commands name it.
            pipeline = pieces.pop(0).removeprefix(PIPELINE_PREFIX)
        name = books.named(" ".join(pieces))
        group, unit = books.read_about(
            name, result_views.group_or_unit, name, pipeline=pipeline, pass_number=pass_number
        )
        values = books.read_about(name, group_values, name) if group is not None else ()
        archives = books.archives(name)
        controls = books.steer.controls()
        acting = [one.shown() for one in acting_on(unit.unit, books.experiment, controls)] if unit else []
    if as_json:
        found = {"group": plain(group) if group else None, "unit": plain(unit) if unit else None}
        print_json(found | {"values": [plain(value) for value in values], "overrides": acting, "archives": archives})
        return
    out = console()
    if group is not None:
        out.print(_LISTS[What.GROUPS]((group,), time.time()), "")
    if values:
        out.print(
            _values([(one.name, one.stage, one.unit, one) for one in values], "Summary values of its units together"),
            "",
        )
    if unit is not None:
        _print_unit(out, unit, time.time())
    if acting:
        out.print("", in_force_table(acting, time.time()), sep="\n")
    if archives:
        out.print(
            "", plain_text(f"Products, summary values, lineage and journal are from {', '.join(archives)}."), sep="\n"
        )


def _add_pools(found: dict[str, Any], api_url: str, own: str) -> None:
    """Adds what only Prefect knows: a station does not ask it."""
    try:
        rows = [pool(facts, own=own) for facts in pools(api_url)]
    except ServiceError as error:
        rows = [untold(error.what, error.fix)]
    found["health"] = [*found["health"], *(plain(row) for row in rows)]
    order = list(Status)
    found["status"] = max(Status(found["status"]), overall(rows), key=order.index).value


def _refuse_others(what: What, given: set[str]) -> None:
    for option in sorted(given - _TAKES.get(what, set())):
        fix = f"It selects {next(other for other, names in _TAKES.items() if option in names)}."
        if what is What.ARRIVALS and option == "--state":
            fix = "Arrivals have verdicts: --kept-out lists those that were refused or are in conflict."
        raise BadName(f"{option} does not select {what}", fix=fix)


def _print_account(out: Console, sub_jobs: list[dict[str, Any]], stages: list[dict[str, Any]]) -> None:
    states = ("seen", "open", "done", "prescaled", "shed", "expired", "failed", "blocked", "superseded", "cancelled")
    rows = []
    for total in sub_jobs:
        of_pipeline = [row for row in stages if row["pipeline"] == total["pipeline"]]
        for row in (total, *of_pipeline):
            name = f"  {row['stage']}" if row["stage"] else row["pipeline"]
            rows.append((name, *(row[column] or "-" for column in states)))
    if rows:
        out.print(table(["account", *(f"{name}>" for name in states)], rows))
    else:
        out.print("Nothing was seen yet.")


def _units(rows: tuple[UnitRow, ...], now: float) -> Table:
    return table(
        ["unit", "pipeline", "state", "took>", "arrived>", "why"],
        [
            (
                row.data_id,
                f"{row.pipeline}/{row.pass_number}" if row.pass_number else row.pipeline,
                state(row.activity),
                duration((now if row.settled_at is None else row.settled_at) - row.began_at),
                ago(row.arrived_at, now),
                row.reason,
            )
            for row in rows
        ],
    )


def _groups(rows: tuple[GroupRow, ...], now: float) -> Table:
    return table(
        ["group", "", "pipeline", "pass>", "done>", "seen>", "last unit>", "closed by"],
        [
            (
                row.data_id,
                state("open" if row.is_open else "closed"),
                one.pipeline,
                one.pass_number,
                one.done,
                one.seen,
                ago(row.last_arrival_at, now),
                row.closed_by,
            )
            for row in rows
            for one in row.coverage
        ],
    )


def _arrivals(rows: tuple[Any, ...], now: float) -> Table:
    return table(
        ["file", "verdict", "unit", "size>", "seen>", "why", "what to do"],
        [
            (row.key, state(row.verdict), row.data_id, size(row.size), ago(row.arrived_at, now), row.reason, row.remedy)
            for row in rows
        ],
    )


def _journal(rows: tuple[Any, ...], now: float) -> Table:
    return table(
        ["number>", "when>", "what", "about", "detail"],
        [
            (
                row.number,
                ago(row.at, now),
                row.kind,
                row.subject,
                ", ".join(f"{name}={value}" for name, value in row.detail.items()),
            )
            for row in rows
        ],
    )


def _products(rows: tuple[Any, ...], now: float) -> Table:
    return table(
        ["category", "title", "unit", "published>", "object"],
        [(row.category, row.title, row.data_id, ago(row.published_at, now), row.key) for row in rows],
    )


def _trends(rows: tuple[Any, ...], now: float) -> Table:
    latest = [(f"{row.name} {number(row.values[-1])}", row.stage, row.unit, row.whole) for row in rows]
    return _values(latest, "Summary values: latest, and over the latest units together")


def _values(named: list[tuple[str, str, str, WeightedValue | None]], title: str) -> Table:
    """Each value by its name, stage and unit; and over all units, where that means something."""
    return table(
        ["value", "stage", "all units>", "", "from>", "left out>", "missing (by weight)", "could move it within"],
        [
            (name, stage, "", unit, "", "", "", "")
            if one is None
            else (
                name,
                stage,
                one.text,
                "share of yes" if one.is_share else unit,
                f"{one.estimate.sampled} of {one.seen}",
                one.left_out,
                one.missing_text,
                one.range_text,
            )
            for name, stage, unit, one in named
        ],
        title=title,
    )


def _print_unit(out: Console, found: UnitDetail, now: float) -> None:
    unit = found.unit
    out.print(plain_text(f"{unit.data_id} in {unit.pipeline}, pass {unit.pass_number}:"), state(unit.activity))
    if unit.reason:
        out.print(plain_text(f"  {unit.reason}"))
    out.print(plain_text(f"  run collection {found.run_collection}"))
    if found.arrival:
        out.print(plain_text(f"  from {found.arrival.path}, {size(found.arrival.size)}"))
    spent = [(phase.label, duration(phase.seconds)) for phase in phases(unit, now) if phase.seconds > 0]
    attempts = [
        (stage.stage, state(stage.state), one.number, state(one.state), one.pilot, one.reason, one.log_key)
        for stage in unit.stages
        for one in stage.attempts
    ]
    for title, columns, rows in (
        ("Where its time went", ["", ">"], spent),
        ("Attempts", ["stage", "state", "attempt>", "ended as", "pilot", "why", "log"], attempts),
        ("Summary values", ["", ">", ""], [(row.name, number(row.value), row.unit) for row in found.summary]),
        ("Read", ["type", "data id", "SHA-256"], [(r.dataset_type, r.data_id, r.sha256[:12]) for r in found.lineage]),
        (
            "Made",
            ["type", "size>", "SHA-256", "object"],
            [
                (
                    row.dataset_type,
                    size(row.size),
                    row.sha256[:12],
                    f"{row.key} (damaged: {row.damage})" if row.damage else row.key,
                )
                for row in found.datasets
            ],
        ),
        ("Products", ["category", "title", "object"], [(row.category, row.title, row.key) for row in found.products]),
    ):
        if rows:
            out.print("", table(columns, rows, title=title), sep="\n")
    if found.journal:
        out.print("", _journal(found.journal[:20], now), sep="\n")


# The options that select among what is listed.
_TAKES = {
    What.UNITS: {"--state", "--pipeline", "--group"},
    What.ARRIVALS: {"--kept-out"},
    What.JOURNAL: {"--subject"},
}
_LISTS: dict[What, Callable[[tuple[Any, ...], float], Table]] = {
    What.UNITS: _units,
    What.GROUPS: _groups,
    What.ARRIVALS: _arrivals,
    What.JOURNAL: _journal,
    What.PRODUCTS: _products,
    What.TRENDS: _trends,
}
