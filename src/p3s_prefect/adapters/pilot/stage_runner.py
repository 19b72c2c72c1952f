"""Runs one attempt of a stage: inputs, steps, outputs, manifest; the same on a pilot, on the plain road and by hand."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path
from threading import Lock
from typing import Protocol

from p3s_prefect.adapters.buffer_leases import LocalLeases
from p3s_prefect.adapters.buffer_reader import BufferReader
from p3s_prefect.adapters.pilot.execution import DeadlinePassed, Execution, Stopped, suffix
from p3s_prefect.adapters.pilot.inputs import confirm, gather
from p3s_prefect.adapters.pilot.local_cache import LocalCache
from p3s_prefect.adapters.pilot.outputs import collect, store_log, store_output
from p3s_prefect.adapters.pilot.payload_process import PayloadProcess, PayloadProcesses
from p3s_prefect.adapters.pilot.step import StepCall, StepInput, StepOutput
from p3s_prefect.adapters.pilot.waiting_outputs import About, OutputStore, WaitingOutputs, waiting_root
from p3s_prefect.adapters.stores import is_known_away, is_local, open_store
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import (
    ChecksumMismatch,
    InputChanged,
    InputMissing,
    ObjectMissing,
    P3sError,
    PayloadError,
    PayloadFailed,
    PayloadTimeout,
    StoreDisturbed,
    StoreUnreachable,
)
from p3s_prefect.core.experiment import Step
from p3s_prefect.core.ports import BufferLeases, ObjectStore
from p3s_prefect.core.records import (
    CacheUse,
    Failure,
    Manifest,
    PublishedObject,
    StageOrder,
    StageReport,
    StepTime,
)


class Observer(Protocol):
    """Who wants to know where a stage is; `p3s try` prints it."""

    def step_begins(self, call: StepCall) -> None:
        """A step is about to run."""
        ...


class StageRunner:
    """Runs orders below a scratch directory; with `keep`, what they leave there is not removed.

    Without `leases`, this process is the only one that reads the online buffer.
    """

    def __init__(
        self,
        processes: PayloadProcesses,
        scratch: Path,
        *,
        pilot: str = "",
        observer: Observer | None = None,
        leases: BufferLeases | None = None,
        keep: bool = False,
    ) -> None:
        self._processes = processes
        self._scratch = scratch
        self._pilot = pilot or platform.node()
        self._observer = observer
        self._leases = LocalLeases() if leases is None else leases
        self._at_buffer_at: float | None = None
        self._keep = keep
        # By their own ids: an attempt may be executed twice, even at the same time.
        self._executions: dict[str, Execution] = {}
        self._lock = Lock()

    def run(self, order: StageOrder) -> StageReport:
        """Runs an order; whatever goes wrong stands in the report."""
        buffer = BufferReader(self._leases, lambda: self._at_buffer(execution))
        execution = Execution(order=order, scratch=self._scratch, buffer=buffer, cache=_local_cache(order))
        self._executions[execution.id] = execution
        try:
            return self._attempt(execution)
        finally:
            del self._executions[execution.id]
            if execution.cache is not None:
                execution.cache.close()
            if not self._keep:
                shutil.rmtree(execution.directory, ignore_errors=True)

    def running(self) -> list[int]:
        """The attempts that run here now."""
        return [execution.order.attempt_id for execution in list(self._executions.values())]

    def buffer_quiet_s(self) -> float:
        """How long no attempt here has waited for the online buffer, or read it; infinite if none ever has."""
        return inf if self._at_buffer_at is None else time.monotonic() - self._at_buffer_at

    def stop(self, attempt_id: int) -> bool:
        """Kills an attempt's payload; False if the attempt is not running here."""
        found = [one for one in list(self._executions.values()) if one.order.attempt_id == attempt_id]
        for execution in found:
            # Under the lock, as the process is somebody else's once this stage has given it back.
            with self._lock:
                execution.stopped = True
                if execution.process is not None:
                    execution.process.kill()
        return bool(found)

    # --- inside -------------------------------------------------------------------------------------------------

    def _at_buffer(self, execution: Execution) -> None:
        self._at_buffer_at = time.monotonic()
        if execution.stopped:
            raise Stopped("it was stopped")
        if execution.now() >= (execution.order.stop_at or inf):
            raise DeadlinePassed("the deadline passed while it read from the online buffer")

    def _attempt(self, execution: Execution) -> StageReport:
        try:
            store = open_store(execution.order.store_url)
            execution.directory.mkdir(parents=True)
        except (P3sError, OSError) as error:
            return self._report(execution, failure=Failure.STORE, reason=_reason(error))
        with closing(_output_store(execution, store)) as outputs:
            try:
                manifest = self._produce(execution, store, outputs)
            except Exception as error:
                return self._failure(execution, outputs, error)
            return self._report(execution, manifest=manifest, waits=outputs.waits, log=manifest.log)

    def _report(
        self,
        execution: Execution,
        *,
        manifest: Manifest | None = None,
        waits: bool = False,
        failure: Failure | None = None,
        reason: str = "",
        log: PublishedObject | None = None,
    ) -> StageReport:
        return StageReport(
            attempt_id=execution.order.attempt_id,
            stage_run_id=execution.order.stage_run_id,
            execution=execution.id,
            pilot=self._pilot,
            started_at=execution.started_at,
            ended_at=execution.now(),
            manifest=manifest,
            waits=waits,
            failure=failure,
            reason=reason,
            log=log,
            steps=tuple(execution.steps),
            cache=execution.cache.use if execution.cache is not None else CacheUse(),
            buffer=execution.buffer.use,
        )

    def _produce(self, execution: Execution, store: ObjectStore, outputs: OutputStore) -> Manifest:
        execution.files = gather(execution, store)
        with self._processes.borrow() as process, self._stoppable(execution, process):
            for step in execution.order.steps:
                self._run_step(execution, outputs, step, process)
        confirm(execution)
        manifest = Manifest(
            attempt_id=execution.order.attempt_id,
            execution=execution.id,
            collection=execution.order.collection,
            data_id=str(execution.order.data_id),
            stage=execution.order.stage,
            outputs=[store_output(execution, outputs, *output) for output in execution.outputs],
            products=execution.products,
            summary=execution.summary,
            lineage=execution.lineage,
            coverage=dict(execution.order.coverage),
            steps=execution.steps,
            log=store_log(execution, outputs),
            pilot=self._pilot,
            started_at=execution.started_at,
            ended_at=execution.now(),
        )
        outputs.put_bytes(f"{execution.prefix}/manifest.json", manifest.model_dump_json().encode())
        outputs.complete()
        return manifest

    @contextmanager
    def _stoppable(self, execution: Execution, process: PayloadProcess) -> Iterator[None]:
        execution.process = process
        try:
            yield
        finally:
            with self._lock:
                execution.process = None

    def _run_step(self, execution: Execution, outputs: OutputStore, step: Step, process: PayloadProcess) -> None:
        call = _call(execution, step)
        if execution.stopped:
            raise Stopped("it was stopped")
        if self._observer is not None:
            self._observer.step_begins(call)
        begun = execution.now()
        left_s = (execution.order.stop_at or inf) - begun
        if left_s <= 0:
            raise DeadlinePassed(f"step {step.name} was not begun, as the deadline had passed")
        try:
            complaint = process.run(call, min(step.timeout_s, left_s))
        except PayloadTimeout as error:
            if left_s < step.timeout_s:
                raise DeadlinePassed(f"step {step.name} was killed at the deadline") from error
            raise
        except PayloadFailed as error:
            if execution.stopped:
                raise Stopped("it was stopped") from error
            raise
        finally:
            execution.steps.append(StepTime(step=step.name, started_at=begun, ended_at=execution.now()))
        if execution.stopped:
            raise Stopped("it was stopped")
        if complaint:
            raise PayloadFailed(f"step {step.name}: {complaint}", fix="See its log.")
        collect(execution, outputs, step, call)

    def _failure(self, execution: Execution, outputs: OutputStore, error: Exception) -> StageReport:
        reason, log = _reason(error), None
        try:
            outputs.empty()
            if (log := store_log(execution, outputs)) is not None:
                outputs.complete()
        except (P3sError, OSError) as lost:
            reason += f" (its log is lost: {_reason(lost)})"
        return self._report(execution, failure=_kind(error), reason=reason, log=log)


def _local_cache(order: StageOrder) -> LocalCache | None:
    if not order.cache_bytes or is_local(order.store_url):
        return None
    root = order.cache_directory or f"{tempfile.gettempdir()}/p3s-cache-{os.getuid()}"
    return LocalCache(Path(root), order.cache_bytes)


def _output_store(execution: Execution, store: ObjectStore) -> OutputStore:
    order = execution.order
    return OutputStore(
        store,
        About(store_url=order.store_url, prefix=order.prefix, execution=execution.id),
        WaitingOutputs(waiting_root(order.waiting_directory)),
        0 if is_local(order.store_url) else order.waiting_bytes,
        is_away=lambda: is_known_away(order.store_url),
    )


def _reason(error: Exception) -> str:
    text = error.what if isinstance(error, P3sError) else str(error) or type(error).__name__
    # It may quote a payload, whose half surrogate pairs no database takes, and PostgreSQL no NUL.
    return text[:2000].encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def _kind(error: Exception) -> Failure:
    match error:
        case Stopped():
            return Failure.STOPPED
        case DeadlinePassed():
            return Failure.DEADLINE
        case PayloadTimeout():
            return Failure.TIMEOUT
        case InputChanged() | InputMissing() | ObjectMissing() | ChecksumMismatch():
            return Failure.INPUT
        case PayloadError():
            return Failure.PAYLOAD
        case StoreDisturbed():
            return Failure.DISTURBED
        case StoreUnreachable():
            return Failure.AWAY
        case _:
            return Failure.STORE


def _call(execution: Execution, step: Step) -> StepCall:
    directory = execution.step_directory(step.name)
    directory.mkdir(parents=True)
    formats = execution.order.formats
    weights = {name: found for name, needed in step.inputs.items() if (found := execution.order.weights.get(needed))}
    return StepCall(
        step=step,
        data_id=execution.order.data_id,
        coverage=execution.order.coverage,
        inputs={name: _found(execution, step, needed) for name, needed in step.inputs.items()},
        outputs={
            name: StepOutput(path=directory / f"{name}{suffix(formats[made])}", format=formats[made])
            for name, made in step.outputs.items()
        },
        directory=directory,
        log=execution.log,
        weights=weights,
        weights_file=_weights_file(execution, step, weights) if execution.order.per == "group" else None,
    )


def _weights_file(execution: Execution, step: Step, weights: Mapping[str, Mapping[DataId, float]]) -> Path:
    # Beside the working directory, where an output might have its name; in the environment a long run has no room.
    path = execution.directory / "weights" / f"{step.name}.json"
    path.parent.mkdir(exist_ok=True)
    named = {name: {str(unit): weight for unit, weight in found.items()} for name, found in weights.items()}
    path.write_text(json.dumps(named))
    return path


def _found(execution: Execution, step: Step, dataset_type: str) -> StepInput:
    if dataset_type not in execution.files:
        raise InputMissing(
            f"step {step.name} reads {dataset_type}, which nothing has made", fix="See why its producers gave none."
        )
    return execution.files[dataset_type]
