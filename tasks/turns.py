"""When each stage run is submitted, how far all of them are, and what becomes of them when the flow is stopped."""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, cast
from uuid import UUID

import distributed
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect_dask.task_runners import PrefectDaskFuture

from p3s_prefect.station import production as books
from p3s_prefect.station.production import Production, StageWork
from p3s_prefect.tasks.cluster import slots

# A request to the server each time.
_LOOK_EVERY_S = 1.0
# A worker looks three times a second whether its task is still wanted; then it kills the payload and keeps the books.
_STOP_S = 15.0
_FIRST_LACK_S = 30.0

Runs = Mapping[int, PrefectFuture[Any]]
"""What was submitted, by the id of its stage run."""


def in_turn(work: Sequence[StageWork], runs: Runs) -> Iterator[StageWork]:
    """Each stage run when it may be submitted, which the caller does before it asks for the next; ends when all have.

    It may when its parents have ended, and the units that it gathers, well or not: Prefect has no word for the latter,
    as `allow_failure` does not get through to Dask's workers. No more are with Dask than run at once: it would bind a
    stage to a worker where another runs for an hour, beside one that is idle. If the flow run is cancelled, nothing
    more comes.
    """
    line, ended, progress, lack = _Line(work), SimpleQueue[int](), _Progress(len(work)), _Lack()
    looked_at, free, in_flight, over = -_LOOK_EVERY_S, 0.0, 0, 0
    while over < len(work):
        if time.monotonic() > looked_at + _LOOK_EVERY_S:
            if is_cancelled():
                return
            there, free = slots()
            looked_at = time.monotonic()
            lack.look(there, looked_at)
            progress.tell(over)
        while in_flight < free and (one := line.next()) is not None:
            yield one
            runs[one.stage_run_id].add_done_callback(partial(_put, ended, one.stage_run_id))
            in_flight += 1
        with suppress(Empty):
            line.end(ended.get(timeout=_LOOK_EVERY_S))
            in_flight, over = in_flight - 1, over + 1
    progress.tell(over)


def before(work: StageWork, runs: Runs) -> list[PrefectFuture[Any]]:
    """What a stage run comes after, as Prefect is to show it: its parents, and of what it gathers what ended well."""
    gathered = [runs[unit] for unit in work.after_all]
    for run in gathered:
        run.wait()
    return [*(runs[parent] for parent in work.after), *(run for run in gathered if run.state.is_completed())]


@contextmanager
def stopped_with(production: Production, runs: Runs) -> Iterator[None]:
    """If the flow ends before its stages do, stops these: their payloads are killed, and they are queued again."""
    try:
        yield
    finally:
        open_runs = [found for run in runs.values() if not (found := in_dask(run)).done()]
        if open_runs:
            try:
                _stop(production, open_runs)
            except Exception:
                raise
            except BaseException:
                # A signal: who cancels in Prefect sends one a moment after the flow has seen it by itself, and people
                # press Ctrl-C twice. It must not leave what is stopped half-way; the third one does.
                _stop(production, open_runs)
                raise


def is_cancelled() -> bool:
    """Whether somebody has asked Prefect to cancel the flow run."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return False
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(context.flow_run.id).state
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def _stop(production: Production, open_runs: Sequence[distributed.Future[Any]]) -> None:
    open_runs[0].client.cancel(open_runs, force=True, reason="its production was stopped")
    books.await_stopped(production, _STOP_S)


def _put(ended: SimpleQueue[int], stage_run_id: int, _run: PrefectFuture[Any]) -> None:
    ended.put(stage_run_id)


class _Line:
    """What may be submitted, in the order of the plan: later stages of a unit go before the next unit's first."""

    def __init__(self, work: Sequence[StageWork]) -> None:
        self._work = work
        self._waits_for = [{*one.after, *one.after_all} for one in work]
        self._followers: defaultdict[int, list[int]] = defaultdict(list)
        for place, others in enumerate(self._waits_for):
            for other in others:
                self._followers[other].append(place)
        self._ready = [place for place, others in enumerate(self._waits_for) if not others]

    def next(self) -> StageWork | None:
        """The first that may be submitted; None if there is none now."""
        return self._work[heapq.heappop(self._ready)] if self._ready else None

    def end(self, stage_run_id: int) -> None:
        """It has ended, well or not."""
        for place in self._followers[stage_run_id]:
            self._waits_for[place].discard(stage_run_id)
            if not self._waits_for[place]:
                heapq.heappush(self._ready, place)


class _Lack:
    """Says in Prefect that no worker comes. It is no error: in a batch system's queue they may wait for hours."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._told_after_s = _FIRST_LACK_S

    def look(self, slots: int, now: float) -> None:
        """`slots` that there are now; `now` in seconds of any clock."""
        if slots:
            self._since, self._told_after_s = None, _FIRST_LACK_S
            return
        self._since = now if self._since is None else self._since
        if now - self._since > self._told_after_s:
            get_run_logger().warning(
                "the cluster has had no worker for %.0f s; see what the batch system says of its jobs, or the log of "
                "whoever starts workers",
                now - self._since,
            )
            self._told_after_s *= 4


class _Progress:
    """A bar in Prefect's page."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._told = 0
        words = f"0 of {most} stage runs have ended"
        self._id = cast(UUID, create_progress_artifact(0.0, key="production", description=words))

    def tell(self, ended: int) -> None:
        if ended != self._told:
            self._told = ended
            words = f"{ended} of {self._most} stage runs have ended"
            update_progress_artifact(self._id, 100.0 * ended / self._most, description=words)


def in_dask(run: PrefectFuture[Any]) -> distributed.Future[Any]:
    """What Prefect waits for."""
    return cast(PrefectDaskFuture[Any], run).wrapped_future
