"""Addresses as they may be shown: in messages, pages, logs and records."""

from __future__ import annotations

import re

# Up to the last @, as a password may hold one.
_OF_USER = re.compile(r"(://[^:/?#@\s]*):\S*@")
_AS_OPTION = re.compile(r"([?&][a-z_]*password=)[^&\s]*", re.IGNORECASE)


def without_password(text: str) -> str:
    """The same text. Where it holds an address with a password, three stars stand for that."""
    return _AS_OPTION.sub(r"\1***", _OF_USER.sub(r"\1:***@", text))


def holds_password(text: str) -> bool:
    """Whether it is an address with a password."""
    return without_password(text) != text


def without_secrets(address: str) -> str:
    """The address with its password left out: whoever uses it must know the password otherwise."""
    return _AS_OPTION.sub("", _OF_USER.sub(r"\1@", address))
