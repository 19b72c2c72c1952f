"""What `p3s check` says about classes and floors."""

from __future__ import annotations

from typing import Any

import pytest
from scheduling import STEP

from p3s_prefect.core import class_checks
from p3s_prefect.core.experiment import Experiment, Stage
from p3s_prefect.core.findings import Finding


def _experiment(classes: dict[str, Any], work_class: str = "dqm", **values: Any) -> Experiment:
    stages = {"quick": {"steps": [STEP], **values.pop("stage", {})}}
    return Experiment.model_validate(
        {
            "experiment": "test",
            "instrument": {
                "name": "Cam",
                "dimensions": {"run": "int", "part": "int"},
                "group": ["run"],
                "closing": {"quiet_s": 60},
            },
            "dataset_types": {"raw": {"format": "text"}},
            "classes": classes,
            "pipelines": {"dqm": {"class": work_class, "stages": stages}},
            "streams": {
                "camera": {
                    "directory": "in",
                    "pattern": "{run}-{part}.txt",
                    "dataset_type": "raw",
                    "rules": [{"pipelines": ["dqm"]}],
                    **values,
                }
            },
        }
    )


def _floors(*floors: dict[str, Any], **values: Any) -> list[Finding]:
    return list(class_checks.floors(_experiment({"dqm": {"floors": list(floors)}}, **values)))


def test_a_class_that_is_not_declared_is_a_mistake() -> None:
    """S8: with the nearest name; the default one need not be declared."""
    (found,) = class_checks.names(_experiment({"dqm": {}}, "dmq"))
    assert found.where == ("pipelines", "dqm", "class")
    assert found.fix.startswith("Did you mean dqm?")
    assert list(class_checks.names(_experiment({}, "default"))) == []
    assert list(class_checks.names(_experiment({"default": {"priority": 3}}, "default"))) == []


@pytest.mark.parametrize(
    ("values", "arithmetic"),
    [
        ({"prescale": 0.1}, "prescale of the stream is 0.1, of the stage 1"),
        ({"stage": {"prescale": 0.1}}, "prescale of the stream is 1, of the stage 0.1"),
        ({"prescale": 0.1, "stage": {"prescale": 0.4}}, "prescale of the stream is 0.1, of the stage 0.4"),
    ],
)
def test_a_floor_above_the_prescale_cannot_be_kept(values: dict[str, Any], arithmetic: str) -> None:
    """S8: the finding shows the arithmetic; at the prescale itself it is kept."""
    (found,) = _floors({"share": 0.2}, **values)
    assert found.where == ("classes", "dqm", "floors", 0, "share")
    assert "the floor of 0.2 cannot be kept" in found.what
    assert "at most 0.1" in found.what
    assert arithmetic in found.what
    assert "Lower it to 0.1" in found.fix
    assert _floors({"share": 0.1}, **values) == []


def test_two_shares_for_the_same_units_contradict_each_other() -> None:
    """S8: a narrower floor beside a wider one does not."""
    (found,) = _floors({"share": 0.2}, {"share": 0.1, "when": {"part": 1}}, {"share": 0.3, "when": {"part": 1}})
    assert found.where == ("classes", "dqm", "floors", 2)
    assert "0.1 and 0.3" in found.what


def test_a_floor_names_dimensions_that_exist() -> None:
    """S8."""
    (found,) = _floors({"share": 0.2, "when": {"prat": 1}})
    assert found.where == ("classes", "dqm", "floors", 0, "when", "prat")
    assert found.fix.startswith("Did you mean part?")


def test_what_has_no_effect_is_remarked() -> None:
    """S8: a class of no pipeline, and floors where nothing is thinned."""
    found = _experiment({"dqm": {"shed": False, "floors": [{"share": 0.1}]}, "idle": {}})
    assert [one.where for one in class_checks.unused(found)] == [("classes", "dqm", "floors"), ("classes", "idle")]
    assert list(class_checks.unused(_experiment({"dqm": {"floors": [{"share": 0.1}]}}))) == []


def _cut_short(stages: dict[str, Any], *floors: dict[str, Any], **values: Any) -> list[Finding]:
    experiment = _experiment({"dqm": {"floors": list(floors), **values}})
    pipeline = experiment.pipelines["dqm"]
    declared = {name: Stage.model_validate({"steps": [STEP], **stage}) for name, stage in stages.items()}
    pipelines = {"dqm": pipeline.model_copy(update={"stages": declared})}
    return list(class_checks.cut_short(experiment.model_copy(update={"pipelines": pipelines})))


@pytest.mark.parametrize("after", [[], ["quick"]], ids=["beside the first", "after it"])
def test_a_floor_that_a_stage_does_not_keep_is_remarked(after: list[str]) -> None:
    """S8: with the arithmetic; the class as a whole keeps it, so that it is no mistake."""
    stages = {"quick": {"prescale": 0.5}, "full": {"prescale": 0.1, "after": after}}
    (found,) = _cut_short(stages, {"share": 0.1}, {"share": 0.3, "when": {"part": 1}})
    assert found.where == ("classes", "dqm", "floors", 1, "share")
    assert "the floor of 0.3 of part=1 does not hold at dqm/full" in found.what
    assert "at most 0.1 get as far (the prescale of the stage is 0.1)" in found.what
    assert "Raise the prescale to 0.3, or lower the floor to 0.1" in found.fix
    assert _cut_short(stages, {"share": 0.1}) == []
    assert _cut_short(stages, {"share": 0.3}, shed=False) == []


def test_each_stage_with_a_prescale_below_the_floor_is_remarked() -> None:
    """S8: and none that only come after one, as there is nothing to change in them."""
    stages = {
        "quick": {},
        "full": {"prescale": 0.1, "after": ["quick"]},
        "tracks": {"prescale": 0.2, "after": ["full"]},
        "plots": {"after": ["tracks"]},
    }
    full, tracks = _cut_short(stages, {"share": 0.3})
    assert "dqm/full: at most 0.1" in full.what
    assert "dqm/tracks: at most 0.1 get as far (the prescale of the stage is 0.2)" in tracks.what


def test_a_narrower_floor_that_is_not_larger_has_no_effect() -> None:
    """S8: the largest counts, of units that several match."""
    wide, narrow = {"share": 0.3}, {"share": 0.2, "when": {"part": 1}}
    experiment = _experiment({"dqm": {"floors": [narrow, wide]}})
    (found,) = class_checks.unused(experiment)
    assert found.where == ("classes", "dqm", "floors", 0)
    assert "the floor of 0.2 of part=1 has no effect: there is one of 0.3 of all units" in found.what
    assert "Raise it above 0.3" in found.fix
    for floors in ([wide, narrow | {"share": 0.4}], [narrow, {"share": 0.3, "when": {"run": 7}}]):
        assert list(class_checks.unused(_experiment({"dqm": {"floors": floors}}))) == []
    (once,) = _cut_short({"quick": {}, "full": {"prescale": 0.1}}, wide, narrow)
    assert once.where == ("classes", "dqm", "floors", 0, "share")
