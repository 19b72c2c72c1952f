"""`p3s simulate`: what would this change do? The production dispatcher plays a load in virtual time (P21)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from p3s_prefect.adapters.home import Home
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json, table
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment_changes import Change
from p3s_prefect.core.health import duration
from p3s_prefect.core.reports import Scope, scope
from p3s_prefect.core.simulation import Comparison, comparison_record
from p3s_prefect.core.simulation import Progress as Told
from p3s_prefect.core.simulation_results import PolicyResult, Tally

_RECORDED, _SYNTHETIC, _POLICY = "A recorded load", "A synthetic load", "The change"


def simulate(
    home: HomeOption = Path(),
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Play the last 24 h of the ledger.", rich_help_panel=_RECORDED)
    ] = False,
    run: Annotated[
        str | None, typer.Option(help="Play this group of the ledger, such as run=2008.", rich_help_panel=_RECORDED)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Play what arrived since 2026-10-20T18:30 (UTC), or 6h for 6 hours ago.", rich_help_panel=_RECORDED
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Play what arrived before this time.", rich_help_panel=_RECORDED)
    ] = None,
    day: Annotated[
        str | None, typer.Option(help="Play this processing day, such as 2026-10-20.", rich_help_panel=_RECORDED)
    ] = None,
    load: Annotated[
        Path | None, typer.Option(help="A YAML file with the options below as keys.", rich_help_panel=_SYNTHETIC)
    ] = None,
    stream: Annotated[
        str | None, typer.Option(help="Where it arrives, if there are several streams.", rich_help_panel=_SYNTHETIC)
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Units at random, such as 5/s, 300/min, 2Hz.", rich_help_panel=_SYNTHETIC)
    ] = None,
    bursts: Annotated[
        str | None,
        typer.Option(help="On and off, such as 10s/20s; the mean rate stays.", rich_help_panel=_SYNTHETIC),
    ] = None,
    units_per_group: Annotated[
        int | None, typer.Option(help="A group closes after so many. Default: 100.", rich_help_panel=_SYNTHETIC)
    ] = None,
    visits: Annotated[
        int | None, typer.Option(help="Groups whose parts come together.", rich_help_panel=_SYNTHETIC)
    ] = None,
    parts: Annotated[int | None, typer.Option(help="Units of a visit.", rich_help_panel=_SYNTHETIC)] = None,
    every: Annotated[
        str | None, typer.Option(help="Time from visit to visit, such as 34s.", rich_help_panel=_SYNTHETIC)
    ] = None,
    delay: Annotated[
        str | None, typer.Option(help="From data taken to arrived. Default: 0s.", rich_help_panel=_SYNTHETIC)
    ] = None,
    arrive_for: Annotated[
        str | None,
        typer.Option("--duration", help="How long units arrive. Default: 1h.", rich_help_panel=_SYNTHETIC),
    ] = None,
    failures: Annotated[
        float | None, typer.Option(help="Share of the services that fail.", rich_help_panel=_SYNTHETIC)
    ] = None,
    part_failures: Annotated[
        float | None,
        typer.Option(help="Share of the parts whose data make every service fail.", rich_help_panel=_SYNTHETIC),
    ] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(
            help="How long a stage takes: STAGE=1.2s, exponential:1.2s, gamma:1.2s,0.3 (mean, relative standard "
            "deviation), lognormal:1.2s,0.5 (mean, sigma of the logarithm) or measured, the default: as in the ledger. "
            "May be repeated."
        ),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Slots. Default: the experiment's pilots.")] = None,
    lose_workers: Annotated[
        list[str] | None, typer.Option(help="Workers lost, and back, after so long: 4@600s,+4@1200s. May be repeated.")
    ] = None,
    with_: Annotated[
        Path | None, typer.Option("--with", help="Compare with this experiment file.", rich_help_panel=_POLICY)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Compare with this key changed: pipelines.dqm.stages.quick.prescale=0.5. May be repeated.",
            rich_help_panel=_POLICY,
        ),
    ] = None,
    slots_b: Annotated[
        int | None,
        typer.Option("--slots-b", help="Compare with so many slots.", min=1, rich_help_panel=_POLICY),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of arrivals, service times and faults.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw it over time into this file (.png, .svg or .pdf).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What would this change do? Plays a load in virtual time, as the experiment is (A) and changed (B).

    Examples: p3s simulate --run run=2008 --set classes.dqm.priority=5 --plot both.png;
    p3s simulate --rate 20/s --bursts 10s/20s --duration 30min --slots 16 --slots-b 32
    """
    from p3s_prefect.adapters.what_if import Question, answer  # the ledger takes half a second to import

    if plot is not None:
        from p3s_prefect.adapters.report_style import check_place  # matplotlib takes a second to import

        check_place(plot)
    at = Home(home)
    words = {"since": since, "until": until, "day": day}
    on_stream = {"rate": rate, "bursts": bursts, "units_per_group": units_per_group, "visits": visits, "parts": parts}
    options = {"duration": arrive_for, "slots": slots, "failures": failures, "part_failures": part_failures}
    asked = Question(
        scope=_scope(at, run, words) if recorded or run or any(words.values()) else None,
        load_file=load,
        options=_given({**options, **_lists(service, lose_workers)}),
        stream_options=_given({**on_stream, "every": every, "delay": delay}),
        stream=stream,
        other=with_,
        changes=tuple(Change.parse(text) for text in set_ or ()),
        other_slots=slots_b,
        seed=seed,
    )
    with _progress() as progress:
        found = answer(at, asked, progress=progress)
    if plot is not None:
        from p3s_prefect.adapters.simulation_picture import draw_comparison

        draw_comparison(found, plot)
    if as_json:
        print_json(comparison_record(found))
        return
    _print(console(), found)
    if plot is not None:
        console().print(plain_text(f"\ndrawn: {plot}"))


# --- inside ---------------------------------------------------------------------------------------------------------


def _scope(at: Home, run: str | None, words: Mapping[str, str | None]) -> Scope:
    return scope(at.read().instrument, run, **words, now=time.time())


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _lists(service: list[str] | None, lose_workers: list[str] | None) -> dict[str, Any]:
    """The options that are lists in the file's form."""
    times: dict[str, str] = {}
    for text in service or ():
        stage, equals, spread = text.partition("=")
        if not equals:
            raise BadName(f"--service {text[:60]!r} names no stage", fix="Write STAGE=1.2s, such as quick=1.2s.")
        times[stage.strip()] = spread.strip()
    changes = [part.strip() for text in lose_workers or () for part in text.split(",")]
    return {"service": times or None, "lose_workers": changes or None}


@contextmanager
def _progress() -> Iterator[Told]:
    """A bar for each policy on standard error, gone at the end."""
    terminal = Console(stderr=True)
    columns = (TextColumn("policy {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def tell(policy: str, share: float) -> None:
            if policy not in tasks:
                tasks[policy] = bars.add_task(policy, total=1.0)
            bars.update(tasks[policy], completed=share)

        yield tell


def _print(out: Console, found: Comparison) -> None:
    results = [found.a, *([found.b] if found.b else [])]
    out.print(plain_text(f"{found.load}: {found.units:,} units"))
    for result in results:
        what = ", ".join(result.changes) if result.changes else "the experiment as it is"
        used = f"{100 * result.slot_use:.1f} % of {result.slots} slots used"
        lost = f", {100 * result.wasted:.1f} % of that for nothing" if result.wasted >= 0.0005 else ""
        out.print(plain_text(f"{result.name}: {what}; {used}{lost}; lasted {duration(result.lasted_s)}"))
    # What never happened needs no column: terminals are narrow.
    drops = [name for name in _DROPS if any(getattr(row, name) for result in results for row in result.classes)]
    columns = ["", "", *(f"{name}>" for name in ("seen", "in time", "%", "p50", "p95", "p99", *drops))]
    for title, kind in (("By class", "classes"), ("By stage", "stages")):
        out.print("", table(columns, _rows(results, kind, drops), title=title), sep="\n")
    if found.notes:
        out.print()
    for note in found.notes:
        out.print(plain_text(f"Note: {note}."))


_DROPS = ("prescaled", "shed", "expired", "failed", "blocked", "open")


def _rows(results: list[PolicyResult], kind: str, drops: list[str]) -> Iterator[tuple[object, ...]]:
    """For each class or stage a row for A and, where there is one, rows for B and for the difference."""
    by_name: dict[str, dict[str, Tally]] = {}
    for result in results:
        for tally in getattr(result, kind):
            by_name.setdefault(_name(tally), {})[result.name] = tally
    for name, tallies in by_name.items():
        for result in results:
            tally = tallies.get(result.name)
            shown = name if result is results[0] else ""
            yield (shown, result.name, *(_cells(tally, drops) if tally else ()))
        if len(tallies) == 2:
            difference = _differences(tallies["A"], tallies["B"], drops)
            yield tuple(Text(cell, style="dim") for cell in ("", "B - A", *difference))


def _name(tally: Tally) -> str:
    return tally.work_class if tally.stage is None else f"{tally.pipeline}/{tally.stage}"


def _cells(tally: Tally, drops: list[str]) -> list[str]:
    times = [_time(seconds) for seconds in (tally.p50_s, tally.p95_s, tally.p99_s)]
    dropped = [str(getattr(tally, name) or "-") for name in drops]
    return [str(tally.seen), str(tally.in_time), f"{100 * tally.in_time_share:.2f}", *times, *dropped]


def _differences(a: Tally, b: Tally, drops: list[str]) -> list[str]:
    times = [
        "" if before is None or after is None else _signed_time(after - before)
        for before, after in ((a.p50_s, b.p50_s), (a.p95_s, b.p95_s), (a.p99_s, b.p99_s))
    ]
    share = f"{100 * (b.in_time_share - a.in_time_share):+.2f}"
    counts = [f"{getattr(b, name) - getattr(a, name):+d}" for name in ("seen", "in_time", *drops)]
    return [*counts[:2], share, *times, *counts[2:]]


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3g} s" if seconds < 999 else duration(seconds)


def _signed_time(seconds: float) -> str:
    return f"{seconds:+.3g} s" if abs(seconds) < 999 else f"{'-' if seconds < 0 else '+'}{duration(abs(seconds))}"
