"""How long a stage takes: distributions with what the bound has to know of them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from scipy import special


class ServiceTimes(Protocol):
    """A distribution of service times."""

    mean_s: float

    def draw(self, chance: random.Random) -> float:
        """One service time [s]."""
        ...

    def below(self, limit_s: float) -> float:
        """Probability of at most `limit_s`."""
        ...

    def expected_s(self, limit_s: float) -> float:
        """E[min(service, limit_s)] [s]: what a stage that is stopped after `limit_s` takes of a slot on average."""
        ...


@dataclass(frozen=True)
class Gamma:
    """Moderate spread: `spread` is the standard deviation as a share of the mean."""

    mean_s: float
    spread: float = 0.3

    @property
    def shape(self) -> float:
        """The distribution's shape parameter."""
        return self.spread**-2

    def draw(self, chance: random.Random) -> float:
        """One service time [s]."""
        return chance.gammavariate(self.shape, self.mean_s / self.shape)

    def below(self, limit_s: float) -> float:
        """Probability of at most `limit_s`."""
        return float(special.gammainc(self.shape, max(0.0, limit_s) * self.shape / self.mean_s))

    @cache  # noqa: B019 (a frozen value, few of them)
    def expected_s(self, limit_s: float) -> float:
        """E[min(service, limit_s)] [s]."""
        short = special.gammainc(self.shape + 1, limit_s * self.shape / self.mean_s)
        return float(self.mean_s * short) + limit_s * (1 - self.below(limit_s))


@dataclass(frozen=True)
class Lognormal:
    """Heavy tails: `sigma` is the standard deviation of the logarithm."""

    mean_s: float
    sigma: float = 1.5

    @property
    def mu(self) -> float:
        """The mean of the logarithm."""
        return math.log(self.mean_s) - self.sigma**2 / 2

    def draw(self, chance: random.Random) -> float:
        """One service time [s]."""
        return chance.lognormvariate(self.mu, self.sigma)

    def below(self, limit_s: float) -> float:
        """Probability of at most `limit_s`."""
        return float(special.ndtr((math.log(limit_s) - self.mu) / self.sigma)) if limit_s > 0 else 0.0

    @cache  # noqa: B019 (a frozen value, few of them)
    def expected_s(self, limit_s: float) -> float:
        """E[min(service, limit_s)] [s]."""
        short = special.ndtr((math.log(limit_s) - self.mu) / self.sigma - self.sigma)
        return float(self.mean_s * short) + limit_s * (1 - self.below(limit_s))
