"""The plain road: a list of files through their pipelines as a literal Prefect DAG, for sites without a station."""

from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect_dask.task_runners import DaskTaskRunner

from p3s_prefect.adapters.home import Home
from p3s_prefect.blocks.site import at_site
from p3s_prefect.station.planning import check_pipelines, plan, select_files
from p3s_prefect.station.production import opened
from p3s_prefect.tasks.account import show_account
from p3s_prefect.tasks.cluster import choose_cluster
from p3s_prefect.tasks.ends import show_ends
from p3s_prefect.tasks.lost import settle_lost
from p3s_prefect.tasks.results import result_storage
from p3s_prefect.tasks.stages import as_task
from p3s_prefect.tasks.turns import before, in_turn, stopped_with


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
    site: str | None = None,
) -> State[Any]:
    """Processes files of one stream: each unit by itself, then the groups; a unit that fails stops no other.

    What was done before is not done again, and what has failed is tried anew. Deadlines do not count: they are for
    those who take the data.

    Args:
        files: paths of the files; all must fit the stream's pattern.
        home: the experiment's home, the directory of its experiment.yaml.
        pipelines: which to run; the stream's rules choose if none is named.
        group: `closed` if the files are all of their groups, whose own stages run then; `open` if more will come.
        address: a Dask scheduler to use, such as tcp://10.0.0.1:8786.
        cluster_class: a class of clusters to start instead, such as dask_jobqueue.SLURMCluster.
        cluster_kwargs: what it is made with.
        adapt_kwargs: how it follows the load, such as {"minimum_jobs": 1, "maximum_jobs": 20}.
        site: name of the blocks that say where store and ledger are, and what to run on if the run does not say it.
    """
    at = Home(Path(home).resolve())
    here = at_site(at.read(), site)
    experiment = here.experiment
    seen = select_files(at.path, experiment, files)
    check_pipelines(experiment, pipelines or [])
    choose_cluster(
        experiment,
        **here.cluster_for(
            address=address, cluster_class=cluster_class, cluster_kwargs=cluster_kwargs, adapt_kwargs=adapt_kwargs
        ),
    )
    with opened(at.path, experiment) as production:
        results = result_storage(at, experiment, here.store)
        planned = plan(production, seen, pipelines or [], close=group == "closed")
        runs: dict[int, PrefectFuture[Any]] = {}
        with stopped_with(production, runs):
            for work in in_turn(planned.work, runs):
                run_stage = as_task(production, work, results)
                runs[work.stage_run_id] = run_stage.submit(production, work, wait_for=before(work, runs))
        lost = settle_lost(production, planned.work, runs)
        show_ends(planned.work, runs, lost)
        return show_account(production, planned)
