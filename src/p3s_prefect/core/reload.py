"""What a changed experiment file would change in a running station, and what of it that station refuses (S9)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from p3s_prefect.core.addresses import without_password
from p3s_prefect.core.errors import ExperimentFileError
from p3s_prefect.core.experiment import Experiment

# What a station can take over while it runs. All else decides where things are, what they are called, or which
# processes there are: others rely on it, or began with it.
CHANGEABLE: tuple[tuple[str, ...], ...] = (
    ("classes",),
    ("pipelines",),
    ("dataset_types",),
    ("streams",),
    ("seed",),
    ("instrument", "closing"),
    ("instrument", "day"),
    ("station", "grace_s"),
)
_RESTART = "Put it back, or restart everything with it: `p3s down`, then `p3s up`."
_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference between two experiments. What is None on one side is not there."""

    where: tuple[str, ...]
    """Keys that lead to the place."""
    old: Any
    new: Any

    def __str__(self) -> str:
        key = ".".join(self.where)
        if self.old is None:
            return f"{key}: added" if isinstance(self.new, Mapping) else f"{key}: {_short(self.new)}"
        if self.new is None:
            return f"{key}: removed"
        return f"{key}: {_short(self.old)} -> {_short(self.new)}"


def changes(old: Experiment, new: Experiment) -> tuple[Change, ...]:
    """Everything that differs, in the order of the file."""
    return tuple(_differences((), old.model_dump(mode="json"), new.model_dump(mode="json")))


def refusals(found: tuple[Change, ...], file: str) -> tuple[ExperimentFileError, ...]:
    """Those that a running station cannot take over, as mistakes of the file."""
    return tuple(
        ExperimentFileError(
            f"cannot change while the station runs ({_short(change.old)} -> {_short(change.new)})",
            file=file,
            key=".".join(change.where),
            fix=_RESTART,
        )
        for change in found
        if not any(change.where[: len(place)] == place for place in CHANGEABLE)
    )


def _differences(where: tuple[str, ...], old: Any, new: Any) -> Iterator[Change]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            yield from _differences((*where, str(key)), old.get(key), new.get(key))
    elif old != new:
        yield Change(where=where, old=old, new=new)


def _short(value: Any) -> str:
    text = without_password(json.dumps(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
