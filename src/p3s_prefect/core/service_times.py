"""How long stages take, for a simulation: declared distributions, or the times that were measured.

==========================  ==============================================================================
``1.2s``                    always 1.2 s
``exponential:1.2s``        exponential, mean 1.2 s
``gamma:1.2s,0.3``          gamma, mean 1.2 s, standard deviation 0.3 of the mean
``lognormal:1.2s,0.5``      lognormal, mean 1.2 s, the logarithm's standard deviation 0.5
``measured``                drawn from what the ledger has measured of this stage
==========================  ==============================================================================
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from p3s_prefect.core.errors import BadName
from p3s_prefect.core.quantities import seconds

MEASURED = "measured"
_FORMS = "Write 1.2s, exponential:1.2s, gamma:1.2s,0.3, lognormal:1.2s,0.5 or measured."
# With it the mean is 90 million medians; a larger one is a slip.
_MOST_SPREAD = 6.0
_LONGEST_S = 31_536_000.0
_SPEC = re.compile(r"(?:(constant|exponential|gamma|lognormal):)?([^,:]+)(?:,\s*(\d{1,3}(?:\.\d{1,6})?))?")
_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class ServiceTimes:
    """How the service times of a stage are spread."""

    kind: str
    """``constant``, ``exponential``, ``gamma``, ``lognormal`` or ``measured``."""
    mean_s: float = 0.0
    """Their mean; 0 where they are measured."""
    spread: float = 0.0
    """``gamma``: standard deviation over mean; ``lognormal``: standard deviation of the logarithm."""

    def __str__(self) -> str:
        if self.kind == MEASURED:
            return MEASURED
        spread = f", {self.spread:g}" if self.spread else ""
        return f"{self.kind} {self.mean_s:g} s{spread}"

    def quantile_s(self, share: float) -> float:
        """The time [s] below which this share, from 0 to below 1, of the services lies."""
        if self.kind == "exponential":
            return -self.mean_s * math.log1p(-share)
        if self.kind == "lognormal":
            z = _NORMAL.inv_cdf(min(max(share, 1e-16), 1 - 1e-16))
            return self.mean_s * math.exp(self.spread * z - self.spread**2 / 2)
        if self.kind == "gamma":
            return self.mean_s * drawn_from(_gamma_quantiles(self.spread), share)
        return self.mean_s


def service_times(text: object) -> ServiceTimes:
    """Service times as people write them, see above; a number is a constant in seconds.

    Raises:
        BadName: it is none of these forms, or a time is zero or longer than a year.
    """
    if text == MEASURED:
        return ServiceTimes(kind=MEASURED)
    found = _SPEC.fullmatch(text.strip()) if isinstance(text, str) else None
    kind = (found[1] if found else None) or "constant"
    mean_s = seconds(found[2] if found else text)
    needs_spread, spread = kind in ("gamma", "lognormal"), float(found[3]) if found and found[3] else 0.0
    if needs_spread != bool(spread) or spread > _MOST_SPREAD:
        need = f"needs a spread above 0 and up to {_MOST_SPREAD:g}" if needs_spread else "takes no spread"
        raise BadName(f"{str(text)[:60]!r}: {kind} {need}", fix=_FORMS)
    if not 0 < mean_s <= _LONGEST_S:
        raise BadName(f"{str(text)[:60]!r}: a service takes more than 0 s, and less than a year", fix=_FORMS)
    return ServiceTimes(kind=kind, mean_s=mean_s, spread=spread)


def drawn_from(ordered: Sequence[float], share: float) -> float:
    """The value at this share, from 0 to below 1, of sorted values."""
    return ordered[int(share * len(ordered))]


def chance(*words: object) -> float:
    """A number in [0, 1) that is a pure function of these words: the same for both policies, whenever it is asked."""
    digest = hashlib.blake2b("\n".join(map(str, words)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


@lru_cache(maxsize=16)
def _gamma_quantiles(spread: float) -> tuple[float, ...]:
    # The standard library draws gamma variates but has no quantiles: those of 20,000 draws, scaled to the mean.
    draws = random.Random("gamma")  # noqa: S311 - chance, not secrecy
    found = sorted(draws.gammavariate(spread**-2, spread**2) for _ in range(20_000))
    mean = sum(found) / len(found)
    return tuple(value / mean for value in found)


def _declared(text: object) -> ServiceTimes:
    if isinstance(text, ServiceTimes):
        return text
    try:
        return service_times(text)
    except BadName as error:
        raise ValueError(f"{error.what}. {error.fix}") from error


DeclaredTimes = Annotated[ServiceTimes, BeforeValidator(_declared), PlainSerializer(str)]
