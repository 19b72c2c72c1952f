"""`p3s check-products`: does what a payload left describe itself as the schema says? (P17)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from p3s_prefect.core.errors import BadProducts, OutputMissing
from p3s_prefect.core.payload import PRODUCTS_FILE, SUMMARY_FILE, read_products, read_summary, schemas


def check_products(
    directory: Annotated[Path, typer.Argument(help="Where a payload has run.", exists=True, file_okay=False)] = Path(),
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schemas of both files instead.")] = False,
) -> None:
    """Check a directory's summary.json and products.json, and show what pages would make of them."""
    console = Console(soft_wrap=True)
    if schema:
        typer.echo(json.dumps(schemas(), indent=2))
        return
    summary, products = directory / SUMMARY_FILE, directory / PRODUCTS_FILE
    if not summary.exists() and not products.exists():
        raise BadProducts(f"{directory} has neither {SUMMARY_FILE} nor {PRODUCTS_FILE}", fix="Write at least one.")
    if summary.exists():
        table = Table("summary value", "value", "unit")
        for name, found in read_summary(summary.read_bytes()).items():
            table.add_row(name, str(found.value), found.unit)
        console.print(table)
    if products.exists():
        table = Table("category", "title", "file", "shows")
        for product in read_products(products.read_bytes()):
            if not (directory / product.file).is_file():
                raise OutputMissing(f"{PRODUCTS_FILE} names {product.file!r}, which is not there", fix="Write it.")
            table.add_row(product.category, product.title, product.file, product.shows)
        console.print(table)
    console.print("Good.")
