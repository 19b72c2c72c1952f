"""What `p3s why` is asked about: a unit or a group, or one stage of it, named as in other commands."""

from __future__ import annotations

from dataclasses import dataclass

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.targets import read_target


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an explanation is asked of."""

    data_id: DataId
    group: DataId
    """The group that it is, or belongs to."""
    pipeline: str | None
    stage: str | None


def asked_why(experiment: Experiment, words: str) -> Asked:
    """The unit or group that words name, in the way of `core.targets`; with a pipeline or stage, if they name one.

    Raises:
        BadName: they name no unit and no group, or what the experiment does not have.
    """
    target = read_target([words], experiment, "unit or a group, alone or after a pipeline or PIPELINE/STAGE")
    data_id = target.unit or target.group
    if data_id is None or target.work_class is not None:
        raise BadName(
            f"{words[:120]!r} is neither a unit nor a group",
            fix="Such as run=2008, 'run=2008 subrun=3', or one stage of it: 'waveform-dqm/quick run=2008 subrun=3'.",
        )
    if target.stage is not None and target.pipeline is not None:
        per = experiment.pipelines[target.pipeline].stages[target.stage].per
        _check_stage(experiment, f"{target.pipeline}/{target.stage}", per, data_id)
    group = data_id.subset(experiment.instrument.group)
    return Asked(data_id=data_id, group=group, pipeline=target.pipeline, stage=target.stage)


def _check_stage(experiment: Experiment, stage: str, per: str, data_id: DataId) -> None:
    instrument = experiment.instrument
    group = data_id.subset(instrument.group)
    if per == "group" and data_id != group:
        raise BadName(f"{stage} runs once for a group, not for {data_id}", fix=f"Ask `p3s why {stage} {group}`.")
    if per == "unit" and data_id.dimensions != tuple(instrument.dimensions):
        fix = f"Name one of its units: `p3s list units --group '{data_id}'` lists them."
        raise BadName(f"{stage} runs for each unit, not for the group {data_id}", fix=fix)
