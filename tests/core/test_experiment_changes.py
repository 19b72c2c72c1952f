"""Changing an experiment by key, as `p3s simulate --set` does, with the checks of the file."""

from pathlib import Path
from typing import Any

import pytest

from p3s_prefect.core.errors import BadName, ExperimentFileErrors
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_changes import Change, changed
from p3s_prefect.core.experiment_file import parse_experiment

_GOOD = (Path(__file__).parent / "good_experiment.yaml").read_text()


def _changed(*texts: str) -> Experiment:
    return parse_experiment(_GOOD, file="e.yaml", edit=changed(Change.parse(text) for text in texts))


def test_values_take_the_place_of_those_in_the_file() -> None:
    """P21: present keys, keys that the file leaves out, items of lists, and names that need not be declared."""
    found = _changed(
        "pipelines.quality.stages.clean.prescale=0.25",
        "pipelines.quality.stages.clean.deadline_s=30",
        "pipelines.quality.order = oldest-first",
        "streams.images.rules[0].pipelines=[quality]",
        "classes.fast.priority=9",
        "pipelines.quality.class=fast",
        "pilots.workers=7",
    )
    clean = found.pipelines["quality"].stages["clean"]
    assert (clean.prescale, clean.deadline_s, clean.steps[0].name) == (0.25, 30.0, "subtract")
    assert found.pipelines["quality"].order == "oldest-first"
    assert found.streams["images"].rules[0].pipelines == ["quality"]
    assert found.class_of(found.pipelines["quality"]).priority == 9
    assert found.pilots.workers == 7
    assert _changed() == parse_experiment(_GOOD, file="e.yaml")


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        (
            "pipelines.quality.stages.clean.prescal=1",
            20,
            "pipelines.quality.stages.clean.prescal",
            "Did you mean presc",
        ),
        ("pipelines.quality.stages.clen.prescale=1", 19, "pipelines.quality.stages.clen", "Did you mean clean?"),
        ("pipeline.quality.prescale=1", 2, "pipeline", "Did you mean pipelines?"),
        ("pipelines.quality.stages.clean.prescale=7", 21, "pipelines.quality.stages.clean.prescale", "less than or"),
        ("streams.images.rules[5].pipelines=[]", 43, "streams.images.rules[5]", "no item 5 in a list of 2"),
        ("seed.x=3", 3, "seed.x", "is not a key here"),
        ("pipelines.quality.stages.noise.after=[tracks, plots]", 25, "", "wait for each other"),
    ],
)
def test_what_is_set_is_checked_like_the_file(text: str, line: int, key: str, says: str) -> None:
    """S8: with the line where it would stand, the nearest name, and the checks between the parts."""
    with pytest.raises(ExperimentFileErrors) as caught:
        _changed(text)
    (mistake,) = caught.value.mistakes
    assert mistake.key == key or not key
    assert mistake.line == line or not key
    assert says in str(mistake)


@pytest.mark.parametrize("text", ["", "seed", "=3", "a..b=3", "[0]x=1", "seed={{", "seed=1\nother: 2"])
def test_what_is_no_change(text: str) -> None:
    """S8."""
    with pytest.raises(BadName):
        Change.parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("seed=3", 3), ("seed=[a, b]", ["a", "b"]), ("seed=null", None), ("seed=", ""), ("seed=a=b", "a=b")],
)
def test_values_are_yaml(text: str, value: Any) -> None:
    change = Change.parse(text)
    assert change.where == ("seed",)
    assert (change.value or "") == (value or "")


def test_a_change_is_shown_as_the_file_has_it() -> None:
    """P21."""
    shown = [str(Change.parse(text)) for text in ("a.b=false", "a[0].b=first-come", "a={b: null}")]
    assert shown == ["a.b = false", "a[0].b = first-come", 'a = {"b": null}']
