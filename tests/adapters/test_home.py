"""The home: what a running station leaves there for those who look for it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from p3s_prefect.adapters.home import Home
from p3s_prefect.cli.init import write_home
from p3s_prefect.core.errors import ExperimentFileErrors


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """One whose experiment file is the starter."""
    write_home(tmp_path, "starter")
    return Home(tmp_path)


def _kept(home: Home) -> Path:
    return home.run / "experiment.yaml"


def _announce(home: Home) -> None:
    home.announce_station("http://127.0.0.1:1", home.text())


def test_what_is_in_force_is_the_text_that_the_station_has_read(home: Home) -> None:
    """S9: whatever becomes of the file; without a station it is the file again."""
    before = home.read()
    _announce(home)
    assert not home.is_edited()
    home.experiment_file.write_text("pipelines: [")
    assert home.in_force() == before
    assert home.is_edited()
    home.experiment_file.unlink()
    assert home.in_force() == before
    assert home.is_edited()
    home.withdraw_station()
    assert not home.is_edited()
    with pytest.raises(ExperimentFileErrors):
        home.in_force()


@pytest.mark.parametrize("ends", ["\r\n", "\n"])
def test_the_ends_of_lines_and_other_letters_are_no_edit(home: Home, ends: str) -> None:
    """S9: files from another system."""
    home.experiment_file.write_bytes(f"# µ →\n{home.text()}".replace("\n", ends).encode())
    _announce(home)
    assert not home.is_edited()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o400])
def test_it_is_for_the_eyes_that_the_file_is_for(home: Home, mode: int) -> None:
    """S7: a password does not become readable by a copy. A file that nobody may write is no reason not to start."""
    home.experiment_file.chmod(mode)
    for _ in range(2):
        _announce(home)
        assert stat.S_IMODE(_kept(home).stat().st_mode) == mode


def test_of_another_group_it_is_for_nobody_else(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """S7: the copy is of the group of whoever runs the station."""
    home.experiment_file.chmod(0o640)
    own = os.fstat
    monkeypatch.setattr(os, "fstat", lambda number: _of_group(own(number), own(number).st_gid + 1))
    _announce(home)
    assert stat.S_IMODE(_kept(home).stat().st_mode) == 0o600


def test_a_file_that_goes_while_the_station_starts_is_no_reason_not_to(home: Home) -> None:
    """P19: what it has read is what it works by."""
    text = home.text()
    home.experiment_file.unlink()
    home.announce_station("http://127.0.0.1:1", text)
    assert stat.S_IMODE(_kept(home).stat().st_mode) == 0o600
    assert home.in_force().experiment


def test_mistakes_in_what_is_in_force_name_its_file(home: Home) -> None:
    """S8: such as a variable that is set for the station alone."""
    home.announce_station("http://127.0.0.1:1", home.text() + "\nnonsense: 1\n")
    with pytest.raises(ExperimentFileErrors) as refused:
        home.in_force()
    assert str(_kept(home)) in str(refused.value)


def _of_group(found: os.stat_result, group: int) -> os.stat_result:
    return os.stat_result([*found[:5], group, *found[6:10]])
