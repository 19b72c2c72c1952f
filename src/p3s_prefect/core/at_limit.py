"""How the reason of an attempt says that it was killed at its limit, and who knows it again by that."""

from __future__ import annotations

import re

_AT_LIMIT = "was killed after its {} s"
# At its beginning: further on, a payload may say so of something else.
_SAYS_AT_LIMIT = re.compile(r"(it|step \S+) " + _AT_LIMIT.format(r"\S+"))


def killed_at_limit(limit_s: float, step: str = "") -> str:
    """The reason of an attempt that was killed at the limit of one of its steps, or at its own.

    `says_killed_at_limit` knows it again.
    """
    return f"{f'step {step}' if step else 'it'} {_AT_LIMIT.format(f'{limit_s:g}')}"


def says_killed_at_limit(reason: str) -> bool:
    """Whether an attempt was killed at its limit, by its reason: the ledger keeps no other word of it."""
    return _SAYS_AT_LIMIT.match(reason) is not None
