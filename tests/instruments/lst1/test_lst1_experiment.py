"""The experiment file: valid, and its payloads exist and take what it hands them."""

from __future__ import annotations

import importlib
import inspect
from importlib.resources import files

import pytest

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Experiment, Step
from p3s_prefect.core.experiment_file import parse_experiment
from p3s_prefect.core.replay import patterns_of


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    path = files("p3s_prefect.instruments.lst1") / "experiment.yaml"
    return parse_experiment(path.read_text(), file="experiment.yaml")


def steps(experiment: Experiment) -> list[Step]:
    return [step for stage in experiment.pipelines["waveform-dqm"].stages.values() for step in stage.steps]


def test_names_of_files_are_the_telescopes(experiment: Experiment) -> None:
    pattern, marker = patterns_of(experiment)
    assert pattern.format(DataId.of(run=2008, subrun=3)) == "LST-1.Run02008.0003.fits"
    assert marker is not None
    assert marker.format(DataId.of(run=2008)) == "LST-1.Run02008.closed"


def test_payloads_take_the_inputs_and_parameters_that_are_declared(experiment: Experiment) -> None:
    assert [step.name for step in steps(experiment)] == ["statistics", "displays", "totals"]
    for step in steps(experiment):
        module, _, function = (step.python or "").partition(":")
        signature = inspect.signature(getattr(importlib.import_module(module), function))
        given = dict.fromkeys([*step.inputs, *step.params])
        told = [name for name in ("unit", "coverage", "weights") if name in signature.parameters]
        signature.bind(**given | dict.fromkeys(told))


def test_a_night_is_one_day_and_totals_wait_for_quick(experiment: Experiment) -> None:
    stages = experiment.pipelines["waveform-dqm"].stages
    assert (experiment.instrument.day.rolls_at, experiment.instrument.day.zone) == ("12:00", "Atlantic/Canary")
    assert (stages["quick"].per, stages["quick"].deadline_s) == ("unit", 60)
    assert (stages["totals"].per, stages["totals"].after) == ("group", ["quick"])
