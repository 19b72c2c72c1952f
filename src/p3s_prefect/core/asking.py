"""What is asked of a running station, as it stands in a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.retry import Which

PROCESS = "process"
"""Process units of a group: `ProcessAsked`."""
RETRY = "retry"
"""Try again what failed: of a pass (``pass_id``), or of a ``target`` as commands name it."""
CANCEL = "cancel"
"""Give up what is open: of a pass, or of a target."""

# A request is one row of the ledger.
_MOST_UNITS = 10_000


@dataclass(frozen=True, kw_only=True)
class ProcessAsked:
    """Units to be processed by a pipeline; no units are all of the group."""

    pipeline: str
    group: DataId
    units: tuple[DataId, ...] = ()
    which: Which = Which.MISSING

    @classmethod
    def of(cls, pipeline: str, group: str, units: list[str], which: str) -> ProcessAsked:
        """From words.

        Raises:
            BadName: some are no data ids, or there are too many units.
        """
        if len(units) > _MOST_UNITS:
            raise BadName(f"{len(units)} units at once", fix=f"Name at most {_MOST_UNITS}, or the group alone.")
        return cls(
            pipeline=pipeline,
            group=DataId.parse(group),
            units=tuple(dict.fromkeys(DataId.parse(unit) for unit in units)),
            which=Which(which),
        )

    @classmethod
    def read(cls, detail: Mapping[str, Any]) -> ProcessAsked:
        """From a request; raises as `of`."""
        return cls.of(detail["pipeline"], detail["group"], list(detail["units"]), detail["which"])

    def again(self, which: Which) -> ProcessAsked:
        """The same units, chosen otherwise."""
        return replace(self, which=which)

    def detail(self) -> dict[str, Any]:
        """For a request: JSON-ready."""
        return {
            "pipeline": self.pipeline,
            "group": str(self.group),
            "units": [str(unit) for unit in self.units],
            "which": str(self.which),
        }


def check_asked(asked: ProcessAsked, experiment: Experiment) -> ProcessAsked:
    """The same with its data ids in the instrument's order; whether they exist, only the ledger knows.

    Raises:
        BadName: there is no such pipeline, or they name no group, or no units of it.
    """
    if asked.pipeline not in experiment.pipelines:
        fix = did_you_mean(asked.pipeline, experiment.pipelines)
        raise BadName(f"there is no pipeline {asked.pipeline[:120]!r}", fix=fix)
    instrument = experiment.instrument
    group = _ordered(asked.group, list(instrument.group), "group")
    units = tuple(_ordered(unit, list(instrument.dimensions), "unit") for unit in asked.units)
    for unit in units:
        if unit.subset(instrument.group) != group:
            raise BadName(f"{unit} is not of {group}", fix="Ask for each group by itself.")
    return ProcessAsked(pipeline=asked.pipeline, group=group, units=units, which=asked.which)


def _ordered(data_id: DataId, dimensions: list[str], what: str) -> DataId:
    if sorted(data_id.dimensions) != sorted(dimensions):
        raise BadName(f"{data_id} is no {what}", fix=f"A {what} is named by {' '.join(dimensions)}.")
    return data_id.ordered(dimensions)
