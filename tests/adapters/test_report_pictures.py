"""Pictures of reports: what is drawn is what was counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import report_rows
from ledger_rows import T0, Rows
from matplotlib.colors import to_rgb
from PIL import Image

from p3s_prefect.adapters.coverage_picture import draw_coverage
from p3s_prefect.adapters.latency_picture import draw_latency
from p3s_prefect.adapters.ledger import reports, schema
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.reports import Scope

Fill = Callable[[Callable[[Rows], None]], None]
_DONE, _SHED, _FAILED = "#009E73", "#E69F00", "#D55E00"


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """One database is enough to draw from."""
    return f"sqlite:///{tmp_path}/ledger.db"


def _pixels(path: Path, colour: str) -> int:
    """How many pixels have just this colour."""
    picture = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    return int((abs(picture - np.round(255 * np.array(to_rgb(colour)))) <= 1).all(axis=-1).sum())


def _one_stage(rows: Rows, states: list[str]) -> None:
    rows.connection.execute(
        schema.configuration.insert().values(id="c" * 64, content=report_rows.CONTENT, stored_at=T0)
    )
    pass_id = rows.production_pass(rows.group("run=1"), "dqm")
    for subrun, state in enumerate(states):
        unit = rows.unit(pass_id, f"run=1 part={subrun % 2} subrun={subrun}", state=state)
        stage = rows.stage(unit, "quick", state=state)
        if state == "done":
            rows.attempt(stage, steps={"work": 4.0})


@pytest.mark.parametrize("by", [None, "part", "subrun"])
def test_the_bars_are_as_long_as_the_shares(seen_ledger: Ledger, fill: Fill, tmp_path: Path, by: str | None) -> None:
    """P7: of the coloured area, each state has its share; a single stage has one bar, not one for its units too."""
    fill(lambda rows: _one_stage(rows, ["done"] * 6 + ["shed"] * 2 + ["failed"] * 2))
    with seen_ledger.reading() as connection:
        draw_coverage(reports.coverage(connection, Scope(by=by)), tmp_path / "coverage.png")
    areas = np.array([_pixels(tmp_path / "coverage.png", colour) for colour in (_DONE, _SHED, _FAILED)])
    # The legend's patches, and edges between bars, are a small part of it.
    assert areas / areas.sum() == pytest.approx([0.6, 0.2, 0.2], abs=0.015)


def test_the_phases_are_as_long_as_their_medians(seen_ledger: Ledger, fill: Fill, tmp_path: Path) -> None:
    """V24: 4 s of work beside 0.75 s in the queue and 0.25 s on the way."""
    fill(lambda rows: _one_stage(rows, ["done"] * 5))
    with seen_ledger.reading() as connection:
        draw_latency(reports.latency(connection, Scope()), tmp_path / "latency.png")
    waiting, arrival = (_pixels(tmp_path / "latency.png", colour) for colour in ("#E69F00", "#b9c2cc"))
    # Beside each bar, the legend has a patch of each colour.
    assert waiting / arrival == pytest.approx(3.0, rel=0.15)


@pytest.mark.parametrize("by", [None, "part", "subrun"])
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_everything_that_a_report_may_hold_is_drawn(
    seen_ledger: Ledger, fill: Fill, tmp_path: Path, by: str | None, ending: str
) -> None:
    """Passes, groups, losses, parts by the dozen: nothing warns, nothing fails."""
    fill(lambda rows: report_rows.write(rows, units=12))
    with seen_ledger.reading() as connection:
        scope = Scope(group="run=2", by=by)
        draw_coverage(reports.coverage(connection, scope), tmp_path / f"coverage.{ending}")
        draw_latency(reports.latency(connection, scope), tmp_path / f"latency.{ending}")
    assert all((tmp_path / f"{name}.{ending}").stat().st_size > 5000 for name in ("coverage", "latency"))


@pytest.mark.parametrize("states", [["failed"], ["prescaled"], ["arrived"]])
def test_a_report_without_results_is_drawn(seen_ledger: Ledger, fill: Fill, tmp_path: Path, states: list[str]) -> None:
    def write(rows: Rows) -> None:
        unit = rows.unit(rows.production_pass(rows.group("run=1"), "dqm"), "run=1 subrun=1", state=states[0])
        rows.stage(unit, "quick", state="queued" if states == ["arrived"] else states[0])

    fill(write)
    with seen_ledger.reading() as connection:
        draw_coverage(reports.coverage(connection, Scope()), tmp_path / "coverage.png")
        draw_latency(reports.latency(connection, Scope()), tmp_path / "latency.png")
    assert (tmp_path / "coverage.png").exists()
    assert (tmp_path / "latency.png").exists()


def test_a_place_that_cannot_be_written_is_named(seen_ledger: Ledger, fill: Fill, tmp_path: Path) -> None:
    """S8."""
    fill(lambda rows: _one_stage(rows, ["done"]))
    (tmp_path / "taken.png").mkdir()
    with seen_ledger.reading() as connection:
        coverage, latency = reports.coverage(connection, Scope()), reports.latency(connection, Scope())
    for path, says in (
        (tmp_path / "picture.gif", r"not one of \.png, \.svg, \.pdf"),
        (tmp_path / "nowhere" / "picture.png", "does not exist"),
        (tmp_path / "taken.png", r"taken\.png cannot be drawn"),
    ):
        with pytest.raises(P3sError, match=says):
            draw_coverage(coverage, path)
        with pytest.raises(P3sError, match=says):
            draw_latency(latency, path)
