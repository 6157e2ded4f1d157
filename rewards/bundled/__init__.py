"""Reward networks that ship with genbo, by name: CLIPs, and heads that read what a CLIP sees."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def folder(name: str) -> Path | None:
    """The folder of a bundled CLIP or head, or None."""
    return HERE / name if name in (*names(), *heads()) else None


def names() -> list[str]:
    """The CLIPs, for `kind: clip`."""
    return sorted(path.parent.name for path in HERE.glob("*/open_clip_config.json"))


def heads() -> list[str]:
    """The heads, for `kind: aesthetic`."""
    return sorted(path.parent.name for path in HERE.glob("*/head.safetensors"))
