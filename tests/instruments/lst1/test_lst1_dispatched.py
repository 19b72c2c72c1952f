"""Run totals where the production dispatcher left subruns out, in virtual time: errors cover as they say (P6)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from thinning import PIXELS, drifting

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Pipeline, Stage, Step
from p3s_prefect.core.incidents import UnitArrival
from p3s_prefect.core.outcome import PlayedRun
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.states import StageState
from p3s_prefect.core.virtual_time import simulate
from p3s_prefect.instruments.lst1.pixels import PixelStatistics, merge
from p3s_prefect.instruments.lst1.totals import choice_errors
from p3s_prefect.instruments.lst1.trends import Kept

SEEDS = 200
SUBRUNS = 120
SLOTS = 2
# Not the occupancy: in some pixels few subruns have a pulse at all, and errors know nothing of rare ones left out.
VALUES = ("events", "pedestal", "pedestal_rms", "noise")


def arrivals() -> list[UnitArrival]:
    """From 0.8 to 4 times what the slots can serve, at a second a subrun: q falls while pedestal and noise rise."""
    times = np.cumsum(1 / (SLOTS * np.linspace(0.8, 4.0, SUBRUNS))).tolist()
    return [
        UnitArrival(at=at, taken_at=at, pipeline="p", group=DataId.of(run=2008), data_id=DataId.of(run=2008, subrun=n))
        for n, at in enumerate(times)
    ]


def played(seed: int) -> list[PlayedRun]:
    """The subruns' stage runs, in their order."""
    stage = Stage(steps=[Step(name="work", command=["true"])], deadline_s=8.0)
    outcome = simulate(
        {"p": Pipeline(stages={"a": stage})},
        arrivals(),
        service_s=lambda pipeline, stage, unit: 1.0,
        slots=SLOTS,
        seed=seed,
    )
    return sorted(outcome.runs, key=lambda run: int(run.data_id["subrun"]))


def was_let_through(run: PlayedRun, seed: int) -> bool:
    return sample_number(run.data_id, seed) < run.q


@pytest.fixture(scope="module")
def nights() -> list[list[PlayedRun]]:
    return [played(seed) for seed in range(SEEDS)]


@pytest.fixture(scope="module")
def chances(nights: list[list[PlayedRun]]) -> list[dict[int, float]]:
    """Of each night the q of the subruns that were let through, by number."""
    return [
        {number: run.q for number, run in enumerate(runs) if was_let_through(run, seed)}
        for seed, runs in enumerate(nights)
    ]


@pytest.fixture(scope="module")
def parts() -> list[PixelStatistics]:
    return drifting(SUBRUNS, np.array(PIXELS))


def reached(parts: list[PixelStatistics], weights: Mapping[int, float]) -> dict[str, np.ndarray]:
    """Whether the totals with these weights are within their errors of those of all subruns: by value, each pixel."""
    kept = Kept(parts={number: parts[number] for number in weights}, weights=weights)
    total, truth = merge(list(kept.parts.values()), list(weights.values())), merge(parts)
    errors = choice_errors(kept, total, SUBRUNS - len(weights))
    return {name: np.abs(getattr(total, name) - getattr(truth, name)) <= errors[name] for name in VALUES}


def test_the_dispatcher_thins_as_the_run_drifts_and_nothing_is_missing(nights: list[list[PlayedRun]]) -> None:
    """P5, P6: all that it lets through is done, so that errors of the choice are all there is; some ran on standby."""
    found = [(run, was_let_through(run, seed)) for seed, runs in enumerate(nights) for run in runs]
    assert {run.state for run, is_let_through in found if is_let_through} == {StageState.DONE}
    assert sum(run.state is StageState.DONE for run, is_let_through in found if not is_let_through) > SEEDS
    q = np.array([[run.q for run in runs] for runs in nights])
    assert q[:, :30].mean() > 0.95
    assert q[:, -30:].mean() < 0.4
    # It follows what was let through before, and so differs from night to night.
    assert q[:, 60:].std(axis=0).min() > 0.02


def test_errors_cover_as_they_say_where_the_dispatcher_chose(
    parts: list[PixelStatistics], chances: list[dict[int, float]]
) -> None:
    """P6, P5: of the events, and of each pixel's pedestal, RMS and noise, over many seeds."""
    inside = [reached(parts, {number: 1 / q for number, q in found.items()}) for found in chances]
    tolerance = 3.5 * math.sqrt(0.68 * 0.32 / SEEDS)
    for name in VALUES:
        shares = np.mean([one[name] for one in inside], axis=0)
        assert np.abs(shares - 0.68).max() < tolerance, (name, shares)


def test_totals_without_the_dispatchers_weights_are_wrong(
    parts: list[PixelStatistics], chances: list[dict[int, float]]
) -> None:
    """P6: of each pixel's pedestal and noise, which drift; with one weight for all, as of a sample of this size."""
    inside = [reached(parts, dict.fromkeys(found, SUBRUNS / len(found))) for found in chances[: SEEDS // 5]]
    for name in ("pedestal", "noise"):
        assert np.median(np.mean([one[name] for one in inside], axis=0)) < 0.34, name
