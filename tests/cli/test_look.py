"""`p3s status | list | show`, as tables and as JSON, with and without a station."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from announced import announce
from ledger_rows import Rows, StoredBytes
from thinned_rows import MEAN, thinned_run
from typer.testing import CliRunner

from p3s_prefect.adapters.home import Complaint, Home
from p3s_prefect.adapters.supervision import Services
from p3s_prefect.cli import look
from p3s_prefect.core.errors import BadName, ExperimentFileErrors, NoSuchRecord

_EXPERIMENT = Path(__file__).parent.parent / "core" / "good_experiment.yaml"
_README = Path(__file__).parents[2] / "README.md"
_HOSTILE = "\x1b]0;owned\x07[bold red]name[/]"

commands = typer.Typer()
commands.command("status")(look.status)
commands.command("list")(look.list_)
commands.command("show")(look.show)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a unit that failed, one that is done, and a file that was refused."""
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT.read_text())
    home = Home(tmp_path)
    ledger = home.ledger(home.read())
    ledger.migrate()
    with ledger.transaction() as connection:
        rows = Rows(connection, StoredBytes())
        pass_id = rows.production_pass(rows.group("run=1"), "quality")
        for part, state in enumerate(("done", "failed")):
            reason = f"clean: exited with 3 {_HOSTILE}" if state == "failed" else ""
            unit = rows.unit(pass_id, f"run=1 part={part}", state=state)
            attempt = rows.attempt(rows.stage(unit, "clean", state=state, reason=reason), state=state, reason=reason)
            if state == "done":
                rows.product(attempt, "Pedestal")
                rows.summary(attempt, "noise", 4.253199, "ADC")
        rows.arrival(_HOSTILE, verdict="refused", reason="its name fits no pattern")
    ledger.close()
    return home


def _run(home: Home, *arguments: str) -> str:
    result = CliRunner().invoke(commands, [*arguments, "--home", str(home.path)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def _json(home: Home, *arguments: str) -> Any:
    return json.loads(_run(home, *arguments, "--json"))


def test_status_without_a_station_says_what_to_do_and_counts(home: Home) -> None:
    """P7."""
    text = _run(home, "status")
    assert "p3s up" in text
    (row,) = _json(home, "status")["account"]
    assert (row["seen"], row["done"], row["failed"]) == (2, 1, 1)


def test_status_of_a_station_that_died_without_a_word(home: Home) -> None:
    announce(home, 2**22 + 1)
    assert "no station runs here" in _run(home, "status")


def test_status_while_the_station_is_started_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """P19: its supervisor lives, so that nobody has to start it."""
    monkeypatch.setattr(Services, "pid", lambda _: os.getpid())
    text = _run(home, "status")
    assert "the station is being started again" in text
    assert "run/logs/station.log" in text
    assert "p3s up" not in text


def test_status_of_a_station_that_cannot_start(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """P19: it has complained, and is not started again; when it has started, the complaint is forgotten."""
    monkeypatch.setattr(Services, "pid", lambda _: os.getpid())
    told = "the page cannot be served on port 80: Permission denied\n  Set station.port."
    home.complain(Complaint(text=told, is_tried_again=False))
    text = _run(home, "status")
    assert "the station cannot start, and is not started again: the page cannot be served on port 80" in text
    assert "Set station.port. Then `p3s down` and `p3s up`." in text
    home.complain(Complaint(text="the ledger cannot be read: gone\n  Start it.", is_tried_again=True))
    text = _run(home, "status")
    assert "the station cannot start, and is tried again: the ledger cannot be read: gone" in text
    assert "Start it." in text
    assert "p3s up" not in text
    home.announce_station("http://127.0.0.1:1", home.text())
    home.forget_station()
    assert "the station is being started again" in _run(home, "status")


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Bearer secret"
        row = {"name": "pilots", "status": "degraded", "actual": "1 slot", "nominal": "2 slots"}
        told = {
            "experiment": "night",
            "instrument": "camera",
            "station": {},
            "status": "degraded",
            "health": [{**row, "cause": "1 pilot slot is missing", "action": "Look at the log"}],
            "account": [],
            "sub_jobs": [],
        }
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, *_: object) -> None:
        """Tests stay quiet."""


@pytest.fixture
def station(home: Home) -> Iterator[str]:
    """Something that answers as a station with a token does."""
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        announce(home, os.getpid(), url)
        yield url
        server.shutdown()
        thread.join()


@pytest.mark.sockets
def test_status_of_a_running_station_is_its_own(home: Home, station: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """P19, for the rows that exist: the same rows as the page; S7: with the token only."""
    assert "it wants the token in P3S_TOKEN" in _run(home, "status")
    monkeypatch.setenv("P3S_TOKEN", "secret")
    text = _run(home, "status")
    assert "1 pilot slot is missing" in text
    assert "secret" not in text


def test_list_selects_and_pages(home: Home) -> None:
    assert [row["data_id"] for row in _json(home, "list", "units")] == ["run=1 part=1", "run=1 part=0"]
    assert [row["state"] for row in _json(home, "list", "units", "--state", "failed")] == ["failed"]
    (last,) = _json(home, "list", "units", "--limit", "1")
    assert [row["data_id"] for row in _json(home, "list", "--before", str(last["id"]))] == ["run=1 part=0"]
    assert _json(home, "list", "groups")[0]["coverage"][0]["seen"] == 2
    assert _json(home, "list", "arrivals", "--kept-out")[0]["verdict"] == "refused"
    assert _json(home, "list", "products")[0]["title"] == "Pedestal"
    assert _json(home, "list", "journal") == []


def test_tables_cut_nothing_in_a_pipe_and_let_nothing_act(home: Home) -> None:
    """S7: a file name moves no cursor and sets no colour."""
    for arguments in (("list", "units"), ("list", "arrivals"), ("show", "run=1", "part=1")):
        text = _run(home, *arguments)
        assert "\x1b" not in text
        assert r"\x1b]0;owned\x07[bold red]name[/]" in text


def test_show_tells_all_about_a_unit(home: Home) -> None:
    text = _run(home, "show", "run=1", "part=0")
    for part in ("waited for arrival", "clean: work", "noise", "4.253 ", "Pedestal", "log.txt"):
        assert part in text
    assert _json(home, "show", "run=1 part=0")["unit"]["unit"]["state"] == "done"


def test_show_of_a_group_and_of_nothing(home: Home) -> None:
    assert "quality" in _run(home, "show", "run=1")
    with pytest.raises(NoSuchRecord, match="p3s list units"):
        _run(home, "show", "run=7")
    with pytest.raises(BadName, match="Write run=2008"):
        _run(home, "show", "nonsense")


def test_show_takes_dimensions_in_any_order_and_knows_their_names(home: Home) -> None:
    assert "run=1 part=0 in quality" in _run(home, "show", "part=0", "run=1")
    with pytest.raises(BadName, match=r"no dimension 'subrun'\n  There are: run, part"):
        _run(home, "show", "subrun=0", "run=1")


def test_show_takes_a_pipeline_as_other_commands_do(home: Home) -> None:
    """Before the data, or as an option."""
    assert _run(home, "show", "quality", "run=1 part=0") == _run(home, "show", "run=1 part=0", "--pipeline", "quality")
    with pytest.raises(BadName):
        _run(home, "show", "nope", "run=1 part=0")


@pytest.mark.parametrize("data_id", ["run=1", "run=1 part=0"])
@pytest.mark.parametrize("chosen", [("--pipeline", "nope"), ("--pass", "7")])
def test_show_names_pipelines_and_passes_that_there_are(home: Home, data_id: str, chosen: tuple[str, str]) -> None:
    with pytest.raises(NoSuchRecord, match=f"{chosen[1]}\\n  It is in: pipeline quality, pass 0"):
        _run(home, "show", data_id, *chosen)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("units", "--state", "bogus"), "open, standby, running, queued, held, waiting, expected, arrived, done"),
        (("units", "--pipeline", "nope"), "Give one of: quality"),
        (("arrivals", "--state", "done"), "Arrivals have verdicts: --kept-out"),
        (("units", "--kept-out"), "It selects arrivals"),
        (("journal", "--group", "run=1"), "It selects units"),
    ],
)
def test_list_refuses_what_selects_nothing(home: Home, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(BadName, match=says):
        _run(home, "list", *arguments)


def test_files_that_were_kept_out_come_with_a_remedy(home: Home) -> None:
    """S8."""
    assert "Correct the file, and send it again." in _run(home, "list", "arrivals", "--kept-out")


def test_a_file_is_no_home(home: Home) -> None:
    with pytest.raises(ExperimentFileErrors, match=r"README\.md: is not a directory\n  Give the experiment's home"):
        _run(Home(_README), "status")


def _thinned(home: Home) -> None:
    ledger = home.ledger(home.read())
    with ledger.transaction() as connection:
        thinned_run(Rows(connection, StoredBytes()), run=5)
    ledger.close()


def test_a_group_is_shown_with_weighted_values(home: Home) -> None:
    """P6: value and error, how many of how many, what is missing and the range; in JSON too."""
    _thinned(home)
    text = " ".join(_run(home, "show", "run=5").split())
    assert "9.2 ± 1.0 ADC 6 of 13 5 1 expired (25 %) 7.875 to 9.875" in text
    noise = next(value for value in _json(home, "show", "run=5")["values"] if value["name"] == "noise")
    assert noise["estimate"]["value"] == pytest.approx(MEAN)
    assert noise["missing_share"] == 0.25


def test_of_one_value_no_range_is_known(home: Home) -> None:
    """P6: said in words in both tables, and null in JSON."""
    unknown = "1 failed (50 %) not known: one value does not tell how much they differ"
    for arguments in (("show", "run=1"), ("list", "trends")):
        assert unknown in " ".join(_run(home, *arguments).split())
    (value,) = _json(home, "show", "run=1")["values"]
    assert (value["lowest"], value["highest"], value["missing_share"]) == (None, None, 0.5)


def test_trends_are_listed_with_weighted_values(home: Home) -> None:
    """P6."""
    _thinned(home)
    # The unit that failed before is of the same stretch of time.
    assert "1 expired, 1 failed (28 %)" in " ".join(_run(home, "list", "trends").split())
    (noise,) = [trend for trend in _json(home, "list", "trends") if (trend["name"], trend["unit"]) == ("noise", "ADC")]
    assert noise["weights"][-1] == 4


def test_trends_of_totals_have_their_stage_and_unit(home: Home) -> None:
    """P17: as those of units have; nothing is said of all groups together."""
    ledger = home.ledger(home.read())
    with ledger.transaction() as connection:
        rows = Rows(connection, StoredBytes())
        run = rows.unit(rows.production_pass(rows.group("run=6"), "quality"), "run=6", per="group")
        rows.summary(rows.attempt(rows.stage(run, "totals")), "rate", 7.5, "Hz")
    ledger.close()
    (row,) = [line.split() for line in _run(home, "list", "trends").splitlines() if "rate 7.5" in line]
    assert row == ["rate", "7.5", "totals", "Hz"]
