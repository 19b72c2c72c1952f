"""Where the results of tasks are kept."""

from __future__ import annotations

import hashlib

from p3s_prefect.adapters.home import Home
from p3s_prefect.blocks.central_store import CentralStore
from p3s_prefect.blocks.store_block import store_block
from p3s_prefect.core.experiment import Experiment


def result_storage(home: Home, experiment: Experiment, at_site: CentralStore | None) -> CentralStore:
    """The site's block of the central store; without a site one of the store's own, as Prefect wants it saved."""
    if at_site is not None:
        return at_site
    slug = "".join(letter if letter.isalnum() else "-" for letter in experiment.experiment.lower())
    block = store_block(home, experiment)
    url = home.store_url(experiment)
    block.save(f"{slug}-{hashlib.sha256(url.encode()).hexdigest()[:8]}", overwrite=True)
    return block
