"""In which order stage runs are submitted, and what is said when nothing runs."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from p3s_prefect.station.production import StageWork
from p3s_prefect.tasks import turns


def work(number: int, after: tuple[int, ...] = (), after_all: tuple[int, ...] = ()) -> StageWork:
    known: dict[str, Any] = {"sub_job_id": 1, "pass_id": 1, "data_id": "run=1", "pipeline": "dqm", "stage": "quick"}
    rest: dict[str, Any] = {"per": "unit", "collection": "c", "is_done": False}
    return StageWork(stage_run_id=number, after=after, after_all=after_all, **known, **rest)


def drained(line: turns._Line) -> list[int]:
    found = []
    while (one := line.next()) is not None:
        found.append(one.stage_run_id)
    return found


def test_a_units_later_stage_goes_before_the_next_units_first() -> None:
    """P3's kind: what was begun is ended first; a group's stage when all that it gathers has ended."""
    line = turns._Line([work(1), work(2, after=(1,)), work(3), work(4, after=(3,)), work(5, after_all=(2, 4))])
    assert line.next() == work(1)
    line.end(1)
    assert drained(line) == [2, 3]
    line.end(2)
    line.end(3)
    assert drained(line) == [4]
    line.end(4)
    assert drained(line) == [5]


def test_it_is_said_that_no_worker_comes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """S8: after half a minute, then ever more rarely; and anew when workers were there and have gone."""
    monkeypatch.setattr(turns, "get_run_logger", lambda: logging.getLogger("flow"))
    lack = turns._Lack()
    for now in range(200):
        lack.look(0, float(now))
    lack.look(1, 200.0)
    for now in range(201, 240):
        lack.look(0, float(now))
    told = [record.args[0] for record in caplog.records if isinstance(record.args, tuple)]
    assert told == [31, 121, 31]
    assert "no worker" in caplog.text


class Cancellable:
    """As Dask's futures: to its client, what was cancelled is done, though its worker has not ended yet."""

    def __init__(self) -> None:
        self._is_cancelled = False
        self.client = self

    def cancel(self, futures: list[Cancellable], **_more: object) -> None:
        for future in futures:
            future._is_cancelled = True

    def done(self) -> bool:
        return self._is_cancelled


def test_a_second_signal_does_not_leave_a_stop_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2: who cancels in Prefect sends a signal a moment after the flow has seen it; the third one ends the wait."""
    signals = [KeyboardInterrupt("second"), None, KeyboardInterrupt("second"), KeyboardInterrupt("third")]
    begun: list[float] = []

    def await_stopped(_production: object, patience_s: float) -> None:
        begun.append(patience_s)
        if (signal := signals[len(begun) - 1]) is not None:
            raise signal

    monkeypatch.setattr(turns.books, "await_stopped", await_stopped)
    production: Any = None
    for word, waits in (("second", 2), ("third", 4)):
        # As Dask's: to its client, what was cancelled is done, though its worker has not ended yet.
        runs: Any = {1: SimpleNamespace(wrapped_future=Cancellable())}
        with pytest.raises(KeyboardInterrupt, match=word), turns.stopped_with(production, runs):
            raise KeyboardInterrupt("first")
        assert len(begun) == waits
