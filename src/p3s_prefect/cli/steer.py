"""`p3s priority | pause | drain | hold | release | limits`: what an operator sets by hand, with who and why."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.station_status import suspended
from p3s_prefect.adapters.steering import Steering
from p3s_prefect.cli.asking import in_words_of_the_file
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, in_force_table, plain_text, print_json, table
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.health import duration
from p3s_prefect.core.overrides import STOPPING, Controls, Override, OverrideKind
from p3s_prefect.core.quantities import read_duration
from p3s_prefect.core.states import StageState
from p3s_prefect.core.targets import classes_of

TARGETS = """TARGET is one of these, a group or a unit also after a pipeline or stage:
waveform-dqm (a pipeline), waveform-dqm/quick (a stage), class:dqm (a class), run=2008 (a group),
'run=2008 subrun=3' (a unit), all."""

TargetArgument = Annotated[list[str] | None, typer.Argument(metavar="TARGET", help=TARGETS, show_default=False)]
WhyOption = Annotated[
    str, typer.Option("--why", help="The reason: it is shown wherever this acts, and journaled. --clear needs none.")
]
ForOption = Annotated[str | None, typer.Option("--for", help="Ends by itself after so long, such as 30min or 2h.")]
ByOption = Annotated[str, typer.Option("--by", help="Who gives this order. Default: this user.")]
ClearOption = Annotated[bool, typer.Option("--clear", help="Lift it again, on exactly this target.")]


def priority(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="TARGET NUMBER", help=f"{TARGETS} NUMBER: higher goes first.")
    ] = None,
    why: WhyOption = "",
    for_: ForOption = None,
    by: ByOption = "",
    clear: ClearOption = False,
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Re-prioritise what waits and what comes; nothing running is touched. Without TARGET: what is in force.

    In overload, that of a class, a pipeline or a stage also decides who is left out; that of a group or a unit sorts
    those that were let in.

    Examples: p3s priority waveform-dqm/quick 50 --why "beam studies"; p3s priority run=2008 -5 --for 2h --why late
    """
    _carry_out(
        _Order(kind=OverrideKind.PRIORITY, words=words or [], why=why, for_=for_, by=by, home=home, json=as_json), clear
    )


def pause(
    target: TargetArgument = None,
    why: WhyOption = "",
    for_: ForOption = None,
    by: ByOption = "",
    clear: ClearOption = False,
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Let nothing of it start: it waits in the queue, and its deadlines count on. Without TARGET: what is paused.

    Example: p3s pause waveform-dqm --for 30min --why "calibration"
    """
    _carry_out(
        _Order(kind=OverrideKind.PAUSE, words=target or [], why=why, for_=for_, by=by, home=home, json=as_json), clear
    )


def drain(
    target: TargetArgument = None,
    why: WhyOption = "",
    for_: ForOption = None,
    by: ByOption = "",
    clear: ClearOption = False,
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Let no new unit begin; what has begun goes on to its end. Without TARGET: what is drained.

    Example: p3s drain all --why "shift change"
    """
    _carry_out(
        _Order(kind=OverrideKind.DRAIN, words=target or [], why=why, for_=for_, by=by, home=home, json=as_json), clear
    )


def hold(
    target: TargetArgument = None,
    why: WhyOption = "",
    for_: ForOption = None,
    by: ByOption = "",
    clear: ClearOption = False,
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Put aside what has not started, and what comes: in the state `held`. Without TARGET: what is held.

    It does not expire meanwhile; released, it is queued with the deadlines that it had, and what is past them expires.
    After that `p3s request` asks for it anew.

    Example: p3s hold run=2008 subrun=3 --why "look at the file first"
    """
    _carry_out(
        _Order(kind=OverrideKind.HOLD, words=target or [], why=why, for_=for_, by=by, home=home, json=as_json), clear
    )


def release(
    target: TargetArgument = None,
    why: Annotated[str, typer.Option("--why", help="The reason, for the journal.")] = "",
    by: ByOption = "",
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Lift pause, drain and hold of exactly this target. Without TARGET: what could be released.

    What is set for something wider goes on. Priorities and limits are lifted by --clear of their commands.

    Example: p3s release waveform-dqm
    """
    with _steering(home, by) as (steer, _):
        if target:
            _print_lifted(steer.release(" ".join(target), why=why), as_json=as_json)
        else:
            _print_in_force(steer, STOPPING, as_json=as_json)


def limits(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET NUMBER", help="A pipeline, or a class as class:NAME; and the most at once."),
    ] = None,
    why: WhyOption = "",
    for_: ForOption = None,
    by: ByOption = "",
    clear: ClearOption = False,
    home: HomeOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show all limits and everything that is in force by command; or let at most NUMBER stages of TARGET run at once.

    Examples: p3s limits; p3s limits class:dqm 3 --why "leave room for alerts"; p3s limits class:dqm --clear
    """
    if words:
        order = _Order(kind=OverrideKind.LIMIT, words=words, why=why, for_=for_, by=by, home=home, json=as_json)
        _carry_out(order, clear)
        return
    with _steering(home, by) as (steer, experiment):
        given = steer.in_force()
    rows, shown = list(_limits(experiment, Controls(given))), [one.shown() for one in given]
    if as_json:
        print_json({"limits": rows, "overrides": shown})
        return
    out = console()
    columns = ["limit of", "at once>", "declared>", "set by"]
    out.print(table(columns, [(row["of"], _most(row["now"]), _most(row["declared"]), row["why"]) for row in rows]))
    out.print("", in_force_table(shown, time.time()) if given else "Nothing is set by command.", sep="\n")


# --- inside ---------------------------------------------------------------------------------------------------------


@contextmanager
def _steering(home: Path, by: str) -> Iterator[tuple[Steering, Experiment]]:
    place = Home(home)
    experiment = place.in_force()
    with closing(place.ledger(experiment)) as ledger:
        # It may be the first who needs it: what is set before the first start counts from there.
        ledger.migrate()
        with in_words_of_the_file(place):
            yield Steering(experiment, ledger, by=by), experiment


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What was typed."""

    kind: OverrideKind
    words: Sequence[str]
    why: str
    for_: str | None
    by: str
    home: Path
    json: bool


def _carry_out(order: _Order, clear: bool) -> None:
    with _steering(order.home, order.by) as (steer, _):
        if not order.words:
            _print_in_force(steer, [order.kind], as_json=order.json)
        elif clear:
            lifted = steer.clear([order.kind], " ".join(order.words), why=order.why)
            _print_lifted(lifted, as_json=order.json)
        else:
            _print_set(*_give(steer, order), order.home, as_json=order.json)


def _give(steer: Steering, order: _Order) -> tuple[Override, Mapping[StageState, int]]:
    """Gives the order; beside it, how many stages are open that it is about, by state."""
    words, value = order.words, None
    if order.kind in (OverrideKind.PRIORITY, OverrideKind.LIMIT):
        words, value = words[:-1], _number(order)
    target, for_s = " ".join(words), _for_s(order.for_)
    # Before a reason is asked for: nobody should have to think of one for what cannot be done.
    steer.check(order.kind, target, value)
    stages = steer.open_stages(target)
    return steer.give(order.kind, target, _asked(order.why), for_s, value), stages


def _number(order: _Order) -> int:
    options = [word for word in order.words if word.startswith("--")]
    if options:
        raise BadName(f"there is no option {options[0]}", fix="`--help` lists them.")
    *target, last = order.words
    try:
        value = int(last)
    except ValueError as error:
        # A second word that is no part of a data id was meant as the number.
        is_number = bool(target) and "=" not in last
        what = f"{last!r} is no whole number" if is_number else f"no number after {' '.join(order.words)!r}"
        verb = "limits" if order.kind is OverrideKind.LIMIT else order.kind
        typed = f"p3s {verb} {' '.join(target if is_number else order.words)}"
        raise BadName(what, fix=f"Such as: {typed} 3. Or --clear to lift it.") from error
    return value


def _for_s(text: str | None) -> float | None:
    return None if text is None else read_duration(text)


def _asked(why: str) -> str:
    """The reason, asked for at a terminal where it was not given."""
    return typer.prompt("Why", err=True) if not why.strip() and sys.stdin.isatty() else why


def _limits(experiment: Experiment, controls: Controls) -> Iterator[dict[str, object]]:
    for name in classes_of(experiment):
        work_class = experiment.classes.get(name)
        declared = None if work_class is None else work_class.limit
        yield _limit_row(f"class:{name}", declared, controls.limit(work_class=name))
    for name, pipeline in experiment.pipelines.items():
        given = controls.limit(work_class=pipeline.work_class, pipeline=name)
        yield _limit_row(name, pipeline.limit, given)


def _limit_row(of: str, declared: int | None, given: Override | None) -> dict[str, object]:
    now = declared if given is None else given.value
    return {"of": of, "now": now, "declared": declared, "why": "" if given is None else given.reason}


def _most(limit: object) -> object:
    return "no limit" if limit is None else limit


def _print_set(made: Override, stages: Mapping[StageState, int], home: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(made.shown() | {"open_stages": stages})
        return
    until = f" It ends by itself in {duration(made.expires_at - made.set_at)}." if made.expires_at else ""
    station, counts = Home(home).station(), ""
    if station is None:
        counts = " No station runs: it counts from its start."
    elif station.is_suspended:
        counts = f" It counts when the station goes on: {suspended(station)}"
    said = f"In force: {made.reason}.{until} {_about(made.kind, stages)}{counts}\n  `{made.lift}` lifts it."
    console().print(plain_text(said), soft_wrap=True)


def _about(kind: OverrideKind, stages: Mapping[StageState, int]) -> str:
    """What there is now that a command acts on."""
    running = stages.get(StageState.RUNNING, 0)
    waiting = sum(stages.values()) - running
    if not stages:
        return "Nothing of it is open now: it is for what comes, or is asked for anew."
    if kind is OverrideKind.DRAIN:
        return f"Open of it now: {_stages(waiting + running)}; what belongs to units that have begun goes on."
    told = f"Waiting of it now: {_stages(waiting)}" if waiting else "Nothing of it waits now"
    return f"{told}; {running} at the pilots {'is' if running == 1 else 'are'} not touched." if running else f"{told}."


def _stages(number: int) -> str:
    return "1 stage" if number == 1 else f"{number} stages"


def _print_lifted(lifted: Iterable[Override], *, as_json: bool) -> None:
    if as_json:
        print_json({"lifted": [one.shown() for one in lifted]})
        return
    for one in lifted:
        console().print(plain_text(f"Lifted: {one.reason}."))


def _print_in_force(steer: Steering, kinds: Iterable[OverrideKind], *, as_json: bool) -> None:
    chosen = tuple(kinds)
    given = [one.shown() for one in steer.in_force() if one.kind in chosen]
    if as_json:
        print_json({"overrides": given})
        return
    console().print(in_force_table(given, time.time()) if given else f"No {' or '.join(chosen)} is in force.")
