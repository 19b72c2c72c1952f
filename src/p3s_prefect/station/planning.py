"""From a list of files to the plan of a production: the same decisions and the same ledger rows as for arrivals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from sqlalchemy import Connection

from p3s_prefect.adapters.buffer_leases import LocalLeases
from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.directory_source import DirectorySource
from p3s_prefect.adapters.ledger import arrivals, execution, groups, selected
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core import dag
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadSelection
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.records import Arrival, Identity, StageFact, SubJobFact, Transition, Verdict
from p3s_prefect.core.retry import retried
from p3s_prefect.core.states import StageState
from p3s_prefect.station.catalogue import Catalogue
from p3s_prefect.station.checksums import Checksums
from p3s_prefect.station.production import Plan, Production, StageWork

_MOST_NAMED = 20
_KEPT_OUT = (Verdict.IGNORED, Verdict.CONFLICT, Verdict.REFUSED)


def select_files(home: Path, experiment: Experiment, files: Sequence[str]) -> list[Arrival]:
    """The units that these files are, all of the first stream that they fit.

    Raises:
        BadSelection: some fit no stream; all of them are named, with what is wrong.
    """
    paths = list(dict.fromkeys(_absolute(file) for file in files))
    if not paths:
        raise BadSelection("no files are given", fix="Name at least one.")
    watched = [name for name, stream in experiment.streams.items() if stream.directory is not None]
    if not watched:
        fix = "Files are named after those of a stream with a `directory`: give the experiment one."
        raise BadSelection("no stream of the experiment has a directory that is watched", fix=fix)
    tried = {name: _examine(home, experiment, name, paths) for name in watched}
    name, (found, wrong) = min(tried.items(), key=lambda entry: len(entry[1][1]))
    if not wrong:
        return found
    shown = [f"  {complaint}" for complaint in wrong[:_MOST_NAMED]]
    more = [f"  and {len(wrong) - _MOST_NAMED} more"] if len(wrong) > _MOST_NAMED else []
    raise BadSelection(
        "\n".join([f"{len(wrong)} of {len(paths)} files cannot be processed; nothing was begun:", *shown, *more]),
        fix=f"Files of stream {name} are named like {experiment.streams[name].pattern}.",
    )


def check_pipelines(experiment: Experiment, pipelines: Sequence[str]) -> None:
    """Makes sure that the experiment has these pipelines.

    Raises:
        BadSelection: it lacks one.
    """
    for name in pipelines:
        if name not in experiment.pipelines:
            raise BadSelection(f"there is no pipeline {name!r}", fix=did_you_mean(name, experiment.pipelines))


def plan(production: Production, seen: Sequence[Arrival], pipelines: Sequence[str], *, close: bool) -> Plan:
    """Takes files into the ledger, closes their groups if asked to, and says what there is to run.

    What was taken before is not taken again: its stage runs are planned as far as they are not done. Those that have
    failed are taken up anew, each by one new attempt in the same pass.
    """
    catalogue = production.catalogue()
    with production.books() as ledger:
        kept_out = _take_all(production, ledger, catalogue, seen, pipelines)
        units = [arrival.data_id for arrival in seen if arrival.path not in kept_out]
        with ledger.transaction(production.lease) as connection:
            if close:
                _close(connection, catalogue, {catalogue.group(unit) for unit in units})
            passes = selected.newest_passes(connection, units, pipelines)
            again = _again(production.experiment, selected.sub_jobs(connection, passes, units), set(units))
            execution.apply(connection, again, SystemClock().now())
            # Units first: nothing of them waits for a group.
            facts = sorted(selected.sub_jobs(connection, passes, units), key=lambda fact: fact.per == "group")
            ids = [stage.id for fact in facts for stage in fact.stages]
            collections = {row.stage_run_id: row.collection for row in selected.stages(connection, ids)}
    work = tuple(_work(production.experiment, facts, collections))
    kept_out |= _not_asked_for(seen, kept_out, facts)
    return Plan(work=work, stage_run_ids=tuple(ids), kept_out=kept_out)


# --- files ----------------------------------------------------------------------------------------------------------


def _absolute(file: str) -> Path:
    # A link itself is not followed: what it is called need not be what it leads to.
    path = Path(file)
    return path.parent.resolve() / path.name


def _examine(home: Path, experiment: Experiment, stream: str, paths: list[Path]) -> tuple[list[Arrival], list[str]]:
    source = DirectorySource(
        stream,
        experiment.streams[stream],
        experiment.instrument,
        (home / str(experiment.streams[stream].directory)).resolve(),
        clock=SystemClock(),
        known=_nothing_known,
        is_open=lambda _: False,
    )
    found, wrong = [], []
    for path in paths:
        seen = source.examine(path)
        if isinstance(seen, Arrival):
            found.append(seen)
        elif seen is not None:
            wrong.append(f"{path}: {seen.reason}")
        else:
            wrong.append(f"{path}: {_why_not(path)}")
    return found, wrong


async def _nothing_known(_stream: str, _keys: object) -> set[Identity]:
    return set()


def _why_not(path: Path) -> str:
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a directory"
    return "it is not complete, or has a temporary name"


# --- ledger ---------------------------------------------------------------------------------------------------------


def _take_all(
    production: Production, ledger: Ledger, catalogue: Catalogue, seen: Sequence[Arrival], pipelines: Sequence[str]
) -> dict[str, str]:
    """Takes files; returns those that were kept out, with the reason."""

    def take(connection: Connection, arrival: Arrival, compared: arrivals.Rival | None = None) -> arrivals.Rival | None:
        intake = catalogue.intake(arrival, pipelines)
        taken = arrivals.take(connection, arrival, intake, catalogue.collections, compared=compared)
        return taken.rival

    with ledger.transaction(production.lease) as connection:
        rivals = [(arrival, rival) for arrival in seen if (rival := take(connection, arrival)) is not None]
    for arrival, rival in rivals:
        read, compared = _checksums(catalogue, arrival, rival)
        with ledger.transaction(production.lease) as connection:
            take(connection, read, compared)
    with ledger.reading() as connection:
        verdicts = {arrival.path: selected.verdict(connection, arrival) for arrival in seen}
    return {path: reason for path, (verdict, reason) in verdicts.items() if verdict in _KEPT_OUT}


def _checksums(catalogue: Catalogue, arrival: Arrival, rival: arrivals.Rival) -> tuple[Arrival, arrivals.Rival]:
    try:
        return Checksums(LocalLeases()).both(catalogue.buffered, arrival, rival)
    except OSError as error:
        raise BadSelection(
            f"{arrival.path} cannot be read: {error.strerror or error}", fix="Mend its permissions."
        ) from error


def _close(connection: Connection, catalogue: Catalogue, wanted: Collection[DataId]) -> None:
    now = SystemClock().now()
    for group in groups.open_groups(connection):
        if group.data_id in wanted:
            groups.close(connection, group, "its files were given as a whole", catalogue.group_admissions, now)


def _not_asked_for(seen: Sequence[Arrival], kept_out: Collection[str], facts: Sequence[SubJobFact]) -> dict[str, str]:
    """Files that were taken before, when these pipelines were not asked for."""
    planned = {fact.data_id for fact in facts}
    reason = "it was taken before, and these pipelines were not asked for then"
    return {found.path: reason for found in seen if found.path not in kept_out and found.data_id not in planned}


# --- stage runs -----------------------------------------------------------------------------------------------------


def _again(experiment: Experiment, facts: Sequence[SubJobFact], wanted: Collection[DataId]) -> list[Transition]:
    """What a new production takes up of what an earlier one left failed; of groups, if one of their units goes on."""
    changes: list[Transition] = []
    goes_on: set[int] = set()
    for fact in sorted(facts, key=lambda fact: fact.per == "group"):
        if fact.data_id in wanted or (fact.per == "group" and (fact.pass_id in goes_on or _has_failed(fact))):
            found = retried(experiment.pipelines[fact.pipeline], fact, "its files were given again")
            goes_on |= {fact.pass_id} if found else set()
            changes += found
    return changes


def _has_failed(fact: SubJobFact) -> bool:
    return any(stage.state is StageState.FAILED for stage in fact.stages)


def _work(experiment: Experiment, facts: Sequence[SubJobFact], collections: Mapping[int, str]) -> Iterator[StageWork]:
    """What there is to run, and what was done before; units stand before groups, and parents before children."""
    units: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for fact in facts:
        pipeline = experiment.pipelines[fact.pipeline]
        own = {stage.stage: stage.id for stage in fact.stages if _is_planned(stage)}
        for name, stage_run_id in own.items():
            if fact.per == "unit":
                units[fact.pass_id, name].append(stage_run_id)
            # Ancestors, as the dispatcher has it: a parent that is blocked may have another ancestor that still runs.
            before = sorted(dag.ancestors(pipeline, name)) if fact.per == "group" else []
            yield StageWork(
                stage_run_id=stage_run_id,
                sub_job_id=fact.id,
                pass_id=fact.pass_id,
                data_id=str(fact.data_id),
                pipeline=fact.pipeline,
                stage=name,
                per=fact.per,
                collection=collections[stage_run_id],
                is_done=any(stage.id == stage_run_id and stage.state is StageState.DONE for stage in fact.stages),
                after=tuple(own[parent] for parent in dag.parents(pipeline, name) if parent in own),
                after_all=tuple(run for ancestor in before for run in units[fact.pass_id, ancestor]),
            )


def _is_planned(stage: StageFact) -> bool:
    return stage.state is StageState.DONE or not stage.state.is_terminal
