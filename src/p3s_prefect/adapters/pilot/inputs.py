"""What a stage reads: fetched, verified, and noted as its lineage."""

from __future__ import annotations

from pathlib import Path

from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.adapters.pilot.execution import Execution, suffix
from p3s_prefect.adapters.pilot.step import StepInput
from p3s_prefect.core.errors import InputChanged
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import InputFile, Lineage, StageOrder


def gather(execution: Execution, store: ObjectStore) -> dict[str, StepInput]:
    """Fetches and verifies what the stage reads from outside, by dataset type, and notes the lineage."""
    by_type: dict[str, list[tuple[InputFile, Path]]] = {}
    for file in execution.order.inputs:
        path, sha256 = _arrived(file) if file.key is None else (_stored(file, store, execution), str(file.sha256))
        by_type.setdefault(file.dataset_type, []).append((file, path))
        execution.lineage.append(
            Lineage(
                dataset_type=file.dataset_type, data_id=str(file.data_id), sha256=sha256, dataset_id=file.dataset_id
            )
        )
    return {name: _input(execution, name, files) for name, files in by_type.items()}


def _stored(file: InputFile, store: ObjectStore, execution: Execution) -> Path:
    return store.fetch(str(file.key), execution.directory, str(file.sha256))


def _arrived(file: InputFile) -> tuple[Path, str]:
    """A file as it arrived, with its checksum; it must be the one that was taken, before and after it is read."""
    path = Path(str(file.path))
    try:
        _same(file, path)
        sha256 = file_sha256(path)
        _same(file, path)
    except FileNotFoundError as error:
        raise InputChanged(f"{path.name} is gone", fix="Bring it back under a new name.") from error
    except OSError as error:
        raise InputChanged(f"{path.name} cannot be read: {error.strerror}", fix="Mend its permissions.") from error
    if file.sha256 is not None and sha256 != file.sha256:
        raise InputChanged(f"{path.name} does not have the checksum of its manifest", fix="Transfer it again.")
    return path, sha256


def _same(file: InputFile, path: Path) -> None:
    stat = path.lstat()
    if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
        raise InputChanged(f"{path.name} is no longer the file that arrived", fix="Files must not change in place.")


def _input(execution: Execution, name: str, files: list[tuple[InputFile, Path]]) -> StepInput:
    if not _is_gathered(execution.order, files):
        return StepInput(path=files[0][1], format=files[0][0].format)
    directory = execution.directory / "inputs" / name
    directory.mkdir(parents=True)
    for file, path in files:
        link = directory / f"{str(file.data_id).replace(' ', '_')}{suffix(execution.order.formats[name])}"
        link.symlink_to(path)
    members = tuple((file.data_id, path) for file, path in files)
    return StepInput(path=directory, format=files[0][0].format, members=members)


def _is_gathered(order: StageOrder, files: list[tuple[InputFile, Path]]) -> bool:
    return order.per == "group" and any(file.data_id != order.data_id for file, _ in files)
