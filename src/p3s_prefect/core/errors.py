"""The one tree of errors.

::

    P3sError                    every error that this package raises on purpose
    ├── ExperimentFileError     the experiment file is wrong: file, line, key, fix
    │   └── ExperimentFileErrors    all of its mistakes at once; what reading it raises
    ├── BadName                 a name or data id that cannot be used, or is hostile
    ├── LedgerError             the database of record
    │   ├── Conflict            somebody else changed it first; nothing was written
    │   ├── LeaseLost           this process no longer holds, or never got, the lease
    │   ├── LedgerAway          it cannot be reached, read or written now; it may be tried again
    │   ├── LedgerTooNew        written by a newer version of this package
    │   └── NoSuchRecord        nothing of that name is in the ledger
    ├── StoreError              the central store
    │   ├── ObjectMissing       no object under that key
    │   ├── ObjectExists        an object is already there, and objects never change
    │   ├── ChecksumMismatch    the bytes are not those that were recorded
    │   ├── StoreUnreachable    it does not answer, or cannot now; later it may
    │   │   └── StoreDisturbed  it answers, and cannot serve this one now; others it may
    │   ├── StoreTaken          it belongs to another ledger
    │   └── RecordUnreadable    a commit record is damaged, or of a newer version
    ├── InputMissing            a stage reads what was never made
    ├── InputChanged            a file is no longer the one that arrived
    │   └── InputGone           there is none any more; it may be elsewhere
    ├── PayloadError            a step's own code
    │   ├── PayloadFailed       it raised, or exited with another code than 0
    │   ├── PayloadTimeout      it was killed at its limit
    │   ├── OutputMissing       it ended well but did not write what it declared
    │   └── BadProducts         its summary.json or products.json breaks the schema
    ├── ServiceError            scheduler, pilots or station are absent, or refuse
    │   └── NoScheduler         no Dask scheduler answers at an address
    └── ProductionError         the plain road
        ├── BadSelection        files that cannot be processed; nothing was begun
        └── StageFailed         a stage gave no results

Each says what happened, to which data id where there is one, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class P3sError(Exception):
    """What happened (`what`), what to do (`fix`), and to which unit (`data_id`)."""

    def __init__(self, what: str, *, fix: str = "", data_id: object = None) -> None:
        self.what = what
        self.fix = fix
        self.data_id = data_id
        super().__init__(what)

    def __str__(self) -> str:
        where = f" [{self.data_id}]" if self.data_id is not None else ""
        return f"{self.what}{where}" + (f"\n  {self.fix}" if self.fix else "")


class ExperimentFileError(P3sError):
    """A mistake in the experiment file with its place; `line` counts from 1, and 0 means unknown.

    `message` says what is wrong without the place, which `what` includes.
    """

    def __init__(self, what: str, *, file: str, line: int = 0, key: str = "", fix: str = "") -> None:
        self.file = file
        self.line = line
        self.key = key
        self.message = what
        place = f"{file}:{line}" if line else file
        super().__init__(f"{place}: {key}: {what}" if key else f"{place}: {what}", fix=fix)


class ExperimentFileErrors(ExperimentFileError):
    """All mistakes of an experiment file, in the order of their lines; its own place is that of the first."""

    def __init__(self, mistakes: Iterable[ExperimentFileError]) -> None:
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: mistake.line))
        first = self.mistakes[0]
        super().__init__(first.message, file=first.file, line=first.line, key=first.key, fix=first.fix)

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.mistakes)


class BadName(P3sError):
    """A name or data id that cannot be used."""


class LedgerError(P3sError):
    """The database of record refused or failed."""


class Conflict(LedgerError):
    """Somebody else changed it first; nothing was written."""


class LeaseLost(LedgerError):
    """This process does not hold the lease; nothing was written."""


class LedgerAway(LedgerError):
    """The database cannot be reached, read or written now: whatever it was, it may be tried again."""


class LedgerTooNew(LedgerError):
    """The ledger was written by a newer version of this package."""


class NoSuchRecord(LedgerError):
    """Nothing of that name is in the ledger."""


class StoreError(P3sError):
    """The central store refused or failed."""


class ObjectMissing(StoreError):
    """No object under that key."""


class ObjectExists(StoreError):
    """An object with other content is already there; objects never change."""


class ChecksumMismatch(StoreError):
    """The bytes are not those that were recorded."""


class StoreUnreachable(StoreError):
    """The store does not answer, or cannot serve now; later it may."""


class StoreDisturbed(StoreUnreachable):
    """The store answers, and cannot serve this object now: all of it may be disturbed, or this one alone for ever."""


class StoreTaken(StoreError):
    """The store belongs to another ledger, which would sweep what is not published yet."""


class RecordUnreadable(StoreError):
    """A commit record is damaged, or of a newer version of this package."""


class InputMissing(P3sError):
    """A stage reads something that was never made."""


class InputChanged(P3sError):
    """A file is no longer the one that arrived."""


class InputGone(InputChanged):
    """A file that arrived is not there any more; it may be elsewhere."""


class PayloadError(P3sError):
    """A step's own code did not do what it declares."""


class PayloadFailed(PayloadError):
    """The payload raised, or exited with another code than 0."""


class PayloadTimeout(PayloadError):
    """The payload was killed at its limit."""


class OutputMissing(PayloadError):
    """The payload ended well but did not write an output that it declares."""


class BadProducts(PayloadError):
    """summary.json or products.json breaks its schema."""


class ServiceError(P3sError):
    """Scheduler, pilots or station are absent, or refuse."""


class NoScheduler(ServiceError):
    """No Dask scheduler answers at an address."""


class ProductionError(P3sError):
    """A production on the plain road went wrong."""


class BadSelection(ProductionError):
    """Files that cannot be processed; nothing was begun."""


class StageFailed(ProductionError):
    """A stage gave no results; `may_try_again` says whether the ledger has it back in its queue."""

    def __init__(self, what: str, *, may_try_again: bool = False, fix: str = "", data_id: object = None) -> None:
        self.may_try_again = may_try_again
        super().__init__(what, fix=fix, data_id=data_id)
