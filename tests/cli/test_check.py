"""`p3s check`: what a file would do, in words, as text, as a picture and as JSON; and all of its mistakes (S8)."""

import json
from pathlib import Path

import pytest
import typer
from matplotlib.image import imread
from typer.testing import CliRunner

from p3s_prefect.cli.check import check
from p3s_prefect.cli.dag_text import draw_dag
from p3s_prefect.instruments import lst1

GOOD = (Path(__file__).parent.parent / "core" / "good_experiment.yaml").read_text()

pytestmark = pytest.mark.usefixtures("programs")

app = typer.Typer()
app.command()(check)
runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb"})


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(GOOD)
    return path


def test_words_say_what_would_be_done(good: Path) -> None:
    """S8: streams, rules, closing, pipelines with shares and limits, and where results go."""
    result = runner.invoke(app, [str(good)])
    said = " ".join(result.output.split())
    assert result.exit_code == 0
    for words in (
        "a unit is one run + part, a group one run",
        "for files such as run00001.001.fits; each is one raw",
        "20 % of the units are processed",
        "run = 0: ignored, and recorded so else any: run quality",
        "when a file such as run00001.closed appears, or when nothing of it has arrived for 20 s",
        "10 % of the units; never given up",
        "100 % of the groups",
        "find (find): clean -> tracks; killed after 600 s",
        "begins at 12:00 Atlantic/Canary",
        "is in order",
    ):
        assert words in said


def test_the_online_buffer_is_told_with_its_limits_and_when_it_is_read(good: Path) -> None:
    """P13, S8: `p3s check` says which place a stream is fed from, and when."""
    buffer = "buffer: {directory: /daq/disk, max_reads: 3, bytes_per_s: 50 MB}\n"
    away = GOOD.replace("directory: incoming", "bucket: s3://night/lst1\n    buffer: {directory: lst1}") + buffer
    good.write_text(away)
    said = " ".join(runner.invoke(app, [str(good)]).output.split())
    assert "/daq/disk is only read: at most 3 files at once and 50.0 MB/s, by station and pilots together." in said
    assert "Watches s3://night/lst1 (notifications as hints, new keys every 5 s" in said
    assert "While that cannot be reached: /daq/disk/lst1 in the online buffer (notifications as hints, a full" in said
    good.write_text(away.replace("{directory: lst1}", "{directory: lst1, always: true}"))
    said = " ".join(runner.invoke(app, [str(good)]).output.split())
    assert "Watches /daq/disk/lst1 in the online buffer (notifications as hints, a full listing every 5 s)" in said
    assert "What cannot be read there is read from s3://night/lst1." in said
    good.write_text(away.replace("buffer: {directory: lst1}", "notify: true"))
    assert "no stream has files in the online buffer" in " ".join(runner.invoke(app, [str(good)]).output.split())


def test_the_dag_is_drawn_with_its_fork_and_its_join(good: Path) -> None:
    """P9: a join is where rails meet."""
    lines = [line.strip(" │").rstrip() for line in runner.invoke(app, [str(good)]).output.splitlines()]
    assert any("├─╮" in line for line in lines)
    assert any("├─╯" in line or "├─┼─╯" in line for line in lines)
    drawn = [next(i for i, line in enumerate(lines) if f"{name} -> " in line) for name in ("clean", "noise", "plots")]
    assert drawn == sorted(drawn)
    assert any("◎" in line and "totals -> total" in line for line in lines)


def test_rails_lead_from_each_stage_to_the_stages_after_it() -> None:
    """P9."""
    parents = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
    assert draw_dag(parents, {name: name for name in parents}, dict.fromkeys(parents, "●")) == [
        "●   a",
        "├─╮",
        "● │ b",
        "│ │",
        "│ ● c",
        "├─╯",
        "●   d",
    ]


def test_rails_that_cross_are_kept_apart() -> None:
    """P9: d joins a and c across the rail from b to e."""
    parents = {"s": [], "a": ["s"], "b": ["s"], "c": ["s"], "d": ["a", "c"], "e": ["b", "d"]}
    lines = draw_dag(parents, {name: name for name in parents}, dict.fromkeys(parents, "●"))
    assert "├─┼─╯" in lines
    assert lines[-2:] == ["├─╯", "●     e"]


def test_all_mistakes_are_listed_with_place_and_fix_and_the_exit_code_is_1(good: Path) -> None:
    """S8."""
    good.write_text(GOOD.replace("seed: 7", "seed: seven").replace("format: png", "format: pgn"))
    result = runner.invoke(app, [str(good)])
    assert result.exit_code == 1
    assert f"{good}:3: seed: must be a whole number" in result.stderr
    assert "dataset_types.plot.format" in result.stderr
    assert "Did you mean png?" in result.stderr
    assert "2 mistakes" in result.stderr


def test_a_payload_that_cannot_be_imported_is_a_mistake(good: Path) -> None:
    """S8."""
    good.write_text(GOOD.replace("command: [fft]", "python: 'no_such_package.payload:run'"))
    result = runner.invoke(app, [str(good)])
    assert result.exit_code == 1
    assert "no_such_package.payload cannot be imported: ModuleNotFoundError" in result.stderr


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    """S8."""
    result = runner.invoke(app, [str(tmp_path / "experiment.yaml")])
    assert result.exit_code == 1
    assert "p3s init" in result.stderr


def test_what_is_probably_not_meant_is_shown_and_passes(good: Path) -> None:
    """S8."""
    good.write_text(GOOD.replace("  raw: {", "  dark: {format: npz}\n  raw: {"))
    result = runner.invoke(app, [str(good)])
    assert result.exit_code == 0
    assert "Remark dataset_types.dark: nothing uses dark." in result.output


def test_json_gives_the_same_to_programs(good: Path) -> None:
    """S8: shares are those of the strictest prescale on the way (P4)."""
    result = runner.invoke(app, [str(good), "--json"])
    told = json.loads(result.stdout)
    assert told["ok"] is True
    assert told["experiment"]["pilots"]["workers"] == 2
    assert told["order"]["quality"] == [
        {"stage": "clean", "reach": {"images": 0.2}},
        {"stage": "noise", "reach": {"images": 0.2}},
        {"stage": "tracks", "reach": {"images": 0.1}},
        {"stage": "plots", "reach": {"images": 0.1}},
        {"stage": "totals", "reach": {"images": 1.0}},
    ]
    good.write_text(GOOD.replace("seed: 7", "seed: seven"))
    result = runner.invoke(app, [str(good), "--json"])
    assert result.exit_code == 1
    (mistake,) = json.loads(result.stdout)["mistakes"]
    assert (mistake["line"], mistake["key"]) == (3, "seed")


def test_a_home_may_be_named_as_in_other_commands(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is in order" in runner.invoke(app, ["--home", str(tmp_path)]).output
    monkeypatch.chdir(tmp_path)
    assert "experiment.yaml is in order" in runner.invoke(app, []).output
    absent = runner.invoke(app, ["--home", str(tmp_path / "none")])
    assert (absent.exit_code, "none/experiment.yaml" in absent.output.replace("\n", "")) == (1, True)


def test_the_picture_is_an_image_with_something_on_it(good: Path, tmp_path: Path) -> None:
    """P9, S8."""
    picture = tmp_path / "dag.png"
    assert runner.invoke(app, [str(good), "--picture", str(picture)]).exit_code == 0
    pixels = imread(picture)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 1000
    assert 0.005 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.3


def test_the_picture_scales_as_svg(good: Path, tmp_path: Path) -> None:
    """S8."""
    picture = tmp_path / "dag.svg"
    assert runner.invoke(app, [str(good), "--picture", str(picture)]).exit_code == 0
    drawn = picture.read_text()
    assert "<svg" in drawn
    assert drawn.rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("name", "says"), [("dag.bmp", "one of .png, .svg, .pdf\n"), ("nowhere/dag.png", "nowhere does not exist")]
)
def test_a_picture_that_cannot_be_written_is_named(good: Path, tmp_path: Path, name: str, says: str) -> None:
    """S8."""
    result = runner.invoke(app, [str(good), "--picture", str(tmp_path / name)])
    assert result.exit_code == 1
    assert "cannot be drawn" in result.stderr
    assert says in result.stderr


def test_a_home_is_checked_too(good: Path) -> None:
    """S8."""
    result = runner.invoke(app, [str(good.parent)])
    assert result.exit_code == 0
    assert "experiment.yaml is in order" in "".join(result.output.split("\n"))


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("/bin/shh", "there is no program /bin/shh\n"),
        ("no-such-program", "there is no program no-such-program in any directory of PATH"),
        ("plain.txt", "plain.txt is not executable"),
    ],
)
def test_a_program_that_cannot_be_run_is_a_mistake(good: Path, tmp_path: Path, program: str, says: str) -> None:
    """S8."""
    (tmp_path / "plain.txt").write_text("no program")
    named = str(tmp_path / program) if program == "plain.txt" else program
    good.write_text(GOOD.replace("command: [fft]", f"command: [{named}]"))
    result = runner.invoke(app, [str(good)])
    assert result.exit_code == 1
    assert "pipelines.quality.stages.noise.steps" in result.stderr
    assert says in result.stderr
    assert "1 mistake" in result.stderr


def test_the_experiment_of_the_demonstration_is_in_order() -> None:
    """S8: its payloads too, which are told the unit and the coverage if they ask."""
    result = runner.invoke(app, [str(Path(lst1.__file__).parent)])
    assert result.exit_code == 0, result.stderr
