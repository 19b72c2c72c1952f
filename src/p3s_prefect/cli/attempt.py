"""`p3s try`: one step on one unit, here, as a pilot would run it (P16)."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.pilot.payload_process import PayloadProcesses
from p3s_prefect.adapters.pilot.stage_runner import StageRunner
from p3s_prefect.adapters.pilot.step import StepCall, exit_code, step_environment
from p3s_prefect.cli.options import HomeOption
from p3s_prefect.cli.output import console, plain_text, table
from p3s_prefect.core.other_input import REMEDY, says_other_input
from p3s_prefect.core.records import Manifest

_LOOK_EVERY_S = 0.05


def try_(
    step: Annotated[str, typer.Argument(help="The step, as pipeline/stage/step.")],
    unit: Annotated[
        list[str], typer.Argument(help="A file, or a data id that the ledger knows, such as: run=1 subrun=2")
    ],
    home: HomeOption = Path(),
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Where it works. It is kept. Default: a new temporary directory, which is kept once a step has begun."
        ),
    ] = None,
) -> None:
    """Run one step on one unit here, log on the terminal, to debug it. Neither ledger nor store are touched."""
    from p3s_prefect.station.trial import StepName, trial_order  # the ledger takes half a second to import

    at = Home(home)
    experiment = at.read()
    name = StepName.parse(step, experiment)
    place = Path(tempfile.mkdtemp(prefix="p3s-try-")) if directory is None else directory.resolve()
    processes, shown = PayloadProcesses(), _Terminal()
    try:
        order = trial_order(at, experiment, name, " ".join(unit), place)
        report = StageRunner(processes, place, observer=shown, keep=True).run(order)
    finally:
        processes.close()
        shown.end()
        if directory is None and shown.directory is None:
            # No step has begun: there is nothing to look at.
            shutil.rmtree(place, ignore_errors=True)
    out = console()
    if shown.directory is not None:
        out.print(plain_text(f"\nkept: {shown.directory}"))
    if report.manifest is None:
        out.print(plain_text(f"{report.reason} ({report.failure})"), style="red")
        if says_other_input(report.reason):
            out.print(plain_text(f"  {REMEDY} `p3s try {step} FILE` tries the one that is there now."))
        raise typer.Exit(exit_code(report.reason))
    _print(report.manifest, place / "store")


class _Terminal:
    """Shows what a step is given when it begins, and from then on what it prints."""

    def __init__(self) -> None:
        self._call: StepCall | None = None
        self._shown = 0
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, daemon=True, name="log")
        self._follower.start()

    @property
    def directory(self) -> Path | None:
        """The working directory of the last step."""
        return None if self._call is None else self._call.directory

    def step_begins(self, call: StepCall) -> None:
        """See `Observer.step_begins`."""
        self._show()
        out = console()
        payload = call.step.python or " ".join(call.step.command or ())
        out.print(plain_text(f"\n{call.step.name}: {payload}"), style="bold")
        for variable, value in step_environment(call).items():
            out.print(plain_text(f"  {variable}={value}"))
        out.print(plain_text(f"  in {call.directory}, for at most {call.step.timeout_s:g} s\n"))
        self._call = call

    def end(self) -> None:
        """Shows the rest."""
        self._ended.set()
        self._follower.join()
        self._show()

    def _follow(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            self._show()

    def _show(self) -> None:
        """What was printed since the last time, as it is: this is the user's own program on the user's terminal."""
        if self._call is None or not self._call.log.exists():
            return
        with self._call.log.open("rb") as log:
            log.seek(self._shown)
            new = log.read()
        self._shown += len(new)
        sys.stdout.flush()
        os.write(1, new)


def _print(manifest: Manifest, store: Path) -> None:
    out = console()
    if manifest.summary:
        rows = [(name, value.value, value.unit) for name, value in manifest.summary.items()]
        out.print(table(["summary value", "value>", "unit"], rows))
    made = [(output.dataset_type, output.size, str(store / output.key)) for output in manifest.outputs]
    made += [(found.product.title, found.size, str(store / found.key)) for found in manifest.products]
    if made:
        out.print(table(["output or product", "bytes>", "file"], made))
