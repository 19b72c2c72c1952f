"""The demonstration as a newcomer sees it in Prefect: the run of the camera's data as a graph."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browser import CHROMIUM, Page, chromium
from clusters import die_with_parent
from PIL import Image
from prefect_servers import PrefectProcess

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.supervision import Services

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(400),
]

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "prefect-run.png"
UNITS = 5
# Far less than a run of the demo is open, far more than a busy machine lags behind.
LIVE_S = 20.0
# How Prefect draws what is completed.
GREEN = (33, 157, 75)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[PrefectProcess]:
    """`p3s demo`; what it prints says where Prefect is."""
    home = Home(tmp_path / "demo")
    words = [sys.executable, "-m", "p3s_prefect.cli", "demo", str(home.path)]
    shown = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        preexec_fn=die_with_parent,
        start_new_session=True,
    )
    try:
        assert shown.stdout is not None
        told = next(filter(None, (re.search(r"Prefect is at\s+http://127.0.0.1:(\d+)", line) for line in shown.stdout)))
        yield PrefectProcess(home.path, port=int(told[1]))
    finally:
        shown.send_signal(signal.SIGINT)
        shown.communicate(timeout=90)
        Services(home).stop()


def test_the_run_graph_shows_the_dag(demo: PrefectProcess, tmp_path: Path) -> None:
    """S1, S2: `p3s demo` prints Prefect's address; there, a run is a graph of its subruns and their totals."""
    with chromium(tmp_path / "browser") as page:
        run = page.until(lambda: _seen_live(demo))
        edges = demo.edges(run)
        assert edges == {(f"quick subrun={subrun}", "totals") for subrun in range(UNITS)}
        page.open(f"{demo.url}/runs/flow-run/{run['id']}")
        page.until(lambda: f"{UNITS + 1} Task runs" in page.text())
        assert str(run["name"]) in page.text()
        picture = page.until(lambda: _drawn(page))
    if os.environ.get("P3S_PICTURES"):
        PICTURE.write_bytes(picture)


def _seen_live(prefect: PrefectProcess) -> dict[str, Any] | None:
    """A run that has ended, and was recorded while it ran: at first, the server is still starting."""
    try:
        runs = prefect.flow_runs("lst1").values()
    except httpx.HTTPError:
        return None
    completed = [run for run in runs if run["state_type"] == "COMPLETED"]
    return next((run for run in completed if _lateness_s(prefect, run) < LIVE_S), None)


def _lateness_s(prefect: PrefectProcess, run: dict[str, Any]) -> float:
    """How long after its first task run began a run was recorded."""
    began = min(datetime.fromisoformat(task["start_time"]) for task in prefect.task_runs(run).values())
    return (datetime.fromisoformat(run["start_time"]) - began).total_seconds()


def _drawn(page: Page) -> bytes | None:
    """The picture, once as many green boxes are in it as there are task runs."""
    picture = page.picture()
    with Image.open(BytesIO(picture)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return picture if _boxes(np.abs(pixels - GREEN).max(axis=2) < 12) >= UNITS + 1 else None


def _boxes(mask: np.ndarray) -> int:
    """How many separate things of at least 10 x 10 pixels a picture [row, column] has."""
    left, boxes = mask.copy(), 0
    while left.any():
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        stack, size = [(int(row), int(column))], 0
        left[row, column] = False
        while stack:
            y, x = stack.pop()
            size += 1
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= near[0] < left.shape[0] and 0 <= near[1] < left.shape[1] and left[near]:
                    left[near] = False
                    stack.append(near)
        boxes += size >= 100
    return boxes
