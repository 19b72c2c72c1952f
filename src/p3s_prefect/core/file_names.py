"""File names that carry a data id: which file is which unit.

A `FilePattern` reads and writes in one way only: no name stands for two units, and no unit has two names. Hence an
integer matches only as `format` would write it, and a pattern that can be read in two ways is refused when it is made.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Literal

from p3s_prefect.core.data_id import DataId, Value
from p3s_prefect.core.errors import BadName

Kind = Literal["int", "text"]

_LONGEST_NAME = 255  # what the file systems that we meet allow for one name
_WIDTH = re.compile(r"0([1-9]|1[0-8])d?")
_LITERAL = re.compile(r"[ -~]*")
# Without the dot, which is what separates the parts of a file name almost everywhere.
_TEXT = "[A-Za-z0-9_+-]"
_DIGIT = "[0-9]"


@dataclass(frozen=True)
class FilePattern:
    """A pattern such as ``run{run:05d}_{subrun:04d}.fits`` and the kinds of its dimensions, in data-id order.

    Raises:
        BadName: a dimension is missing, given twice or unknown, its format is not one that can be read back, or a
            name could be read in two ways.
    """

    pattern: str
    dimensions: Mapping[str, Kind]
    _parts: tuple[tuple[str, str, int], ...] = field(init=False, repr=False, compare=False)
    _regex: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts, tail = self._split()
        self._check_fields([name for _, name, _ in parts])
        self._check_unambiguous(parts)
        object.__setattr__(self, "_parts", parts)
        pieces = [
            f"{re.escape(literal)}(?P<f{i}>{self._value(name, width)})"
            for i, (literal, name, width) in enumerate(parts)
        ]
        object.__setattr__(self, "_regex", re.compile("".join(pieces) + re.escape(tail)))

    def match(self, name: str) -> DataId | None:
        """The unit that the file name stands for; None for every other name, however hostile."""
        if len(name) > _LONGEST_NAME or (found := self._regex.fullmatch(name)) is None:
            return None
        texts = {field: found[f"f{i}"] for i, (_, field, _) in enumerate(self._parts)}
        try:
            return DataId(
                tuple((d, int(texts[d]) if kind == "int" else texts[d]) for d, kind in self.dimensions.items())
            )
        except BadName:
            return None

    def format(self, data_id: DataId) -> str:
        """The file name of a unit, given in any order of its dimensions.

        Raises:
            BadName: it has not exactly these dimensions, or a value that the pattern could not read back.
        """
        values: dict[str, Value] = dict(data_id.items)
        try:
            name = self.pattern.format(**values)
        except (KeyError, ValueError) as error:
            raise self._unfit(data_id) from error
        found = self.match(name)
        if found is None or dict(found.items) != values:
            raise self._unfit(data_id)
        return name

    def _unfit(self, data_id: DataId) -> BadName:
        wanted = ", ".join(f"{name} ({kind})" for name, kind in self.dimensions.items())
        return BadName(
            f"{str(data_id)!r} does not fit the file pattern {self.pattern!r}",
            fix=f"Give {wanted}; a text takes letters, digits, '_', '+' and '-' here.",
        )

    def _wrong(self, what: str, fix: str) -> BadName:
        return BadName(f"file pattern {self.pattern[:120]!r}: {what}", fix=fix)

    def _split(self) -> tuple[tuple[tuple[str, str, int], ...], str]:
        """(literal before, field, width or 0) for each field, and the literal at the end."""
        example = "Write each dimension once, as in run{run:05d}_{subrun:04d}.fits."
        try:
            pieces = list(string.Formatter().parse(self.pattern))
        except ValueError as error:
            raise self._wrong(str(error), example) from error
        parts: list[tuple[str, str, int]] = []
        literal = ""
        for text, name, spec, conversion in pieces:
            if not _LITERAL.fullmatch(text) or "/" in text or "\\" in text:
                raise self._wrong("it is one file's name", "Use printable ASCII without '/' and '\\'.")
            literal += text
            if name is not None:
                if conversion:
                    raise self._wrong(f"'!{conversion}' cannot be read back", example)
                parts.append((literal, name, self._width(name, spec or "")))
                literal = ""
        return tuple(parts), literal

    def _width(self, name: str, spec: str) -> int:
        kind = self.dimensions.get(name)
        if (kind == "int" and spec in ("", "d")) or (kind == "text" and spec in ("", "s")):
            return 0
        if kind == "int" and (found := _WIDTH.fullmatch(spec)):
            return int(found[1])
        if kind is None:
            return 0
        fix = f"Write {{{name}}} or {{{name}:05d}}." if kind == "int" else f"Write {{{name}}}."
        raise self._wrong(f"{name} is {kind} and cannot be read back from the format {spec!r}", fix)

    def _check_fields(self, names: list[str]) -> None:
        wanted = ", ".join(self.dimensions)
        for name in names:
            if name not in self.dimensions:
                raise self._wrong(f"{{{name}}} is not a dimension that belongs here", f"Use each of: {wanted}.")
            if names.count(name) > 1:
                raise self._wrong(f"{{{name}}} stands in it twice", f"Use each once: {wanted}.")
        if missing := [name for name in self.dimensions if name not in names]:
            raise self._wrong(f"it lacks {{{'}, {'.join(missing)}}}", f"Use each of: {wanted}.")

    def _check_unambiguous(self, parts: tuple[tuple[str, str, int], ...]) -> None:
        """Each boundary must be found from the left, up to some field, and from the right after it.

        From the left: the text between two fields begins with what the first field cannot hold. From the right: it
        ends with what the second cannot hold.
        """
        from_right_only = ""
        for (_, first, _), (between, second, _) in pairwise(parts):
            from_left = between and not re.match(self._class(first), between[0])
            from_right = between and not re.match(self._class(second), between[-1])
            if not (from_left or from_right) or (from_right_only and not from_right):
                raise self._wrong(
                    f"where {{{from_right_only or first}}} ends and {{{second}}} begins can be read in two ways",
                    "Put a dot between them.",
                )
            from_right_only = from_right_only or ("" if from_left else first)

    def _class(self, name: str) -> str:
        return _DIGIT if self.dimensions[name] == "int" else _TEXT

    def _value(self, name: str, width: int) -> str:
        if self.dimensions[name] == "text":
            return f"{_TEXT}+"
        return f"{_DIGIT}{{{width}}}|[1-9]{_DIGIT}{{{width},}}" if width else f"0|[1-9]{_DIGIT}*"


def is_excluded(name: str, globs: Iterable[str]) -> bool:
    """Whether a file's name is a temporary one that is never read (upper and lower case differ)."""
    return any(fnmatchcase(name, glob) for glob in globs)
