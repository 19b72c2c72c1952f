"""What `p3s try` runs: the order that a pilot would get for one step, which writes neither ledger nor store (P16)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Connection, select

from p3s_prefect.adapters.buffer_places import BufferPlaces
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import inputs
from p3s_prefect.adapters.ledger.execution import Attempt
from p3s_prefect.adapters.ledger.schema import data_group, job, production_pass, sub_job
from p3s_prefect.adapters.software import resolve_command
from p3s_prefect.adapters.stores import directory_url
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadSelection, InputMissing, NoSuchRecord
from p3s_prefect.core.experiment import Experiment, Format, Stage
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import Arrival, InputFile, StageOrder
from p3s_prefect.core.wiring import Wire, external_inputs
from p3s_prefect.station.catalogue import Catalogue
from p3s_prefect.station.planning import select_files


@dataclass(frozen=True, kw_only=True)
class StepName:
    """A step as it is named on the command line: pipeline/stage/step."""

    pipeline: str
    stage: str
    step: str

    @classmethod
    def parse(cls, text: str, experiment: Experiment) -> StepName:
        """From its text.

        Raises:
            BadSelection: the experiment has no such step.
        """
        known = {
            f"{pipeline}/{stage}/{step.name}": cls(pipeline=pipeline, stage=stage, step=step.name)
            for pipeline, declared in experiment.pipelines.items()
            for stage, steps in declared.stages.items()
            for step in steps.steps
        }
        if text not in known:
            raise BadSelection(f"there is no step {text!r}", fix=did_you_mean(text, known))
        return known[text]


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the ledger knows of a stage's inputs; nothing where there is no ledger yet."""

    files: tuple[InputFile, ...] = ()
    coverage: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, Mapping[DataId, float]] = field(default_factory=dict)


def trial_order(home: Home, experiment: Experiment, name: StepName, unit: str, directory: Path) -> StageOrder:
    """The order for the stage's steps up to this one; what they make goes into a store of its own in `directory`.

    `unit` is a file, or a data id that the ledger knows.

    Raises:
        BadSelection: the file fits no stream.
        NoSuchRecord: the ledger does not know the data id.
        InputMissing: the stage reads what was never made.
    """
    stage = experiment.pipelines[name.pipeline].stages[name.stage]
    seen = None if "=" in unit and not Path(unit).exists() else select_files(home.path, experiment, [unit])[0]
    data_id = DataId.parse(unit) if seen is None else seen.data_id
    group = data_id.subset(experiment.instrument.group)
    if stage.per == "group":
        data_id = group
    formats = {kind: declared.format for kind, declared in experiment.dataset_types.items()}
    wires = external_inputs(experiment.pipelines[name.pipeline], name.stage)
    catalogue = Catalogue(experiment, home.path.resolve(), home.store_url(experiment))
    known = _from_ledger(home, catalogue, stage, name, data_id, group, wires, formats)
    files = [_arrived(seen, formats, catalogue.buffered)] if seen is not None and stage.per == "unit" else []
    files += [file for file in known.files if not (files and file.key is None)]
    _must_be_there(wires, files, data_id)
    last = [step.name for step in stage.steps].index(name.step)
    return StageOrder(
        attempt_id=0,
        stage_run_id=0,
        data_id=data_id,
        per=stage.per,
        pipeline=name.pipeline,
        stage=name.stage,
        collection="try",
        prefix="try",
        steps=tuple(resolve_command(step, home.path.resolve()) for step in stage.steps[: last + 1]),
        formats=formats,
        inputs=tuple(_in_place(file, home.store(experiment), directory) for file in files),
        store_url=directory_url(directory / "store"),
        coverage=known.coverage,
        weights=known.weights,
    )


def _from_ledger(
    home: Home,
    catalogue: Catalogue,
    stage: Stage,
    name: StepName,
    data_id: DataId,
    group: DataId,
    wires: tuple[Wire, ...],
    formats: Mapping[str, Format],
) -> _Known:
    ledger = home.ledger(catalogue.experiment)
    try:
        if not ledger.exists():
            return _Known()
        with ledger.reading() as connection:
            opened = _opened(connection, stage, name, data_id, group)
            if opened is None:
                return _Known()
            return _Known(
                files=tuple(inputs.find(connection, opened, wires, formats, catalogue.buffered.of)),
                coverage=catalogue.coverage(connection, opened) if stage.per == "group" else {},
                weights=inputs.weights(connection, opened, wires),
            )
    finally:
        ledger.close()


def _opened(connection: Connection, stage: Stage, name: StepName, data_id: DataId, group: DataId) -> Attempt | None:
    """The attempt that would be next, as far as inputs are looked up by it; None if the ledger has no such job."""
    query = (
        select(production_pass.c.job_id, production_pass.c.number, sub_job.c.arrival_id, sub_job.c.taken_at)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
        .where(job.c.pipeline == name.pipeline, data_group.c.data_id == str(group))
        .order_by(production_pass.c.number.desc())
    )
    if stage.per == "unit":
        query = query.where(sub_job.c.data_id == str(data_id), sub_job.c.per == "unit")
    row = connection.execute(query.limit(1)).one_or_none()
    if row is None:
        return None
    return Attempt(
        id=0,
        number=0,
        stage_run_id=0,
        stage=name.stage,
        pipeline=name.pipeline,
        per=stage.per,
        data_id=data_id,
        taken_at=row.taken_at,
        job_id=row.job_id,
        pass_number=row.number,
        arrival_id=row.arrival_id if stage.per == "unit" else None,
        collection="try",
        prefix="try",
    )


def _arrived(seen: Arrival, formats: Mapping[str, Format], buffered: BufferPlaces) -> InputFile:
    return InputFile(
        dataset_type=seen.dataset_type,
        format=formats[seen.dataset_type],
        data_id=seen.data_id,
        path=seen.path,
        size=seen.identity.size,
        mtime_ns=seen.identity.mtime_ns,
        buffered=buffered.of(seen.stream, seen.path),
    )


def _in_place(file: InputFile, store: ObjectStore, directory: Path) -> InputFile:
    """A published file as one of this machine, as the step's own store is another one."""
    if file.key is None:
        return file
    return replace(file, key=None, path=str(store.fetch(file.key, directory, str(file.sha256))))


def _must_be_there(wires: tuple[Wire, ...], files: list[InputFile], data_id: DataId) -> None:
    there = {file.dataset_type for file in files}
    for wire in wires:
        if wire.dataset_type in there:
            continue
        if wire.producer is None:
            raise NoSuchRecord(
                f"the ledger knows no {wire.dataset_type} of {data_id}", fix="Give the path of its file instead."
            )
        raise InputMissing(
            f"there is no {wire.dataset_type} to read",
            data_id=data_id,
            fix=f"Stage {wire.producer} makes it: process the file first, with `p3s process`.",
        )
