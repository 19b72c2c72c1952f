"""Books and storage: what a comparison of them finds, and what was done about it (B11)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Trouble(StrEnum):
    """How ledger and store disagree, or what in the store cannot be told for sure."""

    MISSING = "missing object"
    SIZE = "wrong size"
    CHECKSUM = "wrong checksum"
    BOOKS = "wrong entry"
    """The ledger says otherwise than object and manifest, which agree."""
    MENDED = "good again"
    """The object of a dataset that is marked as damaged is there, and right."""
    NO_ENTRY = "missing entry"
    """The manifest of what was published names an output that the ledger lacks."""
    NO_MANIFEST = "no manifest"
    """It is missing or damaged, and the ledger knows what stands in it."""
    NO_RECORD = "no commit record"
    """It is missing or damaged, and the ledger knows what stands in it."""
    NO_CONFIGURATION = "no configuration"
    """The content behind the number of a configuration is not in the store."""
    ARCHIVE = "damaged archive"
    """A file with rows of the ledger is missing or not as it was written."""
    LOG = "missing log"
    ORPHAN = "orphan"
    UNKNOWN = "unknown publication"
    """A commit record of which the ledger knows nothing."""
    TWICE = "published twice"
    """Two attempts at the same stage of the same unit and collection both have commit records."""
    UNRECORDED = "manifest without commit record"
    UNREADABLE = "unreadable"
    """A commit record or manifest that nobody can say more about."""
    FOREIGN = "lineage"
    """What it has read is not among the datasets."""


class Done(StrEnum):
    """What became of a finding."""

    MENDED = "mended"
    MARKED = "marked"
    """Nothing can mend it: its dataset or product is marked as damaged, and not used any more."""
    LEFT = "left"
    """Nothing was done, and the reason says why."""
    SHOWN = "shown"
    """A dry run."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One disagreement, and what became of it."""

    trouble: Trouble
    key: str
    """The object that it is about, or the place of an execution."""
    data_id: str
    what: str
    """In words."""
    done: Done = Done.SHOWN
    told: str = ""
    """What was done, or why nothing was, or what to do."""

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "trouble": self.trouble.value,
            "key": self.key,
            "data_id": self.data_id,
            "what": self.what,
            "done": self.done.value,
            "told": self.told,
        }


def counted(findings: Iterable[Finding]) -> dict[str, dict[str, int]]:
    """How many of each trouble were mended, marked, left or shown."""
    found: dict[str, Counter[str]] = {}
    for one in findings:
        found.setdefault(one.trouble.value, Counter())[one.done.value] += 1
    return {trouble: dict(counts) for trouble, counts in sorted(found.items())}
