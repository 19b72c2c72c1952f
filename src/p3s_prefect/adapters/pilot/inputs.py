"""What a stage reads: fetched, verified, and noted as its lineage."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from p3s_prefect.adapters.bucket_objects import copy_arrived, is_bucket_path
from p3s_prefect.adapters.bucket_url import object_place
from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.adapters.pilot.buffered_inputs import fetch_buffered
from p3s_prefect.adapters.pilot.execution import Execution, Signature, suffix
from p3s_prefect.adapters.pilot.step import StepInput
from p3s_prefect.core.errors import InputChanged
from p3s_prefect.core.other_input import REMEDY, OtherInput
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import InputFile, Lineage, StageOrder


def gather(execution: Execution, store: ObjectStore) -> dict[str, StepInput]:
    """Fetches and verifies what the stage reads from outside, by dataset type, and notes the lineage."""
    by_type: dict[str, list[tuple[InputFile, Path]]] = {}
    for file in execution.order.inputs:
        path, sha256 = _arrived(file, execution) if file.key is None else _stored(file, store, execution)
        by_type.setdefault(file.dataset_type, []).append((file, path))
        execution.lineage.append(
            Lineage(
                dataset_type=file.dataset_type, data_id=str(file.data_id), sha256=sha256, dataset_id=file.dataset_id
            )
        )
    return {name: _input(execution, name, files) for name, files in by_type.items()}


def confirm(execution: Execution) -> None:
    """Makes sure that the steps have read the bytes whose checksums stand in the lineage.

    Raises:
        InputChanged: a file as it arrived has changed since it was gathered.
    """
    for path, seen in execution.arrived.items():
        if not path.exists() or _signature(path) != seen:
            raise InputChanged(f"{path.name} {OtherInput.CHANGED}", fix="Files must not change in place.")


def _stored(file: InputFile, store: ObjectStore, execution: Execution) -> tuple[Path, str]:
    if execution.cache is not None:
        return execution.cache.fetch(store, file, execution.directory), str(file.sha256)
    return store.fetch(str(file.key), execution.directory, str(file.sha256)), str(file.sha256)


def _arrived(file: InputFile, execution: Execution) -> tuple[Path, str]:
    """A file as it arrived, with its checksum; it must be the one that was taken."""
    if file.buffered is not None:
        return fetch_buffered(file, file.buffered, execution)
    if is_bucket_path(str(file.path)):
        return _uploaded(file, execution)
    path = Path(str(file.path))
    try:
        seen = _signature(path)
        # Where the checksum is known it decides: the same bytes may have been touched, or brought again.
        if file.size != seen.size or (file.sha256 is None and file.mtime_ns != seen.mtime_ns) or not path.is_file():
            raise InputChanged(f"{path.name} {OtherInput.REPLACED}", fix=REMEDY)
        sha256 = file_sha256(path)
    except FileNotFoundError as error:
        raise InputChanged(f"{path.name} is gone", fix="Bring it back under a new name.") from error
    except OSError as error:
        raise InputChanged(f"{path.name} cannot be read: {error.strerror}", fix="Mend its permissions.") from error
    if file.sha256 is not None and sha256 != file.sha256:
        raise InputChanged(f"{path.name} {OtherInput.CHECKSUM} {file.sha256[:12]}…", fix="Transfer it again.")
    execution.arrived[path] = seen
    return path, sha256


def _uploaded(file: InputFile, execution: Execution) -> tuple[Path, str]:
    """A copy of an object that arrived in a bucket, with its checksum; it must be the one that was taken."""
    url = str(file.path)
    target = execution.room_for(PurePosixPath(object_place(url)[1]).name)
    size, sha256 = copy_arrived(url, file.etag, target)
    if size != file.size or file.sha256 not in (None, sha256):
        raise InputChanged(f"{url} {OtherInput.BYTES}", fix="Upload it under a new key.")
    target.chmod(0o444)
    return target, sha256


def _signature(path: Path) -> Signature:
    stat = path.lstat()
    return Signature(size=stat.st_size, mtime_ns=stat.st_mtime_ns, inode=stat.st_ino)


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
    return order.per == "group" and any(file.is_gathered or file.data_id != order.data_id for file, _ in files)
