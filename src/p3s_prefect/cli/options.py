"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="P3S_HOME", help="The experiment's home: the directory of its experiment.yaml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
