"""Experiments, arrivals, manifests and orders in a line each; what is not said is harmless."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from p3s_prefect.adapters.ledger import arrivals, execution, schema
from p3s_prefect.adapters.ledger.arrivals import Collection, Intake, Taken
from p3s_prefect.adapters.ledger.execution import Attempt
from p3s_prefect.core.admission import admit_unit
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Format, Pipeline, Stage, Step
from p3s_prefect.core.naming import content_id
from p3s_prefect.core.payload import Product, SummaryValue
from p3s_prefect.core.records import (
    Arrival,
    Identity,
    InputFile,
    Lineage,
    Manifest,
    OutputObject,
    ProductObject,
    PublishedObject,
    StageOrder,
    StepTime,
)

NOW = 1_800_000_000.0
"""15 January 2027, 08:00 UTC."""
DAY = date(2027, 1, 15)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def kill_at_random(work: Callable[[Callable[[], None]], None], chance: random.Random, *, within_s: float) -> None:
    """Runs work in a process of its own and ends it with kill -9, at a random moment after it has begun."""
    begun, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(lambda: _tell(told))
        finally:
            os._exit(1)
    os.close(told)
    os.read(begun, 1)
    os.close(begun)
    time.sleep(chance.uniform(0, within_s))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended by itself"


def _tell(descriptor: int) -> None:
    os.write(descriptor, b".")


# --- experiment -----------------------------------------------------------------------------------------------------


def command(*words: object, name: str = "work", **fields: Any) -> Step:
    return Step(name=name, command=[str(word) for word in words], **fields)


def python(function: str, *, name: str = "work", **fields: Any) -> Step:
    return Step(name=name, python=f"payloads:{function}", **fields)


def pipeline(after: Mapping[str, list[str]], *, per_group: Iterable[str] = ()) -> Pipeline:
    """Stages by name with those that they come after; each reads `raw` and makes a dataset of its own name."""
    groups = set(per_group)
    return Pipeline(
        stages={
            name: Stage(
                steps=[command("true", inputs={"raw": "raw"}, outputs={"made": name})],
                after=parents,
                per="group" if name in groups else "unit",
            )
            for name, parents in after.items()
        }
    )


QUICK = pipeline({"quick": []})


def collections(*names: str) -> dict[str, Collection]:
    def of(name: str) -> Collection:
        def name_of(day: date, number: int) -> str:
            return f"test/{name}/{day:%Y%m%d}/c0ffee" + (f"/pass{number}" if number else "")

        content = {"pipeline": {"name": name, "stages": {}}}
        return Collection(configuration_id=content_id(content), content=content, name=name_of)

    return {name: of(name) for name in names}


def intake(data_id: DataId, pipelines: Mapping[str, Pipeline], *, group: DataId | None = None) -> Intake:
    admissions = tuple(admit_unit(name, found, u=0.25, first_q=1.0) for name, found in pipelines.items())
    return Intake(group=group or data_id.subset(["run"]), day=DAY, admissions=admissions)


# --- arrivals -------------------------------------------------------------------------------------------------------


def arrival(
    subrun: int,
    *,
    run: int = 1,
    key: str | None = None,
    content: bytes = b"raw",
    mtime_ns: int = int(NOW * 1e9),
    at: float = NOW,
    checksum: str | None = None,
) -> Arrival:
    name = key or f"run{run:05d}_{subrun:04d}.fits"
    return Arrival(
        stream="raw",
        dataset_type="raw",
        path=f"/watched/{name}",
        identity=Identity(key=name, size=len(content), mtime_ns=mtime_ns),
        data_id=DataId.of(run=run, subrun=subrun),
        arrived_at=at,
        sha256=checksum,
    )


def take(connection: Connection, seen: Arrival, pipelines: Mapping[str, Pipeline] | None = None, **rest: Any) -> Taken:
    found = {"dqm": QUICK} if pipelines is None else pipelines
    return arrivals.take(connection, seen, intake(seen.data_id, found), collections("dqm", *found), **rest)


def take_and_start(connection: Connection, subrun: int = 0, **fields: Any) -> Attempt:
    """A unit with one queued stage, whose first attempt runs."""
    taken = take(connection, arrival(subrun, **fields))
    return execution.start(connection, taken.sub_jobs[0].stages[0].id, NOW)


def manifest(
    attempt: Attempt, *, made: Iterable[str] = ("quick",), run_id: str = "e1", read: bytes = b"raw", **fields: Any
) -> Manifest:
    """What an execution of this attempt would leave, with something of everything in it."""
    prefix = f"{attempt.prefix}/{run_id}"
    values: dict[str, Any] = {
        "attempt_id": attempt.id,
        "execution": run_id,
        "collection": attempt.collection,
        "data_id": str(attempt.data_id),
        "stage": attempt.stage,
        "outputs": [
            OutputObject(key=f"{prefix}/{name}", size=3, sha256=sha256(b"out"), dataset_type=name, format=Format.JSON)
            for name in made
        ],
        "products": [
            ProductObject(
                key=f"{prefix}/a.png",
                size=3,
                sha256=sha256(b"png"),
                step="work",
                product=Product(category="camera", title="Noise", file="a.png"),
            )
        ],
        "summary": {"noise": SummaryValue(value=4.2, unit="ADC"), "label": SummaryValue(value="good")},
        "lineage": [Lineage(dataset_type="raw", data_id=str(attempt.data_id), sha256=sha256(read))],
        "coverage": {},
        "steps": [StepTime(step="work", started_at=NOW, ended_at=NOW + 1)],
        "log": PublishedObject(key=f"{prefix}/log.txt", size=3, sha256=sha256(b"log")),
        "pilot": "here:1",
        "started_at": NOW,
        "ended_at": NOW + 1,
    }
    return Manifest(**values | fields)


def contents(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that stands in the ledger."""
    return {
        table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
        for table in schema.metadata.sorted_tables
    }


# --- orders ---------------------------------------------------------------------------------------------------------


def raw_file(path: Path, *, data_id: DataId | None = None, **fields: Any) -> InputFile:
    stat = path.lstat()
    values: dict[str, Any] = {
        "dataset_type": "raw",
        "format": Format.TEXT,
        "data_id": data_id or DataId.of(run=1, subrun=3),
        "path": str(path),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }
    return InputFile(**values | fields)


def order(store_url: str, *steps: Step, inputs: Iterable[InputFile] = (), **fields: Any) -> StageOrder:
    """An order of these steps. A dataset type is a text, unless its name begins with that of another format."""
    kinds = {kind for step in steps for kind in [*step.inputs.values(), *step.outputs.values()]} | {"raw"}
    values: dict[str, Any] = {
        "attempt_id": 1,
        "stage_run_id": 1,
        "data_id": DataId.of(run=1, subrun=3),
        "per": "unit",
        "pipeline": "dqm",
        "stage": "quick",
        "collection": "test/dqm/20270115/c0ffee",
        "prefix": "runs/test/run=1/subrun=3/quick/attempt0",
        "steps": steps,
        "formats": {kind: _format(kind) for kind in kinds},
        "inputs": tuple(inputs),
        "store_url": store_url,
        "coverage": {},
    }
    return StageOrder(**values | fields)


def _format(kind: str) -> Format:
    return next((form for form in Format if kind.startswith(form.value)), Format.TEXT)
