"""`p3s priority | pause | drain | hold | release | limits | reload`, as tables and as JSON, without a station."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ledger_rows import Rows, StoredBytes
from typer.testing import CliRunner

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import overrides
from p3s_prefect.cli import steer
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import BadName, NoSuchRecord, P3sError, ServiceError
from p3s_prefect.core.overrides import OverrideKind

_EXPERIMENT = Path(__file__).parent.parent / "core" / "good_experiment.yaml"
_HOSTILE = "\x1b]0;owned\x07[bold red]why[/]"

pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home in which one unit waits; no station has run there for long."""
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT.read_text())
    home = Home(tmp_path)
    ledger = home.ledger(home.read())
    ledger.migrate()
    with ledger.transaction() as connection:
        rows = Rows(connection, StoredBytes())
        pass_id = rows.production_pass(rows.group("run=1"), "quality")
        unit = rows.unit(pass_id, "run=1 part=0", state="arrived")
        rows.stage(unit, "clean", state="queued")
    ledger.close()
    return home


def _run(home: Home, *arguments: str) -> str:
    result = CliRunner().invoke(commands(), [*arguments, "--home", str(home.path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _json(home: Home, *arguments: str) -> Any:
    return json.loads(_run(home, *arguments, "--json"))


def _refused(home: Home, *arguments: str) -> P3sError:
    with pytest.raises(P3sError) as refused:
        _run(home, *arguments)
    return refused.value


def _in_force(home: Home) -> list[tuple[str, str, int | None]]:
    return [(one["kind"], one["target"], one["value"]) for one in _json(home, "limits")["overrides"]]


@pytest.mark.parametrize(
    ("target", "said", "stages"),
    [
        (
            "all",
            "Waiting of it now: 4 stages; 2 at the pilots are not touched.",
            {"waiting": 1, "queued": 2, "held": 1, "running": 2},
        ),
        (
            "quality",
            "Waiting of it now: 4 stages; 2 at the pilots are not touched.",
            {"waiting": 1, "queued": 2, "held": 1, "running": 2},
        ),
        (
            "class:default",
            "Waiting of it now: 4 stages; 2 at the pilots are not touched.",
            {"waiting": 1, "queued": 2, "held": 1, "running": 2},
        ),
        ("class:spare", "Nothing of it is open now", {}),
        ("quality/clean", "Waiting of it now: 2 stages; 2 at the pilots are not touched.", {"queued": 2, "running": 2}),
        ("run=1", "Waiting of it now: 1 stage.", {"queued": 1}),
        (
            "run=2",
            "Waiting of it now: 3 stages; 2 at the pilots are not touched.",
            {"waiting": 1, "queued": 1, "held": 1, "running": 2},
        ),
        ("run=2 part=1", "Waiting of it now: 1 stage; 1 at the pilots is not touched.", {"waiting": 1, "running": 1}),
        ("quality/noise run=2 part=1", "Waiting of it now: 1 stage.", {"waiting": 1}),
        ("quality/clean run=2 part=2", "Nothing of it waits now; 1 at the pilots is not touched.", {"running": 1}),
        ("run=2 part=3", "Nothing of it is open now", {}),
    ],
)
def test_what_is_set_tells_what_there_is_that_it_acts_on(
    home: Home, target: str, said: str, stages: dict[str, int]
) -> None:
    """S9, P14: whoever mistypes a run, or is late, sees it at once."""
    with home.experiment_file.open("a") as file:
        file.write("classes: {spare: {}}\n")
    ledger = home.ledger(home.read())
    with ledger.transaction() as connection:
        rows = Rows(connection, StoredBytes())
        pass_id = rows.production_pass(rows.group("run=2"), "quality")
        parts = [("queued",), ("running", "waiting"), ("running", "held"), ("done", "failed")]
        for part, states in enumerate(parts):
            unit = rows.unit(pass_id, f"run=2 part={part}", state="failed" if part == 3 else "arrived")
            for position, (stage, state) in enumerate(zip(("clean", "noise"), states, strict=False)):
                rows.stage(unit, stage, state=state, position=position)
    ledger.close()
    assert said in _run(home, "pause", target, "--why", "a test")
    assert _json(home, "pause", target, "--why", "a test")["open_stages"] == stages
    drained = _run(home, "drain", target, "--why", "a test")
    assert ("what belongs to units that have begun goes on" in drained) is bool(stages)


def test_what_is_set_is_shown_with_who_why_and_until_when(home: Home) -> None:
    """S9, P14: by the command itself, in the list, in the status, and with the unit."""
    said = _run(home, "pause", "quality", "--why", "calibration", "--for", "2h", "--by", "ana")
    assert "pause of quality by ana: calibration" in said
    assert "It ends by itself in 2 h" in said
    assert "No station runs" in said
    assert "p3s release quality" in said
    for command in (["pause"], ["limits"], ["status"], ["show", "run=1 part=0"]):
        shown = _run(home, *command)
        assert "calibration" in shown
        assert "p3s release quality" in shown
        assert "ana" in shown
    assert "pause of quality by ana: calibration" in _run(home, "list")
    assert _json(home, "list")[0]["reason"] == "pause of quality by ana: calibration"
    (row,) = _json(home, "status")["overrides"]
    assert row["expires_at"] - row["set_at"] == 7200


@pytest.mark.parametrize(
    ("arguments", "there"),
    [
        (["priority", "quality", "10"], ("priority", "quality", 10)),
        (["priority", "quality/clean", "-5"], ("priority", "quality/clean", -5)),
        (["priority", "run=1", "part=0", "7"], ("priority", "run=1 part=0", 7)),
        (["limits", "class:default", "3"], ("limit", "class:default", 3)),
        (["limits", "quality", "0"], ("limit", "quality", 0)),
        (["pause", "all"], ("pause", "all", None)),
        (["drain", "run=1"], ("drain", "run=1", None)),
        (["hold", "quality", "run=1", "part=0"], ("hold", "quality run=1 part=0", None)),
    ],
)
def test_each_command_sets_and_lifts(home: Home, arguments: list[str], there: tuple[str, str, int | None]) -> None:
    """P10, P14, S9."""
    made = _json(home, *arguments, "--why", "test")
    assert (made["kind"], made["target"], made["value"]) == there
    assert _in_force(home) == [there]
    lift = made["lift"].removeprefix("p3s ").split()
    assert len(_json(home, *lift)["lifted"]) == 1
    assert _in_force(home) == []


def test_what_lifts_needs_no_reason_and_journals_one(home: Home) -> None:
    """S9: who lifted it is journaled in any case."""
    for lift in (
        ["release", "quality"],
        ["release", "quality", "--why", "it is over"],
        ["pause", "quality", "--clear"],
    ):
        _run(home, "pause", "quality", "--why", "test")
        _run(home, *lift, "--by", "ben")
    lifted = [row["detail"] for row in _json(home, "list", "journal") if row["kind"] == "pause.cleared"]
    assert [(one["by"], one.get("why")) for one in lifted] == [("ben", None), ("ben", "it is over"), ("ben", None)]


def test_clear_lifts_one_kind_only(home: Home) -> None:
    """P14."""
    for command in ("pause", "hold"):
        _run(home, command, "quality", "--why", "test")
    assert "Lifted: pause of quality" in _run(home, "pause", "quality", "--clear")
    assert [row["kind"] for row in _json(home, "release")["overrides"]] == ["hold"]


def test_limits_shows_the_declared_ones_and_those_in_force(home: Home) -> None:
    """P14, S9."""
    text = _EXPERIMENT.read_text().replace("pipelines:\n  quality:\n", "pipelines:\n  quality:\n    limit: 4\n")
    home.experiment_file.write_text(text)
    _run(home, "limits", "quality", "2", "--why", "leave room")
    rows = {row["of"]: row for row in _json(home, "limits")["limits"]}
    assert (rows["quality"]["now"], rows["quality"]["declared"]) == (2, 4)
    assert "leave room" in rows["quality"]["why"]
    assert rows["class:default"] == {"of": "class:default", "now": None, "declared": None, "why": ""}
    assert "no limit" in _run(home, "limits")


def test_without_a_target_each_says_what_is_in_force(home: Home) -> None:
    """S9."""
    assert "No hold is in force" in _run(home, "hold")
    assert "No pause or drain or hold" in _run(home, "release")
    _run(home, "hold", "quality", "--why", "test")
    assert "p3s release quality" in _run(home, "hold")
    assert _json(home, "drain") == {"overrides": []}


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["pause", "qualty", "--why", "x"], BadName, "Did you mean quality?"),
        (["hold", "run=9", "--why", "x"], NoSuchRecord, "p3s list groups"),
        (["hold", "run=1 part=9", "--why", "x"], NoSuchRecord, "p3s list units"),
        (["pause", "quality"], BadName, "--why"),
        (["pause", "quality", "--why", "  "], BadName, "--why"),
        (["pause", "quality", "--why", "x", "--for", "soon"], BadName, "30min"),
        (["priority", "quality", "high", "--why", "x"], BadName, "'high' is no whole number"),
        (["limits", "quality", "2.5", "--why", "x"], BadName, "p3s limits quality 3"),
        (["priority", "quality", "--why", "x"], BadName, "no number after 'quality'"),
        (["priority", "quality", "run=1", "--why", "x"], BadName, "p3s priority quality run=1 3"),
        (["priority", "quality", "99999999999", "--why", "x"], BadName, "smaller"),
        (["priority", "5", "--why", "x"], BadName, "nothing is named"),
        (["limits", "quality", "-1", "--why", "x"], BadName, "from 0"),
        (["priority", "quality", "--wy", "x", "3", "--why", "x"], BadName, "no option --wy"),
        (["limits", "run=1", "3", "--why", "x"], BadName, "class:NAME"),
        (["limits", "all", "3", "--why", "x"], BadName, "class:NAME"),
        (["release", "quality"], NoSuchRecord, "no pause or drain or hold of quality"),
        (["priority", "quality", "--clear"], NoSuchRecord, "no priority of quality"),
        (["reload"], ServiceError, "p3s up"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(
    home: Home, arguments: list[str], error: type[P3sError], says: str
) -> None:
    """S8: and nothing is in force after it."""
    refused = _refused(home, *arguments)
    assert isinstance(refused, error)
    assert says in str(refused)
    assert _in_force(home) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pause", "qualty"], "Did you mean quality?"),
        (["hold", "run=9"], "p3s list groups"),
        (["limits", "qualty", "3"], "Did you mean quality?"),
        (["limits", "quality", "many"], "no whole number"),
        (["limits", "quality", "-1"], "from 0"),
        (["limits", "quality/clean", "3"], "p3s limits quality 3"),
        (["pause", "quality", "--for", "soon"], "30min"),
        (["drain", "quality", "--by", "breaker"], "--by NAME"),
    ],
)
def test_what_cannot_be_done_is_told_before_a_reason_is_asked_for(
    home: Home, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    """S8: also at a terminal, where it would be typed in vain."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: pytest.fail("a reason is asked for"))
    refused = _refused(home, *arguments)
    assert says in str(refused)
    assert "no reason" not in str(refused)


def test_a_hostile_reason_does_no_harm(home: Home) -> None:
    """S7: what somebody typed cannot move the cursor or change colours of those who look."""
    _run(home, "hold", "run=1", "--why", _HOSTILE)
    for command in (["limits"], ["status"], ["list"], ["show", "run=1 part=0"]):
        assert "\x1b" not in _run(home, *command)


def test_a_reason_is_asked_for_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """S9: it may be typed when the command asks."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "shift change")
    assert steer._asked("") == "shift change"


def test_what_is_set_before_the_first_start_counts(tmp_path: Path) -> None:
    """S9: there is not even a ledger yet."""
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT.read_text())
    home = Home(tmp_path)
    _run(home, "drain", "all", "--why", "not yet")
    ledger = home.ledger(home.read())
    with ledger.reading() as connection:
        (found,) = overrides.in_force(connection)
    ledger.close()
    assert found.kind is OverrideKind.DRAIN


def test_reload_lists_all_mistakes_as_check_does(home: Home) -> None:
    """S9, S8: without asking anybody."""
    home.experiment_file.write_text(_EXPERIMENT.read_text().replace("quiet_s: 20", "quiet_s: soon"))
    asked = ["reload", "--home", str(home.path)]
    checked = CliRunner().invoke(commands(), ["check", str(home.path)])
    reloaded = CliRunner().invoke(commands(), asked)
    assert reloaded.exit_code == checked.exit_code == 1
    assert "quiet_s" in reloaded.output
    assert reloaded.output == checked.output
    told = json.loads(CliRunner().invoke(commands(), [*asked, "--json"]).output)
    assert told["ok"] is False
