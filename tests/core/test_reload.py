"""What a running station takes over from a changed experiment file, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_file import parse_experiment
from p3s_prefect.core.reload import CHANGEABLE, changes, refusals

_FILE = Path(__file__).parent / "good_experiment.yaml"
OLD = parse_experiment(_FILE.read_text(), file=str(_FILE), environment={})


def changed(where: tuple[str, ...], value: Any) -> Experiment:
    """The same experiment with another value in one place."""
    content = OLD.model_dump(mode="json")
    place = content
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    return Experiment.model_validate(content)


TAKEN_OVER = [
    (("pipelines", "quality", "limit"), 3, "pipelines.quality.limit: 3"),
    (("pipelines", "quality", "stages", "clean", "prescale"), 0.05, "pipelines.quality.stages.clean.prescale: "),
    (("classes", "dqm"), {"limit": 2}, "classes.dqm: added"),
    (("streams", "images", "prescale"), 0.9, "streams.images.prescale: 0.2 -> 0.9"),
    (("dataset_types", "extra"), {"format": "json"}, "dataset_types.extra: added"),
    (("seed",), 8, "seed: 7 -> 8"),
    (("instrument", "closing", "quiet_s"), 30, "instrument.closing.quiet_s: 20.0 -> 30.0"),
    (("instrument", "day", "zone"), "UTC", 'instrument.day.zone: "Atlantic/Canary" -> "UTC"'),
    (("station", "grace_s"), 1, "station.grace_s: 10.0 -> 1.0"),
]
REFUSED = [
    (("experiment",), "day"),
    (("instrument", "name"), "other"),
    (("instrument", "dimensions"), {"run": "int", "part": "text"}),
    (("instrument", "group"), ["run", "part"]),
    (("store", "directory"), "elsewhere"),
    (("ledger", "url"), "sqlite:///other.db"),
    (("pilots", "workers"), 7),
    (("station", "port"), 1234),
    (("station", "host"), "::1"),
    (("station", "lease_s"), 60),
    (("buffer",), {"directory": "/daq/disk"}),
]


@pytest.mark.parametrize(("where", "value", "told"), TAKEN_OVER)
def test_what_is_taken_over_is_told_by_its_key(where: tuple[str, ...], value: object, told: str) -> None:
    """S9."""
    found = changes(OLD, changed(where, value))
    assert [str(change) for change in found if str(change).startswith(told)]
    assert refusals(found, "experiment.yaml") == ()


@pytest.mark.parametrize(("where", "value"), REFUSED)
def test_what_needs_a_restart_is_refused_with_the_key_and_what_to_do(where: tuple[str, ...], value: object) -> None:
    """S9, S8."""
    refused = refusals(changes(OLD, changed(where, value)), "experiment.yaml")
    assert refused
    for one in refused:
        assert one.key.split(".")[: len(where)] == list(where)
        assert "cannot change while the station runs" in str(one)
        assert "p3s down" in one.fix


def test_nothing_changed_is_nothing() -> None:
    """S9."""
    assert changes(OLD, parse_experiment(_FILE.read_text(), file=str(_FILE), environment={})) == ()


def test_a_removed_pipeline_is_told_once() -> None:
    """S9."""
    more = changed(("pipelines", "second"), OLD.pipelines["quality"].model_dump(mode="json"))
    assert [str(change) for change in changes(more, OLD)] == ["pipelines.second: removed"]


def test_every_setting_is_either_taken_over_or_refused() -> None:
    """S9: a new part of the file is refused until somebody has thought about it, and what is named exists."""
    for place in CHANGEABLE:
        model: Any = Experiment
        for key in place[:-1]:
            model = model.model_fields[key].annotation
        assert place[-1] in model.model_fields
