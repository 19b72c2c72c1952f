"""`p3s check-products`: does what a payload left describe itself as the schema says? (P17)"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from p3s_prefect.adapters.pilot.outputs import described
from p3s_prefect.cli.output import console, table
from p3s_prefect.core.errors import BadProducts
from p3s_prefect.core.payload import PRODUCTS_FILE, SUMMARY_FILE, schemas


def check_products(
    directory: Annotated[Path, typer.Argument(help="Where a payload has run.", exists=True, file_okay=False)] = Path(),
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schemas of both files instead.")] = False,
) -> None:
    """Check a directory's summary.json and products.json as a pilot does, and show what pages would make of them."""
    if schema:
        typer.echo(json.dumps(schemas(), indent=2))
        return
    if not any(os.path.lexists(directory / name) for name in (SUMMARY_FILE, PRODUCTS_FILE)):
        raise BadProducts(f"{directory} has neither {SUMMARY_FILE} nor {PRODUCTS_FILE}", fix="Write at least one.")
    summary, products = described(directory)
    screen = console()
    if summary:
        rows = [(name, found.value, found.unit) for name, found in summary.items()]
        screen.print(table(["summary value", "value>", "unit"], rows))
    if products:
        shown = [(one.category, one.title, one.file, one.shows) for one in products]
        screen.print(table(["category", "title", "file", "shows"], shown))
    screen.print("Good.")
