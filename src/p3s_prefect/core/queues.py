"""The queues of all pipelines: what is ready, what waits for its retry, what a floor is owed, and who goes next.

What chance has left out in overload stands by: it goes behind all that was let in of its priority or a higher one, and
only where a slot would idle, or go to a lower one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from p3s_prefect.core.controller import Controller
from p3s_prefect.core.experiment import Order
from p3s_prefect.core.heap import Heap
from p3s_prefect.core.open_work import Entry, Lane, Run, SubJob
from p3s_prefect.core.overruling import Overruling
from p3s_prefect.core.owed import Owed
from p3s_prefect.core.plan import Plan
from p3s_prefect.core.queue_line import ClassLine, Line, is_current
from p3s_prefect.core.states import StageState


class Queues:
    """What is queued, by pipeline."""

    def __init__(self, overruling: Overruling, controller: Controller) -> None:
        self._overruling = overruling
        self._controller = controller
        self._plans: Mapping[str, Plan] = {}
        self.top_priority = 0
        """The highest of all that is open. What a floor owes a slot is handed out above it."""
        self._classes: dict[str, ClassLine] = {}
        self._later: Heap[Run] = Heap(_is_later)
        self._standby: Heap[Run] = Heap(is_current)
        self.lines: dict[str, Line] = {}
        self._owed = Owed(controller, self.lines)

    def define(self, plans: Mapping[str, Plan]) -> None:
        """These are the plans of today, by which queues are sorted."""
        self._plans = plans
        for name, plan in plans.items():
            of_class = self._classes.setdefault(plan.class_name, ClassLine())
            line = self.lines.setdefault(name, Line(of_class))
            if line.of_class is not of_class:
                line.of_class.running -= line.running
                of_class.running += line.running
                line.of_class = of_class
            line.reorder(plan.order)
        # In overload the freshest go first again, as soon as somebody looks.
        self._controller.is_turned = True

    def overrule(self) -> dict[str, float]:
        """Takes limits and priorities as they are declared or set; returns how many of a pipeline's stages may run.

        A limit of 0 is left out, as it is a pause: what comes then waits, and is not thinned as if that were for good.
        """
        # What is open may have a higher one than anything today.
        self.top_priority = max(self.top_priority, self._overruling.top_priority(self._plans.values()))
        for name, line in self.lines.items():
            line.limit = self._overruling.limit(self._plans[name])
            line.of_class.limit = self._overruling.class_limit(self._plans[name])
        limits = {name: min(line.limit, line.of_class.limit) for name, line in self.lines.items()}
        return {name: limit for name, limit in limits.items() if limit > 0}

    def line(self, run: Run) -> Line:
        """The queue of a run's pipeline."""
        return self.lines[run.sub_job.flow.plan.name]

    # --- in ---------------------------------------------------------------------------------------------------------

    def add(self, run: Run) -> None:
        """A run is queued: ready, unless it is to be tried again later, or is stopped by command."""
        if run.is_standby:
            run.due = (self._controller.last_begin(run), run.id, run)
            self._standby.push(run.due)
        elif run.deadline < math.inf:
            run.due = (run.deadline, run.id, run)
            self.line(run).deadlines.push(run.due)
        if run.not_before > 0:
            self._later.push((run.not_before, run.id, run))
        else:
            self.make_ready(run)

    def make_ready(self, run: Run) -> None:
        """A queued run may start from now on."""
        if self._overruling.is_stopped(run):
            return
        self.line(run).push(run, self._priority(run))
        if run.sub_job.is_owed and run.deadline < math.inf:
            self._owed.add(run)

    def wake(self, now: float) -> None:
        """Makes ready what was to be tried again by now."""
        while (entry := self._later.first()) is not None and entry[0] <= now:
            self._later.pop()
            entry[2].not_before = 0.0
            self.make_ready(entry[2])

    def clear(self) -> None:
        """Empties what is ready; everything that is queued is to be made ready again."""
        for line in self.lines.values():
            line.clear()

    def sort_again(self, sub_job: SubJob) -> None:
        """A unit has begun: what a drain stopped of it goes on."""
        for run in sub_job:
            if run.state is StageState.QUEUED and run.not_before == 0:
                run.entry = None
                self.make_ready(run)

    def sort_by_load(self) -> None:
        """Where the freshest go first in overload, they do so from now on, or not any more."""
        self._controller.is_turned = False
        for name, line in self.lines.items():
            plan = self._plans[name]
            fresh = plan.freshest_in_overload and self._controller.is_overloaded(plan)
            order = Order.FRESHEST_FIRST if fresh else plan.order
            if order is not line.order:
                line.reorder(order)

    def freshest_first(self, now: float) -> dict[str, float]:
        """The pipelines whose freshest go first now; what has a deadline before the moment given goes before them."""
        fresh = [name for name, line in self.lines.items() if line.order is Order.FRESHEST_FIRST]
        return {name: self._controller.rescued_before(self._plans[name], now) for name in fresh}

    def owed_until(self, now: float) -> dict[str, tuple[float, int]]:
        """What of floors goes before everything else now; see `Dispatcher.owed_until`."""
        return self._owed.first_until(now)

    # --- out --------------------------------------------------------------------------------------------------------

    def wake_at(self) -> float:
        """When the next retry, or deadline, is due, or something has stood by for too long."""
        heaps = [self._later, self._standby, *(line.deadlines for line in self.lines.values())]
        return min(heap.first_key() for heap in heaps)

    def overdue(self, now: float) -> Iterator[Run]:
        """What is queued and has passed its deadline; each is to be expired before the next is asked for."""
        for line in self.lines.values():
            while (entry := line.deadlines.first()) is not None and entry[0] <= now:
                yield entry[2]

    def hopeless(self, now: float) -> Iterator[Run]:
        """What has stood by until it would hardly end in time; each is to be shed before the next is asked for."""
        while (entry := self._standby.first()) is not None and entry[0] <= now:
            self._standby.pop()
            run = entry[2]
            last_begin = self._controller.last_begin(run)
            if last_begin <= now:
                yield run
            else:
                run.due = (last_begin, run.id, run)
                self._standby.push(run.due)

    def next(self, now: float, *, idle: bool) -> tuple[Run, int] | None:
        """What to start next, and its priority among what the pilots have not begun; `idle` is whether a slot is."""
        if (owed := self._owed.first(now)) is not None:
            # Above all, so that it goes before what was handed out and has not begun.
            return owed, self.top_priority + 1
        best: tuple[Lane, int, float, int] | None = None
        chosen: Run | None = None
        for name, line in self.lines.items():
            if line.is_full or (head := line.head()) is None:
                continue
            lane, entry = head
            if line.order is Order.FRESHEST_FIRST:
                before = self._controller.rescued_before(self._plans[name], now)
                entry = line.rescued(entry[2], before) or entry
            # Freshest and oldest first cannot be compared with each other: between pipelines of the same priority,
            # the one with fewer stage runs in flight goes first, so that none starves another.
            turn = (lane, line.running, entry[0], entry[1])
            if best is None or turn < best:
                best, chosen = turn, entry[2]
        if chosen is None or (chosen.is_standby and not idle):
            return None
        return chosen, self._priority(chosen)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _priority(self, run: Run) -> int:
        return self._overruling.standby_priority(run) if run.is_standby else self._overruling.priority(run)


def _is_later(entry: Entry) -> bool:
    return entry[2].state is StageState.QUEUED and entry[2].not_before == entry[0]
