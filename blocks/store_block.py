"""The block of the central store that an experiment file declares."""

from __future__ import annotations

from p3s_prefect.adapters.home import Home
from p3s_prefect.blocks.central_store import CentralStore
from p3s_prefect.core.experiment import Experiment


def store_block(home: Home, experiment: Experiment) -> CentralStore:
    """The block; it has no keys: those of the environment count, unless somebody writes some into it."""
    place = experiment.store.place
    if isinstance(place, str):
        return CentralStore(directory=str((home.path / place).resolve()))
    declared = experiment.store
    return CentralStore(url=declared.url, endpoint=declared.endpoint, region=declared.region)
