"""Changes to an experiment by key, as ``pipelines.dqm.stages.quick.prescale=0.5``, checked like the file itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from p3s_prefect.core.errors import BadName, ExperimentFileErrors
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_file import Edit
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.yaml_document import Where, YamlDocument, dotted, read_yaml
from p3s_prefect.core.yaml_model import type_at

_EXAMPLE = "Write key=value, such as pipelines.dqm.stages.quick.prescale=0.5."
_PART = re.compile(r"([^.\[\]]+)|\[(\d{1,4})\]")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value that takes the place of the one at this key."""

    where: Where
    value: Any

    @classmethod
    def parse(cls, text: str) -> Change:
        """From ``key=value``; the value is YAML, such as ``0.5``, ``freshest-first``, ``[a, b]`` or ``null``.

        Raises:
            BadName: it has no key, or its value cannot be read.
        """
        key, equals, value = text.partition("=")
        where = _where(key.strip())
        if not equals or not where:
            raise BadName(f"{text[:120]!r} changes nothing", fix=_EXAMPLE)
        try:
            document = read_yaml(f"value: {value}", file="the value", environment={})
        except ExperimentFileErrors as errors:
            raise BadName(f"{text[:120]!r}: {errors.message}", fix=_EXAMPLE) from errors
        if document.mistakes or list(document.values) != ["value"]:
            message = document.mistakes[0].message if document.mistakes else "more than one value"
            raise BadName(f"{text[:120]!r}: {message}", fix=_EXAMPLE)
        return cls(where=where, value=document.values["value"])

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else json.dumps(self.value, ensure_ascii=False)
        return f"{dotted(self.where)} = {value}"


def changed(changes: Iterable[Change]) -> Edit:
    """What makes these changes to a document that was read, for `parse_experiment`.

    A name on the way to a key must exist, or be one that can be left out; what is set is looked at with all the rest.
    """

    def edit(document: YamlDocument) -> None:
        for change in changes:
            _apply(change, document)

    return edit


def _where(key: str) -> Where:
    """Keys and list indices; nothing where it is not written as a key."""
    parts = [(found[1], found[2]) for found in _PART.finditer(key)]
    where = tuple(name or int(index) for name, index in parts)
    return where if dotted(where) == key else ()


def _apply(change: Change, document: YamlDocument) -> None:
    place: Any = document.values
    for depth, part in enumerate(change.where[:-1]):
        if not _has(place, part):
            where = change.where[: depth + 1]
            if not isinstance(place, dict) or not _may_be_made(where):
                _unknown(where, place, document)
                return
            place[part] = {}
        place = place[part]
    last = change.where[-1]
    # For messages: what is set stands where it would stand in the file.
    document.lines.setdefault(change.where, document.line(change.where))
    if isinstance(place, dict) and isinstance(last, str):
        place[last] = change.value
    elif isinstance(place, list) and _has(place, last):
        place[int(last)] = change.value
    else:
        _unknown(change.where, place, document)


def _has(place: Any, part: str | int) -> bool:
    if isinstance(place, dict):
        return part in place
    return isinstance(place, list) and isinstance(part, int) and part < len(place)


def _may_be_made(where: Where) -> bool:
    """Whether what is declared at this place may be left out, and so may begin empty."""
    declared = type_at(Experiment, where)
    if not (isinstance(declared, type) and issubclass(declared, BaseModel)):
        return declared is not None and type_at(Experiment, where[:-1]) is not Any
    return not any(field.is_required() for field in declared.model_fields.values())


def _unknown(where: Where, place: Any, document: YamlDocument) -> None:
    if isinstance(place, list):
        document.mistake(where, f"there is no item {where[-1]} in a list of {len(place)}", "Items count from 0.")
        return
    options = list(place) if isinstance(place, dict) else []
    above = type_at(Experiment, where[:-1])
    if isinstance(above, type) and issubclass(above, BaseModel):
        options = list(dict.fromkeys([*options, *above.model_fields]))
    document.mistake(where, "is not a key here", did_you_mean(str(where[-1]), options))
