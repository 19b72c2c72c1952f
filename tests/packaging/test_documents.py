"""What the documents show works, and what they point to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from p3s_prefect.cli.check import check
from p3s_prefect.core.records import Verdict
from p3s_prefect.core.states import StageState

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "src" / "p3s_prefect" / "glossary.md"
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), GLOSSARY]
_COMMAND = re.compile(r"(?:\.venv/bin/)?p3s +[a-z].*")


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def shown_commands() -> list[str]:
    """Every `p3s` command line in the README."""
    text = (ROOT / "README.md").read_text()
    inline = [found for found in re.findall(r"`([^`\n]+)`", text) if _COMMAND.fullmatch(found)]
    lines = [line.partition("#")[0].strip() for block in fenced(text, "") for line in block.splitlines()]
    return sorted({*inline, *(line for line in lines if _COMMAND.fullmatch(line))})


def test_the_experiment_of_the_readme_passes_the_check(tmp_path: Path) -> None:
    """S8: ten lines are enough, and they are in order."""
    (example,) = fenced((ROOT / "README.md").read_text(), "yaml")
    assert len(example.splitlines()) == 10
    path = tmp_path / "experiment.yaml"
    path.write_text(example)
    app = typer.Typer()
    app.command()(check)
    answer = CliRunner().invoke(app, [str(path)])
    assert answer.exit_code == 0, answer.output
    assert "in order" in answer.output


def test_the_readme_shows_commands() -> None:
    assert len(shown_commands()) >= 8


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_of_the_readme_can_be_given(line: str) -> None:
    """S1: the command is there, and takes these options and arguments."""
    from p3s_prefect.cli.commands import commands

    _, name, *words = shlex.split(line)
    command = typer.main.get_command(commands()).commands[name]  # type: ignore[attr-defined]
    if "--help" not in words:
        command.make_context(name, words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_decisions_are_numbered_and_listed() -> None:
    pages = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [page[:4] for page in pages] == [f"{number:04d}" for number in range(1, len(pages) + 1)]
    listed = re.findall(r"\]\((\d{4}[^)]*)\)", (ROOT / "docs" / "decisions" / "README.md").read_text())
    assert listed == pages


@pytest.mark.parametrize("word", sorted({*StageState, *Verdict} | {"manifest", "commit record", "lease", "rival"}))
def test_the_glossary_knows_the_word(word: str) -> None:
    terms = re.findall(r"^\| ([^|]+) \|", GLOSSARY.read_text(), flags=re.MULTILINE)
    texts = GLOSSARY.read_text()
    assert any(word in term.split(", ") for term in terms) or re.search(rf"verdict \|.*\b{word}\b", texts)


def test_python_examples_of_the_documents_compile() -> None:
    for document in DOCUMENTS:
        for number, block in enumerate(fenced(document.read_text(), "python")):
            compile(block, f"{document.name}:{number}", "exec")
