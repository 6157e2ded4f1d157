"""The version of genbo that is installed."""

from __future__ import annotations


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("genbo")
    except PackageNotFoundError:
        return "unknown"
