"""The benchmarks as commands, outside the tests whose servers they use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--help"], 0, "memory,shedding,control,stores"),
        (["stores", "--help"], 0, "fewer repetitions"),
        # What is behind several names is for none of them.
        (["stores", "prompt", "--help"], 0, "a table for each name"),
        (["nonsense"], 2, "invalid choice: 'nonsense'"),
    ],
)
def test_they_start_and_say_what_there_is(words: list[str], code: int, says: str) -> None:
    """S8."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    assert says in ended.stdout + ended.stderr


def test_nothing_happens_when_they_are_imported() -> None:
    """Where tests borrow from them too, as where they start by themselves."""
    code = "import sys; before = list(sys.path); import benchmarks, benchmarks.__main__; assert sys.path == before"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=120, check=True)
