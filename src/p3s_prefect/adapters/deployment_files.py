"""Reads prefect.yaml and overlays: those that are shipped, or a site's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from p3s_prefect.adapters.experiment_file import read_text
from p3s_prefect.core.deployment import Deployment, DeploymentsFile, Overlay
from p3s_prefect.core.errors import BadName, ExperimentFileErrors
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.yaml_document import read_yaml
from p3s_prefect.core.yaml_model import validated

_M = TypeVar("_M", bound=BaseModel)
_SHIPPED = "p3s_prefect.deployments"
_PREFECT_YAML = "prefect.yaml"
_EXAMPLES: Mapping[str, str] = {"entrypoint": "Write it in module form: package.module.flow."}


def read_deployments(path: Path | None = None) -> tuple[Deployment, ...]:
    """What a prefect.yaml declares; without a path the one that is shipped.

    Raises:
        ExperimentFileErrors: it cannot be read, or holds mistakes: file, line, key and fix.
    """
    return tuple(_read(path or _shipped(_PREFECT_YAML), DeploymentsFile, "name: my-deployments").deployments)


def read_overlay(name: str) -> Overlay:
    """An overlay: one that is shipped, by its name, or a file, by its path.

    Raises:
        ExperimentFileErrors: as above.
        BadName: none of that name is shipped.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in overlay_names():
            fix = f"{did_you_mean(name, overlay_names())} Or give the path of a file that ends in .yaml."
            raise BadName(f"there is no overlay {name!r}", fix=fix)
        path = _shipped(f"{name}.yaml")
    return _read(path, Overlay, "pools: {...}")


def overlay_names() -> list[str]:
    """The overlays that are shipped."""
    found = (Path(entry.name) for entry in resources.files(_SHIPPED).iterdir())
    return sorted(path.stem for path in found if path.suffix == ".yaml" and path.name != _PREFECT_YAML)


def _shipped(name: str) -> Path:
    return Path(str(resources.files(_SHIPPED).joinpath(name)))


def _read(path: Path, model: type[_M], begin: str) -> _M:
    document = read_yaml(read_text(path), file=str(path), environment=os.environ, begin=f"Begin with `{begin}`.")
    found = validated(document, model, examples=_EXAMPLES)
    if found is None:
        raise ExperimentFileErrors(document.mistakes)
    return found
