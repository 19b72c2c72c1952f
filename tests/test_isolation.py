"""That tests stand by themselves: what `isolation.py` promises."""

from __future__ import annotations

import ast
import asyncio
import os
import socket
from pathlib import Path

import browser
import postgresql
import pytest
from isolation import forget_settings
from slurm_site import needs_slurm


def test_sockets_are_off_unless_marked() -> None:
    with socket.socket() as unmarked, pytest.raises(RuntimeError, match="sockets are off"):
        unmarked.bind(("127.0.0.1", 0))
    with socket.socket() as unmarked, pytest.raises(RuntimeError, match="sockets are off"):
        unmarked.connect(("127.0.0.1", 9))


@pytest.mark.sockets
def test_loopback_is_open_to_a_marked_test_and_nothing_else_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2]):
        pass
    with socket.socket() as outward, pytest.raises(RuntimeError, match="tests never leave"):
        outward.connect(("192.0.2.1", 80))
    with socket.socket() as everywhere, pytest.raises(RuntimeError, match="tests never leave"):
        everywhere.bind(("0.0.0.0", 0))  # noqa: S104


async def test_asyncio_works_without_sockets() -> None:
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0


def test_settings_of_whoever_runs_the_tests_do_not_reach_them() -> None:
    environment = {
        "P3S_TOKEN": "secret",
        "PREFECT_API_URL": "http://else",
        "DASK_X": "1",
        "PATH": "/bin",
        "P3S_KILLS": "9",
    }
    forget_settings(environment)
    assert environment == {"PATH": "/bin", "P3S_KILLS": "9"}
    assert "p3s-tests-" in os.environ["HOME"]


def test_properties_draw_no_random_number_but_of_a_seeded_generator() -> None:
    """What Hypothesis would warn of, if threads of libraries did not draw too (see pyproject.toml)."""
    used: dict[str, set[str]] = {}
    for path in Path(__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        if any(node.module == "hypothesis" for node in imports):
            attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
            used[path.name] = {
                *(node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "random"),
                *(alias.name for node in imports if node.module == "random" for alias in node.names),
            }
    assert len(used) > 10
    assert {name: found for name, found in used.items() if found - {"Random"}} == {}


@pytest.mark.parametrize(("ci", "end"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_what_a_machine_lacks_skips_tests_but_not_where_all_must_run(
    monkeypatch: pytest.MonkeyPatch, ci: str, end: type[BaseException]
) -> None:
    """S7: the reason says what to install."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(end, match="apt-get install chromium"):
        browser.program()
    with pytest.raises(end, match="apt-get install slurm-wlm munge"):
        needs_slurm()
    monkeypatch.setattr(Path, "glob", lambda _path, _pattern: iter(()))
    with pytest.raises(end, match="apt-get install postgresql"):
        postgresql.programs()
