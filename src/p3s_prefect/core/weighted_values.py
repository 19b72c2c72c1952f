"""Summary values of units as one value of all of them, with what chance left out and what is missing beside it (P6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from p3s_prefect.core.states import LEFT_OUT, StageState
from p3s_prefect.core.weighting import (
    ONE_VALUE,
    Estimate,
    Sampled,
    missing_range,
    missing_share,
    weighted_fraction,
    weighted_mean,
)

Scalar = float | int | str | bool

NO_VALUE = "without it"
"""Instead of a state, of units that are done and did not give the value."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What became of the units that a stage has seen: by state of the stage run, how many, and their weight 1/q."""

    units: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, runs: Iterable[tuple[str, float]]) -> Outcomes:
        """From state and q of each stage run."""
        units: dict[str, int] = {}
        weights: dict[str, float] = {}
        for state, q in runs:
            units[state] = units.get(state, 0) + 1
            weights[state] = weights.get(state, 0.0) + 1 / q
        return cls(units=units, weights=weights)

    def with_done(self, weights: Iterable[float]) -> Outcomes:
        """The same, and units that are done, with these weights."""
        done = list(weights)
        return Outcomes(
            units={**self.units, StageState.DONE: len(done)}, weights={**self.weights, StageState.DONE: math.fsum(done)}
        )

    @property
    def seen(self) -> int:
        """All of them."""
        return sum(self.units.values())

    @property
    def left_out(self) -> int:
        """Those that were left out at random."""
        return sum(self.units.get(state, 0) for state in LEFT_OUT)

    @property
    def open(self) -> int:
        """Those that may still give a value."""
        return sum(number for state, number in self.units.items() if not StageState(state).is_terminal)

    @property
    def missing(self) -> tuple[str, ...]:
        """The states in which units were let through and ended without a result: not at random."""
        return tuple(
            sorted(
                state
                for state in self.units
                if StageState(state).is_terminal and state != StageState.DONE and state not in LEFT_OUT
            )
        )


@dataclass(frozen=True, kw_only=True)
class WeightedValue:
    """A summary value of a stage over all units of a group or of some time."""

    pipeline: str
    stage: str
    name: str
    unit: str
    is_share: bool
    """Whether it is the share of the units for which a truth value holds."""
    estimate: Estimate
    """From the units that gave it. Its error counts what was left out at random, and nothing else."""
    seen: int
    left_out: int
    """Units that were left out at random; those that gave it stand for them."""
    open: int
    """Units that may still give it."""
    missing: Mapping[str, int]
    """Units that were let through and did not give it, by what became of them: expired, failed. Not at random."""
    missing_share: float
    """Their share of what was let through, by weight."""
    lowest: float | None
    """Least value over all units if what is missing lay between the least and the largest that was seen (of a share:
    between none and all),"""
    highest: float | None
    """and the largest. None for both where that cannot be told."""
    range_reason: str = ""
    """Why it cannot."""

    @property
    def text(self) -> str:
        """Value and error, as people read them: ``4.2 ± ?`` where the error cannot be told."""
        return plus_minus(self.estimate.value, self.estimate.error)

    @property
    def range_text(self) -> str:
        """The range in which what is missing could move it, or why none is known; empty where nothing is missing."""
        if self.lowest is None or self.highest is None:
            return f"not known: {self.range_reason}"
        return f"{self.lowest:.4g} to {self.highest:.4g}" if self.missing else ""

    @property
    def missing_text(self) -> str:
        """What is missing, with its share by weight: ``2 expired, 1 failed (7.5 %)``; empty where nothing is."""
        if not self.missing:
            return ""
        states = ", ".join(f"{number} {state}" for state, number in self.missing.items())
        return f"{states} ({100 * self.missing_share:.2g} %)"


def weighted_value(
    pipeline: str,
    stage: str,
    name: str,
    unit: str,
    given: Sequence[tuple[Scalar, float]],
    outcomes: Outcomes,
) -> WeightedValue | None:
    """From the values that units gave, each with its weight 1/q; None where they are no numbers."""
    if not given or any(isinstance(value, str) for value, _ in given):
        return None
    sample = [Sampled(value=float(value), weight=weight) for value, weight in given]
    is_share = all(isinstance(value, bool) for value, _ in given)
    estimate = (weighted_fraction if is_share else weighted_mean)(sample, left_out=outcomes.left_out)
    missing = {state: outcomes.units[state] for state in outcomes.missing}
    weights = [outcomes.weights[state] for state in outcomes.missing]
    without = outcomes.units.get(StageState.DONE, 0) - len(given)
    if without > 0:
        missing[NO_VALUE] = without
        weights.append(max(0.0, outcomes.weights[StageState.DONE] - math.fsum(weight for _, weight in given)))
    share = missing_share([one.weight for one in sample], weights)
    seen = [one.value for one in sample]
    least, most = (0.0, 1.0) if is_share else (min(seen), max(seen))
    # The smallest and the largest of a single value are the same, which is no limit of others.
    is_told = is_share or len(seen) > 1 or not missing
    lowest, highest = missing_range(estimate.value, share, least, most) if is_told else (None, None)
    return WeightedValue(
        pipeline=pipeline,
        stage=stage,
        name=name,
        unit=unit,
        is_share=is_share,
        estimate=estimate,
        seen=outcomes.seen,
        left_out=outcomes.left_out,
        open=outcomes.open,
        missing=missing,
        missing_share=share,
        lowest=lowest,
        highest=highest,
        range_reason="" if is_told else ONE_VALUE,
    )


def plus_minus(value: float, error: float | None) -> str:
    """Value and error with as many digits as the error deserves: ``411.54 ± 0.46``; ``411.5 ± ?`` without."""
    if error is None or not math.isfinite(error):
        return f"{value:.4g} ± ?"
    if error == 0:
        return f"{value:.4g} ± 0"
    digits = 1 - math.floor(math.log10(error))
    if not -3 <= digits <= 6 or abs(value) >= 1e9:
        return f"{value:.4g} ± {error:.2g}"
    digits = max(digits, 0)
    return f"{value:.{digits}f} ± {error:.{digits}f}"
