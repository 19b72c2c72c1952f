"""What `p3s simulate` answers: a load under two policies, in numbers that can be found by hand."""

from __future__ import annotations

import pytest

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_changes import Change, changed
from p3s_prefect.core.experiment_file import parse_experiment
from p3s_prefect.core.incidents import SlotChange
from p3s_prefect.core.load_file import LoadFile, load_options
from p3s_prefect.core.loads import Load, SeenUnit
from p3s_prefect.core.records import Failure
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.simulation import Comparison, Policy, compare, comparison_record
from p3s_prefect.core.simulation_results import PolicyResult, Tally
from p3s_prefect.core.simulation_series import POINTS
from p3s_prefect.core.synthetic_load import synthetic_load

_EXPERIMENT = """
experiment: night
instrument: {name: camera, dimensions: {run: int, part: int}, group: [run], closing: {count: 100}}
dataset_types: {raw: {format: file}, quick: {format: text}}
classes: {dqm: {shed: false}}
pipelines:
  dqm:
    class: dqm
    order: oldest-first
    freshest_in_overload: false
    stages:
      quick: {deadline_s: 10, retries: 0, steps: [{name: a, command: [ls], inputs: {raw: raw}, outputs: {q: quick}}]}
      later: {after: [quick], steps: [{name: b, command: [ls], inputs: {q: quick}}]}
streams:
  files: {directory: in, pattern: "r{run:03d}_{part:03d}", dataset_type: raw, rules: [{pipelines: [dqm]}]}
pilots: {workers: 1}
"""


def _experiment(*changes: str) -> Experiment:
    return parse_experiment(_EXPERIMENT, file="e.yaml", edit=changed(Change.parse(text) for text in changes))


def _load(
    *,
    every_s: float,
    units: int = 20,
    service_s: float = 1.0,
    slot_changes: tuple[SlotChange, ...] = (),
    broken: int = -1,
) -> Load:
    """A unit every `every_s` from 100 s on; each stage takes `service_s`; everything of the part `broken` fails."""
    return Load(
        about="by hand",
        units=tuple(
            SeenUnit(at=100 + n * every_s, taken_at=100 + n * every_s, stream="files", data_id=DataId.of(run=1, part=n))
            for n in range(units)
        ),
        closings=(),
        slots=1,
        slot_changes=slot_changes,
        service_s=lambda pipeline, stage, data_id: service_s,
        fate=lambda pipeline, stage, data_id, attempt: Failure.PAYLOAD if data_id["part"] == broken else None,
    )


def _stage(result: PolicyResult | None, name: str) -> Tally:
    assert result is not None
    return next(tally for tally in result.stages if tally.stage == name)


def test_a_load_that_fits_is_all_in_time() -> None:
    """P21: a unit every 4 s with two stages of 1 s on one slot: each takes 1 s and 2 s, and half of the slot."""
    found = compare(_load(every_s=4.0), Policy(name="A", experiment=_experiment())).a
    quick, later = _stage(found, "quick"), _stage(found, "later")
    assert (quick.seen, quick.done, quick.in_time, quick.in_time_share) == (20, 20, 20, 1.0)
    assert (quick.p50_s, quick.p99_s, later.p50_s, later.p99_s) == (1.0, 1.0, 2.0, 2.0)
    assert (found.lasted_s, found.slot_use, found.wasted) == (78.0, pytest.approx(40 / 78), 0.0)
    (of_class,) = found.classes
    assert (of_class.work_class, of_class.seen, of_class.in_time) == ("dqm", 40, 40)


def test_more_slots_side_by_side() -> None:
    """P8, P21: a unit a second needs two slots; with one, whatever is done of `quick` is done within 10 s."""
    a = Policy(name="A", experiment=_experiment())
    b = Policy(name="B", experiment=_experiment(), slots=2)
    found = compare(_load(every_s=1.0, units=200), a, b)
    quick = _stage(found.a, "quick")
    assert quick.done + quick.expired == 200
    assert 100 <= quick.done <= 111
    assert _stage(found.a, "later").blocked == quick.expired
    assert found.a.slot_use > 0.99
    better = _stage(found.b, "quick")
    assert (better.in_time, better.p99_s, better.expired) == (200, 1.0, 0)
    assert found.b is not None
    assert found.b.lasted_s == 201.0


def test_the_prescale_is_the_experiments() -> None:
    """P4, P21: exactly the units whose number is below the share, by the experiment's own seed."""
    b = Policy(name="B", experiment=_experiment("pipelines.dqm.stages.later.prescale=0.5", "seed=3"))
    found = compare(_load(every_s=4.0), Policy(name="A", experiment=_experiment()), b)
    kept = sum(sample_number(DataId.of(run=1, part=n), 3) < 0.5 for n in range(20))
    later = _stage(found.b, "later")
    assert (later.done, later.prescaled) == (kept, 20 - kept)
    assert _stage(found.a, "later").done == 20


def test_a_broken_part_fails_and_blocks() -> None:
    """P9, P21: its work is for nothing: 1 s of 39 s."""
    found = compare(_load(every_s=4.0, broken=7), Policy(name="A", experiment=_experiment())).a
    quick, later = _stage(found, "quick"), _stage(found, "later")
    assert (quick.failed, later.blocked, later.done) == (1, 1, 19)
    assert found.wasted == pytest.approx(1 / 39)


def test_the_series_add_up_to_the_whole() -> None:
    """P21: arrivals, slots, work and shares over time are those of the whole; lost workers lose their slots."""
    load = _load(every_s=0.5, units=200, slot_changes=(SlotChange(at=120.0, slots=0), SlotChange(at=150.0, slots=1)))
    found = compare(load, Policy(name="A", experiment=_experiment(), slots=3))
    series = found.a.series
    assert len(series.queued) == POINTS
    assert sum(series.arrivals_hz) * series.every_s == pytest.approx(200)
    assert series.every_s * POINTS == pytest.approx(found.a.lasted_s)
    assert sum(series.slots) * series.every_s == pytest.approx(3 * found.a.lasted_s - 30)
    assert sum(series.busy) / sum(series.slots) == pytest.approx(found.a.slot_use)
    assert max(busy - slots for busy, slots in zip(series.busy, series.slots, strict=True)) < 1e-9
    assert series.queued[-1] == 0
    assert max(series.queued) > 0
    during = int(35 / series.every_s)
    assert (series.slots[during], series.slots[0]) == pytest.approx((2.0, 3.0))
    (dqm,) = series.classes
    assert set(dqm.q) <= {1.0, None}
    seen = [share for share in dqm.in_time_share if share is not None]
    assert seen
    assert all(0 <= share <= 1 for share in seen)


def test_a_policy_that_loses_more_workers_than_it_has() -> None:
    """S8."""
    load = _load(every_s=1.0, slot_changes=(SlotChange(at=120.0, slots=0),))
    with pytest.raises(P3sError, match="policy A would lose more workers than it has") as caught:
        compare(_with_slots(load, 3), Policy(name="A", experiment=_experiment(), slots=2))
    assert "more slots" in str(caught.value)


def _with_slots(load: Load, slots: int) -> Load:
    return Load(**{name: getattr(load, name) for name in load.__dataclass_fields__} | {"slots": slots})


def test_a_policy_that_takes_nothing() -> None:
    """S8."""
    nothing = Policy(name="B", experiment=_experiment("streams.files.rules=[{pipelines: []}]"))
    with pytest.raises(P3sError, match="no pipeline of policy B takes anything"):
        compare(_load(every_s=1.0), Policy(name="A", experiment=_experiment()), nothing)


def test_the_same_question_twice() -> None:
    """P7, P21: nothing but load, policies and seed decides; everything is accounted for; it tells how far it is."""

    def ask(seed: int) -> Comparison:
        values = {"streams": {"files": {"rate": "2/s"}}, "duration": "300s", "slots": 3}
        service = {"quick": "lognormal:1s,1.5", "later": "exponential:500ms"}
        declared = load_options({**values, "service": service, "failures": 0.1}, LoadFile)
        load = synthetic_load(declared, _experiment(), seed=seed, measured={})
        b = Policy(name="B", experiment=_experiment("classes.dqm.shed=true"))
        return compare(load, Policy(name="A", experiment=_experiment()), b, progress=lambda *now: told.append(now))

    told: list[tuple[str, float]] = []
    first = ask(1)
    assert first == ask(1)
    for result in (first.a, first.b):
        assert result is not None
        for row in (*result.classes, *result.stages):
            settled = row.done + row.prescaled + row.shed + row.expired + row.failed + row.blocked
            assert row.seen == settled + row.open
            assert row.open == 0
            assert row.in_time <= row.done
    assert ask(1) != ask(2)
    assert {name for name, _ in told} == {"A", "B"}
    assert all(0 <= share <= 1 for _, share in told)
    assert ("A", 1.0) in told


def test_as_a_record_for_programs() -> None:
    """S8."""
    record = comparison_record(compare(_load(every_s=4.0), Policy(name="A", experiment=_experiment())))
    assert record["b"] is None
    assert record["a"]["classes"][0]["in_time_share"] == 1.0
    assert record["a"]["stages"][1]["stage"] == "later"
    assert len(record["a"]["series"]["classes"][0]["q"]) == POINTS
