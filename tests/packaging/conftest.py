"""The wheel and the source distribution, built once from a copy of what is tracked."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from distributions import Built, run

ROOT = Path(__file__).parents[2]
# What setuptools reads. A copy, as a stale `build` directory of the tree would find its way into the wheel.
_SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "src", "flows", "tasks", "blocks", "deployments")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built with the build backend of this environment, so that nothing is fetched."""
    tree = tmp_path_factory.mktemp("tree")
    for name in _SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", ".", cwd=tree)
    (wheel,), (sdist,) = (tree / "dist").glob("*.whl"), (tree / "dist").glob("*.tar.gz")
    return Built(wheel=wheel, sdist=sdist)


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` directory of an environment with the wheel in it; what it needs is taken from this environment."""
    directory = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", str(directory), cwd=directory)
    (site,) = (directory / "lib").glob("python*/site-packages")
    # Only the directory: a `.pth` file in it, such as that of the editable installation, is not followed.
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    pip = [sys.executable, "-m", "pip", "--python", directory / "bin" / "python"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", built.wheel, cwd=directory)
    return directory / "bin"
