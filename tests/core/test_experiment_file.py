"""The experiment file: what it means, and that every mistake is named with its place and its fix (S8).

A mistake is added as data: a file in ``bad_experiments`` whose first lines say which line, key and words to expect.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.adapters.experiment_file import payload_mistakes, read_experiment
from p3s_prefect.core.errors import ExperimentFileErrors
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_checks import remarks
from p3s_prefect.core.experiment_file import parse_experiment

HERE = Path(__file__).parent
GOOD = (HERE / "good_experiment.yaml").read_text()
BAD = sorted((HERE / "bad_experiments").glob("*.yaml"))


def _parse(text: str, **environment: str) -> Experiment:
    return parse_experiment(text, file="experiment.yaml", environment=environment)


def _errors(text: str, **environment: str) -> ExperimentFileErrors:
    with pytest.raises(ExperimentFileErrors) as caught:
        _parse(text, **environment)
    return caught.value


def _expected(text: str) -> tuple[int, str, list[str]]:
    head = re.findall(r"^# (line|key|says): ?(.*)$", text, re.MULTILINE)
    (line,) = (value for name, value in head if name == "line")
    (key,) = (value for name, value in head if name == "key")
    return int(line), key, [value for name, value in head if name == "says"]


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_each_kind_of_mistake_is_named_with_line_key_and_fix(path: Path) -> None:
    """S8: every file of the corpus has one mistake (which may show in several places)."""
    line, key, words = _expected(path.read_text())
    with pytest.raises(ExperimentFileErrors) as caught:
        read_experiment(path, environment={})
    places = {(mistake.line, mistake.key): str(mistake) for mistake in caught.value.mistakes}
    assert (line, key) in places
    said = places[line, key]
    assert said.startswith(f"{path}:{line}: ")
    assert all(word in said for word in words), said
    assert all(mistake.fix for mistake in caught.value.mistakes)


def test_the_file_from_which_the_corpus_was_made_has_no_mistake() -> None:
    """S8: each file of the corpus fails for its own mistake only."""
    experiment = _parse(GOOD)
    assert remarks(experiment) == []
    assert list(experiment.pipelines["quality"].stages) == ["clean", "noise", "tracks", "plots", "totals"]


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines() -> None:
    """S8."""
    text = GOOD.replace("seed: 7", "seed: seven").replace("format: png", "format: pgn").replace("zone: Atl", "zone: X")
    errors = _errors(text.replace("    prescale: 0.2", "    prescale: 0"))
    assert [mistake.key for mistake in errors.mistakes] == [
        "seed",
        "instrument.day.zone",
        "dataset_types.plot.format",
        "streams.images.prescale",
    ]
    assert (errors.line, errors.key) == (errors.mistakes[0].line, "seed")
    assert all(str(mistake) in str(errors) for mistake in errors.mistakes)


def test_references_are_told_all_at_once_too() -> None:
    """S8."""
    text = GOOD.replace("after: [noise, tracks]", "after: [nosie]").replace("[quality]", "[qualty]")
    assert {"no stage 'nosie' here", "no pipeline 'qualty'"} <= {found.message for found in _errors(text).mistakes}


def test_a_variable_is_filled_in_as_text_and_never_read_as_yaml() -> None:
    """S7, S8."""
    text = GOOD.replace("directory: incoming", "directory: ${P3S_DATA:-data}/in").replace("seed: 7", "seed: ${SEED}")
    evil = "x\nledger: {url: 'sqlite:////etc/passwd'} # ${SEED}"
    assert _parse(text, SEED="12").streams["images"].directory == "data/in"
    filled = _parse(text, SEED="12", P3S_DATA=evil)
    assert filled.streams["images"].directory == f"{evil}/in"
    assert filled.ledger == _parse(GOOD).ledger
    assert filled.seed == 12


def test_two_dollars_keep_a_variable_for_the_payloads_own_shell() -> None:
    """S8."""
    text = GOOD.replace("command: [fft]", "command: [sh, -c, 'fft $${P3S_INPUT_CLEAN} $HOME']")
    command = _parse(text, HOME="/root").pipelines["quality"].stages["noise"].steps[0].command
    assert command == ["sh", "-c", "fft ${P3S_INPUT_CLEAN} $HOME"]


def test_what_yaml_1_1_would_misread_is_a_text() -> None:
    """S8: no is not false, and 12:30 is not 750."""
    text = GOOD.replace('rolls_at: "12:00"', "rolls_at: 12:30").replace("command: [fft]", "command: [no, 2020-02-18]")
    experiment = _parse(text)
    assert experiment.instrument.day.rolls_at == "12:30"
    assert experiment.pipelines["quality"].stages["noise"].steps[0].command == ["no", "2020-02-18"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"experiment: night\nseed: \xff\n", "experiment.yaml:2: the file is not UTF-8 text"),
        (b"# " + b"x" * 10_000_000, "longer than 256 kB"),
        ("é".encode() * 200_000, "longer than 256 kB"),
    ],
)
def test_a_file_that_is_no_text_or_endless_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """S8."""
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    with pytest.raises(ExperimentFileErrors, match=re.escape(words)):
        read_experiment(path)


def test_a_file_that_is_not_there_or_a_directory_is_named(tmp_path: Path) -> None:
    """S8."""
    with pytest.raises(ExperimentFileErrors, match="no such file") as caught:
        read_experiment(tmp_path / "experiment.yaml")
    assert "p3s init" in caught.value.fix
    with pytest.raises(ExperimentFileErrors, match="cannot be read"):
        read_experiment(tmp_path)


@given(st.data())
def test_no_damage_to_the_file_gives_anything_but_a_clear_error(data: st.DataObject) -> None:
    """S8: a piece cut out, doubled or replaced by noise is accepted or refused with a place; it never crashes."""
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(len(GOOD), start + 60)))
    noise = data.draw(
        st.sampled_from(["", GOOD[start:end] * 2]) | st.text(max_size=12) | st.text("&*!%{}[]:-#'\"\n ?|>")
    )
    told: ExperimentFileErrors | None = None
    try:
        _parse(GOOD[:start] + noise + GOOD[end:])
    except ExperimentFileErrors as errors:
        told = errors
    lines = GOOD.count("\n") + noise.count("\n") + 2
    assert told is None or all(0 < mistake.line <= lines and mistake.fix for mistake in told.mistakes)


def test_what_is_probably_not_meant_is_a_remark_and_no_error() -> None:
    """S8."""
    spare = "  spare:\n    stages:\n      one: {steps: [{name: a, command: [a], inputs: {r: raw}}]}\nstreams:\n"
    text = GOOD.replace("streams:\n", spare).replace("  raw: {", "  dark: {format: npz}\n  raw: {")
    text = text.replace("{pipelines: [quality]}", "{pipelines: [quality]}, {when: {run: 3}, pipelines: [quality]}")
    assert [found.where for found in remarks(_parse(text))] == [
        ("pipelines", "spare"),
        ("dataset_types", "dark"),
        ("streams", "images", "rules", 2),
    ]


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("nowhere.at_all:run", "nowhere.at_all cannot be imported: ModuleNotFoundError"),
        ("json:nothing", "json has no function nothing"),
        ("os.path:basename", "does not take what the step hands over"),
        ("bad_payload_module:run", "cannot be imported: RuntimeError: no licence"),
    ],
)
def test_a_python_payload_that_cannot_be_called_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: str, words: str
) -> None:
    """S8."""
    (tmp_path / "bad_payload_module.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "experiment.yaml"
    path.write_text(GOOD.replace("command: [fft]", f"python: '{payload}'"))
    assert read_experiment(path)
    with pytest.raises(ExperimentFileErrors, match=re.escape(words)) as caught:
        read_experiment(path, also=[payload_mistakes])
    assert caught.value.key == "pipelines.quality.stages.noise.steps[0].python"


@pytest.mark.usefixtures("programs")
def test_a_python_payload_that_fits_its_step_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S8."""
    (tmp_path / "good_payload_module.py").write_text("def run(clean, unit, threshold=3):\n    return {}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "experiment.yaml"
    path.write_text(GOOD.replace("command: [fft]", "python: 'good_payload_module:run', params: {threshold: 4}"))
    assert read_experiment(path, also=[payload_mistakes]).experiment == "night"


@pytest.mark.parametrize("name", ["store_with_keys", "store_endpoint_with_keys"])
def test_keys_that_stand_in_an_address_are_not_repeated(name: str) -> None:
    """S7: the error goes to terminals and logs."""
    errors = _errors((HERE / "bad_experiments" / f"{name}.yaml").read_text())
    assert "SECRET" not in str(errors)
    assert "KEY" not in str(errors)
