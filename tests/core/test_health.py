"""Health rows: what is not ok names its cause and what to do."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ledger_rows import T0, facts

from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.health import (
    BreakerFacts,
    BufferFacts,
    KeptOut,
    Outcomes,
    SourceFacts,
    Status,
    duration,
    health_rows,
    ledger,
    overall,
    results,
    size,
    source,
    station_down,
)
from p3s_prefect.core.overrides import BREAKER, Override, OverrideKind, Target
from p3s_prefect.core.records import BufferUse

_NONE = KeptOut(refused=0, conflicts=0, window_s=3600)


def _ended(*newest: str, reason: str = "", shed_s: float = math.inf, **counts: int) -> Outcomes:
    values = dict.fromkeys(("done", "failed", "expired", "blocked"), 0) | counts
    return Outcomes(**values, shed_s=shed_s, latest=newest, reason=reason, window_s=3600)


_WELL = _ended("done", "done", done=40, failed=2)


def _source(**changes: Any) -> tuple[SourceFacts, ...]:
    values: dict[str, Any] = {"stream": "camera", "directory": "/in", "list_every_s": 5.0, "listed_at": T0 + 8}
    return (SourceFacts(**(values | changes)),)


def test_a_healthy_station() -> None:
    rows = health_rows(facts(), _NONE, _WELL)
    assert [row.name for row in rows] == [
        *("pilots", "source camera", "backlog", "store", "ledger", "arrivals", "results", "overload")
    ]
    assert overall(rows) is Status.OK
    assert not [row for row in rows if row.cause or row.action]


@pytest.mark.parametrize(
    ("changes", "kept_out", "name", "status", "cause"),
    [
        ({"is_supervised": False}, _NONE, "supervisor", Status.DEGRADED, "not started again"),
        ({"slots_actual": 0}, _NONE, "pilots", Status.DOWN, "no pilot"),
        ({"slots_actual": 1}, _NONE, "pilots", Status.DEGRADED, "1 pilot slot is missing"),
        ({"sources": _source(problem="Permission denied")}, _NONE, "source camera", Status.DOWN, "Permission denied"),
        ({"sources": _source(listed_at=T0 - 10)}, _NONE, "source camera", Status.DEGRADED, "hangs"),
        ({"sources": _source(listed_at=None)}, _NONE, "source camera", Status.DEGRADED, "hangs"),
        ({"queued": 9, "oldest_taken_at": T0 - 60}, _NONE, "backlog", Status.DEGRADED, "faster than"),
        ({"queued": 9, "oldest_taken_at": T0 - 21}, _NONE, "backlog", Status.DEGRADED, "faster than"),
        ({"store_problem": "No space left"}, _NONE, "store", Status.DOWN, "No space left"),
        ({"store_free_bytes": 10**9}, _NONE, "store", Status.DEGRADED, "nearly full"),
        (
            {"refused_records": 2, "record_problem": "another object is already under r/commit.json"},
            *(_NONE, "commit records", Status.DEGRADED, "r/commit.json"),
        ),
        ({"ledger_problem": "disk I/O error"}, _NONE, "ledger", Status.DOWN, "disk I/O error"),
        ({"commit_s": 0.9}, _NONE, "ledger", Status.DEGRADED, "slow"),
        ({}, KeptOut(refused=2, conflicts=0, window_s=3600), "arrivals", Status.DEGRADED, "cannot be processed"),
        ({}, KeptOut(refused=0, conflicts=1, window_s=3600), "arrivals", Status.DEGRADED, "cannot be processed"),
    ],
)
def test_each_trouble_is_named_with_what_to_do(
    changes: dict[str, Any], kept_out: KeptOut, name: str, status: Status, cause: str
) -> None:
    """P19, for the rows that exist: only the row of the trouble changes, and it names cause and action."""
    rows = health_rows(facts(**changes), kept_out, _WELL)
    (bad,) = (row for row in rows if row.status is not Status.OK)
    assert (bad.name, bad.status) == (name, status)
    assert cause in bad.cause
    assert bad.action
    assert overall(rows) is status


def test_a_backlog_behind_a_command_is_not_put_down_to_the_load() -> None:
    """P19, S9: who set it and why; a priority lets nothing less start, and a breaker has a row of its own."""
    old = facts(queued=9, oldest_taken_at=T0 - 60)

    def cause(kind: OverrideKind, by: str = "ana", value: int | None = None) -> str:
        target = Target(pipeline="dqm")
        one = Override(id=1, kind=kind, target=target, by=by, why="calibration", set_at=T0, value=value)
        rows = health_rows(old, _NONE, _WELL, [one])
        return next(row.cause for row in rows if row.name == "backlog")

    assert "by ana: calibration" in cause(OverrideKind.LIMIT, value=1)
    assert "by ana: calibration" in cause(OverrideKind.DRAIN)
    assert "faster than" in cause(OverrideKind.PRIORITY, value=1)
    assert "faster than" in cause(OverrideKind.PAUSE, BREAKER)


@pytest.mark.parametrize(
    ("outcomes", "status", "says"),
    [
        (_ended(), Status.OK, ""),
        (_ended("failed", "failed", "done", done=95, failed=5), Status.OK, ""),
        (_ended("done", done=94, failed=6, reason="quick: exited with 3"), Status.DEGRADED, "exited with 3"),
        (_ended("failed", "failed", "failed", "done", done=900, failed=3), Status.DEGRADED, "most of them failed"),
        (_ended("expired", "expired", "expired", "done", done=900, expired=3), Status.OK, ""),
        (_ended("done", done=1, expired=9, blocked=1), Status.DEGRADED, "10 of 11 units gave no result"),
        (_ended("failed", "failed", failed=2), Status.DEGRADED, "2 of 2 units"),
        (_ended(*["expired"] * 5, done=900, expired=5), Status.DOWN, "most of them expired"),
        (_ended("failed", "failed", "expired", "blocked", "failed", failed=9), Status.DOWN, "most of them failed"),
    ],
)
def test_lost_units_are_not_well(outcomes: Outcomes, status: Status, says: str) -> None:
    """P19: a station that runs and gives nothing is not well; cause and action name what is lost most."""
    row = results(outcomes)
    assert row.status is status
    assert says in row.cause
    if status is not Status.OK:
        assert f"p3s list units --state {'expired' if outcomes.expired > outcomes.failed else 'failed'}" in row.action
        assert ("Add pilots" in row.action) == (outcomes.expired > outcomes.failed)


def test_what_is_shed_is_not_well_and_says_how_much() -> None:
    """P19, P6: units that overload leaves out are told, with their share and what to do."""
    # What somebody has let in is none of those of which so many were left out.
    row = health_rows(facts(), _NONE, _ended("done", done=268, by_hand=100, shed=1659, shed_s=30.0))[-1]
    assert (row.name, row.status) == ("overload", Status.DEGRADED)
    assert "1659 of 1827 units shed in 60 min, the last 30 s ago" in row.actual
    assert row.cause.startswith("91 % were left out")
    assert "p3s limits" in row.action


def test_an_overload_that_is_over_is_told_and_is_well() -> None:
    """P19: nobody is called for it an hour long."""
    row = health_rows(facts(), _NONE, _ended("done", done=168, shed=1659, shed_s=900.0))[-1]
    assert (row.status, row.cause, row.action) == (Status.OK, "", "")
    assert "1659 of 1827 units shed in 60 min, the last 15 min ago" in row.actual


def test_how_fast_the_books_are_is_said_after_the_first_commit() -> None:
    """P19."""
    assert ledger(facts(commit_s=0.0)).actual == "no commit yet"
    assert ledger(facts(commit_s=0.004)).actual == "commits in 4 ms"


def test_a_station_that_is_down_says_how_to_start_it() -> None:
    assert "p3s up" in station_down("no station runs here").action


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 ms"), (0.0124, "12 ms"), (3.0, "3 s"), (3.44, "3.4 s"), (59, "59 s"), (300, "5 min"), (10_800, "3 h")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_for_people() -> None:
    assert [size(value) for value in (0, 999, 1000, 2_500_000)] == ["0 B", "999 B", "1.0 kB", "2.5 MB"]


@pytest.mark.parametrize(
    ("state", "canary_at", "status", "actual", "action"),
    [
        ("open", T0 + 40, Status.DOWN, "paused itself, for 20 s", "One stage is let through in 30 s"),
        ("open", None, Status.DOWN, "paused itself, for 20 s", "`p3s release dqm`"),
        ("half-open", None, Status.DEGRADED, "lets one stage at a time through, for 20 s", "The next stage that ends"),
    ],
)
def test_a_pipeline_that_paused_itself(
    state: str, canary_at: float | None, status: Status, actual: str, action: str
) -> None:
    """V17: its cause and what to do; the breaker's own override is not told again as a command."""
    why, lift = "5 of 6 stages failed", "p3s release dqm"
    found = BreakerFacts(pipeline="dqm", state=state, since=T0 - 10, why=why, lift=lift, canary_at=canary_at)
    target = Target(pipeline="dqm")
    given = Override(id=1, kind=OverrideKind.PAUSE, target=target, by=BREAKER, why=why, set_at=T0 - 10)
    *_, row = health_rows(facts(breakers=(found,)), _NONE, _WELL, [given])
    assert (row.name, row.status, row.actual, row.cause) == ("pipeline dqm", status, actual, why)
    assert action in row.action


def test_a_stream_that_is_fed_from_the_buffer() -> None:
    """P13, P19: since when and why; what it had listed before it moved does not count."""
    moved = {"directory": "/daq/lst1", "why_buffer": "s3://raw does not answer", "moved_at": T0 - 10}
    fed, moving, blind = (
        source(facts(), one)
        for one in (
            *_source(**moved),
            *_source(**moved | {"listed_at": T0 - 40, "moved_at": T0 + 8}),
            *_source(**moved, problem="/daq/lst1 cannot be listed"),
        )
    )
    assert (fed.status, fed.cause) == (Status.DEGRADED, "s3://raw does not answer")
    assert fed.actual == "from the buffer for 20 s, listed 2 s ago"
    assert "nothing is lost" in fed.action
    assert (moving.status, moving.actual) == (Status.DEGRADED, "from the buffer for 2 s, not listed yet")
    assert moving.cause == fed.cause
    assert blind.status is Status.DOWN
    assert blind.cause == "/daq/lst1 cannot be listed and s3://raw does not answer"


@pytest.mark.parametrize(
    ("limits", "use", "nominal", "actual"),
    [
        (BufferLimits(max_reads=1), BufferUse(), "at most 1 read at once", "nothing read"),
        (
            BufferLimits(max_reads=2, bytes_per_s=5e7),
            BufferUse(reads=3, bytes=2_000_000, waited_s=12.0),
            "at most 2 reads at once, 50.0 MB/s",
            "3 files read, 2.0 MB, waited 12 s for one another",
        ),
    ],
)
def test_the_online_buffer_is_shown_with_its_limits_and_what_was_read(
    limits: BufferLimits, use: BufferUse, nominal: str, actual: str
) -> None:
    """P13, P19: also when it is not there."""
    for problem, status in (("", Status.OK), ("/daq cannot be listed", Status.DEGRADED)):
        told = facts(buffer=BufferFacts(directory="/daq", limits=limits, use=use, problem=problem))
        (row,) = (row for row in health_rows(told, _NONE, _WELL) if row.name == "online buffer")
        assert (row.nominal, row.actual, row.status, row.cause) == (nominal, actual, status, problem)
        assert ("Mount /daq" in row.action) == bool(problem)


def test_the_local_cache_is_shown_where_it_is_used() -> None:
    """V3, P19: how often it served; why it could not, and what to do."""
    well, ill = (
        next(
            row
            for row in health_rows(facts(cache_hits=9, cache_misses=1, cache_problem=why), _NONE, _WELL)
            if row.name == "local cache"
        )
        for why in ("", "others can write to /tmp/cache")
    )
    assert (well.status, well.actual) == (Status.OK, "served 9 of 10 reads (90 %)")
    assert (ill.status, ill.cause) == (Status.DEGRADED, "others can write to /tmp/cache")
    assert "pilots.cache_directory" in ill.action


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        ({"store_problem": "gone"}, "cannot be reached"),
        ({}, "have waited"),
        ({"refused_records": 1, "record_problem": "another object is there"}, "have waited"),
    ],
)
def test_outputs_that_wait_are_shown_with_their_bytes(problem: dict[str, Any], cause: str) -> None:
    """P13, P19: nothing where nothing waits; pilots need no help, the store may."""
    rows = {
        number: [
            row
            for row in health_rows(facts(waiting_attempts=number, waiting_bytes=12_300_000, **problem), _NONE, _WELL)
            if row.name == "waiting outputs"
        ]
        for number in (0, 1, 12)
    }
    assert rows[0] == []
    assert [row.actual for row in (*rows[1], *rows[12])] == [
        "of 1 stage, 12.3 MB on the pilots' machines",
        "of 12 stages, 12.3 MB on the pilots' machines",
    ]
    assert (rows[12][0].status, cause in rows[12][0].cause) == (Status.DEGRADED, True)
    assert rows[12][0].action
