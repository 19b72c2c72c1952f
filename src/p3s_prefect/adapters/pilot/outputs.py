"""What a step leaves: outputs for later steps and for the store, summary, products, log."""

from __future__ import annotations

from pathlib import Path

from p3s_prefect.adapters.pilot.execution import Execution
from p3s_prefect.adapters.pilot.step import StepCall, StepInput, StepOutput
from p3s_prefect.adapters.pilot.waiting_outputs import OutputStore
from p3s_prefect.core.errors import BadProducts, OutputMissing
from p3s_prefect.core.experiment import Step
from p3s_prefect.core.payload import PRODUCTS_FILE, SUMMARY_FILE, Product, Summary, read_products, read_summary
from p3s_prefect.core.records import OutputObject, ProductObject, PublishedObject

# A payload that prints without end must not fill the store; the end of a log says most.
MOST_LOG_BYTES = 1 << 20
# Scalars and titles take a few hundred bytes each.
MOST_DESCRIBED_BYTES = 1 << 20


def collect(execution: Execution, store: OutputStore, step: Step, call: StepCall) -> None:
    """Takes over what a step has left: outputs for later steps and for the store, summary, products."""
    for name, made in step.outputs.items():
        output = call.outputs[name]
        _must_be_file(output.path, call.directory, f"step {step.name} did not write its output {name!r}")
        execution.files[made] = StepInput(path=output.path, format=output.format)
        execution.outputs.append((made, step.name, output))
    values, products = described(call.directory)
    twice = sorted(set(values) & set(execution.summary))
    if twice:
        raise BadProducts(f"two steps give the summary value {twice[0]!r}", fix="Give each value one name.")
    execution.summary |= values
    for found in products:
        stored = store.put_file(f"{execution.prefix}/{step.name}/{found.file}", call.directory / found.file)
        execution.products.append(ProductObject(step=step.name, product=found, **stored.model_dump()))


def described(directory: Path) -> tuple[Summary, list[Product]]:
    """The summary values and products that a payload has left where it ran; none where it left no such file.

    Raises:
        BadProducts: one of the files breaks its schema, or is too large.
        OutputMissing: one of the files, or a product that is named, is not a plain file there.
    """
    summary, products = (_small_file(directory, name) for name in (SUMMARY_FILE, PRODUCTS_FILE))
    found = [] if products is None else read_products(products)
    for product in found:
        complaint = f"{PRODUCTS_FILE} names {product.file!r}, which is not there as a plain file"
        _must_be_file(directory / product.file, directory, complaint)
    return {} if summary is None else read_summary(summary), found


def _must_be_file(path: Path, directory: Path, complaint: str) -> None:
    # A link could lead to any file of this machine, and publish it.
    if path.is_symlink() or not path.is_file() or path.resolve().parent != directory.resolve():
        raise OutputMissing(complaint, fix="Write a plain file at the path that the step is given.")


def _small_file(directory: Path, name: str) -> bytes | None:
    path = directory / name
    if not path.exists() and not path.is_symlink():
        return None
    _must_be_file(path, directory, f"{name} is not a plain file")
    if path.stat().st_size > MOST_DESCRIBED_BYTES:
        raise BadProducts(
            f"{name} is larger than {MOST_DESCRIBED_BYTES} bytes", fix="It is for scalars and titles only."
        )
    return path.read_bytes()


def store_output(
    execution: Execution, store: OutputStore, dataset_type: str, step: str, output: StepOutput
) -> OutputObject:
    """Puts an output into the store."""
    stored = store.put_file(f"{execution.prefix}/{step}/{output.path.name}", output.path)
    return OutputObject(dataset_type=dataset_type, format=output.format, **stored.model_dump())


def store_log(execution: Execution, store: OutputStore) -> PublishedObject | None:
    """Puts the log into the store; None if nothing was printed."""
    if not execution.log.exists() or not (size := execution.log.stat().st_size):
        return None
    with execution.log.open("rb") as log:
        log.seek(max(0, size - MOST_LOG_BYTES))
        return store.put_bytes(f"{execution.prefix}/log.txt", log.read())
