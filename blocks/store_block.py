"""The block of the central store that an experiment file declares."""

from __future__ import annotations

from pathlib import Path

from p3s_prefect.adapters.home import Home
from p3s_prefect.blocks.central_store import CentralStore
from p3s_prefect.core.experiment import Experiment


def store_block(home: Home, experiment: Experiment) -> CentralStore:
    """The block; it has no keys: those of the environment count, unless somebody writes some into it."""
    place = home.place(experiment)
    if isinstance(place, Path):
        return CentralStore(directory=str(place))
    return CentralStore(url=place.address, endpoint=place.endpoint, region=place.region, credentials=place.credentials)
