"""What a site is to have in Prefect: queues from classes, deployments under an overlay, differences in words."""

from __future__ import annotations

from typing import Any

import pytest

from p3s_prefect.core.deployment import Deployment, Overlay, class_queues, differences, in_pool, overlaid
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_file import parse_experiment

TEXT = """
experiment: first-light
instrument: {name: camera, dimensions: {run: int, part: int}, group: [run]}
dataset_types: {frame: {format: file}}
classes: %s
pipelines:
  look: {class: dqm, stages: {size: {steps: [{name: wc, command: [wc], inputs: {frame: frame}}]}}}
streams:
  daq: {directory: incoming, pattern: "{run}_{part}.dat", dataset_type: frame, rules: [{pipelines: [look]}]}
"""
PRODUCE = Deployment(
    name="produce",
    entrypoint="package.flows.produce",
    parameters={"home": ".", "group": "open"},
    tags=["p3s"],
    work_pool={"name": "production"},
)


def declared(classes: str) -> Experiment:
    return parse_experiment(TEXT % classes, file="experiment.yaml")


def overlay(**changes: Any) -> Overlay:
    return Overlay(pools={"production": {"type": "process"}}, deployments={"produce": changes} if changes else {})


def test_each_class_has_a_queue_in_the_order_in_which_classes_go() -> None:
    """S2: Prefect wants each priority once and takes the smallest first; an experiment says it the other way round."""
    found = class_queues(declared("{late: {priority: -5, limit: 2}, dqm: {}, alerts: {priority: 9}}"))
    assert [(one.name, one.priority, one.concurrency_limit) for one in found] == [
        ("alerts", 1, None),
        ("default", 2, None),
        ("dqm", 3, None),
        ("late", 4, 2),
    ]


def test_a_declared_default_class_is_the_default_queue() -> None:
    """S2: the class that need not be declared, declared."""
    found = class_queues(declared("{dqm: {priority: 1}, default: {priority: 2, limit: 7}}"))
    assert [(one.name, one.concurrency_limit) for one in found] == [("default", 7), ("dqm", None)]


def test_an_overlay_changes_what_it_names_and_nothing_else() -> None:
    """S5: from one kind of site to another by configuration alone."""
    (found,) = overlaid([PRODUCE], overlay(parameters={"group": "closed"}, concurrency_limit=3))
    assert found == PRODUCE.model_copy(update={"parameters": {"home": ".", "group": "closed"}, "concurrency_limit": 3})
    assert overlaid([PRODUCE], overlay()) == (PRODUCE,)


def test_what_there_is_not_is_told() -> None:
    """S8: a deployment that an overlay changes, and a pool that a deployment names."""
    wrong = Overlay(pools={"production": {"type": "process"}}, deployments={"prodce": {}})
    with pytest.raises(BadName, match="prodce") as unknown:
        overlaid([PRODUCE], wrong)
    assert "Did you mean produce?" in unknown.value.fix
    with pytest.raises(BadName, match="'production' that is not declared") as nowhere:
        overlaid([PRODUCE], Overlay(pools={"productions": {"type": "process"}}))
    assert "Did you mean productions?" in nowhere.value.fix


def test_the_experiments_own_pool_has_the_name_that_its_file_gives() -> None:
    """V18 (pool): in the overlay and in what is deployed to it; other pools keep theirs."""
    pools = Overlay(pools={"p3s": {"type": "p3s"}, "production": {"type": "process"}})
    process = Deployment(name="process", entrypoint="package.flows.process", work_pool={"name": "p3s"})
    moved, overlay = in_pool([process, PRODUCE], pools, "north")
    assert [one.work_pool.name for one in moved] == ["north", "production"]
    assert {name: one.type for name, one in overlay.pools.items()} == {"north": "p3s", "production": "process"}
    assert in_pool([process], pools, "p3s") == ((process,), pools)
    with pytest.raises(BadName, match="'production' is the experiment's own"):
        in_pool([process, PRODUCE], pools, "production")


def test_differences_name_the_key_with_both_values() -> None:
    """S2: what was changed is told; a key within another by its whole path, also one that is to go."""
    wanted = {"limit": 3, "tags": ["a"], "parameters": {"home": "/new", "site": "x"}}
    found = {"limit": None, "tags": ["a"], "parameters": {"home": "/old", "group": "open", "site": "x"}, "id": 1}
    assert differences(wanted, found) == (
        "limit none -> 3",
        "parameters.home /old -> /new",
        "parameters.group open -> none",
    )
    assert differences(wanted, found | wanted) == ()
    assert differences(wanted, None) == ()
