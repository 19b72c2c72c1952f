"""What the environment says about this process: everything else stands in the experiment file."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read where a command begins, never at import."""

    model_config = SettingsConfigDict(env_prefix="P3S_", frozen=True, use_attribute_docstrings=True)

    token: SecretStr | None = None
    """What a browser or program must know to see the page; required where it is served beyond loopback."""
