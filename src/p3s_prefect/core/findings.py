"""What a check of an experiment says: the place, what is wrong there, and the fix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from p3s_prefect.core.yaml_document import Where


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong, or odd, in an experiment."""

    where: Where
    """Keys and list indices that lead to the place."""
    what: str
    """What is wrong."""
    fix: str
    """What to do about it."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A fix for a name that is none of the options: the nearest one, and all of them."""
    allowed = list(options)
    near = get_close_matches(name, allowed, n=1)
    listed = ", ".join(allowed)
    return (f"Did you mean {near[0]}? " if near else "") + (f"There are: {listed}." if listed else "There is none yet.")


def never_matching(when: Mapping[str, int | str], dimensions: Mapping[str, str], where: Where) -> Iterator[Finding]:
    """Dimension values of a condition, found at `where`, that no unit can have."""
    for dimension, value in when.items():
        at: Where = (*where, dimension)
        if dimension not in dimensions:
            yield Finding(where=at, what=f"no dimension {dimension!r}", fix=did_you_mean(dimension, dimensions))
        elif isinstance(value, int) != (dimensions[dimension] == "int"):
            kind = "a whole number, without quotes" if dimensions[dimension] == "int" else "a text, in quotes"
            yield Finding(where=at, what=f"{value!r} can never match", fix=f"{dimension} is {kind}.")
