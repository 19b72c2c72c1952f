"""`p3s check-products`: it says of a payload's directory what a pilot would say (P17)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from p3s_prefect.adapters.pilot import outputs
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import BadProducts, OutputMissing, P3sError

NOISE = {"category": "Camera", "title": "Noise [/]", "file": "noise.png", "shows": "[bold]one pixel\teach"}


def checked(*options: object) -> str:
    """What it prints."""
    return CliRunner().invoke(commands(), ["check-products", *map(str, options)], catch_exceptions=False).output


def describe(directory: Path, **values: object) -> None:
    """A payload has run: one product, and these summary values."""
    (directory / "noise.png").write_bytes(b"png")
    (directory / "products.json").write_text(json.dumps([NOISE]))
    (directory / "summary.json").write_text(json.dumps({name: {"value": found} for name, found in values.items()}))


def test_what_is_well_described_is_shown_as_it_is(tmp_path: Path) -> None:
    """P17, S8: also words that a terminal, or whoever prints to it, takes for commands."""
    describe(tmp_path, noise=4.25, label="[red]good[/red]")
    said = checked(tmp_path)
    for words in ("Noise [/]", "noise.png", "[bold]one pixel", "4.25", "[red]good[/red]"):
        assert words in said
    assert said.endswith("Good.\n")


def test_either_file_will_do(tmp_path: Path) -> None:
    """P17."""
    describe(tmp_path, noise=4.25)
    (tmp_path / "products.json").unlink()
    assert "noise" in checked(tmp_path)
    assert "Camera" not in checked(tmp_path)


def test_the_schemas_are_printed() -> None:
    """P17: for those who write the files."""
    assert set(json.loads(checked("--schema"))) == {"summary.json", "products.json"}


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _large(path: Path) -> None:
    path.write_text("[" + " " * outputs.MOST_DESCRIBED_BYTES + "]")


def _no_json(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("spoil", "name", "error", "words"),
    [
        (_directory, "summary.json", OutputMissing, "summary.json is not a plain file"),
        (_directory, "products.json", OutputMissing, "products.json is not a plain file"),
        (_link, "summary.json", OutputMissing, "summary.json is not a plain file"),
        (_link, "noise.png", OutputMissing, "names 'noise.png', which is not there as a plain file"),
        (_directory, "noise.png", OutputMissing, "names 'noise.png', which is not there as a plain file"),
        (Path.unlink, "noise.png", OutputMissing, "names 'noise.png', which is not there as a plain file"),
        (_large, "products.json", BadProducts, "larger than"),
        (_large, "summary.json", BadProducts, "larger than"),
        (_no_json, "products.json", BadProducts, "cannot be read as JSON"),
    ],
)
def test_what_a_pilot_would_refuse_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], name: str, error: type[P3sError], words: str
) -> None:
    """P17, S7, S8: a link could lead to any file of the machine, and publish it."""
    describe(tmp_path, noise=4.25)
    spoil(tmp_path / name)
    with pytest.raises(error, match=words):
        checked(tmp_path)


def test_a_directory_that_describes_nothing_is_refused(tmp_path: Path) -> None:
    """S8."""
    with pytest.raises(BadProducts, match="has neither"):
        checked(tmp_path)
