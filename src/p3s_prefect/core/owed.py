"""What floors let in: it is owed a slot in time, however much stands before it."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress

from p3s_prefect.core.controller import Controller
from p3s_prefect.core.open_work import Entry, Run
from p3s_prefect.core.plan import PlannedStage
from p3s_prefect.core.queue_line import Line

# Places of a line are looked at in steps that grow by this factor: a decision may not cost more for a long queue. What
# would be late between two of them is seen when it is a fifth nearer.
_STEP = 1.25
# While nothing has to start, nobody looks until a quarter of the time has passed after which something would have to:
# meanwhile services may become longer. With 100,000 queued, half of them owed a slot, a decision takes 13 us, and 90
# where it is looked at each time.
_LOOK_AGAIN = 0.25


class Owed:
    """Ready runs that are owed a slot, in a line for each stage, by their deadlines.

    Lines are reckoned to be served side by side, each as much as its work is of all; those with a limit get no more
    slots than that, and leave the others to the rest.
    """

    def __init__(self, controller: Controller, queues: Mapping[str, Line]) -> None:
        """`queues` are those of the pipelines, by their names."""
        self._controller, self._queues = controller, queues
        self._lines: dict[PlannedStage, _OwedLine] = {}
        self._quiet = _Quiet()

    def __len__(self) -> int:
        return sum(len(line.entries) for line in self._lines.values())

    def add(self, run: Run) -> None:
        """It is ready."""
        line = self._lines.get(run.stage)
        if line is None:
            queue = self._queues[run.sub_job.flow.plan.name]
            line = self._lines[run.stage] = _OwedLine(run.sub_job.flow.plan.name, queue, self._controller)
        line.add(run)
        turn_s = self._controller.mean_s(run) / max(1.0, min(self._controller.slots, line.limit))
        self._quiet.add(self._controller.starts_by(run), turn_s)

    def first(self, now: float) -> Run | None:
        """What has to start now, before everything else, so that none of them is late."""
        if self._quiet.holds(now, self._controller.version):
            return None
        lines = [(line.presses_at(0), line) for line in self._ready()]
        pressing = [line.entries[0] for at, line in lines if at <= now and not line.queue.is_full]
        if pressing:
            return min(pressing)[2]
        self._quiet = _Quiet.since(now, lines, self._controller)
        return None

    def first_until(self, now: float) -> dict[str, tuple[float, int]]:
        """The stages, as ``pipeline/stage``, of which some go before everything else now.

        Those with a deadline and number of their run up to the pair given.
        """
        until: dict[str, tuple[float, int]] = {}
        for line in self._ready():
            number = 0 if line.queue.is_full else line.number_pressing(now)
            if number:
                name, last = f"{line.pipeline}/{line.entries[0][2].stage.name}", line.entries[number - 1][:2]
                until[name] = max(last, until.get(name, last))
        return until

    def _ready(self) -> list[_OwedLine]:
        """The lines that have any and may be served, with the slots that each gets."""
        self._lines = {stage: line for stage, line in self._lines.items() if line.has_ready()}
        lines = [line for line in self._lines.values() if line.limit > 0]
        for line, slots in zip(lines, _slots_of(lines, max(1, self._controller.slots)), strict=True):
            line.each_s = line.mean_s / slots
        return lines


def _slots_of(lines: Sequence[_OwedLine], slots: int) -> list[float]:
    """How many slots each line gets, of so many."""
    work = [max(1e-9, len(line.entries) * line.mean_s) for line in lines]
    of_queue = _parts(work, [line.queue for line in lines])
    of_class = _parts(work, [line.queue.of_class for line in lines])
    most = [
        min(line.queue.limit * part, line.queue.of_class.limit * part_of_class)
        for line, part, part_of_class in zip(lines, of_queue, of_class, strict=True)
    ]
    total_s = sum(work)
    is_held = [limit < slots * work_s / total_s for limit, work_s in zip(most, work, strict=True)]
    left = slots - sum(compress(most, is_held))
    others_s = sum(work_s for work_s, held in zip(work, is_held, strict=True) if not held)
    return [
        limit if held else min(limit, left * work_s / others_s)
        for limit, work_s, held in zip(most, work, is_held, strict=True)
    ]


def _parts(work: Sequence[float], owners: Sequence[object]) -> list[float]:
    """Which part each is of all that has the same owner."""
    sums: dict[int, float] = {}
    for work_s, owner in zip(work, owners, strict=True):
        sums[id(owner)] = sums.get(id(owner), 0.0) + work_s
    return [work_s / sums[id(owner)] for work_s, owner in zip(work, owners, strict=True)]


class _Quiet:
    """A time in which nobody has to look, as long as slots, plans, limits and commands stay as they are."""

    def __init__(self) -> None:
        self._since = math.inf
        self._presses_at = math.inf
        self._last_s = 0.0
        """After which time the last of them has its turn."""
        self._held: list[Line] = []
        """Those at a limit of which some would have to start."""
        self._version = 0

    @classmethod
    def since(cls, now: float, lines: Sequence[tuple[float, _OwedLine]], controller: Controller) -> _Quiet:
        """Nothing that may start has to start now; of each line when it has to."""
        found = cls()
        if all(controller.is_known(line.entries[0][2]) for _, line in lines):
            found._since, found._version = now, controller.version
            found._presses_at = min((at for at, _ in lines if at > now), default=math.inf)
            found._last_s = max((len(line.entries) * line.each_s for _, line in lines), default=0.0)
            found._held = [line.queue for at, line in lines if at <= now]
        return found

    def add(self, starts_by: float, turn_s: float) -> None:
        """One more is owed a slot: others may have their turn later by its own, and it may be the last."""
        self._last_s += turn_s
        self._presses_at = min(self._presses_at - turn_s, starts_by - self._last_s)

    def holds(self, now: float, version: int) -> bool:
        # A clock may be set back.
        until = self._since + _LOOK_AGAIN * (self._presses_at - self._since)
        return self._since <= now < until and version == self._version and all(line.is_full for line in self._held)


class _OwedLine:
    """Those of one stage. What left the queue leaves stale entries behind."""

    def __init__(self, pipeline: str, queue: Line, controller: Controller) -> None:
        self.pipeline, self.queue, self._controller = pipeline, queue, controller
        self.entries: list[Entry] = []
        self.each_s = 0.0
        """The time from the turn of one to that of the next."""

    @property
    def limit(self) -> float:
        """How many of them may run at once."""
        return min(self.queue.limit, self.queue.of_class.limit)

    @property
    def mean_s(self) -> float:
        """How long one takes."""
        return self._controller.mean_s(self.entries[0][2])

    def add(self, run: Run) -> None:
        if run.is_claimed:
            return
        if len(self.entries) > 64 + 2 * self.queue.open:
            self._drop_stale()
        run.is_claimed = True
        insort(self.entries, (run.deadline, run.id, run))

    def has_ready(self) -> bool:
        """Whether there is one; drops stale entries at the front, and all where they are many."""
        seen = [self.entries[place] for place in _places(len(self.entries))]
        if 4 * sum(not _is_live(entry) for entry in seen) > len(seen):
            self._drop_stale()
        stale = next((place for place, entry in enumerate(self.entries) if _is_kept(entry)), len(self.entries))
        del self.entries[:stale]
        return bool(self.entries)

    def number_pressing(self, now: float) -> int:
        """How many of them, by their deadlines, have to start now."""
        return bisect_left(range(len(self.entries)), True, key=lambda place: self.presses_at(place) > now)

    def presses_at(self, first: int) -> float:
        """When they have to start, one after the other from place `first` on, so that none is late."""
        start_by_s = self._controller.start_by_s(self.entries[0][2])
        if start_by_s == -math.inf:
            # Nobody knows how long they take: the first tells it, and the others wait for that.
            return -math.inf if first == 0 else math.inf
        looked_at = ((before, self.entries[first + before]) for before in _places(len(self.entries) - first))
        ahead = (entry[2].sub_job.taken_at - before * self.each_s for before, entry in looked_at if _is_live(entry))
        return min(ahead, default=math.inf) + start_by_s - self._controller.free_s

    def _drop_stale(self) -> None:
        self.entries = list(filter(_is_kept, self.entries))


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
