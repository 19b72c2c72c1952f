"""Runs one step inside the payload process: its environment, its log, its outputs."""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from p3s_prefect.adapters.pilot import formats
from p3s_prefect.adapters.pilot.descendants import end_descendants
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import P3sError, PayloadFailed
from p3s_prefect.core.experiment import Format, Step
from p3s_prefect.core.payload import PRODUCTS_FILE, RESERVED_OUTPUTS, SUMMARY_FILE, environment_name


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """One input: a file, or for a stage per group a directory with one file for each unit."""

    path: Path
    format: Format
    members: tuple[tuple[DataId, Path], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """One output: where it goes, and its format."""

    path: Path
    format: Format


@dataclass(frozen=True, kw_only=True)
class StepCall:
    """Everything that a step needs; it crosses the border to the payload process."""

    step: Step
    data_id: DataId
    coverage: Mapping[str, int]
    inputs: Mapping[str, StepInput]
    outputs: Mapping[str, StepOutput]
    directory: Path
    log: Path
    weights: Mapping[str, Mapping[DataId, float]] = field(default_factory=dict)
    """By the name of each input that is gathered."""
    weights_file: Path | None = None
    """The same as JSON; None for a unit."""


def serve(descriptor: int) -> None:
    """The payload process's life: runs one step after the other, until the pilot closes the connection."""
    connection = Connection(descriptor)
    warm(connection.recv())
    connection.send(True)
    while True:
        try:
            call = connection.recv()
        except EOFError:
            return
        connection.send(execute(call))


def warm(modules: tuple[str, ...]) -> None:
    """Imports payload modules before they are needed; one that fails will say so when it is run."""
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException:
            traceback.print_exc()


def execute(call: StepCall) -> str:
    """Runs a step; the answer is empty if it went well, and otherwise says in a line what went wrong."""
    with _as_before(), _logged(call.log):
        os.chdir(call.directory)
        try:
            _run_python(call) if call.step.python else _run_command(call)
        except P3sError as error:
            print(error, file=sys.stderr)  # noqa: T201 -- this is the step's log
            return error.what
        except BaseException as error:
            traceback.print_exc()
            return _line(error)
        finally:
            end_descendants()
        return ""


def _run_python(call: StepCall) -> None:
    module, _, name = str(call.step.python).partition(":")
    function = getattr(importlib.import_module(module), name)
    arguments = {name: _value(found) for name, found in call.inputs.items()} | call.step.params
    wanted = inspect.signature(function).parameters
    told = {"unit": call.data_id, "coverage": dict(call.coverage), "weights": dict(call.weights)}
    arguments |= {name: value for name, value in told.items() if name in wanted}
    payload = os.getpid()
    try:
        returned = function(**arguments)
    finally:
        if os.getpid() != payload:
            # It forked, and its child came back here: it must not answer, nor take the next unit's step, beside us.
            os._exit(0)
    _write_returned(call, {} if returned is None else dict(returned))


def _value(found: StepInput) -> Any:
    if found.members is None:
        return formats.read(found.path, found.format)
    return {data_id: formats.read(path, found.format) for data_id, path in found.members}


def _write_returned(call: StepCall, returned: dict[str, Any]) -> None:
    for reserved, file in zip(RESERVED_OUTPUTS, (SUMMARY_FILE, PRODUCTS_FILE), strict=True):
        if reserved in returned:
            formats.write(returned.pop(reserved), call.directory / file, Format.JSON, name=reserved)
    unknown = sorted(set(returned) - set(call.outputs))
    if unknown:
        raise PayloadFailed(
            f"it returned {', '.join(unknown)}, which the step does not declare", fix="Declare it under `outputs`."
        )
    for name, value in returned.items():
        formats.write(value, call.outputs[name].path, call.outputs[name].format, name=name)


def _run_command(call: StepCall) -> None:
    # Our own settings, such as a token, are none of the payload's business.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("P3S_")}
    environment |= step_environment(call)
    command = list(call.step.command or ())
    try:
        ended = subprocess.run(  # noqa: S603 -- running the experiment's programs is what a pilot is for
            command, env=environment, stdin=subprocess.DEVNULL, check=False
        )
    except OSError as error:
        raise PayloadFailed(
            f"{command[0]} cannot be run: {error.strerror}", fix="Give its full path, and make it executable."
        ) from error
    if ended.returncode < 0:
        raise PayloadFailed(f"{command[0]} was ended by {signal_name(-ended.returncode)}", fix="See its log.")
    if ended.returncode:
        raise PayloadFailed(f"{command[0]} exited with {ended.returncode}", fix="See its log.")


def step_environment(call: StepCall) -> dict[str, str]:
    """What a command finds in its environment, besides what the pilot has there; see `core.payload`."""
    environment = {f"P3S_INPUT_{environment_name(name)}": str(found.path) for name, found in call.inputs.items()}
    environment |= {f"P3S_OUTPUT_{environment_name(name)}": str(out.path) for name, out in call.outputs.items()}
    environment |= {"P3S_UNIT": str(call.data_id), "P3S_PARAMS": json.dumps(call.step.params)}
    if call.coverage:
        environment["P3S_COVERAGE"] = json.dumps(dict(call.coverage))
    if call.weights_file is not None:
        environment["P3S_WEIGHTS"] = str(call.weights_file)
    return environment


def exit_code(complaint: str) -> int:
    """The exit code that a shell would see for a step with this complaint: its command's own where it had one."""
    exited = re.search(r" exited with (\d+)$", complaint)
    return int(exited[1]) if exited else int(bool(complaint))


def signal_name(number: int) -> str:
    """The name of a signal; real-time signals have numbers only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _line(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:
        # Its own text is code of the payload too.
        return type(error).__name__


@contextmanager
def _as_before() -> Iterator[None]:
    """What a payload changes for its whole process is undone: the next unit's step must not see it."""
    directory, environment, signals = Path.cwd(), dict(os.environ), _handlers()
    try:
        yield
    finally:
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        signal.alarm(0)
        for number, handler in signals.items():
            signal.signal(number, handler)


def _handlers() -> dict[signal.Signals, Any]:
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}


@contextmanager
def _logged(log: Path) -> Iterator[None]:
    """Everything that is written to standard output and error goes to the log, from native code and children too."""
    streams = sys.stdout, sys.stderr
    _flush(*streams)
    saved = os.dup(1), os.dup(2)
    with log.open("ab", buffering=0) as target:
        os.dup2(target.fileno(), 1)
        os.dup2(target.fileno(), 2)
    # New ones for each step: a payload may close them, and what it prints need not be UTF-8.
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        for number in (1, 2)
    )
    try:
        yield
    finally:
        _flush(sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = streams
        for descriptor, number in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _flush(*streams: Any) -> None:
    for stream in streams:
        with suppress(Exception):
            stream.flush()
    # The C library has a buffer of its own, in which what native code prints would wait for the next step's log.
    ctypes.CDLL(None).fflush(None)
