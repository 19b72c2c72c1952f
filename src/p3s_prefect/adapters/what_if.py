"""From a question to a simulation: experiment files, loads and ledgers are read here, and core plays them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from p3s_prefect.adapters.experiment_file import read_experiment, read_text
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import overrides, recorded
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.errors import BadName, LedgerError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_changes import Change, changed
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.load_file import LoadFile, RecordedOptions, load_options, parse_load
from p3s_prefect.core.loads import Load, StageKey
from p3s_prefect.core.recorded_load import Recorded, measured_times, recorded_load
from p3s_prefect.core.reports import Scope
from p3s_prefect.core.simulation import Comparison, Policy, Progress, compare
from p3s_prefect.core.synthetic_load import synthetic_load

_NO_LOAD = (
    "Give --recorded (with --run, --since, --until), --rate 5/s, --visits 100 --parts 9 --every 34s, or --load FILE."
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What would this change do? A load, and what is changed; without a change only the policy as it is, is played."""

    scope: Scope | None = None
    """Play what was recorded in it."""
    load_file: Path | None = None
    """Play the load that this file declares."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a load file (see `core.load_file`), with the values that they have there; they go before the file."""
    stream_options: Mapping[str, Any] = field(default_factory=dict)
    """Keys of one of its streams;"""
    stream: str | None = None
    """of this one. Default: the only one that the experiment has."""
    other: Path | None = None
    """The changed experiment file. Default: the same."""
    changes: tuple[Change, ...] = ()
    """What is changed in it besides."""
    other_slots: int | None = None
    """Slots after the change. Default: as many as before."""
    seed: int = 0
    """Of the load's chance. That of the prescale is the experiment's."""


def answer(home: Home, asked: Question, *, progress: Progress | None = None) -> Comparison:
    """Plays the load under the home's experiment, and under the changed one.

    Raises:
        ExperimentFileErrors: a file, an option or a change is wrong.
        P3sError: there is no load, or it cannot be played.
    """
    experiment = home.read()
    a, b = Policy(name="A", experiment=experiment), _changed_policy(home, asked)
    others = () if b is None else (b.experiment,)
    load = _load(home, asked, experiment, *others)
    load = replace(load, notes=(*load.notes, *_as_it_is_not(home, experiment)))
    return compare(load, a, b, progress=progress)


def _as_it_is_not(home: Home, experiment: Experiment) -> Iterator[str]:
    """In what the running station differs from the experiment that is played."""
    if home.is_edited():
        yield "the experiment file was edited, and is played as it is now: the station goes by what it read before"
    ledger = _ledger(home, experiment)
    if ledger is None:
        return
    with closing(ledger), ledger.reading() as connection:
        given = overrides.in_force(connection)
    if given:
        yield f"what is in force by command now is not played: {'; '.join(one.reason for one in given)}"


def _changed_policy(home: Home, asked: Question) -> Policy | None:
    if asked.other is None and not asked.changes and asked.other_slots is None:
        return None
    experiment = read_experiment(asked.other or home.experiment_file, edit=changed(asked.changes))
    told = [str(asked.other)] if asked.other else []
    told += [str(change) for change in asked.changes]
    told += [f"{asked.other_slots} slots"] if asked.other_slots is not None else []
    # The pilots that a changed file declares are its slots.
    declared = {change.where for change in asked.changes} & {("pilots", "workers")}
    slots = experiment.pilots.workers if declared and asked.other_slots is None else asked.other_slots
    return Policy(name="B", experiment=experiment, slots=slots, changes=tuple(told))


def _load(home: Home, asked: Question, experiment: Experiment, *others: Experiment) -> Load:
    synthetic = asked.load_file is not None or bool(asked.stream_options) or "streams" in asked.options
    if synthetic == (asked.scope is not None):
        what = "what was recorded and a synthetic load cannot be played at once" if synthetic else "no load to play"
        raise BadName(what, fix=_NO_LOAD)
    if asked.scope is not None:
        options = load_options(asked.options, RecordedOptions)
        found = _recorded(home, experiment, asked.scope)
        return recorded_load(found, experiment, *others, seed=asked.seed, options=options)
    return synthetic_load(
        _declared(asked, experiment),
        experiment,
        *others,
        seed=asked.seed,
        measured=_measured(home, experiment),
    )


def _declared(asked: Question, experiment: Experiment) -> LoadFile:
    options = dict(asked.options)
    if asked.stream_options:
        options["streams"] = {_stream(asked, experiment): dict(asked.stream_options)}
    if asked.load_file is None:
        return load_options(options, LoadFile)
    text = read_text(asked.load_file)
    return parse_load(text, file=str(asked.load_file), environment=os.environ, options=options)


def _stream(asked: Question, experiment: Experiment) -> str:
    if asked.stream is not None and asked.stream not in experiment.streams:
        raise BadName(f"there is no stream {asked.stream[:120]!r}", fix=did_you_mean(asked.stream, experiment.streams))
    if asked.stream is not None:
        return asked.stream
    first, *more = experiment.streams
    if more:
        raise BadName(
            "the experiment has more than one stream",
            fix=f"Say which (--stream), or give --load FILE. {did_you_mean('', experiment.streams)}",
        )
    return first


def _recorded(home: Home, experiment: Experiment, scope: Scope) -> Recorded:
    ledger = _ledger(home, experiment)
    if ledger is None:
        raise LedgerError(
            f"there is no ledger in {home.path.resolve()} yet, and so nothing was recorded",
            fix="Start the station with `p3s up`, or give a synthetic load such as --rate 5/s.",
        )
    try:
        with ledger.reading() as connection:
            return recorded.recorded(connection, scope, experiment.instrument.group)
    finally:
        ledger.close()


def _measured(home: Home, experiment: Experiment) -> Mapping[StageKey, tuple[float, ...]]:
    """Service times of the ledger, if there is one."""
    ledger = _ledger(home, experiment)
    if ledger is None:
        return {}
    try:
        with ledger.reading() as connection:
            return measured_times(recorded.measured(connection))
    finally:
        ledger.close()


def _ledger(home: Home, experiment: Experiment) -> Ledger | None:
    ledger = home.ledger(experiment)
    if not ledger.exists():
        ledger.close()
        return None
    ledger.migrate()
    return ledger
