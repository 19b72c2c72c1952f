"""What a site is to have in Prefect: pools, queues, blocks and deployments, as files declare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import SITE_POOL, Experiment, Name, WorkClass
from p3s_prefect.core.findings import did_you_mean

DEFAULT_CLASS = "default"
"""The class that need not be declared, and the queue that every pool has."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_by_name=True)


class Pool(_Model):
    """A work pool: where flow runs wait for a worker."""

    type: str
    """Type of its workers: ``p3s`` runs this package's flows in the agent, ``process`` each in a process of its own."""
    description: str = ""
    """What it is for, for people."""
    concurrency_limit: Annotated[int, Field(ge=0)] | None = None
    """At most this many flow runs at once. Default: no limit."""
    queues: Literal["classes", "default"] = "default"
    """``classes``: a queue for each class of the experiment's work. ``default``: the one that every pool has."""


class WorkPool(_Model):
    """Where the runs of a deployment wait."""

    name: Name
    """Name of the pool."""
    work_queue_name: Name | None = None
    """Name of the queue. Default: the pool's default queue."""
    job_variables: dict[str, Any] = {}
    """What is told to the worker, such as environment variables."""


class Deployment(_Model):
    """A flow that can be run from Prefect, by the keys of prefect.yaml."""

    name: Name
    """Its name, beside that of the flow."""
    entrypoint: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*\.[A-Za-z_]\w*$")]
    """The flow in module form: ``package.module.flow``."""
    description: str = ""
    """What it does, for people."""
    tags: list[str] = []
    """Tags of its runs."""
    parameters: dict[str, Any] = {}
    """Parameters of its runs, where a run gives no others."""
    work_pool: WorkPool
    """Where its runs wait."""
    concurrency_limit: Annotated[int, Field(ge=1)] | None = None
    """At most this many runs at once. Default: no limit."""
    schedules: list[dict[str, Any]] = []
    """When it is run by itself: each with cron, interval or rrule."""
    triggers: list[dict[str, Any]] = []
    """Events on which it is run."""


class DeploymentsFile(_Model):
    """A prefect.yaml."""

    name: str = ""
    """Name of the project."""
    prefect_version: Annotated[str, Field(alias="prefect-version")] = ""
    """The version of Prefect for which it was written."""
    pull: Annotated[list[Any], Field(max_length=0)] = []
    """Always empty: the code is what is installed."""
    deployments: Annotated[list[Deployment], Field(min_length=1)]
    """The deployments."""


class Changed(_Model):
    """What an overlay changes in a deployment; what it does not name stays."""

    parameters: dict[str, Any] = {}
    """Added to the parameters, or in their place."""
    tags: list[str] | None = None
    """In place of the tags."""
    work_pool: WorkPool | None = None
    """In place of the pool."""
    concurrency_limit: Annotated[int, Field(ge=1)] | None = None
    """In place of the limit."""
    schedules: list[dict[str, Any]] | None = None
    """In place of the schedules."""


class Overlay(_Model):
    """What differs between kinds of sites, beside what the experiment file says."""

    pools: Annotated[dict[Name, Pool], Field(min_length=1)]
    """Work pools by name."""
    pilots: dict[str, Any] = {}
    """Fields of the block `Pilots`, in place of what the experiment file says."""
    deployments: dict[Name, Changed] = {}
    """Changes of the deployments of prefect.yaml, by name."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """A queue of a pool, as a class declares it."""

    name: str
    priority: int
    """From 1; the smallest goes first, and no two of a pool have the same."""
    concurrency_limit: int | None


class Became(StrEnum):
    """What was done with something that was to be there."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True)
class Applied:
    """One thing that was to be there: what it is, and what was done for it."""

    kind: str
    """``pool``, ``queue``, ``block`` or ``deployment``."""
    name: str
    became: Became
    changes: tuple[str, ...] = ()
    """What was changed, each with the old value and the new one."""


def class_queues(experiment: Experiment) -> tuple[Queue, ...]:
    """A queue for each class, the one that goes first first; classes of one priority in the order of the file.

    Higher priorities go first in an experiment, smaller ones in Prefect, which wants each only once.
    """
    classes = {DEFAULT_CLASS: WorkClass()} | experiment.classes
    ranked = sorted(classes.items(), key=lambda named: -named[1].priority)
    return tuple(
        Queue(name=name, priority=rank, concurrency_limit=work_class.limit)
        for rank, (name, work_class) in enumerate(ranked, start=1)
    )


def overlaid(deployments: Sequence[Deployment], overlay: Overlay) -> tuple[Deployment, ...]:
    """The deployments as they are at a site.

    Raises:
        BadName: the overlay changes a deployment, or a deployment names a pool, that there is not.
    """
    names = [deployment.name for deployment in deployments]
    for name in overlay.deployments:
        if name not in names:
            raise BadName(f"the overlay changes a deployment {name!r}", fix=did_you_mean(name, names))
    found = tuple(_changed(deployment, overlay.deployments.get(deployment.name)) for deployment in deployments)
    for deployment in found:
        pool = deployment.work_pool.name
        if pool not in overlay.pools:
            fix = did_you_mean(pool, overlay.pools)
            raise BadName(f"the deployment {deployment.name} names a pool {pool!r} that is not declared", fix=fix)
    return found


def in_pool(deployments: Sequence[Deployment], overlay: Overlay, pool: str) -> tuple[tuple[Deployment, ...], Overlay]:
    """The same, with the name of the experiment's own pool where they say `p3s`.

    Raises:
        BadName: another pool of the overlay has that name.
    """
    if pool != SITE_POOL and {SITE_POOL, pool} <= overlay.pools.keys():
        raise BadName(
            f"the pool {pool!r} is the experiment's own, and another one of the overlay",
            fix="Choose another name: `prefect: {pool: NAME}` in the experiment file.",
        )
    named = {pool if name == SITE_POOL else name: found for name, found in overlay.pools.items()}
    moved = [
        deployment.model_copy(update={"work_pool": deployment.work_pool.model_copy(update={"name": pool})})
        if deployment.work_pool.name == SITE_POOL
        else deployment
        for deployment in deployments
    ]
    return tuple(moved), overlay.model_copy(update={"pools": named})


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any] | None, *, within: str = "") -> tuple[str, ...]:
    """What is not as it is wanted, in words, each by its key; nothing if `found` is None, as there is nothing yet."""
    told: list[str] = []
    for key, value in wanted.items() if found is not None else ():
        now = (found or {}).get(key)
        if isinstance(value, Mapping) and isinstance(now, Mapping) and value != now:
            gone = dict.fromkeys(now.keys() - value.keys())
            told += differences({**value, **gone}, now, within=f"{within}{key}.")
        elif now != value:
            told.append(f"{within}{key} {_short(now)} -> {_short(value)}")
    return tuple(told)


def _changed(deployment: Deployment, change: Changed | None) -> Deployment:
    if change is None:
        return deployment
    given = {name: value for name in Changed.model_fields if (value := getattr(change, name)) is not None}
    return deployment.model_copy(update=given | {"parameters": deployment.parameters | change.parameters})


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


_LONGEST = 60
