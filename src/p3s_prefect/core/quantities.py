"""Durations, rates and sizes as people write them: ``34s``, ``500ms``, ``5/s``, ``2 Hz``, ``20 GB``."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from p3s_prefect.core.errors import BadName

_UNITS_S = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_NUMBER = r"(\d{1,12}(?:\.\d{1,9})?)"
_BARE = re.compile(_NUMBER)
_PIECE = rf"{_NUMBER}\s*({'|'.join(_UNITS_S)})\s*"
_PIECES = re.compile(rf"(?:{_PIECE})+")
_RATE = re.compile(rf"{_NUMBER}\s*(?:(k?)Hz|(?:/|per)\s*(s|min|h|d))")
_UNITS_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(rf"{_NUMBER}\s*({'|'.join(_UNITS_BYTES)})")
# Ten years: what is longer is a slip of the finger, and would leave the range of dates.
_LONGEST_S = 315_576_000.0


def read_duration(text: str) -> float:
    """The duration [s] that a text names: ``500ms``, ``90s``, ``30min``, ``2h``, ``1d``, ``1h30min``.

    Raises:
        BadName: it names none, or one of nothing or of more than ten years.
    """
    seconds = _added(text)
    if not 0 < seconds <= _LONGEST_S:
        raise BadName(f"a duration of {text[:40]}", fix="Give one above 0 and up to ten years.")
    return seconds


def seconds(value: object) -> float:
    """A duration in seconds: a number of them, or a text with or without units; 0 is one.

    Raises:
        BadName: it is none, or negative.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if not isinstance(value, str):
        raise BadName(f"{_shown(value)} is no duration", fix="Write seconds, or such as 500ms, 34s, 10min, 2h.")
    return float(value) if _BARE.fullmatch(value.strip()) else _added(value)


def _added(text: str) -> float:
    if not _PIECES.fullmatch(text.strip()):
        raise BadName(f"{text[:40]!r} is no duration", fix="Write it as 500ms, 90s, 30min, 2h, 1d or 1h30min.")
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PIECE, text))


def rate_hz(text: object) -> float:
    """A rate in 1/s, such as ``5/s``, ``300/min``, ``10/h``, ``2 Hz``.

    Raises:
        BadName: it is none, or not above 0.
    """
    found = _RATE.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise BadName(f"{_shown(text)} is no rate", fix="Write how many come in which time, such as 5/s or 300/min.")
    period_s = _UNITS_S[found[3]] if found[3] else 1e-3 if found[2] else 1.0
    rate = float(found[1]) / period_s
    if rate <= 0:
        raise BadName(f"at a rate of {_shown(text)} nothing comes", fix="Give a rate above 0, such as 5/s.")
    return rate


def size_bytes(value: object) -> int:
    """A size in bytes: a whole number of them, or a text such as ``500 MB``, ``20GB``, ``4 GiB``; 0 is one.

    Raises:
        BadName: it is none, or negative.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise BadName(f"{_shown(value)} is no size", fix="Write bytes, or such as 500 MB, 20 GB, 4 GiB.")
    return round(float(found[1]) * _UNITS_BYTES[found[2]])


def _shown(text: object) -> str:
    return repr(text)[:60]


def _as_seconds(value: object) -> float:
    try:
        return seconds(value)
    except BadName as error:
        raise ValueError(f"{error.what}. {error.fix}") from error


def _as_rate(value: object) -> float:
    try:
        return rate_hz(value)
    except BadName as error:
        raise ValueError(f"{error.what}. {error.fix}") from error


def _as_size(value: object) -> int:
    try:
        return size_bytes(value)
    except BadName as error:
        raise ValueError(f"{error.what}. {error.fix}") from error


# A year: longer ones are slips of a unit.
Duration = Annotated[float, BeforeValidator(_as_seconds), Field(gt=0, le=31_536_000)]
"""Seconds, written as a duration."""
Delay = Annotated[float, BeforeValidator(_as_seconds), Field(ge=0, le=31_536_000)]
"""The same, and may be 0."""
Rate = Annotated[float, BeforeValidator(_as_rate), Field(gt=0, le=1e6)]
"""Per second, written as a rate."""
# No disk holds more than an exabyte.
Size = Annotated[int, BeforeValidator(_as_size), Field(ge=0, le=10**18)]
"""Bytes, written as a size."""
