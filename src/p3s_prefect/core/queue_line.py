"""A pipeline's queue: what is ready, in the pipeline's order, and what has a deadline."""

from __future__ import annotations

import math
from bisect import insort

from p3s_prefect.core.experiment import Order
from p3s_prefect.core.heap import Heap
from p3s_prefect.core.open_work import Entry, Lane, Run


class ClassLine:
    """What the pipelines of a class share: how many of their stages run, and how many may."""

    __slots__ = ("limit", "running")

    def __init__(self) -> None:
        self.limit: float = math.inf
        self.running = 0


class Line:
    """The queue of one pipeline. What left it leaves stale entries behind, which are dropped on the way."""

    __slots__ = ("_heaps", "_lanes", "deadlines", "limit", "of_class", "order", "running")

    def __init__(self, of_class: ClassLine) -> None:
        self.of_class = of_class
        self.limit: float = math.inf
        self.order = Order.FRESHEST_FIRST
        self.running = 0
        self._heaps: dict[Lane, Heap[Run]] = {}
        self._lanes: list[Lane] = []
        self.deadlines: Heap[Run] = Heap(is_current)
        """Of what is queued and does not stand by."""

    @property
    def is_full(self) -> bool:
        """Whether it is at its own limit or at that of its class."""
        return self.running >= self.limit or self.of_class.running >= self.of_class.limit

    def push(self, run: Run, priority: int) -> None:
        """Makes a run ready."""
        lane = (-priority, run.is_standby, not run.sub_job.started)
        heap = self._heaps.get(lane)
        if heap is None:
            heap = self._heaps[lane] = Heap(_is_ready)
            insort(self._lanes, lane)
        run.ready_in = heap
        run.entry = (self.key(run), run.id, run)
        heap.push(run.entry)

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

    def head(self) -> tuple[Lane, Entry] | None:
        """What goes next."""
        for lane in self._lanes:
            first = self._heaps[lane].first()
            if first is not None:
                return lane, first
        return None

    def rescued(self, head: Run, before: float) -> Entry | None:
        """What goes before this head: of its lane, the one with the earliest deadline, if that is before the given."""
        due = self.deadlines.first()
        if due is None or due[0] >= before or due[2].ready_in is not head.ready_in:
            return None
        return due[2].entry

    def reorder(self, order: Order) -> None:
        """Sorts what is ready anew."""
        self.order = order
        for heap in self._heaps.values():
            entries = []
            for run in heap:
                run.entry = (self.key(run), run.id, run)
                entries.append(run.entry)
            heap.fill(entries)

    def clear(self) -> None:
        """Empties the queue; deadlines stay."""
        for heap in self._heaps.values():
            for run in heap:
                run.entry = None
            # What is not made ready again still names it, and would keep alive all that it held.
            heap.fill(())
        self._heaps.clear()
        self._lanes.clear()


def is_current(entry: Entry) -> bool:
    """Whether an entry among the deadlines, or among what stands by, is the one that its run has now."""
    return entry[2].due is entry


def _is_ready(entry: Entry) -> bool:
    return entry[2].entry is entry
