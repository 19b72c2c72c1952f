"""The loads: what arrives when, how long each stage of it takes, and how many slots there are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from benchmarks.shedding.service import Gamma, Lognormal, ServiceTimes
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Pipeline, Stage, Step, WorkClass

SLOTS = 16
LOADS = (0.5, 0.9, 1.2, 3.0, 10.0)
DEADLINES_S = (5.0, 20.0)
LENGTH_S = 120.0
PHASE_S = 30.0
"""Mean length of a burst, and of the pause behind it. Long against a deadline of 5: at the end of each burst the bound
divides units and no plan can, which with bursts of 10 s puts 6 to 9 % of it out of reach of a plan that knows all
arrivals, and with 30 s about 2 %. Short enough for a deadline of 20 to carry much of a burst over the pause."""
VISIT_S = 2.0
"""Between two visits, all units of which arrive at once. A survey with a visit every 34 s and 20 s of work for
each of its detectors has 1.7 mean service times."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of unit: one pipeline, a chain of stages."""

    name: str
    share: float = 1.0
    """Its share of the arrivals."""
    priority: int = 0
    value: float = 1.0
    """Value of its class."""
    stages: Mapping[str, ServiceTimes]
    values: tuple[float, ...] = (1.0,)
    """Value of each stage."""

    @property
    def mean_s(self) -> float:
        """Mean service time of a unit."""
        return sum(stage.mean_s for stage in self.stages.values())

    def stage_values(self) -> tuple[float, ...]:
        """What each stage in time is worth."""
        return tuple(self.value * value for value in self.values)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of a trace."""

    at: float
    kind: str
    services_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A load, played from 0 to `length_s`. What is done by then counts, for us, the bound and the others alike."""

    name: str
    load: float
    deadline_s: float
    seed: int
    kinds: Mapping[str, Kind]
    units: tuple[Unit, ...]
    slots: tuple[tuple[float, int], ...] = ((0.0, SLOTS),)
    """From when on how many."""
    length_s: float = LENGTH_S

    def pipelines(self, chosen: Mapping[str, Any]) -> dict[str, Pipeline]:
        """As an experiment would declare them, with what is `chosen` for each pipeline."""
        return {
            name: Pipeline(stages=self._stages(kind), work_class=name, **chosen) for name, kind in self.kinds.items()
        }

    def classes(self) -> dict[str, WorkClass]:
        """A class for each kind."""
        return {name: WorkClass(priority=kind.priority, value=kind.value) for name, kind in self.kinds.items()}

    def _stages(self, kind: Kind) -> dict[str, Stage]:
        names = list(kind.stages)
        return {
            name: Stage(
                steps=[Step(name="work", command=["true"])],
                after=names[place - 1 : place] if place else [],
                value=value,
                deadline_s=self.deadline_s,
                stop_at_deadline=True,
            )
            for place, (name, value) in enumerate(zip(names, kind.values, strict=True))
        }


Rate = Callable[[float], float]
"""Load at a moment."""

ONE = {"dqm": Kind(name="dqm", stages={"quick": Gamma(1.0)})}
HEAVY = {"dqm": Kind(name="dqm", stages={"quick": Lognormal(1.0)})}
TWO = {
    "alerts": Kind(name="alerts", share=0.25, priority=1, value=4.0, stages={"find": Gamma(1.0)}),
    "dqm": Kind(name="dqm", share=0.75, stages={"quick": Gamma(1.0)}),
}
# The first look is worth most for its time, as it is in data quality; what follows goes deeper.
THREE = {
    "dqm": Kind(name="dqm", stages={"look": Gamma(0.2), "fit": Gamma(0.3), "deep": Gamma(0.5)}, values=(0.5, 0.2, 0.3))
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a trace of this name is made."""

    kinds: Mapping[str, Kind] = field(default_factory=lambda: ONE)
    rate: Callable[[random.Random, float, float], Rate] = lambda chance, load, length_s: lambda at: load
    most: float = 1.0
    """The largest rate, as a multiple of the load."""
    bunched: bool = False
    """Whether all units of a visit arrive together, at its beginning."""
    losing: bool = False
    """Whether half of the slots are away during the middle third."""


def _bursts(chance: random.Random, load: float, length_s: float) -> Rate:
    edges = list(_phases(chance, length_s))
    return lambda at: 2 * load if sum(edge <= at for edge in edges) % 2 == 0 else 0.0


def _phases(chance: random.Random, length_s: float) -> Iterator[float]:
    at = 0.0
    while at < length_s:
        at += PHASE_S * chance.uniform(0.5, 1.5)
        yield at


def _ramp(chance: random.Random, load: float, length_s: float) -> Rate:
    return lambda at: 2 * load * at / length_s


RECIPES: Mapping[str, Recipe] = {
    "steady": Recipe(),
    "bursty": Recipe(rate=_bursts, most=2.0),
    "ramp": Recipe(rate=_ramp, most=2.0),
    "heavy tails": Recipe(kinds=HEAVY),
    "two classes": Recipe(kinds=TWO),
    "three stages": Recipe(kinds=THREE),
    "worker loss": Recipe(losing=True),
    # Not asked for, but what most telescopes do.
    "visits": Recipe(bunched=True),
}


STEP_LOADS = (0.5, 3.0, 0.5)
STEP = Recipe(
    rate=lambda chance, load, length_s: lambda at: load * STEP_LOADS[min(2, int(3 * at / length_s))],
    most=max(STEP_LOADS),
)
"""Not in the table: the load steps up after a third, and back after another."""


def make(name: str, load: float, deadline_s: float, seed: int, length_s: float = LENGTH_S) -> Trace:
    """A trace of the table."""
    return cook(RECIPES[name], name, load, deadline_s, seed, length_s)


def cook(
    recipe: Recipe, name: str, load: float, deadline_s: float, seed: int, length_s: float, slots: int = SLOTS
) -> Trace:
    """A trace: arrivals are a Poisson process of the recipe's rate, thinned from its largest."""
    chance = random.Random(f"{name} {load} {seed}")
    rate = recipe.rate(chance, load, length_s)
    most = load * recipe.most
    kinds, shares = list(recipe.kinds.values()), [kind.share for kind in recipe.kinds.values()]
    mean_s = sum(kind.mean_s * kind.share for kind in kinds)
    units = []
    at = 0.0
    while (at := at + chance.expovariate(most * slots / mean_s)) < length_s:
        if chance.random() * most < rate(at):
            (kind,) = chance.choices(kinds, shares)
            begins = at - at % VISIT_S if recipe.bunched else at
            units.append(Unit(begins, kind.name, tuple(stage.draw(chance) for stage in kind.stages.values())))
    present: tuple[tuple[float, int], ...] = ((0.0, slots),)
    if recipe.losing:
        present = ((0.0, slots), (length_s / 3, slots // 2), (length_s * 2 / 3, slots))
    return Trace(
        name=name,
        load=load,
        deadline_s=deadline_s,
        seed=seed,
        kinds=recipe.kinds,
        units=tuple(units),
        slots=present,
        length_s=length_s,
    )


@cache
def data_id(number: int) -> DataId:
    """The data id of a trace's unit."""
    return DataId.of(run=1, unit=number)
