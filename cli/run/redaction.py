"""Secrets and the home folder, left out of what a run writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def without_secrets(value: object, secrets: Sequence[str] | None = None) -> Any:
    """The home folder becomes ~, and what the environment calls a token, key or password becomes ***."""
    if secrets is None:
        secrets = _secrets()
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
        home = str(Path.home())
        return value.replace(home, "~") if len(home) > 1 else value
    if isinstance(value, Mapping):
        return {k: without_secrets(v, secrets) for k, v in value.items()}
    return [without_secrets(v, secrets) for v in value] if isinstance(value, (list, tuple)) else value


def _secrets() -> list[str]:
    words = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
    return [v for k, v in os.environ.items() if len(v) >= 8 and any(w in k.upper() for w in words)]
