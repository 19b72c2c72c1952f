"""`p3s simulate`: synthetic and recorded loads, one policy or two, tables, JSON, a picture, and mistakes (P21)."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from ledger_rows import T0, Rows, StoredBytes
from matplotlib.image import imread
from typer.testing import CliRunner

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import journal, schema
from p3s_prefect.adapters.steering import Steering
from p3s_prefect.api import simulate as simulate_in_a_notebook
from p3s_prefect.cli.simulate import simulate
from p3s_prefect.core.errors import P3sError

_EXPERIMENT = (Path(__file__).parent.parent / "core" / "good_experiment.yaml").read_text()
_SERVICE = [f"--service={text}" for text in ("clean=200ms", "noise=exponential:100ms", "tracks=1s", "plots=100ms")]
_LOAD = ["--rate=2/s", "--duration=60s", *_SERVICE, "--service=quality/totals=1s"]

app = typer.Typer()
app.command()(simulate)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An experiment that has never run."""
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT)
    return tmp_path


@pytest.fixture
def recorded(home: Path) -> Path:
    """The same, whose ledger has run=1 with ten units: the stage `clean` took 1 s each, and part 3 failed."""
    ledger = Home(home).ledger(Home(home).read())
    ledger.migrate()
    with ledger.transaction() as connection:
        rows = Rows(connection, StoredBytes())
        group = rows.group("run=1", is_open=False)
        pass_id = rows.production_pass(group, "quality")
        for part in range(10):
            at, state = T0 + 5 * part, "failed" if part == 3 else "done"
            arrived = {"mtime_ns": int(at * 1e9), "stream": "images", "data_id": f"run=1 part={part}"}
            rows.arrival(f"r{part}", at=at + 0.25, **arrived)
            unit = rows.unit(pass_id, f"run=1 part={part}", at=at, state=state)
            stage = rows.stage(unit, "clean", at=at, state=state)
            for number in range(2 if state == "failed" else 1):
                rows.attempt(stage, at=at + 2 * number, number=number, state=state)
        journal.write(connection, T0 + 60, "group.closed", "run=1", reason="marker")
    ledger.close()
    return home


def _run(home: Path, *arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(
        app, ["--home", str(home), *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


def _json(home: Path, *arguments: str) -> dict[str, Any]:
    found = json.loads(_run(home, *arguments, "--json"))
    assert isinstance(found, dict)
    return found


def _stages(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in result["stages"]}


def test_two_policies_side_by_side(home: Path) -> None:
    """P21: rows for A, B and the difference, for each class and stage; what changed; how the slots were used."""
    text = _run(home, *_LOAD, "--set", "pipelines.quality.stages.clean.prescale=0.1", "--slots=3")
    lines = [line.split() for line in text.splitlines()]
    assert "B: pipelines.quality.stages.clean.prescale = 0.1;" in text
    assert "% of 3 slots used" in text
    found = _json(home, *_LOAD, "--set", "pipelines.quality.stages.clean.prescale=0.1", "--slots=3")
    a, b = _stages(found["a"])["clean"], _stages(found["b"])["clean"]
    assert a["seen"] == b["seen"] == found["units"]
    assert b["prescaled"] > a["prescaled"] > 0.7 * a["seen"]
    first = next(place for place, line in enumerate(lines) if line[:2] == ["quality/clean", "A"])
    of_a, of_b, difference = lines[first][1:], lines[first + 1], lines[first + 2][2:]
    # Columns of what never happened are left out.
    heads = next(line for line in lines if line[:2] == ["seen", "in"])
    place_of = heads.index("prescaled") - len(heads)
    assert "failed" not in heads
    for line, row in ((of_a, a), (of_b, b)):
        assert line[1:4] == [str(row["seen"]), str(row["in_time"]), f"{100 * row['in_time_share']:.2f}"]
        assert line[place_of] == str(row["prescaled"])
    assert difference[1:3] == ["+0", f"{b['in_time'] - a['in_time']:+d}"]
    assert difference[place_of] == f"{b['prescaled'] - a['prescaled']:+d}"


def test_one_policy_when_nothing_is_changed(home: Path) -> None:
    """P21."""
    assert _json(home, *_LOAD)["b"] is None
    assert "B - A" not in _run(home, *_LOAD)


def test_the_same_seed_gives_the_same_answer(home: Path) -> None:
    """P21."""
    assert _json(home, *_LOAD, "--seed=1") == _json(home, *_LOAD, "--seed=1")
    assert _json(home, *_LOAD, "--seed=1")["units"] != _json(home, *_LOAD, "--seed=2")["units"]


def test_another_experiment_file_and_slots(home: Path, tmp_path: Path) -> None:
    """P21: `--with` and `--slots-b`; the pilots that a change declares are its slots."""
    other = tmp_path / "other.yaml"
    other.write_text(_EXPERIMENT.replace("prescale: 0.5", "prescale: 0.05"))
    found = _json(home, *_LOAD, "--with", str(other), "--slots-b=7")
    assert (found["a"]["slots"], found["b"]["slots"]) == (2, 7)
    assert found["b"]["changes"] == [str(other), "7 slots"]
    assert _stages(found["b"])["clean"]["prescaled"] > _stages(found["a"])["clean"]["prescaled"]
    assert _json(home, *_LOAD, "--set", "pilots.workers=5")["b"]["slots"] == 5


def test_a_load_file_and_visits(home: Path, tmp_path: Path) -> None:
    """P21: options go before the file's keys."""
    load = tmp_path / "load.yaml"
    service = ", ".join(text.removeprefix("--service=").replace("=", ": ") for text in _SERVICE)
    load.write_text(
        f"streams: {{images: {{visits: 3, parts: 5, every: 10s}}}}\nservice: {{{service}, totals: 1s}}\nslots: 4"
    )
    assert _json(home, "--load", str(load))["units"] == 15
    assert _json(home, "--load", str(load), "--slots=9")["a"]["slots"] == 9
    assert _json(home, "--visits=2", "--parts=5", "--every=1min", *_SERVICE, "--service=totals=1s")["units"] == 10


def test_the_picture_shows_both_policies(home: Path, tmp_path: Path) -> None:
    """P21: blue for A and orange for B are on it."""
    picture = tmp_path / "plot.png"
    text = _run(home, *_LOAD, "--slots-b=5", "--lose-workers=1@20s,+1@40s", "--plot", str(picture))
    assert str(picture) in text.replace("\n", "")
    pixels = imread(picture)[..., :3]
    for colour in ((0.0, 0.447, 0.698), (0.835, 0.369, 0.0)):
        assert (abs(pixels - colour).max(axis=2) < 0.02).mean() > 0.001
    with pytest.raises(P3sError, match="cannot be drawn"):
        _run(home, *_LOAD, "--plot", "plot.bmp")


def test_a_recorded_group_is_played_again(recorded: Path) -> None:
    """P21: arrivals, service times and failures as the ledger has them; what it does not know is told."""
    service = ["--service=noise=1s", "--service=tracks=1s", "--service=plots=1s", "--service=totals=1s"]
    everything = ["--set=streams.images.prescale=1", "--set=pipelines.quality.stages.clean.prescale=1"]
    found = _json(recorded, "--run", "run=1", *service, *everything)
    clean = _stages(found["b"])["clean"]
    assert (found["units"], clean["seen"], clean["done"], clean["failed"]) == (10, 10, 9, 1)
    assert clean["p50_s"] == pytest.approx(0.25 + 1.2)  # from taken to arrived, and as the rows have it
    assert _stages(found["b"])["totals"]["done"] == 1
    assert any("quality/clean: 9 service times as measured" in note for note in found["notes"])
    assert _json(recorded, "--since=2027-01-15", "--until=2027-02-15", *service)["units"] == 10
    assert _json(recorded, "--day=2027-01-15", *service)["units"] == 10


def test_measured_times_serve_a_synthetic_load(recorded: Path) -> None:
    """P21: only what the ledger has no times of must be given."""
    found = _json(recorded, "--rate=1/s", "--duration=60s", *_SERVICE[1:], "--service=totals=1s", "--slots=50")
    assert _stages(found["a"])["clean"]["p50_s"] == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no load to play"),
        (["--recorded"], "nothing was recorded"),
        (["--recorded", *_LOAD], "cannot be played at once"),
        (["--rate=0/s"], "the load: --rate: at a rate of '0/s' nothing comes"),
        (["--rate=5/s", "--stream=image"], "Did you mean images?"),
        (["--rate=5/s", "--service=quick"], "names no stage"),
        (["--rate=5/s", "--service=clean=0s"], "--service"),
        (["--rate=5/s"], "how long quality/clean, quality/noise"),
        ([*_LOAD, "--set=pipelines.qualty.order=first-come"], "Did you mean quality?"),
        ([*_LOAD, "--set=seed"], "changes nothing"),
        ([*_LOAD, "--with=nowhere.yaml"], "there is no such file"),
        (["--load=nowhere.yaml"], "there is no such file\n  Give the path of a file that is there."),
        ([*_LOAD, "--lose-workers=3@1s"], "there would be -1 workers"),
        ([*_LOAD, "--lose-workers=1@1s", "--lose-workers=2@2s"], "there would be -1 workers"),
        (["--run=run=1", "--duration=1h"], "--duration: is not a key here"),
    ],
)
def test_mistakes_say_what_to_do(home: Path, arguments: list[str], says: str) -> None:
    """S8."""
    with pytest.raises(P3sError) as caught:
        _run(home, *arguments)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--run=run=7"], "The newest are: run=1."),
        (["--since=2026-01-01", "--until=2026-01-02"], "What there is arrived from 2027-01-15"),
    ],
)
def test_an_empty_period_says_what_the_ledger_has(recorded: Path, arguments: list[str], says: str) -> None:
    """S8."""
    with pytest.raises(P3sError) as caught:
        _run(recorded, *arguments)
    assert says in str(caught.value)


def test_in_a_notebook(recorded: Path, tmp_path: Path) -> None:
    """P21: tables as DataFrames, with the numbers of the command."""
    service = {"noise": "1s", "tracks": "1s", "plots": "1s", "totals": "1s"}
    found = simulate_in_a_notebook(
        recorded, group="run=1", load={"service": service}, changes=["streams.images.prescale=1"]
    )
    table = found.table()
    assert set(table["policy"]) == {"A", "B"}
    clean = table[table["stage"] == "clean"].set_index("policy")
    assert clean.loc["B", "seen"] == 10
    assert clean.loc["A", "prescaled"] > clean.loc["B", "prescaled"]
    series = found.series()
    assert isinstance(series, pd.DataFrame)
    assert Counter(series["policy"]) == {"A": 160, "B": 160}
    found.draw(tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    streams = {"images": {"rate": "1/s"}}
    synthetic = simulate_in_a_notebook(recorded, load={"streams": streams, "service": service, "duration": "30s"})
    assert synthetic.record.b is None
    assert synthetic.record.units > 0


def test_it_says_in_what_the_station_differs_from_what_is_played(recorded: Path) -> None:
    """P21, S9: what is set by command, and a file that was edited since the station read it."""
    home = Home(recorded)
    told = "is in force by command now is not played"
    assert told not in _run(recorded, *_LOAD)
    with closing(home.ledger(home.read())) as ledger:
        Steering(home.read(), ledger, by="ana").pause("quality/clean", why="calibration")
    home.announce_station("http://127.0.0.1:1", home.text())
    said = _run(recorded, *_LOAD)
    assert told in said
    assert "ana: calibration" in said
    assert "was edited" not in said
    home.experiment_file.write_text(f"{home.text()}\n# edited\n")
    assert "was edited" in _run(recorded, *_LOAD)


def test_nothing_is_written(recorded: Path) -> None:
    """P21: a question changes no ledger."""
    ledger = Home(recorded).ledger(Home(recorded).read())

    def state() -> list[Any]:
        with ledger.reading() as connection:
            return [connection.execute(table.select()).all() for table in schema.metadata.sorted_tables]

    before = state()
    _run(recorded, "--run=run=1", *_SERVICE[1:], "--service=totals=1s")
    assert state() == before
    ledger.close()
