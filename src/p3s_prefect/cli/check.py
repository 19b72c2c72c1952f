"""`p3s check`: what the experiment file would do, or everything that is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.text import Text

from p3s_prefect.adapters.experiment_file import payload_mistakes, read_experiment
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import agent_cursor
from p3s_prefect.adapters.own_place import OwnServer
from p3s_prefect.adapters.stores import ask_store
from p3s_prefect.cli.explain import as_json as explained_as_json
from p3s_prefect.cli.explain import explain
from p3s_prefect.cli.options import HomeOption
from p3s_prefect.core.errors import ExperimentFileErrors, LedgerError, P3sError, StoreError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_checks import remarks
from p3s_prefect.core.findings import Finding


def check(
    path: Annotated[
        Path | None, typer.Argument(help="The experiment file, or its directory. Default: that of --home.")
    ] = None,
    home: HomeOption = Path(),
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Also draw the pipelines into this file (.png, .svg or .pdf).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Explain what an experiment file would do, in words and as a DAG, or list all of its mistakes."""
    path = Home(home).experiment_file if path is None else path
    if path.is_dir():
        path = Home(path).experiment_file
    try:
        experiment = read_experiment(path, also=[payload_mistakes, partial(_cluster_mistakes, Home(path.parent))])
    except ExperimentFileErrors as errors:
        print_mistakes(errors, as_json=as_json)
        raise typer.Exit(1) from errors
    if picture is not None:
        _draw(experiment, picture)
    found = [*remarks(experiment), *_store_remarks(Home(path.parent), experiment)]
    console = Console()
    if as_json:
        console.out(json.dumps(explained_as_json(experiment, found), indent=2), highlight=False)
        return
    console.print(explain(experiment, found))
    if picture is not None:
        console.print(Text.assemble("\nPicture: ", (str(picture), "bold")), soft_wrap=True)
    console.print(Text(f"\n{path} is in order.", style="green"), soft_wrap=True)


def print_mistakes(errors: ExperimentFileErrors, *, as_json: bool) -> None:
    """All mistakes of a file, each with its place and its fix."""
    if as_json:
        mistakes = [
            {
                "file": mistake.file,
                "line": mistake.line,
                "key": mistake.key,
                "what": mistake.message,
                "fix": mistake.fix,
            }
            for mistake in errors.mistakes
        ]
        Console().out(json.dumps({"ok": False, "mistakes": mistakes}, indent=2), highlight=False)
        return
    console = Console(stderr=True, soft_wrap=True)
    for mistake in errors.mistakes:
        place = f"{mistake.file}:{mistake.line}" if mistake.line else mistake.file
        key = f" {mistake.key}:" if mistake.key else ""
        console.print(Text.assemble((place, "bold"), f":{key} ", (mistake.message, "red"), f"\n  {mistake.fix}"))
    count = len(errors.mistakes)
    console.print(Text(f"{count} mistake{'s' if count > 1 else ''}. Correct them and run `p3s check` again."))


def _cluster_mistakes(home: Home, experiment: Experiment) -> Iterable[Finding]:
    if experiment.pilots.address is None:
        return ()
    from p3s_prefect.adapters.cluster_users import cluster_mistakes  # Dask takes half a second to import

    return cluster_mistakes(experiment, partial(_is_own, home, experiment))


def _is_own(home: Home, experiment: Experiment, station: UUID | None) -> bool:
    """Whether a station's ledger is that of the home; true also where that cannot be read from here."""
    with closing(home.ledger(experiment)) as ledger, suppress(LedgerError):
        if not ledger.exists():
            return False
        with ledger.reading() as connection:
            return agent_cursor.site_of(connection) == station
    return True


def _store_remarks(home: Home, experiment: Experiment) -> Iterable[Finding]:
    """Whether the bucket can be used from here; keys and network differ from machine to machine."""
    own = OwnServer(home.path).place()
    if isinstance(experiment.store.place, str):
        if own is not None:
            what = f"this home keeps its results in its own S3 server, at {own.endpoint}, and not in that directory"
            yield Finding(
                where=("store",), what=what, fix="It was begun with `p3s up --store s3`; nothing need be done."
            )
        return
    try:
        ask_store(home.store(experiment))
    except StoreError as error:
        yield Finding(where=("store", "url"), what=f"from this machine, {error.what}", fix=error.fix)


def _draw(experiment: Experiment, picture: Path) -> None:
    from p3s_prefect.adapters.dag_picture import draw_experiment  # matplotlib takes a second to import

    try:
        draw_experiment(experiment, picture)
    except P3sError as error:
        Console(stderr=True, soft_wrap=True).print(Text(str(error), style="red"))
        raise typer.Exit(1) from error
