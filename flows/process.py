"""Asks a site's station to process units of a group, and waits for them: by hand, on a schedule, or on an event."""

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State

from p3s_prefect.tasks.requests import ask_station, await_answer, await_end
from p3s_prefect.tasks.requests import show_request as show


@flow(name="process")
async def process(
    pipeline: str,
    group: str,
    units: list[str] | None = None,
    which: Literal["missing", "failed", "all"] = "missing",
    home: str = ".",
) -> State[Any]:
    """Processes units of a group by a station, and ends as they do; what is under way already is only waited for.

    Cancelling this run ends its waiting alone, as others may wait for the same units, which go on. What cancels them is
    cancelling the run that records them, such as `dqm run=2008 pass 1`. `p3s hold` and `p3s pause` keep from starting
    what has not started.

    Args:
        pipeline: the pipeline's name.
        group: data id of the group, such as run=2008.
        units: data ids of units of this group, such as run=2008 subrun=3; all of them if none is named.
        which: `missing` for those without results, `failed` to try again what failed, `all` to process them anew.
        home: the experiment's home, the directory of its experiment.yaml.
    """
    asked = await ask_station(home, pipeline, group, units or [], which)
    answer = await await_answer(asked)
    ended = await await_end(asked, answer)
    return await show(asked, answer, ended)
