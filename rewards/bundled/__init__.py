"""Reward networks that ship with genbo, by name."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def folder(name: str) -> Path | None:
    """The folder of a bundled reward network, or None."""
    return HERE / name if name in names() else None


def names() -> list[str]:
    return sorted(path.parent.name for path in HERE.glob("*/open_clip_config.json"))
