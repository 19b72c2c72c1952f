"""`p3s init`: a directory with an experiment file to begin from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from p3s_prefect.adapters.experiment_file import read_experiment
from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.findings import did_you_mean

_STARTER = "starter"
_FILE = "experiment.yaml"


def init(
    directory: Annotated[Path, typer.Argument(help="The experiment's home; made if absent.")] = Path(),
    instrument: Annotated[
        str, typer.Option("--instrument", help="Begin from this instrument's file: starter, or one such as lst1.")
    ] = _STARTER,
) -> None:
    """Write a commented experiment file and the directory in which data arrive. Nothing is overwritten."""
    console = Console(soft_wrap=True)
    for path in write_home(directory, instrument):
        console.print(Text.assemble("wrote ", (str(path), "bold")))
    change = "" if directory.resolve() == Path.cwd() else f"cd {directory} && "
    console.print(Text(f"Next: read {directory / _FILE}, then\n  {change}p3s check\n  p3s up"))


def template(instrument: str) -> str:
    """The experiment file that an instrument begins from.

    Raises:
        P3sError: there is none of that name.
    """
    known = {_STARTER: resources.files("p3s_prefect.cli") / "starter.yaml"}
    for folder in resources.files("p3s_prefect.instruments").iterdir():
        if (folder / _FILE).is_file():
            known[folder.name] = folder / _FILE
    if instrument not in known:
        raise P3sError(f"no instrument {instrument!r}", fix=did_you_mean(instrument, known))
    return known[instrument].read_text(encoding="utf-8")


def write_home(directory: Path, instrument: str) -> list[Path]:
    """Writes an experiment's home and returns what it made.

    Raises:
        P3sError: there is an experiment file already, or the directory cannot be written.
    """
    path, text = directory / _FILE, template(instrument)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        incoming = [
            directory / stream.directory for stream in read_experiment(path).streams.values() if stream.directory
        ]
        for folder in incoming:
            folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise P3sError(
            f"{error.filename} is already there", fix="Choose another directory, or move it away."
        ) from error
    except OSError as error:
        raise P3sError(
            f"{directory} cannot be written: {error}", fix="Choose a directory that you may write."
        ) from error
    return [path, *incoming]
