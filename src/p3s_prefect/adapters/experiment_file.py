"""Reads an experiment file from disk, and looks whether its Python payloads are there."""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from p3s_prefect.core.errors import ExperimentFileError, ExperimentFileErrors
from p3s_prefect.core.experiment import Experiment, Step
from p3s_prefect.core.experiment_file import Check, Edit, parse_experiment
from p3s_prefect.core.findings import Finding
from p3s_prefect.core.yaml_document import MAX_BYTES

_NO_HOME = "Give another path, or the experiment's `--home DIRECTORY` (or P3S_HOME); `p3s init` writes a starter."


def read_experiment(
    path: Path,
    *,
    environment: Mapping[str, str] | None = None,
    edit: Edit | None = None,
    also: Iterable[Check] = (),
) -> Experiment:
    """The experiment that the file declares; `environment` defaults to that of the process. See `parse_experiment`.

    Raises:
        ExperimentFileErrors: the file cannot be read, or holds mistakes (all of them are in the exception).
    """
    environment = os.environ if environment is None else environment
    text = read_experiment_text(path)
    return parse_experiment(text, file=str(path), environment=environment, edit=edit, also=also)


def read_experiment_text(path: Path) -> str:
    """The text of an experiment file; raises as `read_text`."""
    return read_text(path, if_missing=_NO_HOME)


def payload_mistakes(experiment: Experiment) -> Iterator[Finding]:
    """Payloads that cannot be run here: Python that cannot be imported or does not fit its step, absent programs.

    Imports the payloads' modules, and so runs what these do when imported.
    """
    for pipeline_name, pipeline in experiment.pipelines.items():
        for stage_name, stage in pipeline.stages.items():
            for index, step in enumerate(stage.steps):
                if step.python is not None and (wrong := _payload_mistake(step.python, step)):
                    where = ("pipelines", pipeline_name, "stages", stage_name, "steps", index, "python")
                    yield Finding(where=where, what=wrong[0], fix=wrong[1])
                if step.command is not None and (wrong := _program_mistake(step.command[0])):
                    where = ("pipelines", pipeline_name, "stages", stage_name, "steps", index, "command")
                    yield Finding(where=where, what=wrong[0], fix=wrong[1])


def _program_mistake(program: str) -> tuple[str, str] | None:
    path = Path(program)
    # A path such as ./fit begins at the step's working directory, where an earlier step may put it.
    if shutil.which(program) or (os.sep in program and not path.is_absolute()):
        return None
    if path.is_absolute() and path.is_file():
        return f"the program {program} is not executable", "Make it executable with `chmod +x`, or name another one."
    place = "" if path.is_absolute() else " in any directory of PATH"
    return f"there is no program {program}{place}", "Correct its name, or install it where `p3s` and the pilots run."


def _payload_mistake(python: str, step: Step) -> tuple[str, str] | None:
    module_name, _, function_name = python.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the module's own code may raise anything
        return (
            f"{module_name} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}",
            "Install the package that holds it where `p3s` and the pilots run, or correct its name.",
        )
    function = getattr(module, function_name, None)
    if not callable(function):
        return f"{module_name} has no function {function_name}", "Correct the name after the colon."
    try:
        signature = inspect.signature(function)
        told = [name for name in ("unit", "coverage", "weights") if name in signature.parameters]
        signature.bind(**dict.fromkeys([*step.inputs, *step.params, *told]))
    except (TypeError, ValueError) as error:
        fix = "Its parameters are the step's inputs and params, by name, and `unit`, `coverage`, `weights` if it wants."
        return f"{python} does not take what the step hands over: {error}", fix
    return None


def read_text(path: Path, *, if_missing: str = "Give the path of a file that is there.") -> str:
    """The text of a YAML file; `if_missing` is what to do where there is none.

    Raises:
        ExperimentFileErrors: it is not there, too long, not UTF-8, or may not be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _unreadable(path, f"longer than {MAX_BYTES // 1024} kB", "Is this the file that was meant?")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, "the file is not UTF-8 text", "Save it as UTF-8.", line) from error
    except FileNotFoundError as error:
        raise _unreadable(path, "there is no such file", if_missing) from error
    except (OSError, ValueError) as error:
        raise _unreadable(
            path, f"the file cannot be read: {error}", "Give the path of a file that you may read."
        ) from error


def _unreadable(path: Path, what: str, fix: str, line: int = 0) -> ExperimentFileErrors:
    return ExperimentFileErrors([ExperimentFileError(what, file=str(path), line=line, fix=fix)])
