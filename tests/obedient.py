"""A Python payload that does what the data say: a file of words such as ``sleep 0.5`` or ``fail``, one a line."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from p3s_prefect.core.data_id import DataId


def obey(raw: str, unit: DataId, notes: str = "", stage: str = "") -> dict[str, Any]:
    """Follows the words; those after ``stage:`` count in that stage only. `notes` is a file that counts the runs."""
    note(notes, f"begin {stage} {unit} {os.getpid()}")
    for line in raw.splitlines():
        where, colon, words = line.rpartition(": ")
        if not colon or where == stage:
            _follow(words)
    note(notes, f"end {stage} {unit} {os.getpid()}")
    return {"made": raw.upper(), "summary": {"length": {"value": len(raw), "unit": "byte"}}}


def total(
    made: Mapping[DataId, str], coverage: Mapping[str, int], weights: Mapping[str, Mapping[DataId, float]]
) -> dict[str, Any]:
    """What a group's units made, joined, after the coverage."""
    states = " ".join(f"{state}={number}" for state, number in sorted(coverage.items()))
    lines = [states, *(f"{unit}: {text}" for unit, text in made.items())]
    weight = sum(weights.get("made", {}).values())
    return {"total": "\n".join(lines), "summary": {"units": {"value": len(made)}, "weight": {"value": weight}}}


def convert(raw: dict[str, list[int]], scale: int) -> dict[str, Any]:
    """JSON values, scaled, as an array and as a text."""
    scaled = np.array(raw["values"]) * scale
    return {"table": {"values": scaled}, "line": str(scaled.tolist())}


def note(notes: str, text: str) -> None:
    """Adds a line to a file: one write, so that lines of several processes do not mix."""
    if notes:
        with Path(notes).open("ab", buffering=0) as file:
            file.write(f"{text}\n".encode())


def _follow(words: str) -> None:
    match words.split():
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["hang"]:
            # In native code, where no exception of Python arrives.
            ctypes.CDLL(None).sleep(3600)
        case ["kill", "pilot"]:
            keeper = psutil.Process(os.getppid())
            os.kill(keeper.ppid(), signal.SIGKILL)
            time.sleep(60)
        case ["freeze"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        case ["fail"]:
            raise ValueError("the data asked for it")
        case ["unless", path]:
            if not Path(path).exists():
                raise ValueError("it is not mended")
        case ["until", path]:
            while not Path(path).exists():
                time.sleep(0.01)
