"""Loads for `p3s simulate`: declared as a file or by options, and made from what was recorded."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import ExperimentFileErrors, P3sError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_changes import Change, changed
from p3s_prefect.core.experiment_file import parse_experiment
from p3s_prefect.core.incidents import GroupClosing
from p3s_prefect.core.load_file import MOST_UNITS, LoadFile, RecordedOptions, load_options, parse_load
from p3s_prefect.core.loads import Load, SeenUnit, arrivals
from p3s_prefect.core.recorded_load import Recorded, RecordedAttempt, measured_times, most_at_once, recorded_load
from p3s_prefect.core.records import Failure
from p3s_prefect.core.states import StageState
from p3s_prefect.core.synthetic_load import synthetic_load

_GOOD = (Path(__file__).parent / "good_experiment.yaml").read_text()
_SERVICE = {"clean": "1s", "noise": "exponential:2s", "tracks": "3s", "plots": "1s", "quality/totals": "4s"}


def _experiment(*changes: str) -> Experiment:
    return parse_experiment(_GOOD, file="e.yaml", edit=changed(Change.parse(text) for text in changes))


def _load(
    stream: dict[str, Any], *, experiment: Experiment | None = None, seed: int = 0, name: str = "images", **also: Any
) -> Load:
    declared = load_options({"streams": {name: stream}, "service": _SERVICE, **also}, LoadFile)
    return synthetic_load(declared, experiment or _experiment(), seed=seed, measured={})


# --- declared -------------------------------------------------------------------------------------------------------


def test_units_come_at_random_at_their_rate() -> None:
    """P21: as many as a Poisson process brings, within four standard deviations; gaps are spread exponentially."""
    found = _load({"rate": "5/s", "units_per_group": 50}, duration="1000s")
    gaps = sorted(later.at - one.at for one, later in zip(found.units, found.units[1:], strict=False))
    assert abs(len(found.units) - 5000) < 4 * math.sqrt(5000)
    assert gaps[len(gaps) // 2] == pytest.approx(math.log(2) / 5, rel=0.1)
    assert found.units[120].data_id == DataId.of(run=3, part=20)
    assert found.units == _load({"rate": "5/s", "units_per_group": 50}, duration="1000s").units
    assert found.units != _load({"rate": "5/s", "units_per_group": 50}, duration="1000s", seed=1).units
    assert found.slots == 2


def test_bursts_keep_the_mean_rate_and_the_pauses() -> None:
    """P21."""
    found = _load({"rate": "5/s", "bursts": "10s/30s"}, duration="2000s")
    assert abs(len(found.units) - 10_000) < 4 * math.sqrt(10_000)
    assert all(unit.at % 40 <= 10 for unit in found.units)


def test_visits_bring_all_their_parts_at_once_and_close() -> None:
    """P21, P22: the group of a visit closes with its last part, where a marker or a count says so, else when quiet."""
    found = _load({"visits": 3, "parts": 4, "every": "34s", "delay": "2s"})
    assert [(unit.taken_at, unit.at) for unit in found.units] == [
        (34.0 * n, 34.0 * n + 2) for n in range(3) for _ in "1234"
    ]
    assert Counter(unit.data_id["run"] for unit in found.units) == {1: 4, 2: 4, 3: 4}
    assert found.closings == tuple(GroupClosing(at=34.0 * n + 2, group=DataId.of(run=n + 1)) for n in range(3))
    quiet = _experiment("instrument.closing={quiet_s: 20}")
    assert _load({"visits": 1, "parts": 4, "every": "34s"}, experiment=quiet).closings[0].at == 20.0
    assert len(_load({"visits": 100, "parts": 4, "every": "34s"}, duration="100s").units) == 3 * 4


def test_rules_and_prescales_are_the_policys() -> None:
    """P4, P21: a load knows streams; which pipelines take a unit, and which share, the experiment says."""
    found = _load({"rate": "1/s"}, duration="100s")
    first = next(arrivals(found, _experiment()))
    assert (first.pipeline, first.first_q, first.group) == ("quality", 0.2, DataId.of(run=1))
    assert list(arrivals(found, _experiment("streams.images.rules=[{pipelines: []}]"))) == []


def test_broken_parts_fail_always_and_others_at_random() -> None:
    """P21: one part in ten; the same services fail whoever asks, and whenever."""
    found = _load({"visits": 5, "parts": 100, "every": "1s"}, failures=0.2, part_failures=0.1)
    fates = {
        unit.data_id: [found.fate("quality", "clean", unit.data_id, attempt) for attempt in (1, 2, 3, 4, 5, 6, 7, 8)]
        for unit in found.units
    }
    broken = {data_id["part"] for data_id, found_fates in fates.items() if None not in found_fates}
    assert len(broken) == 10
    others = [fate for data_id, found_fates in fates.items() if data_id["part"] not in broken for fate in found_fates]
    # Four standard deviations of a binomial share.
    assert abs(others.count(Failure.PAYLOAD) / len(others) - 0.2) < 4 * math.sqrt(0.16 / len(others))
    assert found.fate("quality", "clean", found.units[7].data_id, 1) == fates[found.units[7].data_id][0]


def test_each_stage_run_has_its_own_service_time_and_keeps_it() -> None:
    """P21: drawn anew for each unit and stage, with the declared mean; the same whenever it is asked."""
    found = _load({"rate": "5/s"}, duration="400s", service={**_SERVICE, "tracks": "exponential:2s"})
    noise, tracks = (
        [found.service_s("quality", stage, unit.data_id) for unit in found.units] for stage in ("noise", "tracks")
    )
    for drawn in (noise, tracks):
        # Four standard deviations of the mean of an exponential.
        assert abs(sum(drawn) / len(drawn) - 2) < 4 * 2 / math.sqrt(len(drawn))
    assert sum(one == other for one, other in zip(noise, tracks, strict=True)) == 0
    assert noise == [found.service_s("quality", "noise", unit.data_id) for unit in found.units]


def test_workers_are_lost_and_come_back() -> None:
    """P21."""
    found = _load({"rate": "1/s"}, slots=16, lose_workers=["4@600s", "+2@20min", "1@30s"])
    assert [(change.at, change.slots) for change in found.slot_changes] == [(30, 15), (600, 11), (1200, 13)]


def test_a_file_says_the_same_as_options() -> None:
    """P21."""
    text = "streams: {images: {rate: 5/s}}\nduration: 10min\nservice: {clean: 1s}\nfailures: 0.5\n"
    found = parse_load(text, file="load.yaml", environment={}, options={"service": {"noise": "2s"}, "failures": 0.1})
    values = {"streams": {"images": {"rate": "5/s"}}, "duration": "600s", "service": {"clean": "1s", "noise": "2s"}}
    assert found == load_options({**values, "failures": 0.1}, LoadFile)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("streams: {images: {rate: 0/s}}", "load.yaml:1: streams.images.rate: at a rate of '0/s' nothing comes"),
        ("streams: {images: {rate: -1/s}}", "is no rate"),
        ("streams: {images: {rat: 5/s}}", "Did you mean rate?"),
        ("streams:\n  images: {}", "load.yaml:2: streams.images: nothing arrives"),
        ("streams: {images: {visits: 3}}", "parts, every is missing"),
        ("streams: {images: {rate: 5/s, parts: 3}}", "not both"),
        ("streams: {images: {visits: 1, parts: 1, every: 1s, bursts: 1s/1s}}", "visits are bursts already"),
        ("streams: {images: {rate: 5/s, bursts: 10}}", "no pair of durations"),
        ("streams: {images: {rate: 5/s, bursts: 0/5}}", "in bursts of 0 s nothing comes"),
        ("streams: {images: {rate: 5/s}}\nservice: {clean: 0s}", "load.yaml:2: service.clean: '0s': a service takes"),
        ("streams: {images: {rate: 5/s}}\nlose_workers: [four]", "says no change of workers"),
        ("streams: {images: {rate: 5/s}}\nfailures: 2", "failures: must be less than or equal to 1"),
        ("streams: {images: {rate: 5/s, delay: -1s}}", "streams.images.delay: '-1s' is no duration"),
        ("streams: {images: {rate: 5/s}}\nservice: [clean]", "service: must be a mapping"),
        ("streams: {}", "must not be empty"),
        ("", "Begin with `streams:`"),
    ],
)
def test_mistakes_in_a_load_name_the_key_and_the_fix(text: str, says: str) -> None:
    """S8."""
    with pytest.raises(ExperimentFileErrors) as caught:
        parse_load(text, file="load.yaml", environment={}, options={})
    assert says in str(caught.value)


def test_mistakes_in_options_name_the_option() -> None:
    """S8."""
    with pytest.raises(ExperimentFileErrors) as caught:
        load_options({"streams": {"images": {"rate": "0/s", "units_per_group": 0}}, "lose_workers": ["x"]}, LoadFile)
    assert {mistake.key for mistake in caught.value.mistakes} == {"--rate", "--units-per-group", "--lose-workers"}
    with pytest.raises(ExperimentFileErrors, match="the load: nothing arrives"):
        load_options({"streams": {"images": {"visits": 3}}}, LoadFile)
    with pytest.raises(ExperimentFileErrors, match="--duration: is not a key here"):
        load_options({"duration": "1h"}, RecordedOptions)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": "image"}, "Did you mean images?"),
        ({"service": {**_SERVICE, "clen": "1s"}}, "Did you mean clean?"),
        ({"service": {"clean": "1s"}}, "how long quality/noise, quality/tracks, quality/plots, quality/totals takes"),
        ({"slots": 2, "lose_workers": ["3@1s"]}, "there would be -1 workers"),
        ({"duration": "300d"}, f"more than {MOST_UNITS:,}"),
        ({"duration": "1ms"}, "nothing arrives in this load"),
    ],
)
def test_a_load_that_cannot_be_played(given: dict[str, Any], says: str) -> None:
    """S8: no such stream or stage, unknown service times, no worker left, endless, empty."""
    with pytest.raises(P3sError) as caught:
        _load({"rate": "1/s"}, **given)
    assert says in str(caught.value)


def test_a_stage_that_takes_longer_than_its_deadline_is_told() -> None:
    """S8: service times of hours."""
    slow = _experiment("pipelines.quality.stages.tracks.deadline_s=60")
    found = _load({"rate": "1/s"}, experiment=slow, service={**_SERVICE, "tracks": "2h"})
    assert found.notes == ("quality/tracks takes 2 h, longer than its deadline of 60 s",)


# --- recorded -------------------------------------------------------------------------------------------------------

_UNITS = tuple(DataId.of(run=1, part=part) for part in range(6))


def _attempt(
    part: int, seconds: float, *, state: str = "done", ends: str = "done", stage: str = "clean"
) -> RecordedAttempt:
    return RecordedAttempt(
        pipeline="quality",
        stage=stage,
        data_id=_UNITS[part],
        state=state,
        started_at=100.0 + part,
        ended_at=100.0 + part + seconds,
        run_state=StageState(ends),
    )


_ATTEMPTS = (
    _attempt(0, 1.0),
    _attempt(1, 5.0),
    _attempt(2, 0.5, state="failed"),
    _attempt(2, 2.0),
    _attempt(3, 0.25, state="failed", ends="failed"),
    _attempt(4, 4.0, state="expired", ends="expired"),
    _attempt(4, 4.0, state="lost", ends="expired"),
)


def _recorded(
    attempts: tuple[RecordedAttempt, ...] = _ATTEMPTS,
    *,
    stream: str = "images",
    overrides: tuple[str, ...] = (),
    asked: int = 0,
    beside: int = 0,
    **options: Any,
) -> Load:
    units = tuple(SeenUnit(at=10.0 + n, taken_at=9.0 + n, stream=stream, data_id=unit) for n, unit in enumerate(_UNITS))
    found = Recorded(
        about="run=1", units=units, closings=(), attempts=attempts, overrides=overrides, asked=asked, beside=beside
    )
    given = {"noise": "1s", "tracks": "1s", "plots": "1s", "totals": "1s", **options.pop("service", {})}
    declared = load_options({"service": given, **options}, RecordedOptions)
    return recorded_load(found, _experiment(), seed=0, options=declared)


def test_a_recorded_stage_takes_as_long_as_it_took() -> None:
    """P21: what was done, what failed; what was stopped at its deadline takes longer; what never ran is drawn."""
    found = _recorded()
    took = [found.service_s("quality", "clean", unit) for unit in _UNITS]
    assert took[:4] == [1.0, 5.0, 2.0, 0.25]
    assert took[4] == 5.0  # the only measured one that is longer than the 4 s after which it was stopped
    assert took[5] in (1.0, 2.0, 5.0)
    assert any("3 service times as measured" in note for note in found.notes)
    assert any("1 attempts that ended with their pilot" in note for note in found.notes)
    assert found.service_s("quality", "noise", _UNITS[0]) == 1.0
    assert _recorded(service={"clean": "7s"}).service_s("quality", "clean", _UNITS[0]) == 7.0


def test_what_was_stopped_would_have_taken_longer() -> None:
    """P21: one that was stopped counts as one of those that took longer, not as none, nor always as the same."""
    done = tuple(_attempt(0, float(seconds)) for seconds in range(1, 11))
    stopped = tuple(_attempt(4, 4.5, state="expired", ends="expired") for _ in range(60))
    times = measured_times(done + stopped)["quality", "clean"]
    assert times[:4] == (1.0, 2.0, 3.0, 4.0)
    assert [times.count(float(seconds)) for seconds in range(5, 11)] == [11] * 6
    # Longer than all that were done: at least that is known.
    beyond = measured_times((*done, _attempt(4, 30.0, state="expired", ends="expired")))
    assert beyond["quality", "clean"][-2:] == (10.0, 30.0)
    assert any("and 1 of what was stopped at its deadline" in note for note in _recorded().notes)


def test_recorded_failures_come_again() -> None:
    """P12, P21: a try that failed fails again; for good only what failed for good though it had retries."""
    fate = _recorded().fate
    assert [fate("quality", "clean", _UNITS[0], attempt) for attempt in (1, 2)] == [None, None]
    assert [fate("quality", "clean", _UNITS[2], attempt) for attempt in (1, 2)] == [Failure.PAYLOAD, None]
    assert fate("quality", "clean", _UNITS[3], 1) is Failure.INPUT
    tried_twice = (*_ATTEMPTS, _attempt(3, 0.25, state="failed", ends="failed"))
    fate = _recorded(tried_twice).fate
    assert [fate("quality", "clean", _UNITS[3], attempt) for attempt in (1, 2, 3)] == [Failure.PAYLOAD] * 3


def test_slots_are_those_of_the_experiment_or_as_many_as_were_busy() -> None:
    """P21: at 104 s there run that of part 1 and both of part 4, and that of part 2 has just ended."""
    assert most_at_once(_ATTEMPTS) == 3
    assert most_at_once((_attempt(0, 1.0), _attempt(1, 1.0))) == 1
    found = _recorded()
    assert found.slots == 3
    assert any("3 slots: so many stages ran at once" in note for note in found.notes)
    fewer = _recorded(slots=8, lose_workers=["1@5s"])
    assert (fewer.slots, [(change.at, change.slots) for change in fewer.slot_changes]) == (8, [(15.0, 7)])


def test_what_people_set_and_asked_for_is_not_played_and_told_so() -> None:
    """P21, S9."""
    notes = _recorded(overrides=("pause", "limit", "pause"), asked=3, beside=7).notes
    assert "7 others that arrived meanwhile, and took slots, are not played" in notes
    assert "what people and breakers had set meanwhile is not played: 2 pause, 1 limit" in notes
    assert "3 sub-jobs that were asked for by hand meanwhile are not played" in notes
    assert not any("meanwhile" in note for note in _recorded().notes)


def test_a_recorded_stream_that_the_experiment_does_not_have() -> None:
    """S8."""
    with pytest.raises(P3sError, match="came in old, and the experiment has no such stream"):
        _recorded(stream="old")
