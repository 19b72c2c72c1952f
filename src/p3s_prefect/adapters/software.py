"""What software a payload is made of: part of a configuration's content (V23)."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.core.errors import ServiceError
from p3s_prefect.core.experiment import Pipeline, Step


def software(pipeline: Pipeline, home: Path) -> dict[str, str]:
    """Name -> version or SHA-256 of everything that a pipeline's results may depend on.

    For Python payloads: all installed distributions. For commands: the content of the program, and of each argument
    that is a file.
    """
    steps = [step for stage in pipeline.stages.values() for step in stage.steps]
    # They are many, and the same for all steps.
    found = _distributions() if any(step.python for step in steps) else {}
    for step in steps:
        if not step.python:
            found |= _programs(step, home)
    return found


def resolve_command(step: Step, home: Path) -> Step:
    """The step with every word of its command that begins with ``./`` resolved against the experiment's home."""
    if step.command is None:
        return step
    words = [str(home / word) if word.startswith("./") else word for word in step.command]
    return step.model_copy(update={"command": words})


def _distributions() -> dict[str, str]:
    # Editable installs may be found twice; the first is the one that is imported.
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        found.setdefault(distribution.name, distribution.version)
    return found


def _programs(step: Step, home: Path) -> dict[str, str]:
    words = resolve_command(step, home).command or []
    paths = [Path(shutil.which(words[0]) or words[0]), *map(Path, words[1:])]
    try:
        return _checksums(step.command or [], paths)
    except OSError as error:
        raise ServiceError(
            f"{error.filename} cannot be read: {error.strerror}", fix="A payload's program must be readable."
        ) from error


def _checksums(words: list[str], paths: list[Path]) -> dict[str, str]:
    return {word: f"sha256:{file_sha256(path)}" for word, path in zip(words, paths, strict=True) if path.is_file()}
