"""Models and prompt lists that ship with genbo, by name."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def model_folder(name: str) -> Path | None:
    """The folder of a bundled model, or None."""
    folder = HERE / name
    return folder if name in model_names() else None


def model_names() -> list[str]:
    return sorted(path.parent.name for path in HERE.glob("*/model_index.json"))


def prompts_file(name: str) -> Path | None:
    """The file of a bundled prompt list, or None."""
    return HERE / "prompts" / f"{name}.txt" if name in prompt_lists() else None


def prompt_lists() -> list[str]:
    return sorted(path.stem for path in (HERE / "prompts").glob("*.txt"))
