"""Weights out of the ledger: for payloads of a group, for a group's values, and for trends (P6)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from ledger_rows import T0, Rows
from sqlalchemy import select
from thinned_rows import MEAN, PARTS, thinned_run

from p3s_prefect.adapters.ledger import inputs, reports, result_views
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.ledger.execution import Attempt
from p3s_prefect.adapters.ledger.schema import job, production_pass, run_collection
from p3s_prefect.adapters.ledger.weighted_rows import group_values
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.reports import Scope
from p3s_prefect.core.weighted_values import WeightedValue
from p3s_prefect.core.weighting import Sampled, weighted_mean
from p3s_prefect.core.wiring import Wire

Fill = Callable[[Callable[[Rows], object]], None]
MADE = Wire(dataset_type="made", producer="clean", is_gathered=True)
RAW = Wire(dataset_type="raw", producer=None, is_gathered=True)
OWN = Wire(dataset_type="own", producer="total", is_gathered=False)


def opened(job_id: int, pass_number: int) -> Attempt:
    """An attempt of the run's own stage in this pass."""
    return Attempt(
        id=0,
        number=0,
        stage_run_id=0,
        stage="total",
        pipeline="quality",
        per="group",
        data_id=DataId.of(run=1),
        taken_at=T0,
        job_id=job_id,
        pass_number=pass_number,
        arrival_id=None,
        collection="",
        prefix="",
    )


def weights(ledger: Ledger, *wires: Wire, pass_number: int = 0) -> dict[str, dict[int, float]]:
    """By part."""
    with ledger.reading() as connection:
        found = inputs.weights(connection, opened(connection.scalars(select(job.c.id)).one(), pass_number), wires)
    return {kind: {int(unit["part"]): weight for unit, weight in named.items()} for kind, named in found.items()}


def second_pass(rows: Rows) -> int:
    """Of the only job that there is."""
    rows.connection.execute(run_collection.insert().values(name="again", configuration_id="c" * 64, opened_at=T0))
    values = {"number": 1, "run_collection": "again", "is_open": False, "opened_at": T0}
    return rows.add(production_pass, job_id=rows.connection.scalar(select(job.c.id)), **values)


def test_who_was_let_through_has_a_weight_also_if_it_gave_nothing(seen_ledger: Ledger, fill: Fill) -> None:
    """P6, P22: what was left out at random has none; what arrived was all taken in."""
    fill(thinned_run)
    found = weights(seen_ledger, MADE, RAW, OWN)
    assert found["made"] == {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 4.0, 8: 4.0, 9: 4.0, 12: 2.0}
    assert found["raw"] == dict.fromkeys(range(len(PARTS)), 1.0)
    assert set(found) == {"made", "raw"}


def test_of_a_unit_in_several_passes_the_one_that_is_read_counts(seen_ledger: Ledger, fill: Fill) -> None:
    """P6, B2: part 0 failed when it was made again, part 9 did not expire the second time."""

    def write(rows: Rows) -> None:
        thinned_run(rows)
        again = second_pass(rows)
        for part, state, q in ((0, "failed", 0.1), (9, "done", 0.5)):
            unit = rows.unit(again, f"run=1 part={part}", state=state)
            rows.stage(unit, "clean", state=state, q=q)

    fill(write)
    assert weights(seen_ledger, MADE)["made"][9] == 4.0
    later = weights(seen_ledger, MADE, pass_number=1)["made"]
    assert (later[0], later[9]) == (1.0, 2.0)


def by_name(values: tuple[WeightedValue, ...]) -> dict[str, WeightedValue]:
    return {value.name: value for value in values}


def test_a_groups_values_are_weighted_with_what_is_missing_beside_them(seen_ledger: Ledger, fill: Fill) -> None:
    """P6."""
    fill(thinned_run)
    with seen_ledger.reading() as connection:
        values = by_name(group_values(connection, "run=1"))
        assert group_values(connection, "run=2") == ()
    assert set(values) == {"noise", "noisy"}
    noise = values["noise"]
    taken = [Sampled(value=noise, weight=1 / q) for state, q, noise in PARTS if noise is not None]
    assert noise.estimate == weighted_mean(taken, left_out=5)
    assert noise.estimate.value == pytest.approx(MEAN)
    assert (noise.seen, noise.estimate.sampled, noise.left_out, noise.open) == (13, 6, 5, 1)
    assert (dict(noise.missing), noise.missing_share) == ({"expired": 1}, pytest.approx(4 / 16))
    assert noise.lowest == pytest.approx(0.75 * MEAN + 0.25 * 4)
    assert noise.highest == pytest.approx(0.75 * MEAN + 0.25 * 12)
    assert noise.text == "9.2 ± 1.0"
    assert noise.missing_text == "1 expired (25 %)"
    noisy = values["noisy"]
    assert noisy.is_share
    assert noisy.estimate.value == pytest.approx(9 / 12)
    assert (noisy.lowest, noisy.highest) == (pytest.approx(0.75 * 9 / 12), pytest.approx(0.75 * 9 / 12 + 0.25))


def test_a_unit_that_is_done_without_the_value_is_missing_from_it(seen_ledger: Ledger, fill: Fill) -> None:
    """P6."""

    def write(rows: Rows) -> None:
        pass_id = rows.production_pass(rows.group("run=1"), "quality")
        for part in range(4):
            run = rows.stage(rows.unit(pass_id, f"run=1 part={part}"), "clean", q=0.5)
            attempt = rows.attempt(run)
            if part:
                rows.summary(attempt, "noise", float(part))

    fill(write)
    with seen_ledger.reading() as connection:
        (noise,) = group_values(connection, "run=1")
    assert (dict(noise.missing), noise.missing_share) == ({"without it": 1}, pytest.approx(0.25))


def test_trends_carry_q_error_and_what_is_missing(seen_ledger: Ledger, fill: Fill) -> None:
    """P6, P17."""
    fill(thinned_run)
    with seen_ledger.reading() as connection:
        trends = {trend.name: trend for trend in result_views.trends(connection)}
        (last,) = [trend for trend in result_views.trends(connection, limit=2) if trend.name == "noise"]
    noise = trends["noise"]
    assert noise.weights == (1.0, 1.0, 1.0, 1.0, 4.0, 4.0)
    assert noise.whole is not None
    assert noise.whole.estimate.value == pytest.approx(MEAN)
    assert (dict(noise.whole.missing), noise.whole.left_out) == ({"expired": 1}, 5)
    assert trends["label"].whole is None
    # The last two values, of parts 4 and 8: what was before them is not of this stretch.
    assert last.whole is not None
    assert (last.whole.seen, last.whole.left_out, last.whole.estimate.value) == (9, 5, 11.0)
    assert last.whole.missing_share == pytest.approx(4 / 12)


def test_a_unit_of_several_passes_counts_once_for_payloads_in_trends_and_in_its_group(
    seen_ledger: Ledger, fill: Fill
) -> None:
    """P6, P22, B2: of 0 to 3: made again, made after it had failed, made before it failed, failed twice."""

    def write(rows: Rows) -> None:
        first = rows.production_pass(rows.group("run=1"), "quality")
        passes = {0: first, 1: second_pass(rows)}
        for number, states in ((0, ("done", "failed", "done", "failed")), (1, ("done", "done", "failed", "failed"))):
            for part, state in enumerate(states):
                at = T0 + 10 * part
                unit = rows.unit(passes[number], f"run=1 part={part}", state=state, at=at)
                run = rows.stage(unit, "clean", state=state, at=at)
                attempt = rows.attempt(run, state=state, at=at)
                if state == "done":
                    rows.summary(attempt, "noise", 10.0 * number + part)

    fill(write)
    with seen_ledger.reading() as connection:
        (of_group,) = group_values(connection, "run=1")
        (trend,) = result_views.trends(connection)
        job_id = connection.scalars(select(job.c.id)).one()
        shares = [inputs.coverage(connection, opened(job_id, number), {"clean"}) for number in (0, 1)]
    assert shares == [{"done": 2, "failed": 2}, {"done": 3, "failed": 1}]
    assert (trend.values, trend.weights) == ((10.0, 11.0, 2.0), (1.0, 1.0, 1.0))
    assert trend.whole is not None
    for value in (of_group, trend.whole):
        assert (value.seen, dict(value.missing), value.missing_share) == (4, {"failed": 1}, pytest.approx(1 / 4))
        assert value.estimate.value == pytest.approx(23 / 3)


def test_a_value_that_is_rarely_given_leaves_the_stretch_of_others_alone(seen_ledger: Ledger, fill: Fill) -> None:
    """P6: what expired before the first value of a trend is not missing from it."""

    def write(rows: Rows) -> None:
        pass_id = rows.production_pass(rows.group("run=1"), "quality")
        for part, state in enumerate(("done", "expired", "expired", "done", "expired", "done")):
            at = T0 + 10 * part
            run = rows.stage(rows.unit(pass_id, f"run=1 part={part}", state=state, at=at), "clean", state=state, at=at)
            if state == "done":
                attempt = rows.attempt(run, at=at)
                rows.summary(attempt, "noise", float(part))
                if part != 3:
                    rows.summary(attempt, "saturated", 1.0)

    fill(write)
    with seen_ledger.reading() as connection:
        found = {trend.name: trend.whole for trend in result_views.trends(connection, limit=2)}
    missing = {name: None if whole is None else dict(whole.missing) for name, whole in found.items()}
    assert missing == {"noise": {"expired": 1}, "saturated": {"expired": 3}}


def test_trends_of_groups_are_not_weighted(seen_ledger: Ledger, fill: Fill) -> None:
    """P6: a group's own stages are not thinned."""

    def write(rows: Rows) -> None:
        whole = rows.unit(rows.production_pass(rows.group("run=1"), "quality"), "run=1", per="group")
        rows.summary(rows.attempt(rows.stage(whole, "total")), "noise", 4.0)

    fill(write)
    with seen_ledger.reading() as connection:
        (trend,) = result_views.trends(connection)
        assert group_values(connection, "run=1") == ()
    assert (trend.per, trend.whole) == ("group", None)


def test_weights_that_no_error_can_be_made_from_say_so(seen_ledger: Ledger, fill: Fill) -> None:
    """P6."""

    def write(rows: Rows) -> None:
        pass_id = rows.production_pass(rows.group("run=1"), "quality")
        for part, (state, q) in enumerate((("done", 0.1), *[("shed", 0.1)] * 9)):
            run = rows.stage(rows.unit(pass_id, f"run=1 part={part}", state=state), "clean", state=state, q=q)
            if state == "done":
                rows.summary(rows.attempt(run), "noise", 4.0)

    fill(write)
    with seen_ledger.reading() as connection:
        (noise,) = group_values(connection, "run=1")
    assert (noise.estimate.error, noise.left_out) == (None, 9)
    assert math.isclose(noise.estimate.value, 4.0)
    assert "one value" in noise.estimate.reason


def test_what_ran_on_standby_stays_left_out(seen_ledger: Ledger, fill: Fill) -> None:
    """P6: overload left it out, and a slot was idle for it: it is done and shown, and stands for none, not even itself.

    So does one that was stopped: it is not missing, as it was not let through.
    """

    def write(rows: Rows) -> None:
        pass_id = thinned_run(rows)
        for part, state in ((20, "done"), (21, "expired"), (22, "queued")):
            whole = "arrived" if state == "queued" else state
            unit = rows.unit(pass_id, f"run=1 part={part}", state=whole, at=T0 + 10 * part, u=0.9)
            run = rows.stage(unit, "clean", state=state, q=0.25, at=T0 + 10 * part)
            if state == "done":
                rows.summary(rows.attempt(run, at=T0 + 10 * part), "noise", 100.0, "ADC")

    fill(write)
    assert not {20, 21, 22} & set(weights(seen_ledger, MADE)["made"])
    with seen_ledger.reading() as connection:
        noise = by_name(group_values(connection, "run=1"))["noise"]
        (trend,) = [trend for trend in result_views.trends(connection) if trend.name == "noise"]
        shares = inputs.coverage(connection, opened(connection.scalars(select(job.c.id)).one(), 0), {"clean"})
        (row,) = [row for row in reports.coverage(connection, Scope(group="run=1")).rows if row.stage == "clean"]
    assert noise.estimate.value == pytest.approx(MEAN)
    assert (noise.left_out, noise.open, dict(noise.missing)) == (8, 1, {"expired": 1})
    assert (trend.values[-1], trend.weights[-1]) == (100.0, 0.0)
    assert trend.whole is not None
    assert (trend.whole.estimate.value, trend.whole.left_out) == (pytest.approx(MEAN), 8)
    assert (shares["done"], shares["shed"], shares["expired"]) == (6, 7, 1)
    assert (row.done, row.mean_q) == (7, pytest.approx((4 * 1 + 2 * 0.25) / 6))
