"""The demonstration as a newcomer sees it: on its page, in Prefect, where a run is a graph, and after Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import browser
import httpx
import numpy as np
import psutil
import pytest
from clusters import below, die_with_parent
from PIL import Image
from prefect_servers import PrefectProcess
from scipy import ndimage

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.supervision import Services
from p3s_prefect.cli import run
from p3s_prefect.cli.init import write_home
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.replay import patterns_of

pytestmark = [
    pytest.mark.sockets,
    # With neighbours, the demonstration leaves some subruns out, and its runs take so long that boxes are thin lines.
    pytest.mark.alone,
    pytest.mark.timeout(400),
]

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "prefect-run.png"
UNITS = 5
# Far less than a run of the demo is open, far more than a busy machine lags behind.
LIVE_S = 20.0
# Pictures of products on the page that are there and drawn.
_PICTURES = "[...document.images].filter(one => one.src.includes('/api/products/') && one.naturalWidth > 100).length"
# How Prefect draws what is completed.
GREEN = (33, 157, 75)


@dataclass(frozen=True)
class Demo:
    """`p3s demo` as it runs; what it prints says where its page and Prefect are."""

    home: Home
    page: str
    prefect: PrefectProcess
    pid: int


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """In the end Ctrl-C, after which nothing of it runs."""
    # Before the demonstration is started, as without it there is nothing to be seen.
    browser.program()
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
        said = iter(shown.stdout)
        page = next(filter(None, (re.search(r"The page is at\s+(http://127.0.0.1:\d+)", line) for line in said)))
        told = next(filter(None, (re.search(r"Prefect is at\s+http://127.0.0.1:(\d+)", line) for line in said)))
        yield Demo(home, page[1], PrefectProcess(home.path, port=int(told[1])), shown.pid)
        started = below(shown.pid)
        shown.send_signal(signal.SIGINT)
        shown.communicate(timeout=90)
        psutil.wait_procs(started, timeout=30)
        assert len(started) > 5, "supervisor, scheduler, workers, station, Prefect and agent"
        assert [one.cmdline() for one in started if one.is_running()] == []
        assert Services(home).processes() == []
    finally:
        shown.kill()
        Services(home).stop()


def test_what_a_newcomer_sees(demo: Demo, tmp_path: Path) -> None:
    """S1, S2: pictures of events on the page; in Prefect, a run as a graph of its subruns and their totals."""
    with browser.chromium(tmp_path / "browser") as page:
        page.open(demo.page)
        page.until(lambda: page.find(_PICTURES) >= 3)
        recorded = page.until(lambda: _seen_live(demo.prefect))
        edges = demo.prefect.edges(recorded)
        assert edges == {(f"quick subrun={subrun}", "totals") for subrun in range(UNITS)}
        page.open(f"{demo.prefect.url}/runs/flow-run/{recorded['id']}")
        page.until(lambda: f"{UNITS + 1} Task runs" in page.text())
        assert str(recorded["name"]) in page.text()
        picture = page.until(lambda: _drawn(page), every_s=1.0)
    if os.environ.get("P3S_PICTURES"):
        PICTURE.write_bytes(picture)


def test_the_next_demonstration_goes_on_with_the_next_run(tmp_path: Path) -> None:
    """S1: under their old names, replayed files would be conflicts."""
    write_home(tmp_path, "lst1")
    home = Home(tmp_path)
    files, _ = patterns_of(home.read())
    first = run._next_run(home)
    for number in (first, first + 3):
        (tmp_path / "incoming" / files.format(DataId.of(run=number, subrun=0))).touch()
    assert run._next_run(home) == first + 4


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


def _drawn(page: browser.Page) -> bytes | None:
    """The picture, once as many green boxes are in it as there are task runs."""
    picture = page.picture()
    if picture is None:
        return None
    with Image.open(BytesIO(picture)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return picture if _boxes(np.abs(pixels - GREEN).max(axis=2) < 12) >= UNITS + 1 else None


def _boxes(mask: np.ndarray) -> int:
    """How many separate things of at least 100 pixels a picture [row, column] has."""
    labels, _ = ndimage.label(mask)
    return int((np.bincount(labels.ravel())[1:] >= 100).sum())
