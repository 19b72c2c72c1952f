"""An experiment file's text as an `Experiment`, or all of its mistakes: file, line, key, what, and the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from p3s_prefect.core.errors import ExperimentFileErrors
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_checks import mistakes
from p3s_prefect.core.findings import Finding
from p3s_prefect.core.yaml_document import YamlDocument, read_yaml
from p3s_prefect.core.yaml_model import validated

Check = Callable[[Experiment], Iterable[Finding]]
Edit = Callable[[YamlDocument], None]

_NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})

_EXAMPLES = {
    "rolls_at": "Write a time of day in quotes, such as '12:00'.",
    "python": "Write package.module:function.",
    "suffix": "Write an ending such as .ok.",
    "url": "Write sqlite:///ledger.db, or postgresql+psycopg://USER@HOST/NAME.",
}


def parse_experiment(
    text: str,
    *,
    file: str,
    environment: Mapping[str, str] = _NO_ENVIRONMENT,
    edit: Edit | None = None,
    also: Iterable[Check] = (),
) -> Experiment:
    """The experiment that `text` declares.

    Args:
        text: the content of the file.
        file: its name, for messages.
        environment: what ``${NAME}`` and ``${NAME:-default}`` in its texts are filled in from.
        edit: changes the values that were read, before anything is checked; see `experiment_changes`.
        also: checks beyond those of `experiment_checks.mistakes`, such as ones that need the disk.

    Raises:
        ExperimentFileErrors: with every mistake that could be found. References between the parts are looked at once
            each part is right by itself.
    """
    document = read_yaml(text, file=file, environment=environment)
    if edit is not None:
        edit(document)
    experiment = validated(document, Experiment, examples=_EXAMPLES)
    if experiment is not None:
        for check in (mistakes, *also):
            for finding in check(experiment):
                document.mistake(finding.where, finding.what, finding.fix)
    if experiment is None or document.mistakes:
        raise ExperimentFileErrors(document.mistakes)
    return experiment
