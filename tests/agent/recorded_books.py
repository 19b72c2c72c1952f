"""A home whose ledger says what a test makes it say, with the journal that a station would have written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger_rows import T0, Rows, StoredBytes
from sqlalchemy import delete, update

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.pass_facts import PassFacts
from p3s_prefect.adapters.ledger.projection import read_pass, touched
from p3s_prefect.agent.prefect_record import PrefectRecord
from p3s_prefect.agent.projector import Projector
from p3s_prefect.agent.server import PrefectServer

STAGES = {"quick": {}, "later": {"after": ["quick"]}, "total": {"per": "group", "after": ["later"]}}
_STEP = {"name": "work", "command": ["/bin/true"]}


@dataclass
class Unit:
    """A sub-job with its stage runs by name."""

    id: int
    data_id: str
    runs: dict[str, int]


class Books:
    """One pass of a pipeline `dqm` with the stages quick, later and, for the group, total."""

    def __init__(self, path: Path, experiment: str) -> None:
        self.name = experiment
        self.store = StoredBytes()
        self.home = Home(path)
        path.mkdir(parents=True)
        self.declare()
        self.ledger = self.home.ledger(self.home.read())
        self.ledger.migrate()
        with self.writing() as rows:
            content = {"pipeline": {"stages": STAGES}}
            rows.connection.execute(schema.configuration.insert().values(id="c" * 64, content=content, stored_at=T0))
            self.group_id = rows.group("run=1")
            self.pass_id = rows.production_pass(self.group_id, "dqm")

    def declare(self, **prefect: Any) -> None:
        """Writes the experiment file."""
        declared = {
            "experiment": self.name,
            "instrument": {"name": "TestCam", "dimensions": {"run": "int", "subrun": "int"}, "group": ["run"]},
            "dataset_types": {"raw": {"format": "text"}},
            "pipelines": {"dqm": {"stages": {name: {"steps": [_STEP], **stage} for name, stage in STAGES.items()}}},
            "streams": {
                "camera": {
                    "directory": "incoming",
                    "pattern": "r{run:03d}_{subrun:04d}.txt",
                    "dataset_type": "raw",
                    "rules": [{"pipelines": ["dqm"]}],
                }
            },
            "prefect": prefect,
        }
        self.home.experiment_file.write_text(json.dumps(declared))

    def close(self) -> None:
        self.ledger.close()

    @contextmanager
    def writing(self) -> Iterator[Rows]:
        with self.ledger.transaction() as connection:
            yield Rows(connection, self.store)

    def projector(self, server: PrefectServer) -> Projector:
        experiment = self.home.read()
        record = PrefectRecord(server, self.store, pictures=experiment.prefect.pictures)
        return Projector(experiment, self.ledger, record, SystemClock())

    def facts(self, *, most_units: int = 64) -> PassFacts:
        """The pass, with everything touched."""
        with self.ledger.reading() as connection:
            found = touched(connection, 0, 100_000)
            assert found is not None
            return read_pass(
                connection,
                self.pass_id,
                most_units=most_units,
                touched=found.passes[self.pass_id],
                changed_at=found.changed_at,
            )

    # --- what happens ---

    def unit(
        self, rows: Rows, subrun: int, states: Mapping[str, str], *, reasons: Mapping[str, str] | None = None
    ) -> Unit:
        """A unit arrives, and its stages stand as `states` says; those that are done or failed had one attempt."""
        at = T0 + subrun
        data_id = f"run=1 subrun={subrun}"
        tell(rows, at + 0.25, "arrival.taken", data_id)
        return self._sub_job(rows, data_id, "unit", at, states, dict(reasons or {}))

    def close_group(self, rows: Rows, states: Mapping[str, str], *, at: float = T0 + 500) -> Unit:
        """The group closes, and its own stage stands as `states` says."""
        rows.connection.execute(update(schema.data_group).values(is_open=False, closed_by="marker"))
        rows.connection.execute(update(schema.production_pass).values(is_open=False))
        tell(rows, at + 0.25, "group.closed", "run=1")
        return self._sub_job(rows, "run=1", "group", at, states, {})

    def _sub_job(
        self, rows: Rows, data_id: str, per: str, at: float, states: Mapping[str, str], reasons: dict[str, str]
    ) -> Unit:
        open_states = {"waiting", "queued", "running", "held"}
        whole = "arrived" if open_states & set(states.values()) else _worst(list(states.values()))
        sub_job_id = rows.unit(self.pass_id, data_id, per=per, at=at, state=whole)
        runs = {}
        for position, (stage, state) in enumerate(states.items(), list(STAGES).index(next(iter(states)))):
            reason = reasons.get(stage, "")
            run = rows.stage(sub_job_id, stage, state=state, reason=reason, position=position, at=at + position)
            runs[stage] = run
            if state in ("done", "failed", "running"):
                rows.attempt(run, state=state, reason=reason, at=at + position)
            if state not in ("waiting",):
                tell(rows, at + position + 3, f"stage.{state}", data_id, stage=stage, stage_run=run)
        return Unit(sub_job_id, data_id, runs)


def tell(rows: Rows, at: float, kind: str, subject: str, **detail: Any) -> None:
    """A line of the journal."""
    rows.add(schema.journal, at=at, kind=kind, subject=subject, detail=detail)


def _worst(states: Sequence[str]) -> str:
    return next((state for state in states if state not in ("done", "prescaled")), "done")


def retry(rows: Rows, unit: Unit, stage: str, *, at: float, failures: int = 1) -> None:
    """A stage run that failed is queued again."""
    run = unit.runs[stage]
    rows.connection.execute(
        update(schema.stage_run)
        .where(schema.stage_run.c.id == run)
        .values(state="queued", queued_at=at, settled_at=None, failures=failures)
    )
    rows.connection.execute(
        update(schema.sub_job).where(schema.sub_job.c.id == unit.id).values(state="arrived", settled_at=None)
    )
    tell(rows, at, "stage.queued", unit.data_id, stage=stage, stage_run=run)


def lose(rows: Rows, unit: Unit, stage: str, *, at: float, times: int) -> None:
    """A stage run is lost with its pilot so often; after that it is given to none, and its unit has failed."""
    run = unit.runs[stage]
    rows.connection.execute(delete(schema.attempt).where(schema.attempt.c.stage_run_id == run))
    for number in range(times):
        rows.attempt(run, state="lost", reason="its pilot is gone", at=at + 3 * number, number=number)
    settled_at = at + 3 * times
    rows.connection.execute(
        update(schema.stage_run)
        .where(schema.stage_run.c.id == run)
        .values(state="failed", settled_at=settled_at, reason="its pilot is gone", failures=0, losses=times)
    )
    rows.connection.execute(
        update(schema.sub_job).where(schema.sub_job.c.id == unit.id).values(state="failed", settled_at=settled_at)
    )
    tell(rows, settled_at, "stage.failed", unit.data_id, stage=stage, stage_run=run)


def finish(rows: Rows, unit: Unit, stage: str, *, at: float, number: int) -> None:
    """The next attempt of a stage run is done, and with it its unit."""
    run = unit.runs[stage]
    rows.attempt(run, at=at, number=number)
    rows.connection.execute(
        update(schema.stage_run).where(schema.stage_run.c.id == run).values(state="done", settled_at=at + 3, reason="")
    )
    rows.connection.execute(
        update(schema.sub_job).where(schema.sub_job.c.id == unit.id).values(state="done", settled_at=at + 3)
    )
    tell(rows, at + 3, "stage.done", unit.data_id, stage=stage, stage_run=run)
