"""Core, imported in a fresh interpreter, brings in nothing that does input or output (S2, V21)."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import p3s_prefect.core

_LOOK = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted({module.partition(".")[0] for module in sys.modules})))
"""


def test_core_imports_no_orchestration_no_pilots_no_database_and_no_server() -> None:
    """V21: what computes does not stand on what shows; house rule 1."""
    modules = [info.name for info in pkgutil.walk_packages(p3s_prefect.core.__path__, "p3s_prefect.core.")]
    assert "p3s_prefect.core.dispatcher" in modules
    command = [sys.executable, "-I", "-c", _LOOK, json.dumps(modules)]
    loaded = set(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert "p3s_prefect" in loaded
    heavy = {"prefect", "distributed", "dask", "sqlalchemy", "starlette", "uvicorn", "httpx", "pebble", "boto3"}
    assert not loaded & (heavy | {"numpy", "matplotlib", "astropy", "hypothesis", "pytest"})
