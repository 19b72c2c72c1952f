"""A pipeline's queue: what is ready, in the pipeline's order, and what has a deadline."""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections.abc import Callable

from p3s_prefect.core.experiment import Order
from p3s_prefect.core.open_work import Entry, Lane, Run, is_overgrown
from p3s_prefect.core.states import StageState


class ClassLine:
    """What the pipelines of a class share: how many of their stages run, and how many may."""

    __slots__ = ("limit", "running")

    def __init__(self) -> None:
        self.limit: float = math.inf
        self.running = 0


class Line:
    """The queue of one pipeline. What left it leaves stale entries behind, which are dropped on the way."""

    __slots__ = ("_heaps", "_lanes", "deadlines", "limit", "of_class", "open", "order", "running")

    def __init__(self, of_class: ClassLine) -> None:
        self.of_class = of_class
        self.limit: float = math.inf
        self.order = Order.FRESHEST_FIRST
        self.running = 0
        self.open = 0
        """Stage runs of the pipeline that are held, whatever their state."""
        self._heaps: dict[Lane, list[Entry]] = {}
        self._lanes: list[Lane] = []
        self.deadlines: list[Entry] = []

    @property
    def is_full(self) -> bool:
        """Whether it is at its own limit or at that of its class."""
        return self.running >= self.limit or self.of_class.running >= self.of_class.limit

    def push(self, run: Run, priority: int) -> None:
        """Makes a run ready."""
        lane = (-priority, run.is_standby, not run.sub_job.started)
        if lane not in self._heaps:
            self._heaps[lane] = []
            insort(self._lanes, lane)
        run.lane = lane
        run.entry = (self.key(run), run.id, run)
        self._push(self._heaps[lane], run.entry, _is_ready)

    def push_deadline(self, run: Run) -> None:
        """Keeps a queued run's deadline in mind."""
        run.is_due = True
        self._push(self.deadlines, (run.deadline, run.id, run), _is_queued)

    def key(self, run: Run) -> float:
        """Its place in the order; smaller goes first. On standby that is the order in which q would let it in."""
        if run.is_standby:
            return run.sub_job.u
        if self.order is Order.FRESHEST_FIRST:
            return -run.sub_job.taken_at
        if self.order is Order.OLDEST_FIRST:
            return run.sub_job.taken_at
        if self.order is Order.EARLIEST_DEADLINE:
            return run.deadline
        return run.sub_job.id

    def head(self, rescued_before: float) -> tuple[Lane, Entry] | None:
        """What goes next; where the earliest deadline of its lane is before `rescued_before`, the one that has it."""
        for lane in self._lanes:
            heap = self._heaps[lane]
            while heap and not _is_ready(heap[0]):
                heapq.heappop(heap)
            if heap:
                return lane, self._rescued(lane, rescued_before) or heap[0]
        return None

    def earliest_deadline(self) -> float:
        """Of what is queued; infinite if there is none."""
        entry = self._first_due()
        return math.inf if entry is None else entry[0]

    def reorder(self, order: Order) -> None:
        """Sorts what is ready anew."""
        self.order = order
        for heap in self._heaps.values():
            ready = [entry[2] for entry in heap if _is_ready(entry)]
            for run in ready:
                run.entry = (self.key(run), run.id, run)
            heap[:] = [run.entry for run in ready if run.entry is not None]
            heapq.heapify(heap)

    def clear(self) -> None:
        """Empties the queue; deadlines stay."""
        for heap in self._heaps.values():
            for entry in heap:
                entry[2].entry = None
        self._heaps.clear()
        self._lanes.clear()

    # --- inside -------------------------------------------------------------------------------------------------

    def _rescued(self, lane: Lane, before: float) -> Entry | None:
        due = self._first_due()
        if due is None or due[0] >= before or due[2].lane != lane:
            return None
        return due[2].entry

    def _first_due(self) -> Entry | None:
        heap = self.deadlines
        while heap and not _is_queued(heap[0]):
            heapq.heappop(heap)[2].is_due = False
        return heap[0] if heap else None

    def first_due(self) -> Run | None:
        """The queued run with the earliest deadline."""
        entry = self._first_due()
        return None if entry is None else entry[2]

    def _push(self, heap: list[Entry], entry: Entry, is_live: Callable[[Entry], bool]) -> None:
        # What was settled otherwise leaves its entry behind; without this the heaps would grow with the history.
        if is_overgrown(len(heap), self.open):
            for stale in heap:
                if heap is self.deadlines and not is_live(stale):
                    stale[2].is_due = False
            heap[:] = filter(is_live, heap)
            heapq.heapify(heap)
        heapq.heappush(heap, entry)


def _is_ready(entry: Entry) -> bool:
    return entry[2].entry is entry


def _is_queued(entry: Entry) -> bool:
    # A retry has given it another deadline, or it was left out.
    return entry[2].state is StageState.QUEUED and entry[2].deadline == entry[0] and not entry[2].is_standby
