"""Books and storage agree: what is wrong is found, and mended where it can be; the only copy is never removed (B11).

A station may run meanwhile: what is changed in the ledger then are columns that it only reads. What was published and
is not known at all is taken over only when nobody else writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from p3s_prefect.adapters.archived_products import ArchivedProducts
from p3s_prefect.adapters.ledger import archiving, booked_objects, schema
from p3s_prefect.adapters.ledger.database import Lease, Ledger
from p3s_prefect.adapters.stored_executions import StoredExecution, stored_attempts
from p3s_prefect.core.agreement import Done, Finding, Trouble
from p3s_prefect.core.errors import LeaseLost, StoreError
from p3s_prefect.core.ports import Clock, ObjectStore
from p3s_prefect.station.comparing import Problem, compare, compare_archives, compare_configurations
from p3s_prefect.station.mending import Mender
from p3s_prefect.station.taking_over import Progress, take_over
from p3s_prefect.station.upkeep import claim_lease, kept_lease

_TELL_EVERY = 100
# Orphans may be good copies of what is damaged: they go last.
_LAST = (Trouble.UNKNOWN, Trouble.ORPHAN)
_ADDED = (Trouble.UNKNOWN, Trouble.NO_ENTRY)


@dataclass(kw_only=True)
class Reconciliation:
    """Compares a ledger with a store, and mends what it can."""

    ledger: Ledger
    store: ObjectStore
    clock: Clock
    namespace: str
    """Of the lease."""
    lease_s: float
    sweep_after_s: float
    """Orphans are removed when they are this old."""
    copies: Sequence[ObjectStore] = ()
    """Where good copies may be, under the same keys."""
    quick: bool = False
    """Objects are compared by size alone."""
    progress: Progress = lambda what, done, total: None
    attempts: int = 0
    """Compared so far, of those that were published or have something in the store."""
    _findings: list[Finding] = field(default_factory=list)
    _archived: ArchivedProducts = field(init=False)

    def __post_init__(self) -> None:
        self._archived = ArchivedProducts(self.store)

    def run(self, *, under: str = "runs/", dry_run: bool = False) -> list[Finding]:
        """Everything that was wrong below a prefix of the store, and what was done about it."""
        problems = self.compare(under)
        if dry_run:
            return [_finding(one, Done.SHOWN) for one in problems]
        with self._lease() as lease:
            in_order = sorted(problems, key=lambda one: one.trouble in _LAST)
            for number, problem in enumerate(in_order):
                if not number % _TELL_EVERY:
                    self.progress("mending", number, len(in_order))
                self._see_to(problem, lease)
            # What the ledger has only now may be damaged in its turn.
            for prefix in sorted({one.prefix for one in problems if one.trouble in _ADDED}):
                for problem in self._of(prefix):
                    if problem.trouble not in _ADDED and not self._was_told(problem):
                        self._see_to(problem, lease)
        return self._findings

    def compare(self, under: str = "runs/") -> list[Problem]:
        """What is wrong below a prefix of the store; looked at twice, as a station may be at it."""
        found = [one for one in self._compared(under) if self._is_still_so(one)]
        with self.ledger.reading() as connection:
            numbers = list(connection.scalars(select(schema.run_collection.c.configuration_id).distinct()))
            noted = archiving.archives(connection)
        of_archives = compare_archives(self.store, noted, quick=self.quick)
        return [*compare_configurations(self.store, sorted(numbers)), *of_archives, *found]

    # --- comparing ----------------------------------------------------------------------------------------------

    def _compared(self, under: str) -> Iterator[Problem]:
        seen: set[int] = set()
        total = self._total(under)
        older_than = self.clock.now() - self.sweep_after_s
        for prefix, executions in stored_attempts(self.store, under):
            self._count(total)
            with self.ledger.reading() as connection:
                yield from self._compare_one(connection, prefix, executions, older_than)
                booked = booked_objects.booked_attempt(connection, prefix)
            if booked is not None:
                seen.add(booked.id)
        with self.ledger.reading() as connection:
            unseen = [one for one in booked_objects.done_attempts(connection, under) if one[0] not in seen]
            for _, prefix in unseen:
                # Nothing of it is in the store.
                self._count(total)
                yield from self._compare_one(connection, prefix, [], older_than)

    def _is_still_so(self, problem: Problem) -> bool:
        return self._now(problem) is not None

    def _now(self, problem: Problem) -> Problem | None:
        """The problem as it is at this moment; None if it is none any more."""
        if problem.trouble in (Trouble.NO_CONFIGURATION, Trouble.ARCHIVE):
            return problem
        wanted = (problem.trouble, problem.key)
        return next((one for one in self._of(problem.prefix) if (one.trouble, one.key) == wanted), None)

    def _of(self, prefix: str) -> list[Problem]:
        """What is wrong with one attempt at this moment."""
        older_than = self.clock.now() - self.sweep_after_s
        executions = [one for _, found in stored_attempts(self.store, f"{prefix}/") for one in found]
        with self.ledger.reading() as connection:
            return list(self._compare_one(connection, prefix, executions, older_than))

    def _compare_one(
        self, connection: Connection, prefix: str, executions: list[StoredExecution], older_than: float
    ) -> Iterator[Problem]:
        return compare(
            connection,
            self.store,
            prefix,
            executions,
            older_than=older_than,
            quick=self.quick,
            archived=self._archived,
        )

    def _was_told(self, problem: Problem) -> bool:
        return any((one.trouble, one.key) == (problem.trouble, problem.key) for one in self._findings)

    def _total(self, under: str) -> int:
        with self.ledger.reading() as connection:
            return sum(1 for _ in booked_objects.done_attempts(connection, under))

    def _count(self, total: int) -> None:
        if not self.attempts % _TELL_EVERY:
            self.progress("comparing attempts", self.attempts, max(total, self.attempts))
        self.attempts += 1

    # --- mending ------------------------------------------------------------------------------------------------

    @contextmanager
    def _lease(self) -> Iterator[Lease | None]:
        """The right to take publications over; None where a station has it."""
        try:
            lease = claim_lease(self.ledger, self.namespace, self.lease_s)
        except LeaseLost:
            yield None
            return
        with kept_lease(self.ledger, lease, self.lease_s):
            yield lease

    def _see_to(self, problem: Problem, lease: Lease | None) -> None:
        found = self._now(problem)
        if found is None:
            # What was mended before it has mended it too.
            return
        try:
            if found.trouble is Trouble.UNKNOWN:
                done, told = self._take_over(found, lease)
            else:
                done, told = Mender(self.ledger, self.store, self.copies, self.clock.now()).mend(found)
        except StoreError as error:
            done, told = Done.LEFT, f"{error.what}. {error.fix}"
        self._findings.append(_finding(found, done, told))

    def _take_over(self, problem: Problem, lease: Lease | None) -> tuple[Done, str]:
        if lease is None:
            wait = "stop it (`p3s down`), or wait until its lease has run out"
            return Done.LEFT, f"a station holds the lease: {wait}, and run `p3s reconcile` again"
        now = self.clock.now()
        taken = take_over(self.ledger, self.store, now, lease=lease, quick=self.quick, places=[problem.key])
        self._findings += [one for one in taken.findings if one.done is Done.MARKED]
        if taken.publications:
            return Done.MENDED, "taken over into the ledger"
        return Done.LEFT, "; ".join(f"{one.what}. {one.told}" for one in taken.findings)


def _finding(problem: Problem, done: Done, told: str = "") -> Finding:
    return Finding(
        trouble=problem.trouble, key=problem.key, data_id=problem.data_id, what=problem.what, done=done, told=told
    )
