"""`p3s replay`: plays an instrument's data into the watched place, with faults on request (P20)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from p3s_prefect.adapters import replay as player
from p3s_prefect.adapters.home import Home
from p3s_prefect.cli.options import HomeOption
from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.replay import FaultShares, ReplayPlan, directory_of, patterns_of

# The real one: the sample is from run 2008.
FIRST_RUN = 2008


def replay(
    instrument: Annotated[str, typer.Argument(help="Whose data to play, such as lst1.")],
    home: HomeOption = Path(),
    rate: Annotated[float, typer.Option(help="Subruns a second.", min=0.001, max=1000)] = 1.0,
    runs: Annotated[int | None, typer.Option(help="How many runs. Default: on and on.", min=1)] = None,
    subruns: Annotated[int, typer.Option(help="Subruns of a run.", min=1)] = 5,
    first_run: Annotated[int, typer.Option(help="Number of the first run.", min=0)] = FIRST_RUN,
    burst: Annotated[int, typer.Option(help="So many subruns come at once.", min=1)] = 1,
    gap: Annotated[float, typer.Option(help="Share of subruns left out.", min=0, max=1)] = 0.0,
    late: Annotated[float, typer.Option(help="Share that comes after its run has closed.", min=0, max=1)] = 0.0,
    truncated: Annotated[float, typer.Option(help="Share cut short.", min=0, max=1)] = 0.0,
    corrupted: Annotated[float, typer.Option(help="Share with flipped bits.", min=0, max=1)] = 0.0,
    resent: Annotated[float, typer.Option(help="Share sent twice, the same bytes.", min=0, max=1)] = 0.0,
    rewritten: Annotated[float, typer.Option(help="Share sent twice, other bytes.", min=0, max=1)] = 0.0,
    noisy_pixel: Annotated[int | None, typer.Option(help="This pixel gets noise.", min=0)] = None,
    seed: Annotated[int, typer.Option(help="Which subruns the faults hit.")] = 0,
) -> None:
    """Play an instrument's data into the watched directory, as the detector would write them."""
    experiment = Home(home).in_force()
    files, marker = patterns_of(experiment)
    plan = ReplayPlan(
        pattern=files,
        marker=marker,
        first_run=first_run,
        runs=runs,
        subruns_per_run=subruns,
        rate_hz=rate,
        burst=burst,
        faults=FaultShares(
            gap=gap, late=late, truncated=truncated, corrupted=corrupted, resent=resent, rewritten=rewritten
        ),
        seed=seed,
    )
    try:
        play(Home(home), Console(soft_wrap=True), plan, writer(instrument)(noisy_pixel=noisy_pixel, seed=seed))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def play(
    home: Home, console: Console, plan: ReplayPlan, write: player.Writer, *, while_: Callable[[], bool] = lambda: True
) -> None:
    """Plays a plan into the place that the home's first stream watches, as long as `while_`, and shows progress.

    Raises:
        P3sError: it cannot be written to.
    """
    directory = home.path / directory_of(home.in_force())
    try:
        _play(directory, console, plan, write, while_)
    except OSError as error:
        raise P3sError(
            f"{error.filename or directory} cannot be written: {error.strerror or error}",
            fix=f"Make {directory} writable, with room on its disk; `--first-run` goes on with the next run.",
        ) from error


def _play(
    directory: Path, console: Console, plan: ReplayPlan, write: player.Writer, while_: Callable[[], bool]
) -> None:
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("replaying", total=plan.runs * plan.subruns_per_run if plan.runs else None)
        for done in player.replay(directory, plan, write, seed=plan.seed):
            fault = f" ({done.planned.fault})" if done.planned.fault else ""
            progress.update(task, description=f"{done.planned.data_id}{fault}", advance=0 if done.planned.marker else 1)
            if not while_():
                return


def writer(instrument: str) -> Callable[..., player.Writer]:
    """What writes an instrument's files, once it is told which pixel is noisy and which chance to take.

    Raises:
        P3sError: there is no such instrument, or it has no sample.
    """
    try:
        module = importlib.import_module(f"p3s_prefect.instruments.{instrument}.sample")
    except ModuleNotFoundError as error:
        raise P3sError(f"no instrument {instrument!r} can be replayed", fix="Choose lst1.") from error
    writer: Callable[..., player.Writer] = module.replay_writer
    return writer
