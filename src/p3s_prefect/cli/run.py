"""`p3s up | down | demo | station`: running the services."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from p3s_prefect.adapters.home import Complaint, Home
from p3s_prefect.adapters.own_store import choose_own_store
from p3s_prefect.adapters.prefect_server import prefect_page
from p3s_prefect.adapters.supervision import COMPLAINED, Services, may_come_back
from p3s_prefect.cli.init import write_home
from p3s_prefect.cli.options import HomeOption
from p3s_prefect.cli.replay import FIRST_RUN, play, writer
from p3s_prefect.core.errors import LeaseLost, P3sError
from p3s_prefect.core.replay import ReplayPlan, directory_of, patterns_of
from p3s_prefect.settings import Settings

_START_TIMEOUT_S = 90.0
# An hour of the sample at one subrun a second: files as they arrive, and what is made of them.
_KEPT_GB = 12.0
# `p3s down` from elsewhere ends a demonstration, too.
_LOOK_S = 1.0
# Ctrl-C, a kill, and a terminal that is closed.
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def up(
    home: HomeOption = Path(),
    store: Annotated[
        Literal["s3"] | None,
        typer.Option(help="Keep results in an S3 server of this home's own, to try it; from then on always."),
    ] = None,
) -> None:
    """Start scheduler, pilots and station, and keep them running until `p3s down`."""
    console = Console(soft_wrap=True)
    if store is not None:
        choose_own_store(Home(home), Home(home).read())
    url = start(Home(home), console)
    console.print(f"Running. The page is at [bold]{url}[/bold]; `p3s status` tells the same, `p3s down` stops it.")
    if prefect := _prefect(Home(home)):
        console.print(f"Prefect is at [bold]{prefect}[/bold], some seconds from now.")


def down(home: HomeOption = Path()) -> None:
    """Stop everything: what runs may finish within the grace time, the rest goes back to the queue."""
    console, place = Console(soft_wrap=True), Home(home)
    with console.status("stopping; running stages may finish"):
        stopped = Services(place).stop()
    if not stopped and not place.experiment_file.exists():
        # Only now, as what runs is stopped whatever became of its file: here it says that this is no home.
        place.read()
    console.print("Stopped." if stopped else "Nothing was running here.")


def demo(
    directory: Annotated[Path, typer.Argument(help="Home of the demonstration; made if absent.")] = Path("demo"),
    rate: Annotated[float, typer.Option(help="Subruns a second.", min=0.01, max=100)] = 1.0,
    runs: Annotated[int | None, typer.Option(help="Play so many runs. Default: on and on.", min=1)] = None,
) -> None:
    """Set up the LST-1 camera, play its real events into it, and show the page. Ctrl-C stops everything."""
    console = Console(soft_wrap=True)
    home = Home(directory)
    if not home.experiment_file.exists():
        write_home(directory, "lst1")
        _avoid_taken_port(home)
    for number in _ENDS[1:]:
        signal.signal(number, _interrupt)
    services = Services(home)
    try:
        url = start(home, console)
        console.print(Text.assemble("\n  The page is at ", (url, "bold green"), "   (Ctrl-C stops everything)"))
        if prefect := _prefect(home):
            console.print(Text.assemble("  Prefect is at  ", (prefect, "bold green"), "   (some seconds from now)"))
        if runs is None:
            console.print(f"  What it plays is kept in {directory}: about {_KEPT_GB * rate:.3g} GB an hour")
        console.print()
        files, marker = patterns_of(home.read())
        plan = ReplayPlan(pattern=files, marker=marker, first_run=_next_run(home), runs=runs, rate_hz=rate)
        play(home, console, plan, writer("lst1")(), while_=services.are_kept)
        if runs is not None and services.are_kept():
            console.print("The replay has ended; the page stays up until Ctrl-C.")
        while services.are_kept():
            time.sleep(_LOOK_S)
        console.print("\nStopped from elsewhere.")
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be gone
            console.print("\nStopping.")
    finally:
        with _uninterrupted():
            services.stop()
    console.print(f"Stopped. Results and books stay in {directory}/; `p3s list units --home {directory}` reads them.")


def station(
    scheduler: Annotated[str, typer.Argument(help="Address of the Dask scheduler, such as tcp://127.0.0.1:8786.")],
    home: HomeOption = Path(),
) -> None:
    """Run the station itself in the foreground; `p3s up` does this for you."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("watchfiles", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Imported here: Dask and the web take a second that no other command should pay.
    from p3s_prefect.station.service import serve

    at = Home(home)
    try:
        asyncio.run(serve(at, Settings(), scheduler))
    except LeaseLost as error:
        # Started anew, it waits until the lease is free again: a spare for whoever has taken over.
        logging.getLogger("p3s").error("%s", error)
        raise typer.Exit(1) from error
    except P3sError as error:
        logging.getLogger("p3s").error("%s", error)
        again = may_come_back(error)
        at.complain(Complaint(text=str(error), is_tried_again=again))
        raise typer.Exit(1 if again else COMPLAINED) from error


def start(home: Home, console: Console) -> str:
    """Starts the services of a home, with progress, and returns the page's address."""
    services = Services(home)
    experiment = home.read()
    with console.status("starting scheduler, pilots and station") as progress:
        begun = time.monotonic()

        def tick() -> None:
            progress.update(f"starting scheduler, pilots and station: {time.monotonic() - begun:.0f} s")

        services.start(experiment)
        try:
            return services.wait_for_station(_START_TIMEOUT_S, tick).url
        except (P3sError, KeyboardInterrupt):
            services.stop()
            raise


def _prefect(home: Home) -> str | None:
    """Where people see Prefect; None where it is not used."""
    return prefect_page(home, home.read())


def _avoid_taken_port(home: Home) -> None:
    """A demonstration should not fail because another program has the usual port."""
    usual = home.read().station
    try:
        socket.create_server((usual.host, usual.port)).close()
    except OSError:
        with home.experiment_file.open("a") as file:
            file.write(
                "\n# The usual port was taken when this file was made: 0 takes a free one.\nstation: {port: 0}\n"
            )


def _next_run(home: Home) -> int:
    """The first run that was not played here before: replayed under its old names, it would be a conflict."""
    experiment = home.read()
    files, _ = patterns_of(experiment)
    directory = home.path / directory_of(experiment)
    played = (files.match(path.name) for path in directory.glob("*"))
    return max((int(data_id["run"]) + 1 for data_id in played if data_id is not None), default=FIRST_RUN)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


class _uninterrupted:  # noqa: N801 -- reads as the statement that it is
    """A second Ctrl-C must not leave half of the services running."""

    def __enter__(self) -> None:
        self._before = [signal.signal(number, signal.SIG_IGN) for number in _ENDS]

    def __exit__(self, *_: object) -> None:
        for number, before in zip(_ENDS, self._before, strict=True):
            signal.signal(number, before)
