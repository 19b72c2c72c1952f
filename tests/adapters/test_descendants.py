"""What a process starts does not outlive it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

OBEY = "from p3s_prefect.adapters.pilot.descendants import die_with_parent; die_with_parent({}); print('lives')"


@pytest.mark.parametrize(
    ("parent", "lives"),
    [("", True), (str(os.getpid()), True), ("1", False)],
    # By which processes that run tests side by side know them.
    ids=["nobody", "its parent", "another"],
)
def test_whoever_was_started_by_a_process_that_has_ended_since_ends(parent: str, lives: bool) -> None:
    """V20's kind: also where it has ended before the other had begun; such as a production's own Prefect server."""
    ended = subprocess.run([sys.executable, "-c", OBEY.format(parent)], capture_output=True, text=True, check=False)
    assert (ended.stdout.strip() == "lives") is lives
    assert (ended.returncode == 0) is lives
