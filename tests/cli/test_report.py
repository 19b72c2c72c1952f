"""`p3s report coverage | latency`, as tables, as JSON and as DataFrames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import report_rows
import typer
from ledger_rows import T0, Rows, StoredBytes
from sqlalchemy import select
from typer.testing import CliRunner

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import reports, schema
from p3s_prefect.api import open_experiment
from p3s_prefect.cli import report
from p3s_prefect.core.coverage import CoverageReport
from p3s_prefect.core.errors import BadName, NoSuchRecord
from p3s_prefect.core.health import duration
from p3s_prefect.core.reports import Scope, shown_share

_EXPERIMENT = (Path(__file__).parent.parent / "core" / "good_experiment.yaml").read_text()

commands = typer.Typer()
commands.command("report")(report.report)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose ledger has everything; only read."""
    path = tmp_path_factory.mktemp("reported")
    declared = _EXPERIMENT.replace("{run: int, part: int}", "{run: int, part: text, subrun: int}")
    (path / "experiment.yaml").write_text(declared.replace("{part:03d}", "{part}.{subrun:03d}"))
    home = Home(path)
    ledger = home.ledger(home.read())
    ledger.migrate()
    with ledger.transaction() as connection:
        report_rows.write(Rows(connection, StoredBytes()), units=60)
    ledger.close()
    return home


def _run(home: Home, *arguments: str) -> str:
    result = CliRunner().invoke(commands, [*arguments, "--home", str(home.path)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def _columns(line: str, header: str) -> dict[str, str]:
    """Cells by the names of their columns, which stand right-aligned above them."""
    ends = {name: header.index(f"{name} ") + len(name) for name in ("seen", "done", "expired", "failed")}
    return {name: line[:end].split()[-1] for name, end in ends.items()}


def test_coverage_as_a_table(home: Home) -> None:
    """P7: the numbers of the ledger, the passes apart, and that the account balances."""
    text = _run(home, "coverage", "run=1", "--pipeline", "dqm")
    lines = text.splitlines()
    assert lines[0] == "Coverage of run=1, dqm"
    header = next(line for line in lines if "prescaled" in line)
    quick = _columns(next(line for line in lines if line.startswith("  quick")), header)
    with open_experiment(home.path) as books:
        found = books.read(reports.coverage, Scope(group="run=1", pipeline="dqm"))
    row = next(row for row in found.rows if row.stage == "quick")
    assert quick == {name: str(getattr(row, name) or "-") for name in quick}
    assert header.endswith("on standby")
    assert next(line for line in lines if line.startswith("  quick")).split()[-1] == str(row.on_standby)
    assert row.on_standby > 0
    assert any(line.startswith("dqm/1 ") for line in lines)
    (units,) = found.units
    assert f"dqm: 60 units in all, {units.done} of them done. {units.in_several_passes} are in more than one" in text
    assert "The account balances" in text


def test_what_is_still_open_is_told(home: Home) -> None:
    """P7: its numbers will change."""
    text = _run(home, "coverage", "--day", "2027-01-15")
    with open_experiment(home.path) as books:
        found = books.coverage(day="2027-01-15")
    still_open = found[found["stage"].isna()]["open"].sum()
    assert still_open > 0
    assert f"{still_open} still open: the numbers will change." in text


def test_a_ledger_that_does_not_balance_is_pointed_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: the identity is checked, not believed."""
    real = reports.coverage

    def damaged(*arguments: Any) -> CoverageReport:
        found = real(*arguments)
        row = next(row for row in found.rows if row.stage == "quick")
        return CoverageReport(
            scope=found.scope, units=found.units, rows=(type(row)(**{**vars(row), "seen": row.seen + 1}),)
        )

    monkeypatch.setattr(reports, "coverage", damaged)
    text = _run(home, "coverage", "run=1")
    assert "quick: 61 seen, but 60 in all states together. The ledger is damaged" in text
    assert "balances" not in text


def test_latency_as_a_table(home: Home) -> None:
    """V24."""
    text = _run(home, "latency", "run=1", "--pipeline", "dqm")
    lines = text.splitlines()
    assert lines[0] == "Latency of run=1, dqm"
    header = next(line for line in lines if line.startswith("taken to published"))
    quick = next(line for line in lines if line.startswith("  quick"))
    with open_experiment(home.path) as books:
        row = next(row for row in books.latency_report("run=1", pipeline="dqm").rows if row.account.stage == "quick")
    assert row.total is not None
    shown = {
        "done": str(row.account.done),
        "p95": duration(row.total.p95_s),
        "longest": duration(row.total.longest_s),
        "deadline": "12 s",
        "in time": shown_share(row.in_time_of_done),
        "of all due": shown_share(row.in_time_of_due),
        "expired": str(row.account.expired or "-"),
    }
    for name, value in shown.items():
        assert quick[: header.index(f"  {name} ") + 2 + len(name)].endswith(f" {value}")
    assert len(header.rstrip()) == len(quick.rstrip())
    for phase in ("waited for a slot", "read", "inputs and outputs", "published"):
        assert f" {phase} " in text


def test_parts_are_named_by_their_dimension(home: Home) -> None:
    """P7, V24: as in subrun=3."""
    assert "  quick part=3a " in _run(home, "coverage", "run=2", "--by", "part")
    assert "  quick part=3a " in _run(home, "latency", "run=2", "--by", "part")


def test_json_has_the_counts_and_what_follows_from_them(home: Home) -> None:
    """P7, V24."""
    found = json.loads(_run(home, "coverage", "--day", "2027-01-15", "--json"))
    assert found["scope"]["day"] == "20270115"
    for row in found["rows"]:
        states = ("open", "done", "prescaled", "shed", "expired", "failed", "blocked", "superseded", "cancelled")
        assert row["balances"]
        assert row["seen"] == sum(row[state] for state in states)
        assert row["done_share"] == row["done"] / row["seen"]
    rows = json.loads(_run(home, "latency", "run=1", "--json"))["rows"]
    quick = next(row for row in rows if row["stage"] == "quick")
    assert quick["deadlines_s"] == [report_rows.DEADLINES["quick"]]
    assert 0 < quick["in_time_of_due"] < quick["in_time_of_done"] <= 1
    assert quick["total"]["p50_s"] <= quick["total"]["p95_s"] <= quick["total"]["p99_s"] <= quick["total"]["longest_s"]
    assert {phase["kind"] for phase in quick["phases"]} == {"arrival", "waiting", "running", "publishing"}


def test_the_last_day_is_the_default(home: Home) -> None:
    """P7: what arrived more than 24 h ago is not in it."""
    with open_experiment(home.path) as books:
        newest = books.read(lambda connection: connection.scalar(select(schema.sub_job.c.arrived_at).limit(1)))
        chosen = books.scope()
    assert newest >= T0
    assert chosen.since is not None
    assert chosen.until is chosen.group is chosen.day is None


@pytest.mark.parametrize("about", ["coverage", "latency"])
def test_a_plot_is_drawn(home: Home, tmp_path: Path, about: str) -> None:
    """P7, V24: and its place is told."""
    text = _run(home, about, "run=1", "--plot", str(tmp_path / "drawn.png"))
    assert "Drawn: " in text
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("run=9",), NoSuchRecord, "no group run=9\n  The newest are: run=2, run=1"),
        (("run=1", "subrun=3"), BadName, "does not name a group"),
        (("--since", "soon"), BadName, "'soon' is no time"),
        (("--day", "2026-13-01"), BadName, "is no day"),
        (("--day", "2020-01-01"), NoSuchRecord, "The latest are: 20270115"),
        (("--by", "apa"), BadName, "Give one of: run, part, subrun"),
        (("run=1", "--pipeline", "nope"), BadName, "no pipeline 'nope'"),
        (("--until", "2001-01-01"), NoSuchRecord, "What there is arrived from 2027-01-15"),
    ],
)
def test_what_selects_nothing_is_refused(
    home: Home, arguments: tuple[str, ...], error: type[Exception], says: str
) -> None:
    """S8."""
    for about in ("coverage", "latency"):
        with pytest.raises(error, match=says):
            _run(home, about, *arguments)


def test_the_same_as_data_frames(home: Home) -> None:
    """V24, S6."""
    with open_experiment(home.path) as books:
        coverage, latency = books.coverage("run=1"), books.latency("run=1")
        phases = books.latency_phases("run=1", pipeline="dqm", by="part")
        report = books.latency_report("run=1")
    key = ["pipeline", "pass_number", "per", "part", "stage"]
    assert list(coverage.columns[:5]) == list(latency.columns[:5]) == list(phases.columns[:5]) == key
    pd.testing.assert_frame_equal(coverage[key], latency[key])
    assert coverage["seen"].tolist() == latency["seen"].tolist() == [row.account.seen for row in report.rows]
    assert latency["p95_s"].tolist() == pytest.approx(
        [row.total and row.total.p95_s for row in report.rows], nan_ok=True
    )
    assert set(phases["part"].dropna()) == {"0", "1", "2", "3", "4", "5"}
    assert phases.query("label == 'published'")["count"].sum() == latency.query("pipeline == 'dqm'")["done"].sum()
