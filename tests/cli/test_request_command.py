"""`p3s request` without a station; with one, see the station's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import requests
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import BadName, P3sError, ServiceError

_EXPERIMENT = (Path(__file__).parent.parent / "core" / "good_experiment.yaml").read_text()
_SECOND = "pipelines:\n  alert: {stages: {look: {steps: [{name: look, command: [look], inputs: {raw: raw}}]}}}\n"


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("quality run=1", ServiceError, "no station runs"),
        ("quality run=1 part=2", ServiceError, "no station runs"),
        ("run=1", BadName, "`p3s request alert run=1` or `p3s request quality run=1`"),
        ("qualty run=1", BadName, "Did you mean quality?"),
        ("quality", BadName, "names no group and no unit"),
        ("all", BadName, "names no group and no unit"),
        ("quality/clean run=1", BadName, "a stage cannot be asked for"),
        (
            "class:default run=1",
            BadName,
            "a whole class cannot be asked for\n  Name a pipeline, and a group or a unit of it, such as alert run=...",
        ),
        ("quality run=1 dog=2", BadName, "dog"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_and_nothing_is_left_behind(
    tmp_path: Path, target: str, error: type[P3sError], words: str
) -> None:
    """S8, B3: the message says what to type; nobody would answer, so nothing is asked."""
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT.replace("pipelines:\n", _SECOND))
    ledger = Home(tmp_path).ledger(Home(tmp_path).read())
    ledger.migrate()
    with pytest.raises(error) as refused:
        CliRunner().invoke(commands(), ["request", target, "--home", str(tmp_path)], catch_exceptions=False)
    assert words in str(refused.value)
    with ledger.reading() as connection:
        assert requests.open_requests(connection) == ()
    ledger.close()
