"""Where a stage's inputs come from (P9, P22)."""

from __future__ import annotations

import pytest

from p3s_prefect.core.experiment import Pipeline, Stage, Step
from p3s_prefect.core.wiring import Wire, external_inputs


def _step(name: str, reads: list[str], makes: list[str]) -> Step:
    named = {"inputs": {f"i{n}": read for n, read in enumerate(reads)}, "outputs": {made: made for made in makes}}
    return Step(name=name, command=["true"], **named)


PIPELINE = Pipeline(
    stages={
        "calibrate": Stage(steps=[_step("flat", ["raw"], ["flat"]), _step("clean", ["flat", "raw", "raw"], ["clean"])]),
        "measure": Stage(steps=[_step("noise", ["clean", "raw"], ["noise"])], after=["calibrate"]),
        "total": Stage(steps=[_step("sum", ["noise", "raw"], ["sum"])], after=["measure"], per="group"),
        "report": Stage(
            steps=[_step("page", ["sum", "noise"], ["page"]), _step("send", ["page", "sum"], [])],
            after=["total"],
            per="group",
        ),
    }
)


def _wire(dataset_type: str, producer: str | None, *, gathered: bool = False) -> Wire:
    return Wire(dataset_type=dataset_type, producer=producer, is_gathered=gathered)


@pytest.mark.parametrize(
    ("stage", "wires"),
    [
        ("calibrate", (_wire("raw", None),)),
        ("measure", (_wire("clean", "calibrate"), _wire("raw", None))),
        ("total", (_wire("noise", "measure", gathered=True), _wire("raw", None, gathered=True))),
        ("report", (_wire("sum", "total"), _wire("noise", "measure", gathered=True))),
    ],
)
def test_what_comes_from_outside_a_stage(stage: str, wires: tuple[Wire, ...]) -> None:
    """P9, P22: each type once, in the order of use; what an earlier step of the stage makes is not among them."""
    assert external_inputs(PIPELINE, stage) == wires
