"""Who uses a Dask cluster: a station, or productions on the plain road, and never both.

A station counts on every slot of its cluster, and Dask would give them to whoever asks. So each notes itself at the
scheduler, under the id of its client: the note counts as long as the scheduler sees that client.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import distributed

from p3s_prefect.core.errors import NoScheduler, ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.findings import Finding

Road = Literal["station", "production"]

# A scheduler answers within milliseconds; one that is not there refuses at once, unless a firewall drops what is sent.
_PATIENCE_S = 5.0
# What clients of a scheduler may leave there under a name.
_NOTED = "p3s-users"


@dataclass(frozen=True, kw_only=True)
class ClusterUser:
    """Who uses a cluster."""

    road: Road
    experiment: str
    holder: str
    """Host and process."""
    ledger: UUID | None = None
    """The ledger of a station: two homes may call their experiment the same."""
    token: int = 0
    """That of a station's lease: of two of one ledger, the greater one came later."""

    @classmethod
    def here(cls, road: Road, experiment: str, ledger: UUID | None = None, token: int = 0) -> ClusterUser:
        """This process."""
        holder = f"{platform.node()}:{os.getpid()}"
        return cls(road=road, experiment=experiment, holder=holder, ledger=ledger, token=token)

    def replaces(self, other: ClusterUser) -> bool:
        """Whether both are stations of one ledger, and the other came earlier, or is this one on another connection."""
        return self.road == other.road == "station" and self.ledger == other.ledger and self.token >= other.token

    def is_rival_of(self, other: ClusterUser) -> bool:
        """Whether the other may not use the cluster: it is of the other road, or this one has replaced it."""
        return self.road != other.road or (self.replaces(other) and not other.replaces(self))

    def __str__(self) -> str:
        return f"the {self.road} {self.experiment!r} ({self.holder})"


def note_user(user: ClusterUser, client: str, dask_scheduler: Any) -> ClusterUser | None:
    """Runs in the scheduler: notes a user, unless there is one that it may not be beside, who is the answer.

    So a station that was paused, and looks for its pilots before it knows that it was replaced, takes nothing back.
    """
    noted = _of_clients(dask_scheduler)
    rivals = [found for found in noted.values() if found.is_rival_of(user)]
    if rivals:
        return rivals[0]
    noted[client] = user
    return None


def release_replaced(client: str, dask_scheduler: Any) -> None:
    """Runs in the scheduler: nothing more is begun for a station that this client's station has replaced.

    That one may be paused, or not know it yet.
    """
    noted = _of_clients(dask_scheduler)
    for other, user in list(noted.items()):
        if other != client and noted[client].replaces(user):
            keys = [task.key for task in dask_scheduler.clients[other].wants_what]
            dask_scheduler.client_releases_keys(keys, client=other)


def noted_users(dask_scheduler: Any) -> list[ClusterUser]:
    """Runs in the scheduler: all who use it now."""
    return list(_of_clients(dask_scheduler).values())


def users_of(address: str, patience_s: float) -> list[ClusterUser]:
    """All who use the cluster of the scheduler at `address` now.

    Raises:
        NoScheduler: no scheduler answers there within `patience_s`.
    """
    try:
        with distributed.Client(address, timeout=patience_s, set_as_default=False, name="p3s-look") as client:
            found: list[ClusterUser] = client.run_on_scheduler(noted_users)
    except (OSError, ValueError) as error:
        raise no_scheduler(address) from error
    return found


def refuse_productions(address: str) -> None:
    """What a station does first with a cluster that others have started. One that does not answer yet may do so later.

    Raises:
        ServiceError: a production uses it.
    """
    with suppress(NoScheduler):
        for user in users_of(address, _PATIENCE_S):
            if user.road == "production":
                raise refused(address, user)


def cluster_mistakes(experiment: Experiment, is_own: Callable[[UUID | None], bool]) -> Iterator[Finding]:
    """That a production, or another station, uses the cluster which the station would use.

    `is_own` tells whether a ledger is that of the home; only asked for stations of the experiment's name.
    """
    address = experiment.pilots.address
    if address is None:
        return
    with suppress(NoScheduler):
        for user in users_of(address, _PATIENCE_S):
            is_namesake = user.road == "station" and user.experiment == experiment.experiment
            if not is_namesake or not is_own(user.ledger):
                wrong = refused(address, user)
                yield Finding(where=("pilots", "address"), what=wrong.what, fix=wrong.fix)


def refused(address: str, rival: ClusterUser, user: ClusterUser | None = None) -> ServiceError:
    """The error for whoever comes second, or for a `user` that was replaced."""
    if user is not None and rival.replaces(user):
        fix = "This one ends as soon as it looks at its lease."
        return ServiceError(f"{rival} has taken the Dask cluster at {address} over", fix=fix)
    fix = {
        "station": "Use another cluster, or stop the station (`p3s down`).",
        "production": "Wait until it has ended, or give the station a cluster of its own.",
    }[rival.road]
    return ServiceError(
        f"the Dask cluster at {address} is used by {rival}: it serves one station, or productions", fix=fix
    )


def no_scheduler(address: str) -> NoScheduler:
    """The error where nobody answers."""
    return NoScheduler(f"no Dask scheduler answers at {address}", fix="Start it, or correct the address.")


def _of_clients(scheduler: Any) -> dict[str, ClusterUser]:
    noted: dict[str, ClusterUser] = scheduler.task_metadata.setdefault(_NOTED, {})
    for gone in noted.keys() - scheduler.clients.keys():
        del noted[gone]
    return noted
