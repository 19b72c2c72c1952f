"""Data ids: the ordered dimension values that name a unit or a group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p3s_prefect.core.errors import BadName

Value = int | str

# Values become parts of object keys, file names and URLs on every system that we meet, so they keep to what is
# safe on all of them. A leading dot or dash would hide a file or read as an option.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,119}")


def safe_name(name: str, *, what: str = "name") -> str:
    """`name` itself, if it can stand in object keys, file names and URLs.

    Raises:
        BadName: it is empty, longer than 120 characters, or holds others than letters, digits and ``_ . + -``.
    """
    if not _NAME.fullmatch(name):
        raise BadName(
            f"{what} {name[:80]!r} cannot be used",
            fix="Use up to 120 letters, digits, '_', '.', '+' or '-', and begin with a letter, a digit or '_'.",
        )
    return name


@dataclass(frozen=True, order=True, slots=True)
class DataId:
    """The ordered dimension values that name a unit, such as ``run=2008 subrun=3``.

    An integer value is at least 0, so that its text form sorts and parses in one way only.
    """

    items: tuple[tuple[str, Value], ...]

    def __post_init__(self) -> None:
        if not self.items:
            raise BadName("a data id without dimensions", fix="Give at least one, such as run=2008.")
        seen = set()
        for dimension, value in self.items:
            safe_name(dimension, what="dimension")
            if dimension in seen:
                raise BadName(f"dimension {dimension!r} is given twice", fix="Give each dimension once.")
            seen.add(dimension)
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise BadName(f"{dimension}={value!r} is neither a whole number nor a text")
            if isinstance(value, int) and not 0 <= value < 2**63:
                raise BadName(f"{dimension}={value} is out of range", fix="Use a number from 0 to 2**63 - 1.")
            if isinstance(value, str) and _is_number(value):
                raise BadName(
                    f"{dimension}={value!r} is a text that reads as a number",
                    fix=f"Declare the dimension {dimension} as int, or give its values a letter.",
                )
            safe_name(str(value), what=f"value of {dimension}")

    @classmethod
    def of(cls, **values: Value) -> DataId:
        """``DataId.of(run=2008, subrun=3)``."""
        return cls(tuple(values.items()))

    @classmethod
    def parse(cls, text: str) -> DataId:
        """The inverse of `str`: ``run=2008 subrun=3`` (blanks or slashes between; plain digits are a number).

        Raises:
            BadName: a piece is not ``dimension=value``.
        """
        items: list[tuple[str, Value]] = []
        for piece in re.split(r"[\s/]+", text.strip()):
            dimension, equals, value = piece.partition("=")
            if not equals:
                raise BadName(f"{piece!r} is not a part of a data id", fix="Write run=2008 subrun=3.")
            safe_name(value, what=f"value of {dimension[:80]}")
            items.append((dimension, int(value) if _is_number(value) else value))
        return cls(tuple(items))

    def __str__(self) -> str:
        return " ".join(f"{dimension}={value}" for dimension, value in self.items)

    def __getitem__(self, dimension: str) -> Value:
        return dict(self.items)[dimension]

    @property
    def path(self) -> str:
        """As a part of an object key: ``run=2008/subrun=3``."""
        return str(self).replace(" ", "/")

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names of its dimensions, in order."""
        return tuple(dimension for dimension, _ in self.items)

    def ordered(self, dimensions: Sequence[str]) -> DataId:
        """The same, in the order of these dimensions.

        Raises:
            BadName: it has one that is not among them.
        """
        for dimension in self.dimensions:
            if dimension not in dimensions:
                raise BadName(f"there is no dimension {dimension!r}", fix=f"There are: {', '.join(dimensions)}.")
        return self.subset(dimension for dimension in dimensions if dimension in self.dimensions)

    def subset(self, dimensions: Iterable[str]) -> DataId:
        """The part of it that these dimensions name, in their order."""
        values = dict(self.items)
        return DataId(tuple((dimension, values[dimension]) for dimension in dimensions))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text == "0" or not text.startswith("0"))
