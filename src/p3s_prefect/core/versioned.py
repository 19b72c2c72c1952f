"""Documents in the store that say of which version they are: whoever reads them may be older than who wrote them."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from p3s_prefect.core.errors import RecordUnreadable

_T = TypeVar("_T", bound=BaseModel)


def read_versioned(kind: type[_T], content: bytes, *, newest: int, name: str, if_damaged: str) -> _T:
    """A document of this kind; `name` is what people are told it is, `if_damaged` what they can do then.

    Raises:
        RecordUnreadable: it is damaged, or of a version after `newest`.
    """
    try:
        found = json.loads(content)
        version = found.get("version")
        if not (isinstance(version, int) and version > newest):
            return kind.model_validate(found)
    except (ValueError, ValidationError, AttributeError, RecursionError) as error:
        raise RecordUnreadable(f"{name} is damaged", fix=if_damaged) from error
    raise RecordUnreadable(f"{name} is of version {version}, which is newer", fix="Install a newer p3s-prefect.")
