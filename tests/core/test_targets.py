"""How a command names what it acts on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_file import parse_experiment
from p3s_prefect.core.overrides import Controls, Override, OverrideKind, Target
from p3s_prefect.core.targets import classes_of, explained, read_target
from p3s_prefect.core.views import StageRow, UnitRow

_FILE = Path(__file__).parent / "good_experiment.yaml"
_READ = parse_experiment(_FILE.read_text(), file=str(_FILE), environment={})
# With a pipeline and a class of awkward names, and pipelines that share a name with a class.
EXPERIMENT = Experiment.model_validate(
    _READ.model_dump()
    | {"classes": {"alerts": {}}}
    | {"pipelines": {name: _READ.pipelines["quality"].model_dump() for name in ("quality", "all", "alerts")}}
)
RUN, PART = DataId.of(run=1), DataId.of(run=1, part=3)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("quality", Target(pipeline="quality")),
        ("quality/clean", Target(pipeline="quality", stage="clean")),
        ("class:alerts", Target(work_class="alerts")),
        ("class:default", Target(work_class="default")),
        ("alerts", Target(pipeline="alerts")),
        ("run=1", Target(group=RUN)),
        ("part=3 run=1", Target(unit=PART)),
        ("run=1/part=3", Target(unit=PART)),
        ("quality/clean run=1 part=3", Target(pipeline="quality", stage="clean", unit=PART)),
        ("class:alerts run=1", Target(work_class="alerts", group=RUN)),
        ("all", Target()),
        ("pipeline:all", Target(pipeline="all")),
    ],
)
def test_what_the_words_name(text: str, target: Target) -> None:
    """P10, P14; however the words are handed over."""
    assert read_target([text], EXPERIMENT) == target
    assert read_target(text.split(), EXPERIMENT) == target


@given(
    st.sampled_from([None, "quality", "alerts"]),
    st.sampled_from([None, "alerts", "default"]),
    st.booleans(),
    st.sampled_from([{}, {"group": RUN}, {"unit": PART}]),
)
def test_it_is_written_as_it_is_read(
    pipeline: str | None, work_class: str | None, stage: bool, data: dict[str, DataId]
) -> None:
    """S9: what is shown can be given to the next command."""
    if pipeline is not None:
        work_class = None
    target = Target(pipeline=pipeline, work_class=work_class, stage="clean" if stage and pipeline else None, **data)
    assert read_target([str(target)], EXPERIMENT) == target


def test_also_a_pipeline_that_is_called_all() -> None:
    """S9: it is never taken for the whole station."""
    target = Target(pipeline="all")
    assert read_target([str(target)], EXPERIMENT) == target


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("", "nothing is named", "PIPELINE/STAGE"),
        ("qualty", "no pipeline 'qualty'", "Did you mean quality?"),
        ("default", "no pipeline 'default'", "class:default"),
        ("quality/claen", "no stage of quality: 'claen'", "Did you mean clean?"),
        ("quality/", "no stage of quality: ''", "There are"),
        ("class:alert", "no class 'alert'", "Did you mean alerts?"),
        ("quality alerts", "more than one thing", "one command for each"),
        ("all run=1", "together with run=1", "Leave 'all' out"),
        ("part=3", "neither a group nor a unit", "a unit by run part"),
        ("run=1 shot=3", "no dimension 'shot'", "run, part"),
        ("run=1 run=2", "given twice", "once"),
        ("run=", "value of run", "letters"),
        ("run=abc", "run=abc: run is a whole number", "run=3"),
    ],
)
def test_what_names_nothing_is_refused_with_what_there_is(text: str, what: str, fix: str) -> None:
    """S8."""
    with pytest.raises(BadName) as refused:
        read_target([text], EXPERIMENT)
    assert what in refused.value.what
    assert fix in refused.value.fix


def test_classes_are_the_declared_ones_and_those_that_pipelines_name() -> None:
    assert classes_of(EXPERIMENT) == ("alerts", "default")


def _unit(state: str, reason: str) -> UnitRow:
    """Of the pipeline `quality`, with one open stage."""
    stage = StageRow(
        id=1,
        stage="clean",
        state=state,
        reason=reason,
        q=0.5,
        queued_at=1.0,
        settled_at=None,
        failures=0,
        losses=0,
        attempts=(),
    )
    return UnitRow(
        id=1,
        data_id=str(PART),
        per="unit",
        group=str(RUN),
        pipeline="quality",
        pass_number=0,
        state="arrived",
        reason="",
        taken_at=1.0,
        arrived_at=1.0,
        queued_at=1.0,
        started_at=None,
        ended_at=None,
        published_at=None,
        settled_at=None,
        stages=(stage,),
    )


def _given(kind: OverrideKind, value: int | None = None) -> Override:
    return Override(id=1, kind=kind, target=Target(pipeline="quality"), value=value, by="me", why="a try", set_at=1.0)


LEFT_OUT = "in overload: u = 0.7000 is not below q = 0.5"
PAUSE, HOLD = _given(OverrideKind.PAUSE), _given(OverrideKind.HOLD)
FIRST, FEWER = _given(OverrideKind.PRIORITY, 9), _given(OverrideKind.LIMIT, 1)


@pytest.mark.parametrize(
    ("state", "reason", "given_", "told"),
    [
        ("queued", "", [], ""),
        ("queued", LEFT_OUT, [], LEFT_OUT),
        ("queued", LEFT_OUT, [FIRST], f"{LEFT_OUT}; {FIRST.reason}"),
        ("queued", LEFT_OUT, [FEWER], f"{LEFT_OUT}; {FEWER.reason}"),
        ("queued", LEFT_OUT, [PAUSE], PAUSE.reason),
        ("queued", "", [FIRST], FIRST.reason),
        ("held", HOLD.reason, [HOLD], HOLD.reason),
        ("held", HOLD.reason, [PAUSE, HOLD], HOLD.reason),
        ("held", HOLD.reason, [HOLD, PAUSE], HOLD.reason),
        ("running", "", [FIRST], ""),
        # It was lifted, and no station has seen that.
        ("held", HOLD.reason, [], ""),
    ],
)
def test_an_open_unit_tells_why_it_waits(state: str, reason: str, given_: list[Override], told: str) -> None:
    """B12, S9: what stops it; else why it is where it is, and what acts on it."""
    (unit,) = explained([_unit(state, reason)], EXPERIMENT, Controls(given_))
    assert unit.reason == told
