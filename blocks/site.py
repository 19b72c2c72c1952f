"""An experiment at a site: the blocks of the site's name say what differs there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, cast

from prefect.blocks.core import Block

from p3s_prefect.blocks.central_store import CentralStore
from p3s_prefect.blocks.ledger import Ledger
from p3s_prefect.blocks.pilots import Pilots
from p3s_prefect.core.errors import ServiceError
from p3s_prefect.core.experiment import Experiment

_B = TypeVar("_B", bound=Block)


@dataclass(frozen=True, kw_only=True)
class Site:
    """What differs from site to site."""

    experiment: Experiment
    """With store, ledger and pilots of the site."""
    pilots: Pilots | None
    """The site's block; None where there is no site, and the experiment says it all."""
    store: CentralStore | None = None
    """The site's block; None as above."""

    def cluster_for(self, **asked: Any) -> dict[str, Any]:
        """What a production runs on that asks for this; None asks for nothing.

        Raises:
            ServiceError: it would run on the site's pilots, and their block points nowhere.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        if self.pilots is None or {"address", "cluster_class"} & given.keys():
            return given
        return self.pilots.get_cluster() | given


def at_site(experiment: Experiment, name: str | None) -> Site:
    """An experiment at the site of that name; without a name, as its file says.

    Raises:
        ServiceError: a block is not there, or cannot be read.
        StoreError, LedgerError: the block of the store or the ledger points nowhere.
    """
    if not name:
        return Site(experiment=experiment, pilots=None)
    pilots = _loaded(Pilots, name)
    store = _loaded(CentralStore, name)
    reached = store.reach_store().model_copy(update={"sweep_after_s": experiment.store.sweep_after_s})
    places = {
        "store": reached,
        "ledger": _loaded(Ledger, name).get_ledger(),
        "pilots": pilots.get_pilots(),
    }
    return Site(experiment=experiment.model_copy(update=places), pilots=pilots, store=store)


def _loaded(kind: type[_B], name: str) -> _B:
    try:
        return cast(_B, kind.load(name))
    except ValueError as error:
        raise ServiceError(
            f"Prefect has no usable block {kind.get_block_type_slug()}/{name}",
            fix="`p3s deploy` writes the blocks of a site; the parameter `site` names them.",
        ) from error
