"""`p3s why`: what a unit or group waits for and what would release it, or why it was dropped (B12)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from p3s_prefect.api import open_experiment
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json, state
from p3s_prefect.core.health import duration
from p3s_prefect.core.states import StageState
from p3s_prefect.core.views import plain
from p3s_prefect.core.why_facts import Explanation, Reason, StageWhy, SubJobWhy


def why(
    target: Annotated[
        list[str],
        typer.Argument(
            help="A unit or a group, such as: run=2008 subrun=3; or one stage of it: waveform-dqm/quick run=2008 "
            "subrun=3"
        ),
    ],
    home: HomeOption = Path(),
    pass_number: Annotated[int | None, typer.Option("--pass", help="In this pass; default: the newest.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain in words what a unit or group waits for and what would release it, or why it was dropped.

    Examples: p3s why run=2008 subrun=3; p3s why run=2008; p3s why waveform-dqm/quick run=2008 subrun=3
    """
    with open_experiment(home) as books:
        found = books.why(" ".join(target), pass_number=pass_number)
    if as_json:
        print_json(plain(found))
    else:
        _print(console(), found)


def _print(out: Console, found: Explanation) -> None:
    out.print(plain_text(found.data_id), style="bold")
    _print_reasons(out, found.reasons, indent=2)
    for sub_job in found.sub_jobs:
        _print_sub_job(out, sub_job, found.at)


def _print_sub_job(out: Console, found: SubJobWhy, at: float) -> None:
    where = f"in {found.pipeline}" + ("" if found.pass_number is None else f", pass {found.pass_number}")
    others = ", ".join(f"pass {number} {ended}" for number, ended in found.others)
    out.print()
    out.print(plain_text(f"{where}:"), state(found.state), plain_text(f"({others})" if others else ""))
    for stage in found.stages:
        _print_stage(out, stage, at)


def _print_stage(out: Console, stage: StageWhy, at: float) -> None:
    lasted = ""
    if stage.since is not None:
        told = duration(max(0.0, at - stage.since))
        lasted = f" {told} ago" if StageState(stage.state).is_terminal else f" for {told}"
    name = Text("  ").append_text(plain_text(stage.stage)).append(" is ")
    out.print(name.append_text(state(stage.state)).append(lasted))
    _print_reasons(out, stage.reasons, indent=4)


def _print_reasons(out: Console, reasons: Iterable[Reason], *, indent: int) -> None:
    for reason in reasons:
        _print_line(out, f"{_sentence(reason.why)}.", indent)
        if reason.rule:
            _print_line(out, f"rule: {reason.rule}", indent + 2, style="dim")
        if reason.release:
            _print_line(out, reason.release, indent + 2)


def _print_line(out: Console, text: str, indent: int, style: str = "") -> None:
    # Not wrapped here: a command that is broken over two lines cannot be copied.
    out.print(plain_text(" " * indent + text), style=style, soft_wrap=True)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
