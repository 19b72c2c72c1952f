"""A dataset's Python form, by its format; see `p3s_prefect.core.payload` for the table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from p3s_prefect.core.errors import OutputMissing
from p3s_prefect.core.experiment import Format


def read(path: Path, form: Format) -> Any:
    """The value in a file. Arrays are read without pickle: a file cannot run code."""
    match form:
        case Format.NPZ:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        case Format.JSON:
            return json.loads(path.read_text())
        case Format.TEXT:
            return path.read_text()
        case _:
            return path


def write(value: Any, path: Path, form: Format, *, name: str) -> None:
    """Writes a value that a payload returned.

    Raises:
        OutputMissing: the value does not have the Python form of its format.
    """
    try:
        _write(value, path, form)
    except (TypeError, ValueError, OSError) as error:
        raise OutputMissing(
            f"output {name!r} cannot be written as {form}: {error}", fix="Return the form that core/payload.py names."
        ) from error


def _write(value: Any, path: Path, form: Format) -> None:
    match form:
        case Format.NPZ:
            if not isinstance(value, Mapping):
                raise TypeError(f"expected a mapping of names to arrays, got {type(value).__name__}")
            with path.open("wb") as target:
                # Not compressed: it is read back at once, and noise hardly compresses.
                np.savez(target, allow_pickle=False, **value)
        case Format.JSON:
            path.write_text(json.dumps(value, allow_nan=False))
        case Format.TEXT:
            if not isinstance(value, str):
                raise TypeError(f"expected a text, got {type(value).__name__}")
            path.write_text(value)
        case _:
            if not isinstance(value, str | Path):
                raise TypeError(f"expected the path of a file, got {type(value).__name__}")
            if Path(value).resolve() != path.resolve():
                shutil.copyfile(value, path)
