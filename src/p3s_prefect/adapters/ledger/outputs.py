"""What a manifest names, as rows: datasets, and what describes them."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from p3s_prefect.adapters.ledger.rows import add_all
from p3s_prefect.adapters.ledger.schema import dataset, lineage, product, summary_value
from p3s_prefect.adapters.ledger.statements import NOTE_CHECKSUM
from p3s_prefect.core.errors import Conflict
from p3s_prefect.core.records import Manifest, OutputObject


def insert_datasets(connection: Connection, manifest: Manifest) -> None:
    """Adds the outputs.

    Raises:
        Conflict: another attempt has published one of these datasets.
    """
    rows = [dataset_row(manifest, output) for output in manifest.outputs]
    try:
        add_all(connection, dataset, rows)
    except IntegrityError as error:
        raise Conflict(
            f"{', '.join(output.dataset_type for output in manifest.outputs)} is already in {manifest.collection}",
            data_id=manifest.data_id,
            fix="Datasets are never replaced; reprocess in a new pass.",
        ) from error


def dataset_row(manifest: Manifest, output: OutputObject) -> Mapping[str, object]:
    """The columns of one output."""
    return {
        "dataset_type": output.dataset_type,
        "data_id": manifest.data_id,
        "run_collection": manifest.collection,
        "format": output.format,
        "key": output.key,
        "size": output.size,
        "sha256": output.sha256,
        "attempt_id": manifest.attempt_id,
    }


def insert_descriptions(connection: Connection, manifest: Manifest) -> None:
    """Adds lineage, products and summary values."""
    add_all(
        connection, lineage, [{"attempt_id": manifest.attempt_id, **read.model_dump()} for read in manifest.lineage]
    )
    add_all(
        connection,
        product,
        [
            {
                "attempt_id": manifest.attempt_id,
                "step": found.step,
                "key": found.key,
                "size": found.size,
                "sha256": found.sha256,
                **found.product.model_dump(),
            }
            for found in manifest.products
        ],
    )
    add_all(
        connection,
        summary_value,
        [
            {"attempt_id": manifest.attempt_id, "name": name, **value.model_dump()}
            for name, value in manifest.summary.items()
        ],
    )
    for read in manifest.lineage:
        if read.dataset_id is None:
            _note_checksum(connection, read.dataset_type, read.data_id, read.sha256)


def _note_checksum(connection: Connection, dataset_type: str, data_id: str, sha256: str) -> None:
    """An arrived file's checksum is known once a pilot has read it."""
    connection.execute(NOTE_CHECKSUM, {"unit": data_id, "type_": dataset_type, "read": sha256})
