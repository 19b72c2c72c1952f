"""A synthetic load as it is declared: what arrives in each stream, how long stages take, and what goes wrong.

As YAML, or as the options of `p3s simulate`, which have the same names::

    duration: 1h
    slots: 16
    streams:
      camera: {rate: 5/s, bursts: 10s/20s, units_per_group: 100}
    service: {quick: "lognormal:1.2s,0.5", totals: 3s}
    failures: 0.01
    lose_workers: [4@600s, +4@1200s]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from p3s_prefect.core.errors import BadName, ExperimentFileError, ExperimentFileErrors
from p3s_prefect.core.experiment import Name
from p3s_prefect.core.quantities import Delay, Duration, Rate, seconds
from p3s_prefect.core.service_times import DeclaredTimes
from p3s_prefect.core.yaml_document import Where, YamlDocument, read_yaml
from p3s_prefect.core.yaml_model import validated

DEFAULT_DURATION_S = 3600.0
DEFAULT_UNITS_PER_GROUP = 100
# A night of 1,000 visits with 189 detectors in two stages takes some 45 s and 0.4 GB: ten of them fit in a workstation.
MOST_UNITS = 2_000_000
_CHANGE = re.compile(r"([+-]?)(\d{1,6})@([^@]+)")

_Declared = TypeVar("_Declared", bound=BaseModel)
_LostShare = Annotated[float, Field(ge=0, le=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _pair(text: object) -> tuple[float, float]:
    on, slash, off = text.partition("/") if isinstance(text, str) else ("", "", "")
    try:
        if not slash:
            raise BadName(f"{text!r} is no pair of durations")
        pair = seconds(on), seconds(off)
    except BadName as error:
        raise ValueError(f"{error.what}. Write how long it is on, and how long off, such as 10s/20s.") from error
    if pair[0] <= 0:
        raise ValueError("in bursts of 0 s nothing comes. Write how long it is on, and how long off: 10s/20s.")
    return pair


def _worker_change(text: object) -> WorkerChange:
    found = _CHANGE.fullmatch(text.strip()) if isinstance(text, str) else None
    try:
        if found is None:
            raise BadName(f"{text!r} says no change of workers")
        change = int(found[2]) * (1 if found[1] == "+" else -1)
        return WorkerChange(at_s=seconds(found[3]), change=change)
    except BadName as error:
        raise ValueError(f"{error.what}. Write 4@600s where four are lost, +4@1200s where four come back.") from error


class WorkerChange(_Model):
    """Workers that are lost, or come back."""

    at_s: float
    """When, in seconds after the beginning."""
    change: int
    """By how many; negative where they are lost."""


class StreamLoad(_Model):
    """What arrives in one stream: either at a rate, or in visits."""

    rate: Rate | None = None
    """Mean rate of the units, such as 5/s or 300/min; they come at random (Poisson)."""
    bursts: Annotated[tuple[float, float], BeforeValidator(_pair)] | None = None
    """How long they come and how long they pause, such as 10s/20s; the mean rate stays."""
    units_per_group: Annotated[int, Field(ge=1)] = DEFAULT_UNITS_PER_GROUP
    """A group closes after so many units."""
    visits: Annotated[int, Field(ge=1)] | None = None
    """Number of visits: groups of which all parts come together."""
    parts: Annotated[int, Field(ge=1)] | None = None
    """Units of a visit, one for each part of the detector."""
    every: Duration | None = None
    """Time from one visit to the next."""
    delay: Delay = 0.0
    """Time from the data being taken to their arrival."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        visits = {"visits": self.visits, "parts": self.parts, "every": self.every}
        missing = [name for name, value in visits.items() if value is None]
        if self.rate is None and missing:
            absent = f": {', '.join(missing)} is missing" if len(missing) < len(visits) else ""
            raise ValueError(f"nothing arrives. Give a rate such as 5/s, or visits, parts and every{absent}.")
        if self.rate is not None and len(missing) < len(visits):
            raise ValueError("units come at a rate or in visits, not both. Remove rate, or visits, parts and every.")
        if self.rate is None and self.bursts is not None:
            raise ValueError("visits are bursts already. Remove bursts, or give a rate.")
        return self


class RecordedOptions(_Model):
    """What may be said beside a recorded load."""

    slots: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Slots at the beginning. Default: the experiment's pilots."""
    service: dict[str, DeclaredTimes] = {}
    """How long stages take, by name, ``quick`` or ``pipeline/quick``: 1.2s, exponential:1.2s, gamma:1.2s,0.3,
    lognormal:1.2s,0.5 (mean, and standard deviation of the logarithm), or measured, from the ledger, the default."""
    lose_workers: list[Annotated[WorkerChange, BeforeValidator(_worker_change)]] = []
    """Workers that are lost and come back, in seconds after the beginning: 4@600s, +4@1200s."""


class LoadFile(RecordedOptions):
    """A synthetic load."""

    duration: Duration | None = None
    """How long units arrive. Default: 1h at a rate, else until the last visit."""
    streams: Annotated[dict[Name, StreamLoad], Field(min_length=1)]
    """What arrives, by stream."""
    failures: _LostShare = 0.0
    """Share of the services that fail at their end, at random."""
    part_failures: _LostShare = 0.0
    """Share of the detector parts (values of the last dimension) whose data make every service fail."""


def parse_load(text: str, *, file: str, environment: Mapping[str, str], options: Mapping[str, Any]) -> LoadFile:
    """The load that a file declares; `options` take the place of its keys.

    Raises:
        ExperimentFileErrors: with every mistake, its line, key and fix.
    """
    document = read_yaml(text, file=file, environment=environment, begin="Begin with `streams:`.")
    service = document.values.get("service", {})
    # What is no mapping is left as it is, so that it is told.
    merged = {**service, **options.get("service", {})} if isinstance(service, dict) else service
    document.values |= {**options, "service": merged}
    return _found(document, LoadFile)


def load_options(values: Mapping[str, Any], model: type[_Declared]) -> _Declared:
    """What options declare; their names are the keys of the file.

    Raises:
        ExperimentFileErrors: with every mistake; its key is the option's name.
    """
    lines = dict.fromkeys(_places(values), 0)
    document = YamlDocument(file="the load", environment={}, values=dict(values), lines=lines)
    try:
        return _found(document, model)
    except ExperimentFileErrors as errors:
        raise ExperimentFileErrors([_of_option(mistake) for mistake in errors.mistakes]) from errors


def _found(document: YamlDocument, model: type[_Declared]) -> _Declared:
    found = validated(document, model)
    if found is None:
        raise ExperimentFileErrors(document.mistakes)
    return found


def _places(value: object, where: Where = ()) -> Iterator[Where]:
    yield where
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from _places(child, (*where, key))


def _of_option(mistake: ExperimentFileError) -> ExperimentFileError:
    parts = re.split(r"[.\[]", mistake.key)
    name = "".join(parts[2:3]) if parts[0] == "streams" else parts[0]
    option = f"--{name.replace('_', '-')}" if name else ""
    return ExperimentFileError(mistake.message, file="the load", key=option, fix=mistake.fix)
