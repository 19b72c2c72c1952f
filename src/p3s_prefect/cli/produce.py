"""`p3s process`: files through their pipelines here and now, without a station."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import selected
from p3s_prefect.adapters.ledger.selected import SelectedStage
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import INTERRUPTED, console, plain_text, print_json, state, table
from p3s_prefect.core.errors import StageFailed
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.records import Arrival
from p3s_prefect.core.states import StageState

_LOOK_EVERY_S = 0.5
# What is printed here is progress and a table: Prefect's page has the logs all the same. And a detector's machines do
# not tell a company what they do.
_QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "DASK_LOGGING__DISTRIBUTED": "error",
    "DO_NOT_TRACK": "1",
}


def process(
    files: Annotated[list[str], typer.Argument(help="Files of one stream.")],
    home: HomeOption = Path(),
    pipeline: Annotated[
        list[str] | None, typer.Option(help="Run this one, not what the stream's rules choose; may be repeated.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A Dask scheduler to use, such as tcp://10.0.0.1:8786.")] = None,
    group: Annotated[
        Literal["closed", "open"],
        typer.Option(help="`closed`: these files are all of their groups, whose own stages run then."),
    ] = "closed",
    as_json: JsonOption = False,
) -> None:
    """Process files here, without a station: Prefect runs and shows it, Dask computes."""
    # Imported here, and Prefect later still: mistakes are told within a second.
    from p3s_prefect.station.planning import check_pipelines, select_files
    from p3s_prefect.station.production import check_no_station

    at = Home(home)
    experiment = at.read()
    check_no_station(at)
    check_pipelines(experiment, pipeline or [])
    seen = select_files(at.path, experiment, files)
    Console(stderr=True).print(f"{_number(len(seen))}; starting Prefect takes some seconds")
    asked = _Asked(home=at, experiment=experiment, seen=seen, pipelines=pipeline or [])
    before = {row.stage_run_id for row in asked.stages() if row.state == StageState.DONE}
    signal.signal(signal.SIGTERM, _interrupt)
    with _progress(asked):
        problem, code = _run(asked, files, address, group)
    if as_json:
        print_json({"ok": not problem, "problem": problem, "stages": [asdict(row) for row in asked.stages()]})
    else:
        _print(asked.stages(), before, problem)
    raise typer.Exit(code)


# --- inside ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What was asked for, and how far it is."""

    home: Home
    experiment: Experiment
    seen: Sequence[Arrival]
    pipelines: Sequence[str]

    def stages(self) -> list[SelectedStage]:
        """Its stage runs, as far as the ledger has them."""
        ledger = self.home.ledger(self.experiment)
        try:
            if not ledger.exists():
                return []
            with ledger.reading() as connection:
                return selected.of_units(connection, [arrival.data_id for arrival in self.seen], self.pipelines)
        finally:
            ledger.close()


def _number(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


def _interrupt(*_: object) -> None:
    # As Ctrl-C does it: what runs is stopped, and so is the server that was started for it.
    raise KeyboardInterrupt


def _run(asked: _Asked, files: list[str], address: str | None, group: Literal["closed", "open"]) -> tuple[str, int]:
    """Runs the flow; says what did not go well, if anything, and the exit code."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from p3s_prefect import api

    try:
        api.process(files, asked.home.path, pipelines=asked.pipelines, group=group, address=address)
    except StageFailed as failed:
        return failed.what, 1
    except KeyboardInterrupt:
        return "It was stopped. What ran is queued again: give the same files to go on.", INTERRUPTED
    return "", 0


@contextmanager
def _progress(asked: _Asked) -> Iterator[None]:
    """Shows how many stage runs have ended."""
    before = {row.stage_run_id for row in asked.stages() if row.state.is_terminal}
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    ended = threading.Event()
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("starting Prefect and Dask", total=None)

        def look() -> None:
            while not ended.wait(_LOOK_EVERY_S):
                rows = asked.stages()
                settled = [row for row in rows if row.state.is_terminal]
                if any(row.stage_run_id not in before for row in rows):
                    bar.update(task, description="processing", total=len(rows), completed=len(settled))

        looking = threading.Thread(target=look, daemon=True, name="progress")
        looking.start()
        try:
            yield
        finally:
            ended.set()
            looking.join()


def _print(rows: Sequence[SelectedStage], before: Collection[int], problem: str) -> None:
    """`before` are the stage runs that had been done before these files were asked for."""
    out = console()
    out.print(
        table(
            ["unit", "pipeline", "stage", "state", "seconds>", "why"],
            [
                (
                    row.data_id,
                    row.pipeline,
                    row.stage,
                    state(row.state),
                    "" if row.seconds is None else f"{row.seconds:.1f}",
                    row.reason,
                )
                for row in rows
            ],
        )
    )
    kept = sum(row.stage_run_id in before for row in rows)
    if kept:
        computed = sum(row.state == StageState.DONE and row.stage_run_id not in before for row in rows)
        anew = f"{computed} were done now" if computed else "nothing was computed"
        out.print(f"{kept} of {len(rows)} stages had been done before, and are as they were; {anew}.")
    for collection in sorted({row.collection for row in rows}):
        out.print(plain_text(f"Results: {collection}"))
    if problem:
        Console(stderr=True, soft_wrap=True).print(plain_text(problem), style="red")
