"""The plain road: a list of files through their pipelines as a literal Prefect DAG, for sites without a station."""

from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, wait
from prefect_dask.task_runners import DaskTaskRunner

from p3s_prefect.adapters.home import Home
from p3s_prefect.station.planning import check_pipelines, plan, select_files
from p3s_prefect.station.production import account, opened
from p3s_prefect.tasks.account import show_account
from p3s_prefect.tasks.cluster import choose_cluster
from p3s_prefect.tasks.results import result_storage
from p3s_prefect.tasks.stages import as_task, ended_well


@flow(name="produce", task_runner=DaskTaskRunner())  # type: ignore[arg-type]
def produce(
    files: list[str],
    home: str = ".",
    pipelines: list[str] | None = None,
    group: Literal["closed", "open"] = "closed",
    address: str | None = None,
    cluster_class: str | None = None,
    cluster_kwargs: dict[str, Any] | None = None,
    adapt_kwargs: dict[str, Any] | None = None,
) -> State[Any]:
    """Processes files of one stream: each unit by itself, then the groups; a unit that fails stops no other.

    Args:
        files: paths of the files; all must fit the stream's pattern.
        home: the experiment's home, the directory of its experiment.yaml.
        pipelines: which to run; the stream's rules choose if none is named.
        group: `closed` if the files are all of their groups, whose own stages run then; `open` if more will come.
        address: a Dask scheduler to use, such as tcp://10.0.0.1:8786.
        cluster_class: a class of clusters to start instead, such as dask_jobqueue.SLURMCluster.
        cluster_kwargs: what it is made with.
        adapt_kwargs: how it follows the load, such as {"minimum_jobs": 1, "maximum_jobs": 20}.
    """
    at = Home(Path(home).resolve())
    experiment = at.read()
    seen = select_files(at.path, experiment, files)
    check_pipelines(experiment, pipelines or [])
    choose_cluster(
        experiment.pilots,
        address=address,
        cluster_class=cluster_class,
        cluster_kwargs=cluster_kwargs,
        adapt_kwargs=adapt_kwargs,
    )
    with opened(at.path, experiment) as production:
        results = result_storage(experiment.experiment, at.store(experiment))
        planned = plan(production, seen, pipelines or [], close=group == "closed")
        runs: dict[int, PrefectFuture[Any]] = {}
        for work in planned.work:
            parents = [runs[parent] for parent in work.after]
            gathered = ended_well([runs[unit] for unit in work.after_all])
            run_stage = as_task(production, work, results)
            runs[work.stage_run_id] = run_stage.submit(production, work, wait_for=[*parents, *gathered])
        wait(list(runs.values()))
        return show_account(account(production, planned), planned.kept_out)
