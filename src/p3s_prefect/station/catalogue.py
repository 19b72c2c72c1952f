"""What the experiment file means for a unit: pipelines, collections, orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from p3s_prefect.adapters.buffer_places import BufferPlaces
from p3s_prefect.adapters.ledger import execution, inputs
from p3s_prefect.adapters.ledger.arrivals import Collection, Intake
from p3s_prefect.adapters.software import resolve_command, software
from p3s_prefect.core import dag, naming
from p3s_prefect.core.admission import Admission, admit_by_hand, admit_group, admit_unit, choose_pipelines
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import InputMissing
from p3s_prefect.core.experiment import Experiment, Format, Stage
from p3s_prefect.core.records import Arrival, StageOrder
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.wiring import external_inputs

Offer = Callable[[str, DataId, float, float, float], Admission]
"""How a unit begins: from pipeline, data id, its number u, its stream's prescale, and when it was taken."""


class Catalogue:
    """An experiment at its home, ready to be asked."""

    def __init__(self, experiment: Experiment, home: Path, store_url: str) -> None:
        self.experiment = experiment
        self.home = home
        self._store_url = store_url
        self.buffered = BufferPlaces(experiment, home)
        """Where files that arrived are a second time."""
        self._formats: dict[str, Format] = {name: kind.format for name, kind in experiment.dataset_types.items()}
        self.group_admissions: dict[str, Admission | None] = {
            name: admit_group(name, pipeline) for name, pipeline in experiment.pipelines.items()
        }

    def with_experiment(self, experiment: Experiment) -> Catalogue:
        """Another experiment at the same home."""
        return Catalogue(experiment, self.home, self._store_url)

    @cached_property
    def collections(self) -> dict[str, Collection]:
        """How the run collections of each pipeline are named. Looks at the installed software once."""
        return {name: self._collection(name) for name in self.experiment.pipelines}

    @property
    def payload_modules(self) -> tuple[str, ...]:
        """The modules of all Python payloads, for pilots to import beforehand."""
        steps = (step for name in self.experiment.pipelines for stage in self._stages(name) for step in stage.steps)
        return tuple(dict.fromkeys(step.python.partition(":")[0] for step in steps if step.python))

    def stage(self, pipeline: str, stage: str) -> Stage:
        """A stage's definition."""
        return self.experiment.pipelines[pipeline].stages[stage]

    def intake(self, seen: Arrival, pipelines: Sequence[str] = (), offer: Offer | None = None) -> Intake:
        """The decisions about a unit that can be made before the ledger is asked.

        `pipelines` take the place of those that the stream's rules choose. `offer` decides how it begins where there
        may be an overload.
        """
        stream = self.experiment.streams[seen.stream]
        chosen = pipelines or choose_pipelines(stream, seen.data_id)
        if offer is None:
            admissions = tuple(self.admission(name, seen.stream, seen.data_id) for name in chosen)
        else:
            u = sample_number(seen.data_id, self.experiment.seed)
            admissions = tuple(offer(name, seen.data_id, u, stream.prescale, seen.taken_at) for name in chosen)
        return Intake(group=self.group(seen.data_id), day=self.day(seen.arrived_at), admissions=admissions)

    def admission(self, pipeline: str, stream: str, data_id: DataId) -> Admission:
        """How a unit of a stream begins in a pipeline."""
        u = sample_number(data_id, self.experiment.seed)
        first_q = self.experiment.streams[stream].prescale if stream in self.experiment.streams else 1.0
        return admit_unit(pipeline, self.experiment.pipelines[pipeline], u=u, first_q=first_q)

    def by_hand(self, pipeline: str) -> Admission:
        """How a unit begins that somebody asks for."""
        return admit_by_hand(pipeline, self.experiment.pipelines[pipeline])

    def group(self, data_id: DataId) -> DataId:
        """The group that a unit belongs to."""
        return data_id.subset(self.experiment.instrument.group)

    def day(self, at: float) -> date:
        """The processing day of a moment."""
        return naming.processing_day(at, self.experiment.instrument.day)

    def open_attempt(self, connection: Connection, stage_run_id: int, now: float) -> StageOrder:
        """Opens the next attempt of a stage run and says everything that a pilot needs to run it.

        Raises:
            InputMissing: something that it reads was never made. Undo the transaction: nothing should be opened.
        """
        return self.order(connection, execution.start(connection, stage_run_id, now))

    def order(self, connection: Connection, opened: execution.Attempt) -> StageOrder:
        """What a pilot needs to run an attempt that was opened; raises as `open_attempt`."""
        stage = self.stage(opened.pipeline, opened.stage)
        wires = external_inputs(self.experiment.pipelines[opened.pipeline], opened.stage)
        files = inputs.find(connection, opened, wires, self._formats, self.buffered.of)
        missing = [wire.dataset_type for wire in wires if not any(f.dataset_type == wire.dataset_type for f in files)]
        if missing:
            raise InputMissing(
                f"there is no {', '.join(missing)} to read",
                data_id=opened.data_id,
                fix="See why its producers gave none.",
            )
        steps = tuple(resolve_command(step, self.home) for step in stage.steps)
        deadline = None if stage.deadline_s is None else opened.taken_at + stage.deadline_s
        return StageOrder(
            attempt_id=opened.id,
            stage_run_id=opened.stage_run_id,
            data_id=opened.data_id,
            per=opened.per,
            pipeline=opened.pipeline,
            stage=opened.stage,
            collection=opened.collection,
            prefix=opened.prefix,
            steps=steps,
            formats=_named(self._formats, stage),
            inputs=tuple(files),
            store_url=self._store_url,
            coverage=self.coverage(connection, opened) if opened.per == "group" else {},
            weights=inputs.weights(connection, opened, wires),
            cache_directory=self.experiment.pilots.cache_directory,
            cache_bytes=self.experiment.pilots.cache_bytes,
            waiting_directory=self.experiment.pilots.waiting_directory,
            waiting_bytes=self.experiment.pilots.waiting_bytes,
            stop_at=deadline if stage.stop_at_deadline else None,
        )

    def coverage(self, connection: Connection, opened: execution.Attempt) -> dict[str, int]:
        """How many of the units that a stage per group gathers are in which state."""
        gathered = dag.ancestors(self.experiment.pipelines[opened.pipeline], opened.stage)
        return inputs.coverage(connection, opened, gathered)

    def _stages(self, pipeline: str) -> list[Stage]:
        return list(self.experiment.pipelines[pipeline].stages.values())

    def _collection(self, name: str) -> Collection:
        pipeline = self.experiment.pipelines[name]
        used = {kind for stage in pipeline.stages.values() for kind in _named(self._formats, stage)}
        content: dict[str, Any] = naming.configuration(
            pipeline.model_dump(mode="json"),
            {kind: self._formats[kind].value for kind in sorted(used)},
            software(pipeline, self.home),
        )
        configuration_id = naming.content_id(content)
        instrument = self.experiment.instrument.name

        def name_of(day: date, number: int) -> str:
            return naming.run_collection(instrument, name, day, configuration_id, number)

        return Collection(configuration_id=configuration_id, content=content, name=name_of)


def _named(formats: Mapping[str, Format], stage: Stage) -> dict[str, Format]:
    kinds = {kind for step in stage.steps for kind in [*step.inputs.values(), *step.outputs.values()]}
    return {kind: formats[kind] for kind in sorted(kinds)}
