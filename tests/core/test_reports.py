"""What a report is about, how it is said, and its numbers."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.coverage import CoverageReport, CoverageRow
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Instrument
from p3s_prefect.core.latency import Durations, Milestones
from p3s_prefect.core.reports import Scope, moment, part_order, processing_day, quantile, scope, shown_share, utc

# 2026-10-20 18:30:00 UTC
_AT = datetime(2026, 10, 20, 18, 30, tzinfo=UTC).timestamp()
_CAMERA = Instrument(name="camera", dimensions={"run": "int", "part": "text", "subrun": "int"}, group=["run"])


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-10-20T18:30", _AT),
        ("2026-10-20 18:30:00Z", _AT),
        ("2026-10-20T15:30-03:00", _AT),
        ("2026-10-20", _AT - 18.5 * 3600),
        ("1h30min", _AT - 5400),
        ("2d", _AT - 2 * 86_400),
        (datetime(2026, 10, 20, 18, 30, tzinfo=UTC), _AT),
        (datetime(2026, 10, 20, 20, 30, tzinfo=timezone(timedelta(hours=2))), _AT),
    ],
)
def test_moments_as_people_write_them(text: str | datetime, at: float) -> None:
    assert moment(text, now=_AT) == at


@pytest.mark.parametrize("text", ["", "yesterday", "2026-02-30", "20:30", "-6h", "6 fortnights", "\x1b[31m", "9" * 500])
def test_what_is_no_moment_is_refused(text: str) -> None:
    """S8."""
    with pytest.raises(BadName, match="is no time\n  Write 2026-10-20,"):
        moment(text, now=_AT)


@given(st.text())
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    """S8."""
    try:
        assert math.isfinite(moment(text, now=_AT))
    except BadName as error:
        assert error.fix  # noqa: PT017


def test_processing_days() -> None:
    assert processing_day("2026-10-20") == processing_day(" 20261020 ") == "20261020"
    for text in ("2026-02-30", "20-10-2026", "", "2026/10/20", "00000000"):
        with pytest.raises(BadName, match="is no day\n  Write 2026-10-20 or 20261020"):
            processing_day(text)


def test_without_a_group_or_a_time_it_is_the_last_day() -> None:
    assert scope(_CAMERA, now=_AT) == Scope(since=_AT - 86_400)
    assert scope(_CAMERA, "run=7", now=_AT) == scope(_CAMERA, DataId.of(run=7), now=_AT) == Scope(group="run=7")
    assert scope(_CAMERA, until="1h", now=_AT) == Scope(until=_AT - 3600)
    assert scope(_CAMERA, day="2026-10-20", by="part", now=_AT) == Scope(day="20261020", by="part")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"group": "run=7 part=a"}, r"run=7 part=a does not name a group\n  Give run=\.\.\.; --by splits"),
        ({"group": "part=a"}, "does not name a group"),
        ({"group": "visit=7"}, "no dimension 'visit'"),
        ({"group": "nonsense"}, "Write run=2008"),
        ({"by": "apa"}, "no dimension 'apa'\n  Give one of: run, part, subrun"),
        ({"since": "1h", "until": "2h"}, "is empty\n  Give an end"),
        ({"since": "2026-10-20", "until": "2026-10-20"}, "is empty"),
    ],
)
def test_words_that_mean_nothing_are_refused(words: dict[str, str], says: str) -> None:
    """S8."""
    with pytest.raises(BadName, match=says):
        scope(_CAMERA, **words, now=_AT)


def test_a_scope_says_what_it_is() -> None:
    assert str(Scope(group="run=7", pipeline="dqm")) == "run=7, dqm"
    assert str(Scope(since=_AT, until=_AT + 1.5)) == "what arrived from 2026-10-20 18:30:00 UTC until " + utc(_AT + 1)
    assert str(Scope(day="20261020", until=_AT)) == "day 20261020, what arrived until 2026-10-20 18:30:00 UTC"
    assert str(Scope()) == "everything"


def test_parts_are_sorted_as_people_do() -> None:
    assert sorted(["10", "b", None, "9", "a10"], key=part_order) == [None, "9", "10", "a10", "b"]


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values: list[float], share: float) -> None:
    ordered = sorted(values)
    assert quantile(ordered, share) == pytest.approx(float(np.quantile(ordered, share)), rel=1e-9, abs=1e-9)


def test_shares_are_not_rounded_to_all_or_nothing() -> None:
    shares = [None, 0.0, 1e-6, 0.123, 0.5, 0.99999, 1.0]
    assert [shown_share(share) for share in shares] == [
        *("", "0 %", "< 0.1 %", "12.3 %", "50 %", "> 99.9 %", "100 %"),
    ]


def _row(**changes: object) -> CoverageRow:
    states = ("open", "done", "prescaled", "shed", "expired", "failed", "blocked", "superseded", "cancelled")
    values = {
        "pipeline": "dqm",
        "pass_number": 0,
        "per": "unit",
        "stage": "quick",
        "seen": 0,
        **dict.fromkeys(states, 0),
    }
    return CoverageRow(**(values | changes))


def test_what_is_due_is_what_should_have_given_a_result() -> None:
    """V24: neither what was left out beforehand, nor what goes on elsewhere, nor what is open."""
    row = _row(seen=45, open=1, done=2, prescaled=3, shed=4, expired=5, failed=6, blocked=7, superseded=8, cancelled=9)
    assert (row.settled, row.lost, row.due, row.balances) == (44, 22, 24, True)
    assert row.done_share == 2 / 45


def test_a_row_that_does_not_add_up_is_named() -> None:
    """P7."""
    good, bad = _row(seen=3, done=3), _row(seen=3, done=2, stage="deep")
    assert CoverageReport(scope=Scope(), rows=(good, bad), units=()).unbalanced == (bad,)


def test_sub_jobs_of_one_stage_tell_nothing_more_than_it() -> None:
    whole, quick, deep = _row(seen=1, stage=None), _row(seen=1), _row(seen=1, stage="deep")
    assert not CoverageReport(scope=Scope(), rows=(whole, quick), units=()).tells_more(whole)
    both = CoverageReport(scope=Scope(), rows=(whole, quick, deep), units=())
    assert [both.tells_more(row) for row in both.rows] == [True, True, True]
    # A stage was added after all of part 1 had come.
    parts = [_row(seen=1, stage=name, part=part) for name, part in ((None, 1), ("quick", 1), (None, 2), ("deep", 2))]
    split = CoverageReport(scope=Scope(), rows=tuple(parts), units=())
    assert [split.tells_more(row) for row in split.rows] == 4 * [True]


def test_durations_of_hand_made_results() -> None:
    """V24: three results, by hand; the third is late, and its pilot's clock is 5 s behind."""
    found = Durations()
    in_time = [
        found.add(Milestones(0.0, 1.0, 1.5, 3.0, 7.0, 7.5, [("read", 1.0), ("fit", 2.0)]), 10.0),
        found.add(Milestones(100.0, 102.0, 102.0, 102.0, 109.0, 110.0, [("read", 2.0), ("fit", 4.0)]), 10.0),
        found.add(Milestones(200.0, 203.0, 209.0, 204.0, 212.0, 217.0, [("read", 3.0), ("fit", 5.0)]), 10.0),
    ]
    row = found.row(_row(seen=4, done=3, expired=1), {10.0})
    assert in_time == [True, True, False]
    assert (row.in_time, row.in_time_of_done, row.in_time_of_due) == (2, 2 / 3, 0.5)
    assert row.total is not None
    assert (row.total.count, row.total.p50_s, row.total.longest_s) == (3, 10.0, 17.0)
    assert (row.total.p95_s, row.total.p99_s) == pytest.approx((10 + 0.9 * 7, 10 + 0.98 * 7))
    assert {phase.label: (phase.spread.p50_s, phase.spread.longest_s) for phase in row.phases} == {
        "waited for arrival": (2.0, 3.0),
        "earlier stages and tries": (0.5, 6.0),
        "waited for a slot": (0.0, 1.5),
        "read": (2.0, 3.0),
        "fit": (4.0, 5.0),
        "inputs and outputs": (1.0, 1.0),
        "published": (1.0, 5.0),
    }
    assert row.curve == (7.5, 10.0, 17.0)


def test_a_long_curve_is_thinned_between_its_ends() -> None:
    found = Durations()
    for seconds in range(5000, 0, -1):
        found.add_unit(Milestones(0, 0, 0, 0, 0, seconds), in_time=True)
    curve = found.row(_row(seen=5000, done=5000, stage=None), set()).curve
    assert (len(curve), curve[0], curve[-1]) == (200, 1.0, 5000.0)
    assert max(np.diff(curve)) <= 26
