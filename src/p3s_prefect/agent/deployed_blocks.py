"""The blocks of a site: what its experiment file and its overlay say, stored in Prefect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

from prefect.blocks.core import Block
from pydantic import SecretStr, ValidationError

from p3s_prefect.adapters.home import Home
from p3s_prefect.agent.deployed_server import became
from p3s_prefect.blocks import Ledger, Pilots
from p3s_prefect.blocks.store_block import store_block
from p3s_prefect.core.addresses import without_secrets
from p3s_prefect.core.deployment import Applied, Overlay, differences
from p3s_prefect.core.errors import ServiceError
from p3s_prefect.core.experiment import Experiment


def site_name(experiment: Experiment) -> str:
    """The name of a site's blocks: Prefect takes lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", experiment.experiment.lower()).strip("-") or "site"


def apply_blocks(home: Home, experiment: Experiment, overlay: Overlay, *, dry_run: bool) -> Iterator[Applied]:
    """The three blocks, all of the site's name.

    Raises:
        ServiceError: the overlay's pilots are not what the block takes.
    """
    name = site_name(experiment)
    for block in (store_block(home, experiment), _ledger(home, experiment), _pilots(experiment, overlay)):
        yield _apply(block, name, dry_run=dry_run)


def _apply(block: Block, name: str, *, dry_run: bool) -> Applied:
    found = None
    with suppress(ValueError):  # there is none yet
        found = _values(cast(Block, type(block).load(name, validate=False)))
    block = _with_secrets(block, found)
    wanted = _values(block)
    changes = differences(wanted, found)
    if not dry_run and (found is None or changes):
        block.save(name, overwrite=True)
    full_name = f"{block.get_block_type_slug()}/{name}"
    return Applied(kind="block", name=full_name, became=became(found, changes), changes=changes)


def _with_secrets(block: Block, found: dict[str, object] | None) -> Block:
    # What people have written into the block alone: no experiment file has it.
    return block.model_copy(
        update={name: value for name, value in (found or {}).items() if isinstance(value, SecretStr)}
    )


def _values(block: Block) -> dict[str, object]:
    return {field: getattr(block, field, None) for field in type(block).model_fields}


def _ledger(home: Home, experiment: Experiment) -> Ledger:
    return Ledger(url=without_secrets(home.ledger(experiment).url))


def _pilots(experiment: Experiment, overlay: Overlay) -> Pilots:
    declared = {field: value for field, value in experiment.pilots if field in Pilots.model_fields}
    try:
        return Pilots(**declared | overlay.pilots)
    except ValidationError as errors:
        first = errors.errors()[0]
        place = ".".join(str(part) for part in ("pilots", *first["loc"]))
        fix = f"The fields are {', '.join(sorted(set(Pilots.model_fields)))}."
        raise ServiceError(f"the overlay's {place}: {first['msg']}", fix=fix) from errors
