"""What is installed is what stands in the tree, and everything that it announces can be loaded."""

from __future__ import annotations

import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from distributions import Built, run
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
ROOT_ROOMS = ("flows", "tasks", "blocks", "deployments")
DECLARED: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tree() -> dict[str, Path]:
    """Everything that should be in the wheel: its name there, and where it is here."""
    places = [(ROOT / "src", ""), *((ROOT / room, f"p3s_prefect/{room}/") for room in ROOT_ROOMS)]
    return {
        prefix + path.relative_to(base).as_posix(): path
        for base, prefix in places
        for path in base.rglob("*")
        if path.is_file() and not {"__pycache__"} & set(path.parts) and not path.name.startswith(".")
        if not any(part.endswith(".egg-info") for part in path.parts)
    }


def test_the_wheel_holds_the_tree_and_nothing_else(built: Built) -> None:
    """S1: an unlisted file or package works in the editable installation, and would be missing here."""
    with zipfile.ZipFile(built.wheel) as wheel:
        content = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    assert content == {name: path.read_bytes() for name, path in tree().items()}


def test_licences_go_with_the_wheel(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        licences = [name for name in wheel.namelist() if "/licenses/" in name]
    assert [PurePosixPath(name).name for name in licences].count("LICENSE") == 2
    assert any("lst1/data" in name for name in licences)


def test_the_source_distribution_holds_what_the_wheel_is_made_of(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in sdist.getnames()}
    wanted = {path.relative_to(ROOT).as_posix() for path in tree().values()}
    assert wanted <= names


def test_every_package_of_the_tree_is_listed() -> None:
    packages = {
        PurePosixPath(name).parent.as_posix().replace("/", ".") for name in tree() if name.endswith("/__init__.py")
    }
    assert sorted(packages) == sorted(DECLARED["tool"]["setuptools"]["packages"])


def test_the_console_script_answers(installed: Path, tmp_path: Path) -> None:
    """S1: the wheel brings `p3s`, whose first words name the commands of the README."""
    answer = run(installed / "p3s", "--help", cwd=tmp_path)
    assert {"demo", "init", "check", "status"} <= set(answer.split())


@pytest.mark.parametrize("group", sorted(DECLARED["project"]["entry-points"]))
def test_every_entry_point_can_be_loaded(group: str, installed: Path, tmp_path: Path) -> None:
    names = DECLARED["project"]["entry-points"][group]
    script = (
        "from importlib.metadata import entry_points\n"
        f"for point in entry_points(group={group!r}):\n"
        "    if point.dist.name == 'p3s-prefect': print(point.name, point.load().__name__)\n"
    )
    told = run(installed / "python", "-c", script, cwd=tmp_path)
    assert dict(line.split() for line in told.splitlines()) == names


def test_every_entrypoint_of_prefect_yaml_is_a_flow(installed: Path, tmp_path: Path) -> None:
    """S2: deployments name flows by module, so that they run wherever the wheel is installed."""
    deployments = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    assert deployments
    for deployment in deployments:
        script = (
            "from prefect.flows import load_flow_from_entrypoint\n"
            f"print(load_flow_from_entrypoint({deployment['entrypoint']!r}).name)\n"
        )
        assert run(installed / "python", "-c", script, cwd=tmp_path).strip()


@pytest.mark.parametrize("room", ROOT_ROOMS)
def test_a_root_room_refuses_another_name(room: str, installed: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\ntry: import {room}\nexcept ImportError as e: print(e)\n"
    assert run(installed / "python", "-c", script, cwd=ROOT).strip() == f"import this package as p3s_prefect.{room}"
    assert run(installed / "python", "-c", f"import p3s_prefect.{room}", cwd=ROOT) == ""
