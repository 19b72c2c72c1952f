"""The payload contract: what a step's own code is given, and what it leaves behind.

A **command** finds in its environment ``P3S_INPUT_<NAME>`` and ``P3S_OUTPUT_<NAME>`` (paths), ``P3S_UNIT`` (the data
id as text) and ``P3S_PARAMS`` (JSON); it runs in a working directory of its own, without a shell, and exits with 0 if
all is well. In a stage per group, an input's path is a directory with one file for each unit, named by its data id,
``P3S_COVERAGE`` (JSON) tells how many of the group's units are in which state, and ``P3S_WEIGHTS`` (the path of a JSON
file: ``{"<input>": {"run=1 subrun=3": 4.0}}``) how many units each of them stands for.

A **Python payload** is a function called with its inputs and parameters as keyword arguments, and with ``unit`` (a
`DataId`), ``coverage`` (a mapping of state to number of units) and ``weights`` if it has parameters of these names. It
returns a mapping of output names to values. In a stage per group an input is a mapping of data id to value, in the
order of the data ids. A value's Python form follows its format:

====================  ==========================================================
``npz``               a mapping of names to numpy arrays (read without pickle)
``json``              whatever `json` reads and writes
``text``              a `str`
``fits png file``     a `pathlib.Path` to read from, or the path that was written
====================  ==========================================================

Either may leave two files in its working directory, and a Python payload may return them under the reserved names
``summary`` and ``products`` instead:

- ``summary.json``: flat scalars with units, ``{"noise_median": {"value": 4.2, "unit": "ADC"}}``; numbers are averaged
  over units, so that what only names something, such as the number of a channel, is given as a text;
- ``products.json``: a list of what is worth a look, ``[{"category", "title", "file", "shows"}]``, where ``file`` is
  the name of a file in the working directory.

**Weights.** Where units were left out at random (prescaled or shed), those that were taken stand for the others, each
for 1/q, with q its probability of having got so far. ``weights`` has them for each gathered input, by data id, for all
units that chance let reach the stage that makes it, the missing too: a unit that has a weight and no value has expired
or failed. What ran only because a slot was left counts as shed, and is no input. `core.weighting` makes of both what
all units would have given, with its error and the range in which what is missing could move it.
"""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import PurePosixPath
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from p3s_prefect.core.data_id import safe_name
from p3s_prefect.core.errors import BadName, BadProducts

_T = TypeVar("_T")

SUMMARY_FILE = "summary.json"
PRODUCTS_FILE = "products.json"
_FORMS = {
    SUMMARY_FILE: '{"noise_median": {"value": 4.2, "unit": "ADC"}}',
    PRODUCTS_FILE: '[{"category": "Noise", "title": "Noise by pixel", "file": "noise.png"}]',
}
RESERVED_OUTPUTS = ("summary", "products")
_LONGEST_TEXT = 1000


def _readable(text: str) -> str:
    # Terminals obey control characters, PostgreSQL refuses NUL, and half a surrogate pair cannot be written as UTF-8.
    if any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in text):
        raise ValueError("must not hold control characters or lone surrogates")
    return text


def _scalar(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise ValueError("must be a number, a truth value or a text")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be finite; leave out what could not be computed")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("must fit into 64 bits; write it as a float")
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise ValueError(f"must have at most {_LONGEST_TEXT} characters")
    return _readable(value) if isinstance(value, str) else value


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)[:80]!a} is given twice")
    return found


def _plain_file(text: str) -> str:
    if len(PurePosixPath(text).parts) != 1:
        raise ValueError("must be the plain name of a file in the working directory")
    try:
        return safe_name(text, what="file")
    except BadName as error:
        raise ValueError(f"{error.what}. {error.fix}") from error


def _plain_key(text: str) -> str:
    try:
        return safe_name(text)
    except BadName as error:
        raise ValueError(f"{error.what}. {error.fix}") from error


_Readable = Annotated[str, AfterValidator(_readable)]
_Text = Annotated[_Readable, Field(max_length=_LONGEST_TEXT)]


class SummaryValue(BaseModel):
    """One scalar that describes a unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    value: Annotated[bool | int | float | _Text, BeforeValidator(_scalar)]
    """The value: a finite number, a truth value or a short text. Numbers are averaged over units; what only names
    something, such as the number of a channel, is a text."""
    unit: Annotated[_Readable, Field(max_length=40)] = ""
    """Its unit, such as ADC; empty for a pure number or a text."""


class Product(BaseModel):
    """A file that is worth a look."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    category: Annotated[_Readable, Field(min_length=1, max_length=80)]
    """Heading under which pages show it."""
    title: Annotated[_Readable, Field(min_length=1, max_length=120)]
    """Title, the same for every unit: pages show the newest of each."""
    file: Annotated[str, AfterValidator(_plain_file)]
    """Name of the file in the working directory."""
    shows: _Text = ""
    """What it shows, for somebody who sees it for the first time."""


Summary = dict[Annotated[str, AfterValidator(_plain_key)], SummaryValue]
SUMMARY = TypeAdapter(Summary)
PRODUCTS = TypeAdapter(list[Product])


def environment_name(name: str) -> str:
    """The part that an input's or output's name has in ``P3S_INPUT_<NAME>`` and ``P3S_OUTPUT_<NAME>``."""
    return name.upper().translate(str.maketrans("-.+", "___"))


def read_summary(text: str | bytes) -> Summary:
    """The summary values of a ``summary.json``.

    Raises:
        BadProducts: it breaks the schema; the message names the place in it.
    """
    return _read(SUMMARY, text, SUMMARY_FILE)


def read_products(text: str | bytes) -> list[Product]:
    """The products of a ``products.json``.

    Raises:
        BadProducts: it breaks the schema; the message names the place in it.
    """
    return _read(PRODUCTS, text, PRODUCTS_FILE)


def schemas() -> dict[str, object]:
    """The published JSON schemas of both files, by file name."""
    return {SUMMARY_FILE: SUMMARY.json_schema(), PRODUCTS_FILE: PRODUCTS.json_schema()}


def _read(adapter: TypeAdapter[_T], text: str | bytes, file: str) -> _T:
    try:
        return adapter.validate_python(json.loads(text, object_pairs_hook=_each_key_once), strict=True)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            what = first["msg"].removeprefix("Value error, ")
            raise BadProducts(
                f"{file}: {where[:120]!a}: {what}" if where else f"{file}: {what}",
                fix=f"Its form is {_FORMS[file]}; `p3s check-products --schema` prints the schema.",
            ) from error
        raise BadProducts(f"{file} cannot be read as JSON: {error}", fix="Write it with a JSON library.") from error
