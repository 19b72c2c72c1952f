"""The breaker: when it opens, what its canary decides, and what it does not count (V17)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.breaker import BreakerState, Circuit, End, end_of
from p3s_prefect.core.experiment import Breaker
from p3s_prefect.core.records import Failure

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
T0 = 1_800_000_000.0
RULE = Breaker(window_s=600, failures=5, share=0.5, canary_s=60)


def end(at: float, run: int, *, good: bool = False, stage: str = "quick", begun: float | None = None) -> End:
    trouble = None if good else f"it failed in {run}"
    return End(
        at=T0 + at, begun_at=T0 + (at if begun is None else begun), stage=stage, stage_run_id=run, trouble=trouble
    )


def opened(rule: Breaker = RULE, *, at: float = 0.0, stages: Iterable[str] = ("quick",)) -> Circuit:
    """A breaker that has just opened."""
    circuit, names = Circuit(rule=rule), list(stages)
    for run in range(rule.failures):
        circuit.ended(end(at, run, stage=names[run % len(names)]))
    assert circuit.state is OPEN
    return circuit


def test_it_opens_when_enough_have_failed_and_says_why() -> None:
    """V17: above both a count and a share; the reason counts, and tells the newest failure."""
    circuit = Circuit(rule=RULE)
    assert not circuit.ended(end(0, 100, good=True))
    assert not any(circuit.ended(end(run, run)) for run in range(4))
    assert circuit.ended(end(4, 4))
    assert (circuit.state, circuit.since) == (OPEN, T0 + 4)
    assert circuit.why == "5 of the last 6 stages failed, within 10 min; the newest, quick: it failed in 4"


def test_few_failures_among_many_good_ends_do_not_open_it() -> None:
    """V17: ten failures of thirty are above the count, and below the share."""
    circuit = Circuit(rule=RULE)
    for run in range(30):
        assert not circuit.ended(end(run, run, good=run % 3 != 0))
    assert circuit.state is CLOSED


def test_failures_of_long_ago_do_not_count() -> None:
    """V17, V18 (window_s): the window is recent."""
    circuit = Circuit(rule=RULE)
    for run in range(50):
        assert not circuit.ended(end(run * 151, run))
    assert circuit.state is CLOSED


def test_one_unit_that_fails_at_each_retry_is_one_failure() -> None:
    """V17: one that is damaged opens nothing."""
    circuit = Circuit(rule=RULE)
    for second in range(100):
        assert not circuit.ended(end(second, run=1))
    assert not any(circuit.ended(end(101 + run, run)) for run in range(2, 5))
    assert not circuit.ended(end(110, run=1, good=True))
    assert not circuit.ended(end(111, run=5)), "the one that was mended at last counts as good"
    assert circuit.ended(end(112, run=6))


@pytest.mark.parametrize("failure", list(Failure))
def test_what_counts(failure: Failure) -> None:
    """V17: what befalls the next unit too; not a damaged input, a deadline, or a stop by hand."""
    found = end_of(at=1, begun_at=0, stage="quick", stage_run_id=1, failure=failure, reason="why")
    counts = failure in (Failure.PAYLOAD, Failure.TIMEOUT, Failure.STORE)
    assert (found is not None and found.trouble == "why") == counts


def test_a_good_end_counts() -> None:
    """V17: the share is of all that ended."""
    found = end_of(at=1, begun_at=0, stage="quick", stage_run_id=1, failure=None, reason="")
    assert found is not None
    assert found.trouble is None


def test_a_canary_that_ends_well_closes_it_and_the_window_starts_anew() -> None:
    """V17."""
    circuit = opened()
    assert circuit.wake_at() == T0 + 60
    assert not circuit.due(T0 + 59)
    assert circuit.due(T0 + 60)
    assert (circuit.state, circuit.wake_at()) == (HALF_OPEN, math.inf)
    assert circuit.ended(end(62, 50, good=True))
    assert (circuit.state, circuit.why) == (CLOSED, "quick ended well")
    assert not any(circuit.ended(end(63 + run, run)) for run in range(4))
    assert circuit.ended(end(70, 9))


def test_a_canary_that_fails_opens_it_again() -> None:
    """V17: and after another while the next one is let through."""
    circuit = opened()
    circuit.due(T0 + 60)
    assert circuit.ended(end(61, 50))
    assert (circuit.state, circuit.since, circuit.why) == (OPEN, T0 + 61, "quick failed again: it failed in 50")
    assert not circuit.due(T0 + 120)
    assert circuit.due(T0 + 121)


def test_what_began_before_the_canary_decides_nothing() -> None:
    """V17: it knows nothing of the mend."""
    circuit = opened()
    assert not circuit.ended(end(30, 50, good=True)), "while it is open"
    circuit.due(T0 + 60)
    assert not circuit.ended(end(61, 51, good=True, begun=10))
    assert not circuit.ended(end(62, 52, begun=10))
    assert circuit.state is HALF_OPEN
    assert circuit.ended(end(63, 53, good=True, begun=60))


def test_the_canary_must_be_of_a_stage_that_failed() -> None:
    """V17: what never failed proves nothing."""
    circuit = opened(stages=["deep"])
    circuit.due(T0 + 60)
    assert not circuit.ended(end(61, 50, good=True, stage="quick"))
    assert circuit.ended(end(62, 51, good=True, stage="deep"))


def test_after_a_restart_any_stage_may_close_it() -> None:
    """V17: the ledger keeps that it was open, not which stages had failed."""
    circuit = Circuit(rule=RULE, state=OPEN, since=T0)
    assert circuit.due(T0 + 60)
    assert circuit.ended(end(61, 50, good=True, stage="whatever"))


def test_by_command_only() -> None:
    """V17: without a canary it stays open until somebody releases it; then the window starts anew."""
    circuit = opened(Breaker(canary_s=None))
    assert circuit.wake_at() == math.inf
    assert not circuit.due(T0 + 1e9)
    assert circuit.release(T0 + 100)
    assert (circuit.state, circuit.why) == (CLOSED, "released by command")
    assert not circuit.release(T0 + 101)
    assert not circuit.ended(end(102, 77))


def test_a_clock_that_is_set_back_keeps_nothing_open_for_longer() -> None:
    """V17, S8: than it was to be."""
    circuit = opened(at=1e6)
    assert not circuit.due(T0)
    assert circuit.due(T0 + 60)
    circuit = Circuit(rule=RULE)
    for run in range(4):
        circuit.ended(end(1e6, run))
    assert not circuit.ended(end(0, 9)), "failures in the future are not recent"


_EVENTS = st.lists(st.tuples(st.floats(0, 90), st.booleans(), st.integers(0, 30)), max_size=80)


@given(_EVENTS, st.integers(1, 8), st.floats(0.05, 1), st.floats(1, 2000))
def test_it_opens_just_when_count_and_share_are_reached(
    events: list[tuple[float, bool, int]], failures: int, share: float, window_s: float
) -> None:
    """V17: against a plain count over all ends; for good ones the window may reach back by 1/60 further."""
    rule = Breaker(window_s=window_s, failures=failures, share=share)
    circuit, now = Circuit(rule=rule), 0.0
    latest: dict[int, tuple[float, bool]] = {}
    good: list[float] = []
    for wait_s, is_good, run in events:
        now += wait_s
        if is_good:
            # A stage run that ended well is settled; what comes next is another one.
            latest.pop(run, None)
            good.append(now)
        else:
            latest[run] = (now, False)
        opens = circuit.ended(end(now, run, good=is_good))
        failed = sum(T0 + at > T0 + now - window_s for at, _ in latest.values())
        just = sum(T0 + at > T0 + now - window_s for at in good)
        wider = sum(at > now - window_s * (1 + 1 / 60) - 1e-3 for at in good)
        if is_good or failed < failures or failed < share * (failed + just):
            assert not opens
        elif failed >= share * (failed + wider):
            assert opens
        if opens:
            return


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 2), st.integers(0, 3)), max_size=60))
def test_it_moves_along_its_arrows_only(events: list[tuple[float, int, int]]) -> None:
    """V17: whatever happens, a pipeline that was paused goes on only by a canary, or by command."""
    circuit, now = Circuit(rule=Breaker(failures=2, share=0.5, canary_s=50)), 0.0
    for wait_s, kind, run in events:
        now, before = now + wait_s, circuit.state
        changed = circuit.due(T0 + now) if kind == 0 else circuit.ended(end(now, run, good=kind == 1))
        assert changed == (circuit.state is not before)
        if changed:
            arrow = (kind, before, circuit.state)
            assert arrow in {
                (0, OPEN, HALF_OPEN),
                (1, HALF_OPEN, CLOSED),
                (2, HALF_OPEN, OPEN),
                (2, CLOSED, OPEN),
            }
            assert circuit.since == T0 + now
