"""What a replay puts into a watched directory, and when: a plan, made from a seed, that somebody else carries out.

A run's subruns follow each other at the asked rate; its marker comes half a tick after the last of them. At most one
fault hits a subrun:

==================  ====================================================================================
``gap``             the subrun is left out
``late``            it comes one tick after the marker of its run
``truncated``       its file ends at a random byte
``corrupted``       some bytes of its data are flipped
``resent``          it comes a second time, the same bytes, a quarter of a tick later
``rewritten``       its name comes a second time with other content, a quarter of a tick later
==================  ====================================================================================
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import count, islice

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.file_names import FilePattern


class Fault(StrEnum):
    """What goes wrong with a subrun."""

    GAP = "gap"
    LATE = "late"
    TRUNCATED = "truncated"
    CORRUPTED = "corrupted"
    RESENT = "resent"
    REWRITTEN = "rewritten"


@dataclass(frozen=True, kw_only=True)
class FaultShares:
    """How often each fault hits: shares of the subruns, from 0 to 1, together at most 1.

    Raises:
        BadName: a share is out of range, or they are more than 1 together.
    """

    gap: float = 0.0
    late: float = 0.0
    truncated: float = 0.0
    corrupted: float = 0.0
    resent: float = 0.0
    rewritten: float = 0.0

    def __post_init__(self) -> None:
        shares = [float(getattr(self, item.name)) for item in fields(self)]
        if any(not 0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
            raise BadName(
                f"fault shares {', '.join(map(str, shares))} cannot be met",
                fix="Give shares of the subruns from 0 to 1 that add up to at most 1: one fault hits a subrun.",
            )

    def draw(self, chance: random.Random) -> Fault | None:
        """The fault of one subrun; one number is drawn, whatever the shares."""
        left = chance.random()
        for fault in Fault:
            left -= float(getattr(self, fault.value))
            if left < 0:
                return fault
        return None


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One step of a replay."""

    at_s: float
    """When, in seconds after the start."""
    name: str
    """The file's final name."""
    data_id: DataId
    """The unit; for a marker the group."""
    fault: Fault | None = None
    """What is wrong with it."""
    marker: bool = False
    """Whether it is the empty file that closes its group."""
    version: int = 0
    """Which content it has: 0 is the real one."""


@dataclass(frozen=True, kw_only=True)
class ReplayPlan:
    """Subruns of consecutive runs: the same plan each time it is iterated over.

    Raises:
        BadName: a number is out of range, or files are named by something else than run and subrun.
    """

    pattern: FilePattern
    """Names of the files, over the dimensions run and subrun."""
    marker: FilePattern | None = None
    """Name of the file that closes a run; None writes none."""
    first_run: int = 2008
    """Number of the first run."""
    runs: int | None = None
    """How many runs; None goes on for ever."""
    subruns_per_run: int = 5
    """How many subruns a run has."""
    rate_hz: float = 1.0
    """Mean rate of the subruns."""
    burst: int = 1
    """So many subruns come at once, and then none until the mean rate is met again."""
    faults: FaultShares = FaultShares()
    """How often which fault hits."""
    seed: int = 0
    """Which subruns they hit."""

    def __post_init__(self) -> None:
        if set(self.pattern.dimensions) != {"run", "subrun"}:
            raise BadName(
                f"what is replayed has run and subrun, and files here are named {self.pattern.pattern!r}",
                fix="Play it into a home of its own, such as `p3s init DIRECTORY --instrument lst1` writes.",
            )
        if not 0 < self.rate_hz < float("inf"):
            raise BadName(f"a rate of {self.rate_hz} Hz cannot be replayed", fix="Give a rate above 0.")
        for name in ("subruns_per_run", "burst", "runs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BadName(f"{name} is {value}", fix=f"Give {name} of at least 1.")

    def __iter__(self) -> Iterator[PlannedFile]:
        """The files in order of time."""
        pending: list[tuple[float, int, PlannedFile]] = []
        order = count()
        for run in islice(count(self.first_run), self.runs):
            start_s = (run - self.first_run) * self.subruns_per_run / self.rate_hz
            while pending and pending[0][0] < start_s:
                yield heapq.heappop(pending)[2]
            for file in self._run(run):
                heapq.heappush(pending, (file.at_s, next(order), file))
        while pending:
            yield heapq.heappop(pending)[2]

    def _run(self, run: int) -> Iterator[PlannedFile]:
        tick_s, chance = 1 / self.rate_hz, random.Random(f"{self.seed} {run}")  # noqa: S311 - chance, not secrecy
        first = (run - self.first_run) * self.subruns_per_run
        closed_s = (first + self.subruns_per_run - 0.5) * tick_s
        for subrun in range(self.subruns_per_run):
            number = first + subrun
            # A burst must not hand a subrun out before its run begins, nor after the marker.
            at_s = max(number // self.burst * self.burst, first) * tick_s
            data_id = DataId.of(run=run, subrun=subrun)
            yield from self._subrun(data_id, at_s, closed_s + tick_s, self.faults.draw(chance))
        if self.marker is not None:
            group = DataId.of(run=run)
            yield PlannedFile(at_s=closed_s, name=self.marker.format(group), data_id=group, marker=True)

    def _subrun(self, data_id: DataId, at_s: float, late_s: float, fault: Fault | None) -> Iterator[PlannedFile]:
        name, again = self.pattern.format(data_id), fault in (Fault.RESENT, Fault.REWRITTEN)
        yield PlannedFile(
            at_s=late_s if fault is Fault.LATE else at_s,
            name=name,
            data_id=data_id,
            fault=None if again else fault,
        )
        if again:
            second_s = at_s + 0.25 / self.rate_hz
            version = int(fault is Fault.REWRITTEN)
            yield PlannedFile(at_s=second_s, name=name, data_id=data_id, fault=fault, version=version)


def patterns_of(experiment: Experiment) -> tuple[FilePattern, FilePattern | None]:
    """The file names of the first stream, and of the markers that close its groups, if it has any."""
    instrument, stream = experiment.instrument, next(iter(experiment.streams.values()))
    files = FilePattern(stream.pattern, instrument.dimensions)
    if instrument.closing.marker is None:
        return files, None
    of_group = {dimension: instrument.dimensions[dimension] for dimension in instrument.group}
    return files, FilePattern(instrument.closing.marker, of_group)


def directory_of(experiment: Experiment) -> str:
    """Where files are played: the directory of the first stream.

    Raises:
        BadName: it has none.
    """
    stream = next(iter(experiment.streams.values()))
    if stream.directory is None:
        fix = "Files can be played into a stream with a `directory`."
        raise BadName(f"the first stream comes from {stream.comes_from}", fix=fix)
    return stream.directory
