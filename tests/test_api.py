"""The books as a notebook reads them, from a home on disk with a directory store."""

from __future__ import annotations

import io
import json
import runpy
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ledger_rows import PNG, T0, Rows, StoredBytes
from thinned_rows import MEAN, lone_run, thinned_run

from p3s_prefect import api
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.api import Bookkeeping, open_experiment
from p3s_prefect.core.errors import BadName, ChecksumMismatch, ExperimentFileErrors, LedgerError, NoSuchRecord
from p3s_prefect.instruments import lst1
from p3s_prefect.instruments.lst1.pixels import pixel_statistics
from p3s_prefect.instruments.lst1.sample import sample_subrun

_EXPERIMENT = Path(__file__).parent / "core" / "good_experiment.yaml"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home whose station has done one unit."""
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT.read_text())
    home = Home(tmp_path)
    experiment = home.read()
    ledger, store, stored = home.ledger(experiment), home.store(experiment), StoredBytes()
    ledger.migrate()
    with ledger.transaction() as connection:
        rows = Rows(connection, stored)
        unit = rows.unit(rows.production_pass(rows.group("run=1"), "quality"), "run=1 part=2")
        attempt = rows.attempt(rows.stage(unit, "clean"))
        rows.product(attempt, "Pedestal")
        rows.summary(attempt, "noise", 4.0, "ADC")
        for name, form, content in (("clean", "npz", _npz()), ("total", "json", json.dumps({"n": 3}).encode())):
            found = store.put_bytes(f"runs/{name}", content)
            values = {"dataset_type": name, "format": form, "attempt_id": attempt, **found.model_dump()}
            rows.add(schema.dataset, data_id="run=1 part=2", run_collection="TestCam/quality/1/pass0", **values)
    for key, content in stored.objects.items():
        store.put_bytes(key, content)
    ledger.close()
    return home


def _npz() -> bytes:
    target = io.BytesIO()
    np.savez(target, mean=np.arange(4.0))
    return target.getvalue()


@pytest.fixture
def books(home: Home) -> Iterator[Bookkeeping]:
    with open_experiment(home.path) as found:
        yield found


def test_tables_are_data_frames_with_times_in_utc(books: Bookkeeping) -> None:
    (unit,) = books.units().to_dict("records")
    assert unit["data_id"] == "run=1 part=2"
    assert unit["taken_at"] == pd.Timestamp(T0, unit="s", tz="UTC")
    assert unit["arrival_s"] + unit["waiting_s"] + unit["running_s"] + unit["publishing_s"] == pytest.approx(3.0)
    assert books.groups()["done"].tolist() == [1]
    assert books.summary()[["name", "value"]].to_numpy().tolist() == [["noise", 4.0]]
    assert books.units(state="failed").empty


def test_the_account_is_a_data_frame(books: Bookkeeping) -> None:
    """P7."""
    frame = books.account()
    assert frame["stage"].isna().tolist() == [True, False]
    assert (frame["seen"] == frame["open"] + frame["done"]).all()


def test_datasets_come_in_the_form_of_their_format(books: Bookkeeping) -> None:
    assert books.dataset("clean", "run=1 part=2")["mean"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert books.dataset("total", "run=1/part=2") == {"n": 3}
    assert books.product("Pedestal", "run=1 part=2") == PNG


def test_what_is_not_there_is_named_with_what_is(books: Bookkeeping) -> None:
    with pytest.raises(NoSuchRecord, match=r"no dataset noise of run=1 part=2"):
        books.dataset("noise", "run=1 part=2")
    with pytest.raises(NoSuchRecord, match="It has: 'Pedestal'"):
        books.product("Noise", "run=1 part=2")
    with pytest.raises(NoSuchRecord, match="p3s list units"):
        books.unit("run=9 part=9")


def test_a_damaged_dataset_is_not_handed_out(home: Home, books: Bookkeeping) -> None:
    """V13."""
    path = home.path / "store" / "runs" / "clean"
    path.chmod(0o600)
    path.write_bytes(b"other")
    with pytest.raises(ChecksumMismatch):
        books.dataset("clean", "run=1 part=2")


def test_without_a_station_the_status_says_so_and_still_counts(books: Bookkeeping) -> None:
    found = books.status()
    assert (found["status"], found["station"]) == ("down", None)
    assert found["health"][0]["action"].startswith("Start it with `p3s up`")
    assert found["sub_jobs"][0]["done"] == 1
    assert [row["name"] for row in found["health"]] == ["station", "arrivals", "results"]


def test_the_examples_of_the_docstring_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P17: with the experiment, and the statistics, that it speaks of."""
    home = Home(tmp_path / "demo")
    home.path.mkdir()
    home.experiment_file.write_bytes((Path(lst1.__file__).parent / "experiment.yaml").read_bytes())
    experiment = home.read()
    content = io.BytesIO()
    np.savez(content, **pixel_statistics(sample_subrun(1, 3).waveform).arrays())
    found = home.store(experiment).put_bytes("runs/statistics", content.getvalue())
    ledger = home.ledger(experiment)
    ledger.migrate()
    with ledger.transaction() as connection:
        rows = Rows(connection, StoredBytes())
        unit = rows.unit(rows.production_pass(rows.group("run=2008"), "waveform-dqm"), "run=2008 subrun=3")
        values = {
            "dataset_type": "pixel_statistics",
            "format": "npz",
            "attempt_id": rows.attempt(rows.stage(unit, "quick")),
        }
        collection = "TestCam/waveform-dqm/1/pass0"
        rows.add(schema.dataset, data_id="run=2008 subrun=3", run_collection=collection, **values, **found.model_dump())
    ledger.close()
    monkeypatch.chdir(tmp_path)
    example = textwrap.dedent((api.__doc__ or "").partition("::\n")[2].partition("\nIt reads")[0])
    script = tmp_path / "example.py"
    *lines, last = example.strip().splitlines()
    script.write_text("\n".join([*lines, f"value = {last}"]))
    names = runpy.run_path(str(script))
    assert names["value"].shape == (2, 1855)
    names["books"].close()


def test_a_home_that_is_none_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ExperimentFileErrors, match="p3s init"):
        open_experiment(tmp_path)
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT.read_text())
    with pytest.raises(LedgerError, match="p3s up"):
        open_experiment(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]


def _thin_run(home: Home) -> None:
    ledger = home.ledger(home.read())
    with ledger.transaction() as connection:
        thinned_run(Rows(connection, StoredBytes()), run=5)
    ledger.close()


def test_values_of_a_group_are_a_data_frame_with_errors(home: Home) -> None:
    """P6: NaN where the error cannot be told."""
    _thin_run(home)
    with open_experiment(home.path) as books:
        frame = books.values("run=5").set_index("name")
        weights = books.summary().query("data_id == 'run=5 part=8'")["weight"]
    assert frame.loc["noise", "value"] == pytest.approx(MEAN)
    assert frame.loc["noise", ["sampled", "seen", "left_out", "missing"]].tolist() == [6, 13, 5, 1]
    assert frame.loc["noise", "error"] > 1
    assert set(weights) == {4.0}


def test_trends_are_a_data_frame_with_errors_and_what_is_missing(home: Home) -> None:
    """P6: over the units whose points `summary` has; without what is no number."""
    _thin_run(home)
    with open_experiment(home.path) as books:
        points = books.summary(limit=6).query("name == 'noise'")
        found = books.trends(limit=6)
        columns = set(books.values("run=5").columns)
    frame = found.set_index("name")
    assert set(found.columns) == columns
    assert sorted(frame.index) == ["noise", "noisy"]
    noise = frame.loc["noise"]
    assert noise["value"] == pytest.approx(np.average(points["value"], weights=points["weight"])) == pytest.approx(MEAN)
    assert noise["error"] > 1
    assert noise[["left_out", "missing", "missing_share"]].tolist() == [5, 1, 0.25]
    assert noise[["lowest", "highest"]].tolist() == [pytest.approx(7.875), pytest.approx(9.875)]


def test_of_one_value_the_range_is_nan_with_the_reason(home: Home) -> None:
    """P6."""
    ledger = home.ledger(home.read())
    with ledger.transaction() as connection:
        lone_run(Rows(connection, StoredBytes()), run=6)
    ledger.close()
    with open_experiment(home.path) as books:
        for frame in (books.values("run=6"), books.trends(limit=1)):
            (noise,) = frame.to_dict("records")
            assert (noise["value"], noise["missing_share"]) == (4.0, 0.5)
            assert np.isnan([noise["lowest"], noise["highest"]]).all()
            assert noise["range_reason"] == "one value does not tell how much they differ"


def test_a_notebook_steers_as_the_commands_do(home: Home) -> None:
    """S9, S6: with who and why, and it is shown."""
    with open_experiment(home.path) as books:
        made = books.steer.pause("quality run=1", why=" calibration ", for_s=60)
        assert made.why == "calibration"
        assert books.steer.in_force() == (made,)
        assert books.status()["overrides"] == [made.shown()]
        assert books.steer.release("run=1 quality", why="done") == (made,)
        with pytest.raises(BadName, match="no reason is given"):
            books.steer.hold("quality", why=" ")
        assert books.steer.in_force() == ()


def test_why_says_where_the_station_is_of_another_version(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """B12: it tells of its queues otherwise, and what is in the ledger is told all the same."""
    ledger = home.ledger(home.read())
    with ledger.transaction() as connection:
        rows = Rows(connection, StoredBytes())
        unit = rows.unit(rows.production_pass(rows.group("run=2"), "quality"), "run=2 part=1", state="arrived")
        rows.stage(unit, "clean", state="queued")
    ledger.close()
    monkeypatch.setattr("p3s_prefect.api.station_status", lambda _home: {"station": {"slots_actual": 2}})
    with open_experiment(home.path) as books:
        reasons = books.why("run=2 part=1").sub_jobs[0].stages[0].reasons
    told = {reason.why: reason.release for reason in reasons}
    assert "p3s up" in told["the station is of another version"]
    assert any("queue" in why for why in told)
