"""Why a stage run that is queued does not start: what stops it, which limit it is at, and what goes before it (B12)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import takewhile

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Experiment, Floor, Order
from p3s_prefect.core.overrides import Override, Work
from p3s_prefect.core.plan import floor_of, needed_in_s
from p3s_prefect.core.why_facts import Case, Queued, Reason
from p3s_prefect.core.why_rules import asked_for, in_pipeline, of_override, rule, station_reasons, stops_of


def queue_reasons(experiment: Experiment, case: Case, stage_run_id: int, work: Work) -> Iterator[Reason]:
    """Everything that keeps a queued stage run from starting; what stops it altogether comes first."""
    own = next((one for one in case.queue if one.id == stage_run_id), None)
    yield from station_reasons(case)
    # One that is held is queued until its station has seen that.
    stops = stops_of(case, work, begun=own is not None and own.begun)
    yield from (of_override(one, case.at) for one in stops)
    yield from _limits(experiment, case, work)
    if own is not None and _is_standby(experiment, own):
        yield Reason(
            why=f"overload has left it out, as its number {own.u:.4g} is not below {own.q:.4g}, the share that "
            "could be let in",
            rule=rule("classes", work.work_class, "shed", True),
            release="It stands by: it starts if a slot would idle, or go to a lower priority, while it can still end "
            "in time, or is shed.",
        )
    if own is not None and (floor := _owing(experiment, own)) is not None:
        index = experiment.classes[work.work_class].floors.index(floor)
        yield Reason(
            why=f"a floor owes it a slot in time: it is for {floor.share:g} of {floor.units}, "
            f"and its number is {own.u:.4g}",
            rule=rule("classes", work.work_class, "floors", index, "share", floor.share),
            release="It goes before everything else that its limits let start, as soon as it would be late otherwise.",
        )
    if own is not None and not stops:
        yield _place_in_words(experiment, case, own, work)
        if (given := _priority_override(experiment, case, own)) is not None:
            yield of_override(given, case.at)
        own_data = case.controls.priority(work)
        if own_data is not None and own_data != given:
            yield Reason(
                why=f"{own_data.reason}, sorts what was let in, and it was left out",
                rule=own_data.command,
                release=f"That of a class, pipeline or stage lets more in. {asked_for(own)}",
            )


# --- limits ---------------------------------------------------------------------------------------------------------


def _limits(experiment: Experiment, case: Case, work: Work) -> Iterator[Reason]:
    pipeline = experiment.pipelines[work.pipeline]
    yield from _limit(
        case,
        f"pipeline {work.pipeline}",
        running=case.running.get(work.pipeline, 0),
        declared=pipeline.limit,
        key=("pipelines", work.pipeline, "limit"),
        work=work,
        of_pipeline=work.pipeline,
    )
    same = [name for name, other in experiment.pipelines.items() if other.work_class == work.work_class]
    yield from _limit(
        case,
        f"class {work.work_class}",
        running=sum(case.running.get(name, 0) for name in same),
        declared=experiment.class_of(pipeline).limit,
        key=("classes", work.work_class, "limit"),
        work=work,
        of_pipeline=None,
    )


def _limit(
    case: Case,
    whose: str,
    *,
    running: int,
    declared: int | None,
    key: tuple[str, ...],
    work: Work,
    of_pipeline: str | None,
) -> Iterator[Reason]:
    """The limit of a pipeline, or with `of_pipeline` None that of its class, if it is reached."""
    override = case.controls.limit(work_class=work.work_class, pipeline=of_pipeline)
    limit = declared if override is None else override.value
    if limit is None or running < limit:
        return
    at_once = "none may run" if limit == 0 else f"{running} of its stages run, and {limit} may at once"
    if override is None:
        yield Reason(
            why=f"{whose} is at its limit: {at_once}",
            rule=rule(*key, limit),
            release=f"It goes on when one of them has ended; `p3s limits {_target(work, of_pipeline)} N` lets N run.",
        )
        return
    told = of_override(override, case.at)
    yield Reason(why=f"{whose} is at its limit: {at_once}; {told.why}", rule=told.rule, release=told.release)


def _target(work: Work, of_pipeline: str | None) -> str:
    return f"class:{work.work_class}" if of_pipeline is None else of_pipeline


# --- the place in the queue -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """How many stage runs go before one that is queued, and by what."""

    by_floor: int
    """Those that a floor owes a slot, and that would be late if they waited any longer."""
    by_priority: int
    by_standby: int
    """Where it is on standby: those of the same priority that are not."""
    by_begun: int
    """Of the same priority, those of units that have begun; later stages go before new units."""
    by_deadline: int
    """Of the same pipeline, where the freshest go first: those that would be late if they waited for their turn."""
    by_order: int
    turns: int
    """Those of other pipelines that are of the same rank, and take turns with it."""

    @property
    def before(self) -> int:
        """All that go before it for certain."""
        return self.by_floor + self.by_priority + self.by_standby + self.by_begun + self.by_deadline + self.by_order


def place(experiment: Experiment, case: Case, own: Queued) -> Place:
    """The place of a queued stage run among those that may start; those that are stopped are passed over."""
    owed = _owed_first(experiment, case)
    counts = {field.name: 0 for field in fields(Place)}
    if own.id in owed:
        return Place(**counts | {"by_floor": owed[own.id]})
    counts["by_floor"] = len(owed)
    lane, late = _lane(experiment, case, own), _late(experiment, case, own, owed)
    key = _key(experiment, case, own)
    for other in _others(case, own, experiment):
        if other.id in owed:
            continue
        theirs = _lane(experiment, case, other)
        if theirs[0] != lane[0]:
            counts["by_priority"] += theirs[0] < lane[0]
        elif theirs[1] != lane[1]:
            counts["by_standby"] += theirs[1] < lane[1]
        elif theirs[2] != lane[2]:
            counts["by_begun"] += theirs[2] < lane[2]
        elif other.pipeline != own.pipeline:
            counts["turns"] += 1
        elif (own.id in late) != (other.id in late):
            counts["by_deadline"] += other.id in late
        elif own.id in late:
            counts["by_deadline"] += _due(experiment, other) < _due(experiment, own)
        else:
            counts["by_order"] += _key(experiment, case, other) < key
    return Place(**counts)


def _owed_first(experiment: Experiment, case: Case) -> dict[int, int]:
    """What a floor has let in and goes before everything else now, with its place."""

    def goes_first(one: Queued) -> bool:
        until = case.station.owed_until.get(f"{one.pipeline}/{one.stage}")
        is_in_turn = until is not None and (one.taken_at, one.id) <= until
        return is_in_turn and _owing(experiment, one) is not None and not _is_stopped(experiment, case, one)

    owed = sorted((one for one in case.queue if goes_first(one)), key=lambda one: _due(experiment, one))
    return {one.id: place for place, one in enumerate(owed)}


def _owing(experiment: Experiment, one: Queued) -> Floor | None:
    """The floor that lets a unit in, so that it is owed a slot in time."""
    pipeline = experiment.pipelines.get(one.pipeline)
    if pipeline is None or one.per == "group" or _due(experiment, one)[0] == math.inf:
        return None
    floor = floor_of(experiment.class_of(pipeline), DataId.parse(one.data_id))
    return floor if floor is not None and one.u < floor.share else None


def _late(experiment: Experiment, case: Case, own: Queued, owed: Collection[int]) -> frozenset[int]:
    """Those of a pipeline and lane that go first, by their deadlines, as they would be late behind fresh ones.

    When the lane is next, what goes before it has left the queue. Of what is there, the queue looks at the earliest
    deadline of the pipeline, in whatever lane and whether it may start or not, and lets it go first if it is of this
    lane.
    """
    before = case.station.freshest_first.get(own.pipeline)
    if before is None:
        return frozenset()
    may_start, lane = {one.id for one in (own, *_others(case, own, experiment))}, _lane(experiment, case, own)

    def has_left(one: Queued) -> bool:
        return one.id in owed or (one.id in may_start and _lane(experiment, case, one) < lane)

    def is_late(one: Queued) -> bool:
        is_next = one.id in may_start and _lane(experiment, case, one) == lane
        return is_next and _due(experiment, one)[0] < before

    line = [one for one in case.queue if one.pipeline == own.pipeline and not _is_standby(experiment, one)]
    line.sort(key=lambda one: _due(experiment, one))
    return frozenset(one.id for one in takewhile(is_late, (one for one in line if not has_left(one))))


def _due(experiment: Experiment, one: Queued) -> tuple[float, int]:
    """Its deadline; infinite if it has none."""
    stage = experiment.pipelines[one.pipeline].stages.get(one.stage)
    deadline_s = None if stage is None else stage.deadline_s
    return (math.inf if deadline_s is None else one.taken_at + deadline_s), one.id


def _others(case: Case, own: Queued, experiment: Experiment) -> Iterable[Queued]:
    for other in case.queue:
        if other.id == own.id or other.pipeline not in experiment.pipelines:
            continue
        if not _is_stopped(experiment, case, other):
            yield other


def _is_stopped(experiment: Experiment, case: Case, one: Queued) -> bool:
    """Whether a command lets it not start."""
    return bool(case.controls) and case.controls.stopped(_work(experiment, one), begun=one.begun) is not None


def _work(experiment: Experiment, one: Queued) -> Work:
    return Work(
        work_class=experiment.pipelines[one.pipeline].work_class,
        pipeline=one.pipeline,
        stage=one.stage,
        group=DataId.parse(one.group),
        unit=DataId.parse(one.data_id) if one.per == "unit" else None,
    )


def _lane(experiment: Experiment, case: Case, one: Queued) -> tuple[int, bool, bool]:
    """Smaller goes first: minus the priority, whether it is on standby, and whether the unit is still to begin."""
    return -_priority(experiment, case, one), _is_standby(experiment, one), not one.begun


def _is_standby(experiment: Experiment, one: Queued) -> bool:
    pipeline = experiment.pipelines[one.pipeline]
    return one.left_out and one.stage in pipeline.stages and needed_in_s(pipeline, one.stage) < math.inf


def _priority(experiment: Experiment, case: Case, one: Queued) -> int:
    """That by which it is queued: on standby its stage's, and behind those that groups and units have of their own."""
    if _is_standby(experiment, one):
        return min([_own_priority(experiment, case, one), *case.controls.priorities_of_data])
    return _own_priority(experiment, case, one)


def _own_priority(experiment: Experiment, case: Case, one: Queued) -> int:
    override = _priority_override(experiment, case, one)
    if override is not None and override.value is not None:
        return override.value
    pipeline = experiment.pipelines[one.pipeline]
    stage = pipeline.stages.get(one.stage)
    return pipeline.priority or 0 if stage is None else experiment.priority_of(pipeline, stage)


def _priority_override(experiment: Experiment, case: Case, one: Queued) -> Override | None:
    if not case.controls:
        return None
    work = _work(experiment, one)
    return case.controls.priority(replace(work, group=None, unit=None) if _is_standby(experiment, one) else work)


def _priority_rule(experiment: Experiment, case: Case, one: Queued) -> str:
    """What its priority follows from."""
    override = _priority_override(experiment, case, one)
    if override is not None:
        return override.command
    pipeline = experiment.pipelines[one.pipeline]
    stage = pipeline.stages.get(one.stage)
    if stage is not None and stage.priority is not None:
        return rule("pipelines", one.pipeline, "stages", one.stage, "priority", stage.priority)
    if pipeline.priority is not None:
        return rule("pipelines", one.pipeline, "priority", pipeline.priority)
    return rule("classes", pipeline.work_class, "priority", experiment.class_of(pipeline).priority)


def _order(experiment: Experiment, case: Case, name: str) -> Order:
    """The order in which a pipeline's units go now."""
    return Order.FRESHEST_FIRST if name in case.station.freshest_first else experiment.pipelines[name].order


def _key(experiment: Experiment, case: Case, one: Queued) -> tuple[float, int]:
    """Smaller goes first among those of one pipeline and lane."""
    if _is_standby(experiment, one):
        return one.u, one.id
    match _order(experiment, case, one.pipeline):
        case Order.FRESHEST_FIRST:
            return -one.taken_at, one.id
        case Order.OLDEST_FIRST:
            return one.taken_at, one.id
        case Order.FIRST_COME:
            return float(one.sub_job_id), one.id
        case Order.EARLIEST_DEADLINE:
            return _due(experiment, one)


def _place_in_words(experiment: Experiment, case: Case, own: Queued, work: Work) -> Reason:
    found, order = place(experiment, case, own), _order(experiment, case, own.pipeline)
    priority, standby = _priority(experiment, case, own), _is_standby(experiment, own)
    parts = [
        (found.by_floor, f"{found.by_floor} that a floor owes a slot"),
        (found.by_priority, f"{found.by_priority} of a priority above {priority}"),
        (found.by_standby, f"{found.by_standby} that are not on standby"),
        (found.by_begun, f"{found.by_begun} of units that have begun"),
        (found.by_deadline, f"{found.by_deadline} that would be late otherwise"),
        (
            found.by_order,
            f"{found.by_order} in the order {order}" if not standby else f"{found.by_order} of a smaller number",
        ),
    ]
    told = ", ".join(words for number, words in parts if number)
    before = f"{found.before} go before it in the queue ({told})" if found.before else "it is the first in its queue"
    turns = f"; it takes turns with {found.turns} of other pipelines of priority {priority}" if found.turns else ""
    rules = [_priority_rule(experiment, case, own)] if found.by_priority or found.turns or not found.before else []
    rules += [_order_rule(experiment, case, own.pipeline)] if found.by_order and not standby else []
    if standby:
        release = f"It starts when a slot is left to it. {asked_for(own)}"
    elif found.before or found.turns:
        forward = f" `p3s priority {in_pipeline(own)} NUMBER` puts it forward, with a number above theirs."
        only_floors = found.before == found.by_floor and not found.turns
        release = f"It starts when these have started and a slot is free.{'' if only_floors else forward}"
    else:
        release = "It starts when a slot is free."
    return Reason(why=f"{before}{turns}; {_slots(case)}", rule=", ".join(rules), release=release)


def _order_rule(experiment: Experiment, case: Case, name: str) -> str:
    if _order(experiment, case, name) is not experiment.pipelines[name].order:
        return rule("pipelines", name, "freshest_in_overload", True)
    return rule("pipelines", name, "order", experiment.pipelines[name].order)


def _slots(case: Case) -> str:
    with_pilots, slots = sum(case.running.values()), case.station.slots
    running = f"{with_pilots} {'stage is' if with_pilots == 1 else 'stages are'} with the pilots"
    return running if slots is None else f"{running}, which have {slots} slot{'' if slots == 1 else 's'}"
