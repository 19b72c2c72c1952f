"""How the reason of an attempt says that its input is not the file that arrived, and who knows it again by that."""

from __future__ import annotations

from enum import StrEnum


class OtherInput(StrEnum):
    """What is said of such a file, behind its name."""

    REPLACED = "is no longer the file that arrived"
    REPLACED_OBJECT = "is no longer the object that arrived"
    NOT_THE_SAME = "is not the file that arrived"
    CHECKSUM = "no longer has the checksum"
    BYTES = "has other bytes than those that arrived"
    CHANGED = "changed while it was read"


REMEDY = "Bring the file back that arrived, or send the new one under a name, and so a number, of its own."


def says_other_input(reason: str) -> bool:
    """Whether an attempt failed for that, by its reason: the ledger keeps no other word of it."""
    # A payload may say so of something else; what it says stands behind the name of its step.
    return not reason.startswith("step ") and any(words in reason for words in OtherInput)
