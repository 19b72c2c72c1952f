"""What floors let in: it is owed a slot in time, however much stands before it."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping

from p3s_prefect.core.controller import Controller, Pace
from p3s_prefect.core.open_work import Entry, Run
from p3s_prefect.core.plan import PlannedStage
from p3s_prefect.core.queue_line import Line

# Places of a line are looked at in steps that grow by this factor: a decision may not cost more for a long queue. What
# would be late between two of them is seen when it is a fifth nearer.
_STEP = 1.25
# While nothing has to start, nobody looks until a quarter of the time has passed after which something would have to:
# meanwhile services may become longer, and more may be owed. With 100,000 queued, of which half are owed a slot, a
# decision takes 12 us in place of 90.
_LOOK_AGAIN = 0.25
# A line drops its stale entries when it is so many longer, and by this factor, than it was after the last time.
_FEW = 16
_GROWTH = 1.25


class Owed:
    """Ready runs that are owed a slot, in a line for each pipeline, by their deadlines.

    A line at its limit is passed over. All are reckoned to be served side by side, each as much as its work is of all:
    who is at half of its line has his turn when half of all that is owed is done.
    """

    def __init__(self, controller: Controller, queues: Mapping[str, Line]) -> None:
        """`queues` are those of the pipelines, by their names."""
        self._controller, self._queues = controller, queues
        self._lines: dict[str, _OwedLine] = {}
        self._quiet = _Quiet()

    def __len__(self) -> int:
        return sum(len(line.entries) for line in self._lines.values())

    def add(self, run: Run) -> None:
        """It is ready."""
        if run.is_claimed:
            return
        name = run.sub_job.flow.plan.name
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = _OwedLine(self._controller)
        line.add(run)
        self._quiet.until = min(self._quiet.until, self._controller.starts_by(run))

    def first(self, now: float) -> Run | None:
        """What has to start now, before everything else, so that none of them is late."""
        if self._quiet.holds(now, self._controller.version):
            return None
        presses = [(line.presses_at(0, among), name, line) for name, line, among in self._ready()]
        pressing = [line.entries[0] for at, name, line in presses if at <= now and not self._queues[name].is_full]
        if pressing:
            return min(pressing)[2]
        soonest = min((at for at, _, _ in presses), default=math.inf)
        self._quiet = _Quiet(now, now + _LOOK_AGAIN * (soonest - now), self._controller.version)
        return None

    def first_until(self, now: float) -> dict[str, float]:
        """The pipelines of which some go before everything else now: those with a deadline up to the moment given."""
        ready = ((name, line, among) for name, line, among in self._ready() if not self._queues[name].is_full)
        found = ((name, line, line.number_pressing(among, now)) for name, line, among in ready)
        return {name: line.entries[number - 1][0] for name, line, number in found if number}

    def _ready(self) -> list[tuple[str, _OwedLine, float]]:
        """The lines that have any, with how many times its own work all that is owed is."""
        ready = [(name, line, line.work_s()) for name, line in self._lines.items() if line.has_ready()]
        total_s = sum(work_s for _, _, work_s in ready)
        return [(name, line, total_s / work_s if work_s > 0 else len(ready)) for name, line, work_s in ready]


class _Quiet:
    """A time in which nobody has to look, as long as slots, plans, limits and commands stay as they are."""

    def __init__(self, since: float = math.inf, until: float = math.inf, version: int = 0) -> None:
        self.since, self.until, self._version = since, until, version

    def holds(self, now: float, version: int) -> bool:
        # A clock may be set back.
        return self.since <= now < self.until and version == self._version


class _OwedLine:
    """Those of one pipeline. What left the queue leaves stale entries behind."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.entries: list[Entry] = []
        self._most = _FEW
        """So many entries there may be before the stale ones are dropped."""

    def add(self, run: Run) -> None:
        if len(self.entries) > self._most:
            self.entries = list(filter(_is_kept, self.entries))
            self._most = _FEW + int(_GROWTH * len(self.entries))
        run.is_claimed = True
        insort(self.entries, (run.deadline, run.id, run))

    def has_ready(self) -> bool:
        """Whether there is one; drops the stale ones before it."""
        stale = next((place for place, entry in enumerate(self.entries) if _is_kept(entry)), len(self.entries))
        del self.entries[:stale]
        return bool(self.entries)

    def work_s(self) -> float:
        """About how much work they are [s of a slot]."""
        return len(self.entries) * self._controller.mean_s(self.entries[0][2])

    def number_pressing(self, among: float, now: float) -> int:
        """How many of them, by their deadlines, have to start now."""
        places = range(len(self.entries))
        return bisect_left(places, True, key=lambda place: self.presses_at(place, among) > now)

    def presses_at(self, first: int, among: float) -> float:
        """When they have to start, one after the other from place `first` on, so that none is late."""
        paces: dict[PlannedStage, Pace] = {}
        soonest = math.inf
        for before in _places(len(self.entries) - first):
            entry = self.entries[first + before]
            if not _is_live(entry):
                continue
            run = entry[2]
            pace = paces.get(run.stage)
            if pace is None:
                pace = paces[run.stage] = self._controller.pace(run, among)
            if pace.start_by_s > -math.inf:
                soonest = min(soonest, run.sub_job.taken_at + pace.start_by_s - before * pace.each_s)
            elif first + before == 0:
                # Nobody knows how long they take: the first tells it, and the others wait for that.
                return -math.inf
        return soonest - self._controller.free_s


def _places(number: int) -> Iterator[int]:
    """Places from 0 on, more and more seldom, and the last one of so many."""
    place = 0
    while place < number - 1:
        yield place
        place = max(place + 1, int(_STEP * place))
    if number:
        yield number - 1


def _is_live(entry: Entry) -> bool:
    # Else it is not ready any more, or was asked for again, with another deadline.
    return entry[2].entry is not None and entry[2].deadline == entry[0]


def _is_kept(entry: Entry) -> bool:
    if _is_live(entry):
        return True
    if entry[2].deadline == entry[0]:
        entry[2].is_claimed = False
    return False
