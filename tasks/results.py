"""Where the results of tasks are kept."""

from __future__ import annotations

import hashlib

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.blocks.central_store import CentralStore


def result_storage(experiment: str, store: DirectoryStore) -> CentralStore:
    """The block of an experiment's central store, saved in Prefect, which asks for that; one for each directory."""
    directory = str(store.root)
    slug = "".join(letter if letter.isalnum() else "-" for letter in experiment.lower())
    block = CentralStore(directory=directory)
    block.save(f"{slug}-{hashlib.sha256(directory.encode()).hexdigest()[:8]}", overwrite=True)
    return block
