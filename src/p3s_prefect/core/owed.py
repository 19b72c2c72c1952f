"""What floors let in: it is owed a slot in time, however much stands before it."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from p3s_prefect.core.controller import Controller
from p3s_prefect.core.heap import pushes_until_cleared
from p3s_prefect.core.open_work import Entry, Run
from p3s_prefect.core.plan import PlannedStage
from p3s_prefect.core.queue_line import ClassLine, Line

# Places of a line are looked at in steps that grow by this factor: a decision may not cost more for a long queue. What
# would be late between two of them is seen when it is a fifth nearer.
_STEP = 1.25
# While nothing has to start, nobody looks until a quarter of the time has passed after which something would have to:
# meanwhile services may become longer. With 100,000 queued, half of them owed a slot, a decision takes 16 us, and 90
# where it is looked at each time.
_LOOK_AGAIN = 0.25
# So many entries tell whether many of a line are stale.
_SEEN = 16


class Owed:
    """Ready runs that are owed a slot, in a line for each stage, by their deadlines.

    Lines are reckoned to be served side by side, each as much as its work is of all; those with a limit get no more
    slots than that, and leave the others to the rest.
    """

    def __init__(self, controller: Controller, queues: Mapping[str, Line]) -> None:
        """`queues` are those of the pipelines, by their names."""
        self._controller, self._queues = controller, queues
        self._lines: dict[PlannedStage, _OwedLine] = {}
        self._quiet: _Quiet | None = None

    def __len__(self) -> int:
        return sum(len(line.entries) for line in self._lines.values())

    def add(self, run: Run) -> None:
        """It is ready."""
        line = self._lines.get(run.stage)
        if line is None:
            queue = self._queues[run.sub_job.flow.plan.name]
            line = self._lines[run.stage] = _OwedLine(run.sub_job.flow.plan.name, queue, self._controller)
        line.add(run)
        if self._quiet is None:
            return
        if self._controller.is_known(run):
            turn_s = self._controller.mean_s(run) / max(1.0, min(self._controller.slots, line.limit))
            self._quiet.add(run.sub_job.taken_at + self._controller.start_by_s(run), turn_s)
        else:
            self._quiet = None

    def first(self, now: float) -> Run | None:
        """What has to start now, before everything else, so that none of them is late."""
        if self._quiet is not None and self._quiet.holds(now, self._controller.version):
            return None
        free_s = self._controller.free_s
        lines = [(line.starts_by() - free_s, line) for line in self._ready()]
        # Where nobody knows how long they take, the first goes before what presses, as it tells that of the others.
        pressing = [(at > -math.inf, line.entries[0]) for at, line in lines if at <= now and not line.queue.is_full]
        if pressing:
            return min(pressing)[1][2]
        is_known = all(line.is_known for _, line in lines)
        self._quiet = _Quiet(now, lines, free_s, self._controller.version) if is_known else None
        return None

    def first_until(self, now: float) -> dict[str, tuple[float, int]]:
        """The stages, as ``pipeline/stage``, of which some go before everything else now.

        In the order of their data: up to the one that was taken at the given moment, with the given number of its run.
        """
        until: dict[str, tuple[float, int]] = {}
        for line in self._ready():
            number = 0 if line.queue.is_full else line.number_starting_by(now + self._controller.free_s)
            if number:
                name, last = f"{line.pipeline}/{line.entries[0][2].stage.name}", line.entries[number - 1][2]
                place = last.sub_job.taken_at, last.id
                until[name] = max(place, until.get(name, place))
        return until

    def _ready(self) -> list[_OwedLine]:
        """The lines that have any and may be served, with the slots that each gets."""
        self._lines = {stage: line for stage, line in self._lines.items() if line.has_ready()}
        lines = [line for line in self._lines.values() if line.limit > 0]
        for line, slots in zip(lines, _slots_of(lines, max(1, self._controller.slots)), strict=True):
            line.each_s = line.mean_s / slots
        return lines


def _slots_of(lines: Sequence[_OwedLine], slots: float) -> list[float]:
    """How many slots each line gets, of so many."""
    work = [max(1e-9, len(line.entries) * line.mean_s) for line in lines]
    of_class: defaultdict[ClassLine, float] = defaultdict(float)
    of_queue: defaultdict[Line, float] = defaultdict(float)
    for line, work_s in zip(lines, work, strict=True):
        of_class[line.queue.of_class] += work_s
        of_queue[line.queue] += work_s
    queues = {one: [queue for queue in of_queue if queue.of_class is one] for one in of_class}
    most = [min(one.limit, sum(queue.limit for queue in queues[one])) for one in of_class]
    given: dict[Line, float] = {}
    for one, share in zip(of_class, _filled(slots, list(of_class.values()), most), strict=True):
        own = [of_queue[queue] for queue in queues[one]]
        given |= zip(queues[one], _filled(share, own, [queue.limit for queue in queues[one]]), strict=True)
    return [given[line.queue] * work_s / of_queue[line.queue] for line, work_s in zip(lines, work, strict=True)]


def _filled(slots: float, work: Sequence[float], most: Sequence[float]) -> list[float]:
    """Slots by the work of each, none with more than its most; what these leave goes to the others."""
    held: set[int] = set()
    while True:
        left = slots - sum(most[place] for place in held)
        others_s = sum(one for place, one in enumerate(work) if place not in held)
        shares = [most[place] if place in held else left * one / others_s for place, one in enumerate(work)]
        above = {place for place, share in enumerate(shares) if place not in held and share > most[place]}
        if not above:
            return shares
        held |= above


class _Quiet:
    """A time in which nobody has to look, as long as slots, plans, limits and commands stay as they are."""

    def __init__(self, now: float, lines: Sequence[tuple[float, _OwedLine]], free_s: float, version: int) -> None:
        """Nothing that may start has to start now; `lines` are told with the moment at which they have to."""
        self._since, self._free_s, self._version = now, free_s, version
        self._presses_at = min((at for at, _ in lines if at > now), default=math.inf)
        self._last_s = max((len(line.entries) * line.each_s for _, line in lines), default=0.0)
        """After which time the last of them has its turn."""
        self._held = [line.queue for at, line in lines if at <= now]
        """Those at a limit of which some would have to start."""

    def add(self, starts_by: float, turn_s: float) -> None:
        """One more is owed a slot: others may have their turn later by its own, and it may be the last."""
        self._last_s += turn_s
        self._presses_at = min(self._presses_at - turn_s, starts_by - self._free_s - self._last_s)

    def holds(self, now: float, version: int) -> bool:
        """Whether it is still so."""
        until = self._since + _LOOK_AGAIN * (self._presses_at - self._since)
        # A clock may be set back.
        return self._since <= now < until and version == self._version and all(line.is_full for line in self._held)


class _OwedLine:
    """Those of one stage. What left the queue leaves stale entries behind."""

    def __init__(self, pipeline: str, queue: Line, controller: Controller) -> None:
        self.pipeline, self.queue, self._controller = pipeline, queue, controller
        self.entries: list[Entry] = []
        self._pushes_left = pushes_until_cleared(0)
        self.each_s = 0.0
        """The time from the turn of one to that of the next."""

    @property
    def limit(self) -> float:
        """How many of them may run at once."""
        return min(self.queue.limit, self.queue.of_class.limit)

    @property
    def is_known(self) -> bool:
        """Whether one of the stage was done."""
        return self._controller.is_known(self.entries[0][2])

    @property
    def mean_s(self) -> float:
        """How long one takes; 0 as long as nobody knows."""
        return self._controller.mean_s(self.entries[0][2]) if self.is_known else 0.0

    def add(self, run: Run) -> None:
        if run.is_claimed:
            return
        self._pushes_left -= 1
        if not self._pushes_left:
            self._drop_stale()
        run.is_claimed = True
        insort(self.entries, (run.deadline, run.id, run))

    def has_ready(self) -> bool:
        """Whether there is one. Drops stale entries at the front, and all where a look here and there finds many."""
        stale = next((place for place, entry in enumerate(self.entries) if _is_kept(entry)), len(self.entries))
        del self.entries[:stale]
        seen = self.entries[:: max(1, len(self.entries) // _SEEN)]
        if 4 * sum(not _is_live(entry) for entry in seen) > len(seen):
            self._drop_stale()
        return bool(self.entries)

    def number_starting_by(self, at: float) -> int:
        """How many of them, by their deadlines, have to have their turn by then."""
        return bisect_left(range(len(self.entries)), True, key=lambda place: self.starts_by(place) > at)

    def starts_by(self, first: int = 0) -> float:
        """By when they have to have their turn, one after the other from place `first` on, so that none is late."""
        start_by_s = self._controller.start_by_s(self.entries[0][2])
        if start_by_s == -math.inf:
            return -math.inf if first == 0 else math.inf
        looked_at = ((before, self.entries[first + before]) for before in _places(len(self.entries) - first))
        ahead = (entry[2].sub_job.taken_at - before * self.each_s for before, entry in looked_at if _is_live(entry))
        return min(ahead, default=math.inf) + start_by_s

    def _drop_stale(self) -> None:
        self.entries = list(filter(_is_kept, self.entries))
        self._pushes_left = pushes_until_cleared(len(self.entries))


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
