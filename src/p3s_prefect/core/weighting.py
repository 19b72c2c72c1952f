"""From what chance let through to what all would have given: weighted values, and how far off they may be.

A unit whose probability of having reached a stage is q stands for w = 1/q units. q is the smallest of all that were
applied on the way, each set before the unit's number u was looked at, and one u serves all of them; so given the past,
w times the outcome of the choice is 1 on average, however the q of the moment followed the load. That makes what is
summed here a martingale, and its variance the sum of the variances of the single choices (Poisson sampling). With n
values x of weights w, W their sum, and sums over what was taken:

- total: :math:`\\sum w x`, variance :math:`\\sum w (w - 1) x^2`, which is :math:`\\sum (1 - q) x^2 / q^2`
  (D. G. Horvitz, D. J. Thompson, J. Am. Stat. Assoc. 47 (1952) 663);
- mean: the ratio :math:`\\bar x = \\sum w x / W` (J. Hájek, in: Foundations of Statistical Inference, eds. V. P.
  Godambe, D. A. Sprott, Toronto 1971, p. 236), whose variance is in first order that of the total of the residuals
  :math:`x - \\bar x`, over :math:`W^2` (C.-E. Särndal, B. Swensson, J. Wretman, Model Assisted Survey Sampling,
  Springer 1992, sections 3.5, 5.6 and 5.7). A value lies closer to a mean that it is part of than to that of all, the
  more so the larger its share w/W: each squared residual is divided by 1 - w/W, which for equal weights is the
  n/(n - 1) of simple random sampling.

An error counts the choice alone. It is 0 where nothing was left out, says nothing of how well each x was measured, and
nothing of what expired or failed: that is not random, and `missing_range` says how far it could move a mean,
`missing_total_range` a total.
Units are taken to be chosen independently of each other: values that share one u belong added up, as one value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

# The number u has 53 bits: below this probability only u = 0 passes.
_MOST_WEIGHT = 2.0**53
ONE_VALUE = "one value does not tell how much they differ"
_NO_STAND_IN = "units were left out, and none that was taken stands for others"


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One value of a unit that chance let through.

    Raises:
        ValueError: the value is not finite, or the weight is none.
    """

    value: float
    weight: float = 1.0
    """How many units it stands for: 1/q, at least 1."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"the value {self.value} is not finite; leave out what could not be computed")
        if not 1.0 <= self.weight <= _MOST_WEIGHT:
            raise ValueError(f"the weight {self.weight} is not the inverse of a probability")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What would have been found if nothing had been left out at random."""

    value: float
    error: float | None
    """Standard error that the choice makes; 0 where nothing was left out, None where it cannot be told."""
    reason: str = ""
    """Why there is no error."""
    sampled: int
    """Number of values that it is made from."""
    effective: float
    """How many values of equal weight would say as much of a mean: W²/Σw² (L. Kish, Survey Sampling, Wiley 1965)."""
    freedom: float
    """Degrees of freedom of the error, from how unequally single units contribute to it (F. E. Satterthwaite,
    Biometrics Bulletin 2 (1946) 110)."""

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Where the value of all lies, with this confidence; None where there is no error."""
        if self.error is None:
            return None
        reach = student_quantile((1 + confidence) / 2, self.freedom) * self.error
        return self.value - reach, self.value + reach


def weighted_mean(sample: Sequence[Sampled], *, left_out: int = 0) -> Estimate:
    """The mean over all units. `left_out` is how many were left out at random.

    Raises:
        ValueError: there are no values.
    """
    if not sample:
        raise ValueError("no values have no mean")
    # Summed as shares of the largest: the squares of large values would overflow.
    scale = max(abs(one.value) for one in sample) or 1.0
    weight = math.fsum(one.weight for one in sample)
    mean = math.fsum(one.weight / weight * (one.value / scale) for one in sample)
    variance = math.fsum(
        _spread(one.weight) * (one.value / scale - mean) ** 2 / (1 - one.weight / weight)
        for one in sample
        if one.weight < weight
    )
    return _estimate(sample, mean * scale, math.sqrt(variance) / weight * scale, _why_not(sample, left_out))


def weighted_total(sample: Sequence[Sampled], *, left_out: int = 0) -> Estimate:
    """The sum over all units; see `weighted_mean`. Of nothing at all it is 0."""
    scale = max((abs(one.value) for one in sample), default=0.0)
    total = math.fsum(one.weight * (one.value / (scale or 1.0)) for one in sample)
    variance = math.fsum(_spread(one.weight) * (one.value / (scale or 1.0)) ** 2 for one in sample)
    reason = ""
    if left_out and not any(one.weight > 1 for one in sample):
        reason = _NO_STAND_IN
    elif not scale and (left_out or any(one.weight > 1 for one in sample)):
        reason = "nothing of it was seen, and among what was left out there may be some"
    return _estimate(sample, total * scale, math.sqrt(variance) * scale, reason)


def weighted_fraction(sample: Sequence[Sampled], *, left_out: int = 0) -> Estimate:
    """The share of all units for which a value, 0 or 1, is 1; see `weighted_mean`.

    Where all that was seen agree, the spread of a few is no measure of what was left out: the error is then that of the
    share with half a value of each kind added (the prior of H. Jeffreys; L. D. Brown, T. T. Cai, A. DasGupta,
    Statistical Science 16 (2001) 101).

    Raises:
        ValueError: there are no values, or others than 0 and 1.
    """
    if any(one.value not in (0, 1) for one in sample):
        raise ValueError("a fraction is counted from truth values")
    found = weighted_mean(sample, left_out=left_out)
    if found.value not in (0.0, 1.0) or not any(one.weight > 1 for one in sample):
        return found
    near = (found.value * found.effective + 0.5) / (found.effective + 1)
    scale = math.sqrt(math.fsum(_spread(one.weight) for one in sample)) / math.fsum(one.weight for one in sample)
    return replace(found, error=scale * math.sqrt(near * (1 - near)), reason="")


def weighted_histogram(parts: Sequence[tuple[Sequence[float], float]], *, left_out: int = 0) -> tuple[Estimate, ...]:
    """The counts of all units' histograms together, bin by bin: each a `weighted_total`.

    `parts` are the counts of one unit, in bins that are the same for all, with its weight. What one unit counts in a
    bin came through one choice, so it enters as one value; the errors of bins are not independent for the same reason.

    Raises:
        ValueError: the parts have different numbers of bins.
    """
    bins = zip(*(counts for counts, _ in parts), strict=True)
    weights = [weight for _, weight in parts]
    return tuple(
        weighted_total(
            [Sampled(value=value, weight=weight) for value, weight in zip(counts, weights, strict=True)],
            left_out=left_out,
        )
        for counts in bins
    )


def missing_share(present: Iterable[float], missing: Iterable[float]) -> float:
    """The share, by weight, of the units let through that gave nothing: expired, failed, blocked; 0 where none was."""
    there, gone = math.fsum(present), math.fsum(missing)
    return gone / (there + gone) if gone else 0.0


def missing_range(mean: float, share: float, lowest: float, highest: float) -> tuple[float, float]:
    """Between which values a mean would lie if what is missing had given values from `lowest` to `highest`.

    Those are assumed: the smallest and largest value seen, of at least two, or limits that are known of the value. It
    is the identity of the bounds on a mean with missing data (C. F. Manski, Am. Econ. Rev. 80 (1990) 319); no model is
    behind it.
    """
    # Not as a difference, which could overflow.
    return (1 - share) * mean + share * lowest, (1 - share) * mean + share * highest


def missing_total_range(total: float, missing: float, lowest: float, highest: float) -> tuple[float, float]:
    """Between which values a total would lie if what is missing had given values from `lowest` to `highest`.

    `missing` is how many units that is, by weight; the rest is as for `missing_range`.
    """
    return total + missing * lowest, total + missing * highest


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t; 0.5 % off for 2 degrees of freedom, less for more.

    The expansion of R. A. Fisher and E. A. Cornish (M. Abramowitz, I. A. Stegun, Handbook of Mathematical Functions,
    26.7.5), which also takes degrees of freedom between whole numbers. Fewer than 1 are taken as 1.
    """
    z = NormalDist().inv_cdf(probability)
    v = max(freedom, 1.0)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return math.fsum(term / v**power for power, term in enumerate(terms))


def _spread(weight: float) -> float:
    """The variance that the choice gives a total, for a value of 1: (1 - q)/q²."""
    return weight * (weight - 1)


def _why_not(sample: Sequence[Sampled], left_out: int) -> str:
    """Why a mean has no error; empty where it has one."""
    thinned = any(one.weight > 1 for one in sample)
    if thinned and len(sample) == 1:
        return ONE_VALUE
    return _NO_STAND_IN if left_out and not thinned else ""


def _estimate(sample: Sequence[Sampled], value: float, error: float, reason: str) -> Estimate:
    if not reason and not math.isfinite(error):
        reason = "it is too large to be computed"
    weights = [one.weight for one in sample]
    return Estimate(
        value=value,
        error=None if reason else error,
        reason=reason,
        sampled=len(sample),
        effective=_equal_parts(weights),
        freedom=max(1.0, _equal_parts([_spread(weight) for weight in weights]) - 1),
    )


def _equal_parts(shares: Sequence[float]) -> float:
    """How many equal parts differ as little: (Σa)²/Σa²; the number of parts where all are 0."""
    largest = max(shares, default=0.0)
    if not largest:
        return float(len(shares))
    scaled = [share / largest for share in shares]
    return math.fsum(scaled) ** 2 / math.fsum(share * share for share in scaled)
