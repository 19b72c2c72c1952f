"""What became of a production: what Prefect shows of it, and the flow's last state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from p3s_prefect.adapters.ledger.pass_facts import PassFacts
from p3s_prefect.adapters.ledger.selected import SelectedStage
from p3s_prefect.adapters.pass_artifacts import ArtifactRecord, pictures, slug, table
from p3s_prefect.core.states import StageState
from p3s_prefect.station.production import Plan, Production, account, pass_facts
from p3s_prefect.tasks.turns import is_cancelled

# Of kept-out files; a table artifact is one JSON document.
_MOST_ROWS = 1000


def show_account(production: Production, planned: Plan) -> State[Any]:
    """Records a table for each group and pipeline, and pictures, and returns the state in which the flow ends."""
    stages = account(production, planned)
    store = production.store()
    for facts in pass_facts(production, planned):
        _show(table(facts), facts)
        for picture in pictures(facts, store, production.experiment.prefect.pictures):
            _show(picture, facts)
    _show_kept_out(planned.kept_out)
    return _state(stages, planned)


def _show(artifact: ArtifactRecord, facts: PassFacts) -> None:
    key = f"{artifact.key}-{slug(facts.group)}"
    if artifact.kind == "image":
        create_image_artifact(artifact.data, key=key, description=artifact.description)
    else:
        create_table_artifact(artifact.data, key=key, description=artifact.description)


def _show_kept_out(kept_out: Mapping[str, str]) -> None:
    rows = [{"file": file, "why": why} for file, why in kept_out.items()]
    if rows:
        create_table_artifact(rows[:_MOST_ROWS], key="kept-out", description=f"{len(rows)} files were kept out.")


def _state(stages: Sequence[SelectedStage], planned: Plan) -> State[Any]:
    counts = Counter(str(stage.state) for stage in stages)
    told = ", ".join(f"{number} {state}" for state, number in counts.most_common()) or "nothing to run"
    if is_cancelled():
        return Cancelled(message=f"what ran was stopped, and waits for the next production: {told}")
    failed = counts[StageState.FAILED]
    open_runs = sum(number for state, number in counts.items() if not StageState(state).is_terminal)
    kept_out = len(planned.kept_out)
    wrong = [(failed, "stage runs failed"), (open_runs, "have not ended"), (kept_out, "files were kept out")]
    complaints = [f"{number} {what}" for number, what in wrong if number]
    if complaints:
        return Failed(
            message=f"{', '.join(complaints)} (of all: {told}); the table artifacts say why, "
            "and `p3s show` has the log of each."
        )
    if planned.work and all(work.is_done for work in planned.work):
        return Completed(message=f"everything was done before, and nothing was run: {told}")
    return Completed(message=told)
