"""Keys of objects: which names the central store takes, wherever it is."""

from __future__ import annotations

import re

from p3s_prefect.core.errors import BadName

# A dimension and its value, of 120 letters each, make the longest part; file systems allow 255.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,249}")


def is_part(text: str) -> bool:
    """Whether this may stand between two slashes of a key."""
    return _PART.fullmatch(text) is not None


def key_parts(key: str) -> list[str]:
    """The parts of a key.

    Raises:
        BadName: it is no key.
    """
    parts = key.split("/")
    if not all(map(is_part, parts)):
        raise BadName(f"{key[:120]!r} is no object key", fix="Keys are parts of letters, digits and '_.+=-'.")
    return parts
