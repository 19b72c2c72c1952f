"""`p3s retry` without a station; with one, see the station's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import requests
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import BadName, P3sError, ServiceError

_EXPERIMENT = Path(__file__).parent.parent / "core" / "good_experiment.yaml"


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [("quality", ServiceError, "no station runs"), ("qualty", BadName, "quality"), ("run=1 dog=2", BadName, "dog")],
)
def test_what_cannot_be_retried_is_refused_and_nothing_is_left_behind(
    tmp_path: Path, target: str, error: type[P3sError], words: str
) -> None:
    """S8, B3: nobody would answer, so nothing is asked."""
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT.read_text())
    ledger = Home(tmp_path).ledger(Home(tmp_path).read())
    ledger.migrate()
    with pytest.raises(error) as refused:
        CliRunner().invoke(commands(), ["retry", target, "--home", str(tmp_path)], catch_exceptions=False)
    assert words in str(refused.value)
    with ledger.reading() as connection:
        assert requests.open_requests(connection) == ()
    ledger.close()
