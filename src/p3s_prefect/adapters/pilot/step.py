"""Runs one step inside the payload process: its environment, its log, its outputs."""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from p3s_prefect.adapters.pilot import formats
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import P3sError, PayloadFailed
from p3s_prefect.core.experiment import Format, Step
from p3s_prefect.core.payload import PRODUCTS_FILE, RESERVED_OUTPUTS, SUMMARY_FILE

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


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
    inputs: Mapping[str, StepInput]
    outputs: Mapping[str, StepOutput]
    directory: Path
    log: Path


def become_payload_process() -> None:
    """Sets this process up: it dies with its pilot, and what its payloads leave behind stays its child."""
    os.setsid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def warm(modules: tuple[str, ...]) -> None:
    """Imports payload modules before they are needed; one that fails will say so when it is run."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:
            traceback.print_exc()


def execute(call: StepCall) -> str:
    """Runs a step; the answer is empty if it went well, and otherwise says in a line what went wrong."""
    try:
        with _inside(call.directory), _logged(call.log):
            try:
                _run_python(call) if call.step.python else _run_command(call)
            except P3sError as error:
                print(error, file=sys.stderr)  # noqa: T201 -- this is the step's log
                return error.what
            except BaseException as error:
                traceback.print_exc()
                return f"{type(error).__name__}: {error}"[:500]
            return ""
    finally:
        _end_children()


def _run_python(call: StepCall) -> None:
    module, _, name = str(call.step.python).partition(":")
    function = getattr(importlib.import_module(module), name)
    arguments = {name: _value(found) for name, found in call.inputs.items()} | call.step.params
    if "unit" in inspect.signature(function).parameters:
        arguments["unit"] = call.data_id
    returned = function(**arguments)
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
    environment |= {f"P3S_INPUT_{_variable(name)}": str(found.path) for name, found in call.inputs.items()}
    environment |= {f"P3S_OUTPUT_{_variable(name)}": str(out.path) for name, out in call.outputs.items()}
    environment |= {"P3S_UNIT": str(call.data_id), "P3S_PARAMS": json.dumps(call.step.params)}
    command = list(call.step.command or ())
    try:
        # The payload process has one thread, so running code between fork and exec is safe.
        ended = subprocess.run(  # noqa: S603 -- running the experiment's programs is what a pilot is for
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
            preexec_fn=_die_with_parent,
        )
    except OSError as error:
        raise PayloadFailed(
            f"{command[0]} cannot be run: {error.strerror}", fix="Give its full path, and make it executable."
        ) from error
    if ended.returncode < 0:
        raise PayloadFailed(f"{command[0]} was ended by {signal.Signals(-ended.returncode).name}", fix="See its log.")
    if ended.returncode:
        raise PayloadFailed(f"{command[0]} exited with {ended.returncode}", fix="See its log.")


def _variable(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).upper()


@contextmanager
def _inside(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _logged(log: Path) -> Iterator[None]:
    """Everything that is written to standard output and error goes to the log, from native code and children too."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab", buffering=0) as target:
        os.dup2(target.fileno(), 1)
        os.dup2(target.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _end_children() -> None:
    """Ends what a payload has left running; as this process is their reaper, all of them are its descendants."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=5)


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
