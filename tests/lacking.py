"""What tests need of a machine beyond Python and make: without it they are skipped, but not where all must run."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacks(what: str, packages: str) -> NoReturn:
    """This machine has no such program."""
    words = f"{what} is not installed; on Debian: apt-get install {packages}"
    pytest.fail(words) if os.environ.get("CI") else pytest.skip(words)
