"""The import contract of pyproject.toml bites: each arrow that it forbids, drawn into a copy of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FORBIDDEN = {
    "upwards": ("core/naming.py", "from p3s_prefect.adapters import clock", "Imports go downwards"),
    "from a root room to one above": ("blocks/__init__.py", "import p3s_prefect.flows", "Imports go downwards"),
    "Prefect in the station": ("station/intake.py", "import prefect", "does not stand on Prefect"),
    "Prefect behind a function": ("web/app.py", "def late():\n    import prefect", "does not stand on Prefect"),
    "Dask in core": ("core/naming.py", "import distributed", "Core computes"),
    "a clock in core": ("core/naming.py", "import time", "Core computes"),
    "an instrument in the station": ("cli/init.py", "import p3s_prefect.instruments.lst1", "Instruments are named"),
    "an instrument that knows its runner": (
        "instruments/lst1/pixels.py",
        "import p3s_prefect.adapters",
        "Imports go downwards",
    ),
    "a module without a room": ("helpers.py", "", "Imports go downwards"),
}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The package as it is installed, with the contract beside it."""
    leave_out = shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(ROOT / "src" / "p3s_prefect", tmp_path / "p3s_prefect", ignore=leave_out)
    for room in ("flows", "tasks", "blocks", "deployments"):
        shutil.copytree(ROOT / room, tmp_path / "p3s_prefect" / room, ignore=leave_out)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(directory: Path) -> tuple[int, str]:
    ended = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(directory), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def test_the_package_keeps_its_contract(copied: Path) -> None:
    code, told = lint(copied)
    assert code == 0, told


@pytest.mark.parametrize("arrow", FORBIDDEN)
def test_a_forbidden_arrow_is_found(arrow: str, copied: Path) -> None:
    file, line, contract = FORBIDDEN[arrow]
    with (copied / "p3s_prefect" / file).open("a") as module:
        module.write(f"\n\n{line}\n")
    code, told = lint(copied)
    assert code == 1, told
    broken = [line for line in told.splitlines() if line.endswith("BROKEN")]
    assert any(contract in line for line in broken), told
